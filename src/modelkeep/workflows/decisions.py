"""What people decided, as the releases log records it: reviews of accused accounts, erasures, and archives of closed logs.

A cleared account's evidence counts from the review on. An erased name has no secret of before the erasure any more
(core/epochs); a forgotten account is nobody's.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import msgspec

from modelkeep.core.epochs import Epochs
from modelkeep.core.values import Digest, Statement, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import ModelkeepError
from modelkeep.extraction.flips import LEAST_SHARE, MOST_SHARE
from modelkeep.extraction.ladder import Ladder
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import Act, Trust
from modelkeep.ledger.statements import encode_statement, keep_resource, peek_type, predicate_of
from modelkeep.workflows.archive import Archived, Removed
from modelkeep.workflows.covariates import is_case
from modelkeep.workflows.watch import Agreed, Calibrated, Cleared, Erased, Today

REVIEW, CLEARED, CONFIRMED, DECEIVED = "review", "cleared", "confirmed", "deceived"
ALLOW = "budget.allow"
"""Act: an account may learn so many times what others may, until a day."""
MOST_FACTOR = 1000.0
INDICATE = "intel.indicators"
"""Act: the list of indicators of threat intelligence is another one."""
TRACE = "trace"
"""Act: a suspect was traced."""
POOL = "probes.log"
"""Act: rows that probes for suspects may be drawn of, by their Merkle root."""
ERASE, FORGET, ERASE_DATA = "audit.erase", "user.forget", "data.erase"
"""Acts: the audit key of a pseudonym is dropped; the account behind it is forgotten; the salt of a data set is dropped."""

GRANT, REVOKE, REMOVE_DATA = "data.grant", "data.revoke", "data.remove"
"""Acts: an account or a role may read a data set for a purpose; it no longer may; a version is removed for good."""

ARCHIVE = "log.archive"
"""Act: a closed audit log was copied elsewhere, and some or all of it removed here."""

Decision = Cleared | Erased | Calibrated | Agreed | Today | Ladder


class Allowed(msgspec.Struct, frozen=True):
    """A larger budget: ``factor`` times the usual, until Unix nanosecond ``until``; log ``index`` of the act."""

    factor: float
    until: int
    index: int


class Review(NamedTuple):
    """What somebody decided about an account, ``at`` Unix nanoseconds. ``flips``: of a deceived one, the share of its answers
    whose labels are flipped, 0 = those of regions are false."""

    at: int
    outcome: str
    reason: str
    flips: float = 0.0

    @property
    def text(self) -> str:
        """The outcome in words."""
        return f"{self.outcome}, {self.flips:.1%} of labels flipped" if self.flips else self.outcome


class OpenedKey(NamedTuple):
    """An account key that a trace report tells: of which release and subject, and of which epoch."""

    release: str
    subject: str
    epoch: int


class LoggedPool(msgspec.Struct, frozen=True):
    """Rows that probes are drawn of, as an act says it: the Merkle root ``pool``, 64 hex digits, over so many ``rows``; log
    ``index``."""

    pool: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    rows: Annotated[int, msgspec.Meta(ge=1)]
    index: int


class FalseAlarm(msgspec.Struct, frozen=True):
    """A review found that ``subject`` was accused wrongly, ``at`` Unix nanoseconds: for the next calibration."""

    subject: str
    at: int
    index: int


_BATCH = 256
_EPOCH = re.compile("[0-9]{1,9}")


class Decisions:
    """Reviews and erasures so far. Acts that no trusted identity signed, of another keep, or copied, count for nothing.

    Else whoever has the log's key alone could clear an account again, or erase it again.
    """

    def __init__(self, trust: TrustRoot) -> None:
        self._signatories, self._keep = Signatories(trust), keep_resource(trust.origin)
        self._seen: set[Digest] = set()
        self._cleared: dict[str, tuple[int, ...]] = {}
        self._epochs: dict[str, dict[str, int]] = {ERASE: {}, FORGET: {}, ERASE_DATA: {}}
        self._size = 0
        self._untold: list[Decision] = []
        self._confirmed: set[str] = set()
        self.erasures: list[tuple[int, Act]] = []
        """Every act of erasure with its log index, oldest first."""
        self.sanctioned: dict[str, int] = {}
        """Subjects that the latest review on them put on the last rung of the ladder, with its log index."""
        self.flips: dict[str, float] = {}
        """Those of them whose labels are flipped, and in which share of the answers."""
        self.reviews: dict[str, list[Review]] = {}
        """Every review of each subject, oldest first."""
        self.allowed: dict[str, Allowed] = {}
        """The latest larger budget of each subject, also one that is over."""
        self.indicators = ""
        """Digest of the list of indicators in force, "" before the first."""
        self.false_alarms: list[FalseAlarm] = []
        """Reviews that called an alarm false, oldest first."""
        self.traced: dict[str, int] = {}
        """Unix nanoseconds at which each suspect was traced first, by its digest: it was there by then."""
        self.grants: dict[str, dict[tuple[str, str], int]] = {}
        """Log index of each grant in force, by data set, then by (pseudonym or ``role:NAME``, purpose)."""
        self.removed: set[str] = set()
        """Versions of data sets that were removed, ``name@version``."""
        self.opened: dict[OpenedKey, int] = {}
        """Unix nanoseconds from which on whoever read a trace report may know an account key."""
        self.pools: dict[tuple[str, str], LoggedPool] = {}
        """Rows that probes may be drawn of, by release and root, where the log says so first."""
        self.archived: dict[str, Archived] = {}
        """Audit logs that were pruned, by origin."""

    def cleared_at(self, subject: str) -> tuple[int, ...]:
        """Unix nanoseconds of every review that cleared ``subject``, each later than the one before."""
        return self._cleared.get(subject, ())

    def flipping(self, subject: str) -> float | None:
        """The share of its labels that are flipped, of a subject on the last rung, 0 = regions are false; None of any other."""
        return self.flips.get(subject, 0.0) if subject in self.sanctioned else None

    def confirmed(self) -> set[str]:
        """Subjects whose last review confirmed that they are thieves."""
        return set(self._confirmed)

    def cases(self) -> list[Cleared]:
        """Every review that cleared a case, ascending by its time."""
        found = [Cleared(about, at) for about, times in list(self._cleared.items()) if is_case(about) for at in times]
        return sorted(found, key=lambda review: review.at)

    def epochs(self, verb: str = ERASE) -> Epochs:
        """The epochs of names that acts of this ``verb`` erase, as they are whenever they are asked for."""
        found = self._epochs[verb]
        return lambda name: found.get(name, 0)

    def erased(self, verb: str = ERASE) -> Mapping[str, int]:
        """Every name that acts of this ``verb`` erased, with its epoch."""
        return dict(self._epochs[verb])

    def rebase(self, signatories: Signatories) -> None:
        """From the next entry on, believe whom ``signatories`` (of all that was read so far) believe."""
        self._signatories = signatories

    def catch_up(self, view: LogView, size: int) -> None:
        """Read the log up to ``size`` entries. What was decided about accounts waits for ``hand_over``.

        Raises NotTrusted, Unavailable.
        """
        while self._size < size:
            for entry in view.entries(self._size, min(size, self._size + _BATCH)):
                act = self._act(entry, self._size)
                found = self._decided(act, self._size) if act else None
                self._untold += [found] if found else []
                self._size += 1

    def hand_over(self, take: Callable[[Decision], None]) -> None:
        """Tell ``take`` each decision that it has not taken yet; one on which it raises is told again the next time."""
        while self._untold:
            take(self._untold[0])
            del self._untold[0]

    def _act(self, entry: bytes, index: int) -> Act | None:
        """The act that this log entry is, if it counts. The evidence book reports what is wrong with an entry."""
        try:
            envelope = parse_envelope(entry)
            kind = peek_type(envelope)
            if kind not in (Act.TYPE, Trust.TYPE):
                return None
            statement, _ = self._signatories.check(envelope, index)
            if kind == Trust.TYPE:
                self._signatories.follow(index, envelope, statement)
                return None
            return predicate_of(statement, Act) if self._fresh(statement) else None
        except ModelkeepError:
            return None

    def _fresh(self, statement: Statement) -> bool:
        """Whether a statement is about this keep, and no copy of one that was logged before: that would erase or clear anew."""
        identifier, before = digest_of(encode_statement(statement)), len(self._seen)
        self._seen.add(identifier)
        return len(self._seen) > before and statement.subject == (self._keep,)

    def _decided(self, said: Act, index: int) -> Decision | None:
        if said.verb in self._epochs:
            self._epochs[said.verb][said.about] = index + 1
            self.erasures.append((index, said))
            return Erased(said.about) if said.verb == ERASE else None
        if said.verb == ARCHIVE:
            self._archive(said, index)
            return None
        if said.verb in (GRANT, REVOKE):
            self._grant(said, index)
            return None
        if said.verb == REMOVE_DATA:
            self.removed.add(said.about)
            return None
        if said.verb == ALLOW:
            self._allow(said, index)
            return None
        if said.verb == TRACE:
            self.traced.setdefault(said.detail.get("suspect", ""), said.at)
            for key in opened_keys(said.about, said.detail.get("opened", "")):
                self.opened.setdefault(key, said.at)
            return None
        if said.verb == POOL:
            found = logged_pool(said, index)
            if found is not None:
                self.pools.setdefault((said.about, found.pool), found)
            return None
        if said.verb == INDICATE:
            self.indicators = said.detail.get("digest", "")
            return None
        return self._reviewed(said, index) if said.verb == REVIEW else None

    def _reviewed(self, said: Act, index: int) -> Decision | None:
        outcome = said.detail.get("outcome", "")
        flips = _share(said.detail.get("flips", "")) if outcome == DECEIVED else 0.0
        self.reviews.setdefault(said.about, []).append(Review(said.at, outcome, said.detail.get("reason", ""), flips))
        if outcome in (CLEARED, CONFIRMED):  # what this version does not know takes nothing back
            self.sanctioned.pop(said.about, None)
        elif outcome == DECEIVED and not is_case(said.about):
            if flips:
                self.flips[said.about] = flips
            else:
                self.flips.pop(said.about, None)
            self.sanctioned[said.about] = index
        if outcome == CONFIRMED:
            self._confirmed.add(said.about)
        if outcome != CLEARED:
            return None
        self._confirmed.discard(said.about)
        if said.detail.get("false_alarm") == "true":
            self.false_alarms.append(FalseAlarm(said.about, said.at, index))
        earlier = self.cleared_at(said.about)
        at = max(said.at, earlier[-1] + 1) if earlier else said.at  # the log's order stands when a clock went backwards
        self._cleared[said.about] = (*earlier, at)
        return Cleared(said.about, at)

    def _allow(self, said: Act, index: int) -> None:
        try:
            found = msgspec.convert({**said.detail, "index": index}, Allowed, strict=False)
        except msgspec.ValidationError:
            return  # it grants nothing
        if 0.0 < found.factor <= MOST_FACTOR:
            self.allowed[said.about] = found

    def _grant(self, said: Act, index: int) -> None:
        granted = self.grants.setdefault(said.about, {})
        key = (said.detail.get("to", ""), said.detail.get("purpose", ""))
        if said.verb == GRANT:
            granted[key] = index
        else:
            granted.pop(key, None)

    def _archive(self, said: Act, index: int) -> None:
        try:
            found = msgspec.convert({**said.detail, "index": index}, Archived, strict=False)
        except msgspec.ValidationError:
            return  # it says nothing that could excuse a missing file
        earlier = self.archived.get(said.about)
        if earlier is None or earlier.removed is Removed.BODIES:
            self.archived[said.about] = found


def opened_keys(release: str, said: str) -> list[OpenedKey]:
    """The account keys that a ``trace`` act says its report opens, as ``SUBJECT:EPOCH,…``; what is no such is passed over."""
    parts = [one.rpartition(":") for one in said.split(",")]
    return [OpenedKey(release, subject, int(epoch)) for subject, _, epoch in parts if subject and _EPOCH.fullmatch(epoch)]


def logged_pool(said: Act, index: int) -> LoggedPool | None:
    """The pool that a ``probes.log`` act says; None where it says none."""
    try:
        return msgspec.convert({**said.detail, "index": index}, LoggedPool, strict=False)
    except msgspec.ValidationError:
        return None


def _share(said: str) -> float:
    """The share of flipped labels that a review says; 0 where it says none that there can be."""
    try:
        share = float(said)
    except ValueError:
        return 0.0
    return share if LEAST_SHARE <= share <= MOST_SHARE else 0.0


def decisions_of(view: LogView, trust: TrustRoot) -> Decisions:
    """What the whole log under ``view`` says was decided, of which nobody needs to be told. Raises NotTrusted, Unavailable."""
    found = Decisions(trust)
    found.catch_up(view, view.checkpoint.size)
    found.hand_over(lambda _decision: None)
    return found
