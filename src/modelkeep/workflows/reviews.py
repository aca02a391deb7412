"""Reviews of accused accounts, as the releases log records them: a cleared account's evidence counts from the review on."""

from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import ModelkeepError
from modelkeep.ledger.log import LogView
from modelkeep.ledger.statements import Act, check_statement, peek_type, predicate_of, short_type

REVIEW, CLEARED = "review", "cleared"
_BATCH = 256


class Reviews:
    """When each subject was last cleared. Acts that no trusted identity signed count for nothing."""

    def __init__(self, trust: TrustRoot) -> None:
        self._identities = {trusted.public.key_ids[0]: trusted.public for trusted in trust.identities}
        self._trusted = {trusted.public.name: trusted for trusted in trust.identities}
        self._cleared: dict[str, int] = {}
        self._size = 0

    def cleared_at(self, subject: str) -> int:
        """Unix nanoseconds of the last review that cleared ``subject``; 0 when there was none."""
        return self._cleared.get(subject, 0)

    def catch_up(self, view: LogView, size: int) -> list[str]:
        """Read the log up to ``size`` entries; the subjects that were cleared anew. Raises NotTrusted, Unavailable."""
        fresh: list[str] = []
        while self._size < size:
            for entry in view.entries(self._size, min(size, self._size + _BATCH)):
                subject = self._cleared_by(entry, self._size)
                fresh += [subject] if subject else []
                self._size += 1
        return fresh

    def _cleared_by(self, entry: bytes, index: int) -> str:
        """The subject that this log entry clears, or "". The evidence book reports what is wrong with an entry."""
        try:
            envelope = parse_envelope(entry)
            if peek_type(envelope) != Act.TYPE:
                return ""
            statement, identity = check_statement(envelope, self._identities)
            self._trusted[identity.name].check_may_sign(short_type(Act.TYPE), index)
            said = predicate_of(statement, Act)
        except ModelkeepError:
            return ""
        if said.verb != REVIEW or said.detail.get("outcome") != CLEARED:
            return ""
        self._cleared[said.about] = max(said.at, self.cleared_at(said.about))
        return said.about
