"""A checkpoint kept in a file from one check of a log to the next: what was in the log then must be in it for good."""

from pathlib import Path

from modelkeep.adapters.files import NewFile
from modelkeep.crypto.notes import Checkpoint, open_checkpoint
from modelkeep.errors import Conflict, Missing, NotTrusted, Unavailable


class KeptNote:
    """The signed note of the last checkpoint that was checked, verbatim, in ``path``; the file need not be there yet."""

    def __init__(self, path: str) -> None:
        """Reads the file. Raises Unavailable."""
        self._path = Path(path)
        self._before = self._read()

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise Unavailable(f"cannot read {self._path}: {cause.strerror}") from cause

    def checkpoint(self, vkey: str, origin: str) -> Checkpoint | None:
        """What was kept; None the first time. Raises NotTrusted (it is no checkpoint of this log, or was altered)."""
        if self._before is None:
            return None
        try:
            return open_checkpoint(self._before, vkey, origin)
        except NotTrusted as cause:
            raise NotTrusted(f"{self._path} does not hold a checkpoint of the log {origin}: {cause}") from cause

    def keep(self, note: bytes) -> None:
        """Replace what was kept, durably. Raises Conflict (another check did meanwhile: run it again), Unavailable."""
        if self._read() != self._before:
            raise Conflict(f"another check changed {self._path} meanwhile, and may have seen more: run it again")
        if note == self._before:
            return
        try:
            with NewFile(self._path) as fresh:
                fresh.write([note])
                fresh.publish(replace=True)
        except Missing as cause:
            raise Unavailable(f"cannot write {self._path}: {cause}") from cause
        self._before = note
