"""What witnesses have seen of a log: cosigned checkpoints beside its tiles, as a writer keeps and readers count them.

``checkpoint`` is replaced by every append, at first without cosignatures; the newest checkpoint that had a quorum of them stays
in ``checkpoint.witnessed``. Every entry below its size is witnessed for good.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from modelkeep.core.ports import LogFiles
from modelkeep.crypto.cosignatures import cosignatures, with_lines
from modelkeep.crypto.notes import Checkpoint, SignatureLine, open_checkpoint, split_note
from modelkeep.errors import Missing, NotTrusted
from modelkeep.ledger.log import LogView, read_note
from modelkeep.ledger.quorum import LogPolicy
from modelkeep.ledger.tiles import CHECKPOINT, TileFiles

WITNESSED = "checkpoint.witnessed"


class Witnessed(NamedTuple):
    """How much of a log a quorum has cosigned: its first ``size`` entries, by the witnesses ``names`` of the policy."""

    size: int
    names: tuple[str, ...]


def cosigners(note: bytes, policy: LogPolicy) -> tuple[str, ...]:
    """Names of the witnesses of ``policy`` that cosigned the checkpoint ``note``, in its order.

    Raises NotTrusted: malformed, or a cosignature of one of them does not hold.
    """
    found = cosignatures(note, (witness.verifier for witness in policy.witnesses))
    return tuple(witness.name for witness in policy.witnesses if witness.verifier in found)


class Cosigned:
    """A reader of how much of a log is witnessed. It remembers the most it saw: what was witnessed once is so for good.

    Not thread-safe. ``policy``: the one in force, asked for at every look; None when nobody asks for witnesses.
    """

    def __init__(self, files: LogFiles, vkey: str, policy: Callable[[], LogPolicy | None]) -> None:
        self._files, self._vkey, self._policy = files, vkey, policy
        self._seen: tuple[LogPolicy, bytes, bytes] | None = None
        self._best, self._note = Witnessed(0, ()), b""

    @property
    def note(self) -> bytes:
        """The checkpoint that the last look counted, with its cosignatures; empty when nothing is witnessed."""
        return self._note

    def look(self, view: LogView) -> Witnessed | None:
        """What is witnessed of the log under ``view``; None without a policy. Cheap while nothing changed.

        Raises NotTrusted (a witnessed checkpoint is damaged, or the log was rolled back behind it or rewritten), Invalid (the
        policy), Unavailable.
        """
        policy = self._policy()
        if policy is None:
            return None
        kept = self._kept()
        seen = (policy, view.note, kept)
        if seen != self._seen:
            if self._seen is None or self._seen[0] != policy:
                policy.check_for(self._vkey)
                self._best, self._note = Witnessed(0, ()), b""
            for note in filter(None, (kept, view.note)):
                found = self._count(note, policy, view)
                if (found.size, len(found.names)) > (self._best.size, len(self._best.names)):
                    self._best, self._note = found, note
            self._seen = seen
        return self._best

    def _kept(self) -> bytes:
        try:
            return self._files.read(WITNESSED)
        except Missing:
            return b""

    def _count(self, note: bytes, policy: LogPolicy, view: LogView) -> Witnessed:
        found = open_checkpoint(note, self._vkey, view.checkpoint.origin)
        names = cosigners(note, policy)
        if not policy.reached(names):
            return Witnessed(0, ())
        if found.size > view.checkpoint.size:
            view.refresh()  # the log grew, and was witnessed, since the view was
        check_witnessed(view, found)
        return Witnessed(found.size, names)


def check_witnessed(view: LogView, found: Checkpoint) -> None:
    """Check that the log under ``view`` begins with what witnesses saw. Raises NotTrusted, Unavailable."""
    if found.size > view.checkpoint.size:
        raise NotTrusted(
            f"the log {found.origin} was rolled back: it has {view.checkpoint.size} entries and witnesses saw {found.size}"
        )
    if view.root_at(found.size) != found.root:
        raise NotTrusted(
            f"the log {found.origin} was rewritten: its first {found.size} entries are not those that witnesses saw"
        )


def keep_cosignatures(files: TileFiles, vkey: str, policy: LogPolicy, note: bytes, lines: Sequence[SignatureLine]) -> bytes:
    """Keep cosignatures that witnesses gave on the checkpoint ``note`` of a log in ``files``; the note that has them all.

    ``checkpoint`` gets them unless the log has grown since. ``checkpoint.witnessed`` becomes this one if that has a quorum and
    covers more than the one there, or as much and has more cosignatures. Raises NotTrusted, Missing (no log), Unavailable.
    """
    text, _ = split_note(note)
    origin = text.partition("\n")[0]
    with files.lock(wait=True):
        now = read_note(files, origin)
        if split_note(now)[0] == text:
            note = with_lines(now, lines)
            if note != now:
                files.write(CHECKPOINT, note)
        else:
            note = with_lines(note, lines)
        if policy.reached(cosigners(note, policy)) and _is_more(files, vkey, policy, note):
            files.write(WITNESSED, note)
    return note


def _is_more(files: LogFiles, vkey: str, policy: LogPolicy, note: bytes) -> bool:
    size = open_checkpoint(note, vkey, _origin(note)).size
    try:
        kept = files.read(WITNESSED)
        before, by = open_checkpoint(kept, vkey, _origin(note)).size, cosigners(kept, policy)
    except (Missing, NotTrusted):  # a damaged one is mended
        return True
    return (size, len(cosigners(note, policy))) > (before, len(by))


def _origin(note: bytes) -> str:
    return split_note(note)[0].partition("\n")[0]
