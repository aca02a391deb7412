"""Every change of an account's rung as an audit record with the numbers behind it, written off the hot path.

Several gateways, and workers of one, see the same change: whoever first brings the rung that stands in the records up to date
writes the record. What was found again at a restart is no change; a process that is killed between these two steps, a moment
apart, leaves one out.
"""

from collections.abc import Callable, Mapping

import msgspec

from modelkeep.core.epochs import Epochs, epoch_key, split_epoch
from modelkeep.core.ports import Change, Records
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.wrap import open_bytes
from modelkeep.errors import Conflict, Missing, ModelkeepError, NotTrusted
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.verdicts import Verdict
from modelkeep.serving.audit import AuditEntry
from modelkeep.serving.bodies import SubjectKeys, body_context
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.watch import Watching

RUNG = "rung"
"""Kind of the audit records; and of the stored ones, by ``rung_key``, whose body is the rung's name."""
MOST = 64
"""Changes written at one look; the others wait for the next."""
UNKNOWN = "unknown"
"""The rung before, of a stored one that is none: what somebody wrote there does not go into a record of ours."""
_VERSION = 1
_RUNGS = {rung.text.encode(): rung.text for rung in Rung}


def rung_key(ref: ReleaseRef, subject: str, epochs: Epochs) -> str:
    """The key of the stored rung of ``subject``: it goes with what is erased (core/epochs)."""
    return f"{ref}/{epoch_key(subject, epochs(subject))}"


def whose_rung(key: str) -> tuple[str, str, int]:
    """Undo ``rung_key``: release, subject and the subject's epoch then. Raises NotTrusted."""
    release, _, about = key.rpartition("/")
    return release, *split_epoch(about)


class Move(msgspec.Struct, frozen=True):
    """The body of the record: from which rung to which, and why. ``log_m``: natural log of the evidence (M + R) / 2;
    ``equivalent`` natural questions' worth was learnt this period of ``limit``; ``queries``: all so far."""

    version: int
    before: str
    after: str
    odds: str
    log_m: float
    equivalent: float
    limit: float
    queries: int
    effective: int


class Moves:
    """Writes the changes that one process sees. One thread calls ``look``."""

    def __init__(
        self,
        records: Records,
        keys: SubjectKeys,
        watches: Callable[[], Mapping[ReleaseRef, Watching]],
        audit: AuditSeries,
        epochs: Epochs,
    ) -> None:
        """``epochs``: of subjects, as the releases log says now."""
        self._epochs = epochs
        self._records, self._keys, self._watches, self._audit = records, keys, watches, audit
        self._waiting: dict[tuple[ReleaseRef, str], None] = {}
        self._owed: list[tuple[AuditEntry, bytes]] = []

    def look(self) -> None:
        """Write what changed since the last look. Raises Unavailable, NotTrusted; what was not written waits.

        While no record can be written nothing is claimed: the next process finds the change again.
        """
        watches = self._watches()
        for ref, watch in watches.items():
            self._waiting.update(dict.fromkeys((ref, subject) for subject in watch.moved()))
        for ref, subject in list(self._waiting)[:MOST]:
            self._pay()
            if self._audit.refusal:
                return
            verdict = watches[ref].verdict(subject)
            known = verdict.queries + verdict.budget.equivalent + verdict.rung > 0  # else it was erased
            if known:
                self._keys.key(subject)
            before = self._claim(rung_key(ref, subject, self._epochs), verdict.rung)
            del self._waiting[ref, subject]
            if before is not None and known:
                self._owe(ref, subject, before, verdict)
        self._pay()

    def _claim(self, key: str, rung: Rung) -> str | None:
        """Bring the stored rung up to date; what it was. None: it was that already, or another process is doing it."""
        try:
            record = self._records.get(RUNG, key)
            before, revision = _RUNGS.get(record.body or b"", UNKNOWN), record.revision
        except Missing:
            before, revision = Rung.MARK.text, 0
        if before == rung.text:
            return None
        try:
            self._records.commit([Change(RUNG, key, rung.text.encode() if rung else None, revision)])
        except Conflict:
            return None
        return before

    def _owe(self, ref: ReleaseRef, subject: str, before: str, verdict: Verdict) -> None:
        sealer = self._keys.sealer(subject, str(ref))
        spent = verdict.budget
        move = Move(
            version=_VERSION,
            before=before,
            after=verdict.rung.text,
            odds=verdict.odds,
            log_m=verdict.log_m,
            equivalent=spent.equivalent,
            limit=spent.limit,
            queries=verdict.queries,
            effective=verdict.effective,
        )
        if sealer is not None:  # else the subject was erased at this moment
            entry = AuditEntry(kind=RUNG, subject=subject, release=str(ref), request="", outcome=verdict.rung.text)
            self._owed.append((entry, sealer.seal(msgspec.msgpack.encode(move))))

    def _pay(self) -> None:
        while self._owed:
            self._audit.submit(*self._owed[0], _unheard)
            del self._owed[0]


def _unheard(_result: int | ModelkeepError) -> None:
    """Nobody waits for the record; a log that cannot write it answers nothing either."""


def open_move(key: bytes, sealed: bytes, subject: str, release: str) -> Move:
    """Open the body of such a record. Raises NotTrusted."""
    try:
        found = msgspec.msgpack.decode(open_bytes(key, sealed, body_context(subject, release)), type=Move)
    except msgspec.MsgspecError as cause:
        raise NotTrusted(f"the body of a record about a rung is malformed: {cause}") from cause
    if found.version != _VERSION:
        raise NotTrusted(f"the body of a record about a rung has version {found.version}, and this modelkeep knows {_VERSION}")
    return found
