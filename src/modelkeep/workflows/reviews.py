"""Reviews of accused accounts, as the releases log records them: a cleared account's evidence counts from the review on."""

from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import ModelkeepError
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import Act, Trust
from modelkeep.ledger.statements import peek_type, predicate_of
from modelkeep.workflows.watch import Cleared

REVIEW, CLEARED = "review", "cleared"
_BATCH = 256


class Reviews:
    """When each subject was last cleared. Acts that no trusted identity signed count for nothing."""

    def __init__(self, trust: TrustRoot) -> None:
        self._signatories = Signatories(trust)
        self._cleared: dict[str, tuple[int, ...]] = {}
        self._size = 0

    def cleared_at(self, subject: str) -> tuple[int, ...]:
        """Unix nanoseconds of every review that cleared ``subject``, each later than the one before."""
        return self._cleared.get(subject, ())

    def rebase(self, signatories: Signatories) -> None:
        """From the next entry on, believe whom ``signatories`` (of all that was read so far) believe."""
        self._signatories = signatories

    def catch_up(self, view: LogView, size: int) -> list[Cleared]:
        """Read the log up to ``size`` entries; the reviews that are new. Raises NotTrusted, Unavailable."""
        fresh: list[Cleared] = []
        while self._size < size:
            for entry in view.entries(self._size, min(size, self._size + _BATCH)):
                found = self._cleared_by(entry, self._size)
                fresh += [found] if found else []
                self._size += 1
        return fresh

    def _cleared_by(self, entry: bytes, index: int) -> Cleared | None:
        """The review that this log entry is, if it clears. The evidence book reports what is wrong with an entry."""
        try:
            envelope = parse_envelope(entry)
            kind = peek_type(envelope)
            if kind not in (Act.TYPE, Trust.TYPE):
                return None
            statement, _ = self._signatories.check(envelope, index)
            if kind == Trust.TYPE:
                self._signatories.follow(index, envelope, statement)
                return None
            said = predicate_of(statement, Act)
        except ModelkeepError:
            return None
        if said.verb != REVIEW or said.detail.get("outcome") != CLEARED:
            return None
        earlier = self.cleared_at(said.about)
        at = max(said.at, earlier[-1] + 1) if earlier else said.at  # the log's order stands when a clock went backwards
        self._cleared[said.about] = (*earlier, at)
        return Cleared(said.about, at)
