"""``Sink`` on another disk: each log's journal again, byte for byte, so that it can take the place of a lost one.

Below the root, a folder for each log with ``journal/…`` and ``checkpoint``. Bytes that differ from the journal's, such as a
batch that the journal lost with its power, are put beside it (``apart-…``) and never dropped.
"""

import hashlib
import time
from pathlib import Path

from modelkeep.adapters.logfile import FileJournal, FolderLogFiles
from modelkeep.adapters.room import FolderRoom
from modelkeep.core.ports import SinkBatch, SinkPlace
from modelkeep.errors import Invalid, Unavailable

_CHECKPOINT = "checkpoint"
_LOOK_SECONDS = 0.002
"""A busy mirror looks at its root and its room this often; at its file, with every batch."""


class DiskSink:
    """A mirror below ``root``, a folder that exists: a disk that is not mounted must not be taken for an empty one."""

    def __init__(self, root: Path, *, beside: Path | None, reserve: int) -> None:
        """``beside``: the keep's folder, which must be on another disk; None = it need not. ``reserve``: bytes kept free.

        Raises Invalid (the same disk).
        """
        self.name = f"disk:{root}"
        self._root, self._room = root, FolderRoom(root, reserve)
        self._beside = beside
        self._identity: tuple[int, int] | None = None
        self._looked = 0.0
        self._files = FolderLogFiles(root)
        self._journal: FileJournal | None = None
        self._open: tuple[str, int] = ("", -1)
        if beside is not None and root.is_dir():
            self._see_root()

    def _check_apart(self, device: int, keeps: int) -> None:
        if device == keeps:
            raise Invalid(f"{self._root} is on the same disk as the keep: mount another there, or say '?same-disk=yes'")

    def resume(self, origin: str) -> SinkPlace | None:
        """How much of the journal is here."""
        self.close()
        self._look()
        self._files = FolderLogFiles(self._root / _instance(origin))
        names = [path.removeprefix("journal/") for path in self._files.paths("journal/")]
        if strange := [name for name in names if not name.isdecimal()]:
            raise Unavailable(f"{self.name} holds {strange[0][:40]!r}, which is no segment of a journal: take it away")
        numbers = sorted(map(int, names))
        if not numbers:
            return SinkPlace(0, 0)
        for number, expected in enumerate(numbers):
            if number != expected:  # one in the middle is gone: begin there again
                return SinkPlace(number, 0)
        return SinkPlace(numbers[-1], self._size(_instance(origin), numbers[-1]))

    def _size(self, instance: str, segment: int) -> int:
        path = self._root / instance / _segment(segment)
        try:
            return path.stat().st_size
        except OSError as cause:
            raise Unavailable(f"cannot look at {path}: {cause.strerror}") from cause

    def accept(self, batch: SinkBatch) -> None:
        """Append, fdatasync, and see that the file is still the one at its path."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        journal = self._at(batch)
        size = journal.size()
        if size < batch.offset:
            raise Unavailable(f"{self.name} has {size} bytes of segment {batch.segment} where {batch.offset} must be")
        data = batch.data
        if size > batch.offset:
            data = self._rest(batch)
            journal = self._at(batch)
        if data:
            journal.append(data)
        journal.sync()

    def _at(self, batch: SinkBatch) -> FileJournal:
        key = (batch.origin, batch.segment)
        if self._open != key or self._journal is None:
            self.close()
            self._files = FolderLogFiles(self._root / _instance(batch.origin))
            self._journal, self._open = self._files.journal(_segment(batch.segment)), key
        return self._journal

    def _rest(self, batch: SinkBatch) -> bytes:
        """What of ``batch`` is not here yet. Other bytes in its place are put aside first."""
        path = _segment(batch.segment)
        there = self._files.read(path)[batch.offset :]
        if batch.data.startswith(there):
            return batch.data[len(there) :]
        if there.startswith(batch.data):
            return b""
        name = f"apart-{batch.segment:06d}-{batch.offset}-{hashlib.sha256(there).hexdigest()[:16]}"
        self._files.write(name, there)
        self.close()
        self._files.truncate(path, batch.offset)
        return batch.data

    def checkpoint(self, origin: str, note: bytes) -> None:
        """Keep the signed checkpoint beside the journal."""
        self._see_root()
        FolderLogFiles(self._root / _instance(origin)).write(_CHECKPOINT, note)

    def probe(self) -> None:
        """See that root and journal are still there, writable and with room."""
        self._look()
        if self._journal is not None:
            self._journal.check()

    def _look(self) -> None:
        self._looked = 0.0  # what was bad is looked at again
        self._see_root()
        self._room.check()
        self._looked = time.monotonic()

    def _see_root(self) -> None:
        try:
            found = self._root.stat()
            keeps = self._beside.stat().st_dev if self._beside is not None else -1
        except OSError as cause:
            raise Unavailable(f"{self.name} is not there: {cause.strerror}") from cause
        identity = (found.st_dev, found.st_ino)
        if self._identity is None:
            self._check_apart(found.st_dev, keeps)
            self._identity = identity
        if identity != self._identity:
            raise Unavailable(f"{self.name} is another folder than it was: mount the disk again, or start this process again")

    def close(self) -> None:
        """Release the open file."""
        if self._journal is not None:
            self._journal.close()
            self._journal, self._open = None, ("", -1)


def _instance(origin: str) -> str:
    return origin.rpartition("/")[2]


def _segment(number: int) -> str:
    return f"journal/{number:06d}"
