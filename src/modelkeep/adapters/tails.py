"""Replace the end of a large file in place, so that a crash at any moment loses neither the old end nor the new one.

A sealed file is ``body ‖ tail`` (tail = recipient block and trailer). The body may have gigabytes and stays; the tail has
kilobytes. Before the file is touched, the new tail is on stable storage in a journal beside it, ``FILE.rewrap``; from then on
the journal is the truth, for readers too, until the file has the new tail durably and the journal is removed.
docs/sealed-files.md specifies both.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from modelkeep.adapters.files import SourceFile, fill_from, open_regular
from modelkeep.adapters.folders import sync_folder
from modelkeep.container.file import TRAILER_SIZE, split_file
from modelkeep.container.layout import HEADER_SIZE
from modelkeep.container.reader import Reader
from modelkeep.container.recipients import MAX_BLOCK
from modelkeep.errors import Conflict, NotTrusted, Unavailable

SUFFIX = ".rewrap"
MAX_TAIL = MAX_BLOCK + TRAILER_SIZE

_MAGIC = b"KEEPTAIL"
_VERSION = 1
_FIXED = struct.Struct(">8sB32sQI")
_LOCK_SECONDS = 10.0
_CHANGE, _TAIL = 0, 1
"""The bytes of a file whose locks stand for: changing it at all, and its tail."""
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, process."""


class Disk(Protocol):
    """The writes of a replacement, in the order in which they happen. Each raises OSError."""

    def create(self, path: Path, data: bytes, mode: int) -> None:
        """Make a new file with ``data``, on stable storage. FileExistsError when there is one."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Make the names in ``folder`` durable."""
        ...

    def write(self, fd: int, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``."""
        ...

    def truncate(self, fd: int, size: int) -> None:
        """Set the size."""
        ...

    def sync(self, fd: int) -> None:
        """Make contents and size durable."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file that may be gone."""
        ...


class LocalDisk:
    """``Disk`` on the operating system."""

    def create(self, path: Path, data: bytes, mode: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, mode)
            self.write(fd, 0, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_folder(self, folder: Path) -> None:
        sync_folder(folder)

    def write(self, fd: int, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class Journal(NamedTuple):
    """A committed replacement: of the file with this header, everything from ``body_size`` on becomes ``tail``."""

    header_hash: bytes
    body_size: int
    tail: bytes

    def encode(self) -> bytes:
        """The journal's bytes, which end with the SHA-256 of the rest: a journal that was cut off does not count."""
        data = _FIXED.pack(_MAGIC, _VERSION, self.header_hash, self.body_size, len(self.tail)) + self.tail
        return data + hashlib.sha256(data).digest()

    @classmethod
    def parse(cls, data: bytes) -> "Journal | None":
        """What ``encode`` gave; None when it was cut off, so that the file was never touched."""
        if len(data) < _FIXED.size + 32 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
            return None
        magic, version, header_hash, body_size, length = _FIXED.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION) or length != len(data) - _FIXED.size - 32:
            return None
        return cls(header_hash, body_size, data[_FIXED.size : -32])


@dataclass(frozen=True)
class Spliced:
    """The first ``cut`` bytes of ``body``, then ``tail``, as one ``Reader``."""

    body: Reader
    cut: int
    tail: bytes

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.cut + len(self.tail)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises NotTrusted (shorter than asked for), Unavailable."""
        end = offset + into.nbytes
        if offset < 0 or end > self.size:
            raise NotTrusted(f"{self.size} bytes end before {offset} + {into.nbytes}: the data is truncated")
        middle = min(max(offset, self.cut), end)
        if middle > offset:
            self.body.read_into(offset, into[: middle - offset])
        if end > middle:
            into[middle - offset :] = self.tail[middle - self.cut : end - self.cut]


class SealedReader:
    """A sealed file (or body) as a ``Reader``. Its tail is read once, whole: from the journal, when there is one.

    Writes nothing. A rewrap that happens meanwhile is not seen, and leaves the body alone. ``pending``: a journal stood in,
    because a rewrap was cut off. Raises Missing, Invalid, Conflict (a rewrap holds it for too long), Unavailable.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = SourceFile(path)
        try:
            self._parts, self.pending = self._read_tail()
        except BaseException:
            self.file.close()
            raise

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._parts.size

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises NotTrusted (shorter than asked for), Unavailable."""
        self._parts.read_into(offset, into)

    def _read_tail(self) -> tuple[Spliced, bool]:
        file = self.file
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Unavailable):  # a file system without locks: what is torn will not open
                stack.enter_context(_locked(file.fileno(), fcntl.F_RDLCK, file.path))
            data = _load(journal_of(file.path), file.found)
            journal = Journal.parse(data) if data else None
            size = os.fstat(file.fileno()).st_size
            if journal and journal.header_hash == _header_hash(file, size) and journal.body_size <= size:
                return Spliced(file, journal.body_size, journal.tail), True
            cut = max(0, size - MAX_TAIL)
            tail = bytearray(size - cut)
            file.read_into(cut, memoryview(tail))
        return Spliced(file, cut, bytes(tail)), False

    def close(self) -> None:
        """Close the file; idempotent."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HeldFile:
    """A sealed file that this process alone may change; a ``Reader`` of it. A replacement that was cut off is finished."""

    def __init__(self, path: Path, fd: int, disk: Disk) -> None:
        self.path = path
        self._fd = fd
        self._disk = disk
        self._journal = journal_of(path)
        if os.path.lexists(self._journal):
            with _locked(fd, fcntl.F_WRLCK, path):
                self._finish()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._fd).st_size

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises NotTrusted (shorter than asked for), Unavailable."""
        fill_from(self._fd, offset, into, str(self.path))

    def stat(self) -> os.stat_result:
        """Owner, mode and identity."""
        return os.fstat(self._fd)

    def replace_tail(self, body_size: int, tail: bytes) -> None:
        """Put ``tail`` in the place of everything from ``body_size`` on.

        Raises Unavailable (unchanged, or as it says), Conflict (a reader holds it for too long).
        """
        with _locked(self._fd, fcntl.F_WRLCK, self.path):
            self._replace(body_size, tail)

    def _replace(self, body_size: int, tail: bytes) -> None:
        before = bytearray(self.size - body_size)
        self.read_into(body_size, memoryview(before))
        header_hash = _header_hash(self, self.size)
        journal = Journal(header_hash, body_size, tail)
        try:
            self._disk.create(self._journal, journal.encode(), stat.S_IMODE(self.stat().st_mode))
            self._disk.sync_folder(self.path.parent)
        except OSError as cause:
            with contextlib.suppress(OSError):
                self._disk.remove(self._journal)
            raise Unavailable(f"cannot write {self._journal}: {cause.strerror}; {self.path.name} is as it was") from cause
        try:
            self._apply(journal)
        except OSError as cause:
            self._undo(Journal(header_hash, body_size, bytes(before)), cause)

    def _apply(self, journal: Journal) -> None:
        self._disk.write(self._fd, journal.body_size, journal.tail)
        self._disk.truncate(self._fd, journal.body_size + len(journal.tail))
        self._disk.sync(self._fd)
        self._disk.remove(self._journal)

    def _undo(self, before: Journal, why: OSError) -> None:
        try:
            self._apply(before)
        except OSError as cause:
            raise Unavailable(
                f"cannot write {self.path}: {why.strerror}; its new recipients are in {self._journal.name} beside it: keep "
                "both, and repeat the command when the disk is well"
            ) from cause
        with contextlib.suppress(OSError):  # or a crash could bring the journal back, and with it what was given up
            self._disk.sync_folder(self.path.parent)
        raise Unavailable(f"cannot write {self.path}: {why.strerror}; it is as it was") from why

    def _finish(self) -> None:
        data = _load(self._journal, os.fstat(self._fd), strict=True)
        if data is None:
            return
        journal = Journal.parse(data)
        try:
            if journal and journal.header_hash == _header_hash(self, self.size):
                parts = split_file(Spliced(self, journal.body_size, journal.tail))
                if parts.body.size != journal.body_size:  # its "tail" brings a footer along, and would cut the body short
                    raise NotTrusted(f"{self._journal} would replace more than the recipients: it is not modelkeep's, move it")
                self._apply(journal)
            elif journal or _MAGIC.startswith(data[: len(_MAGIC)].rstrip(b"\0")):
                self._disk.remove(self._journal)  # of another file of this name, or never finished: nothing was touched
            else:
                raise Conflict(f"{self._journal} is in the way, and no journal of modelkeep's: move it")
        except OSError as cause:
            raise Unavailable(f"cannot finish the rewrap of {self.path} that was cut off: {cause.strerror}") from cause


@contextlib.contextmanager
def held(path: str | Path, disk: Disk | None = None) -> Iterator[HeldFile]:
    """Hold a sealed file against every other process that would change it. Readers go on, but for the moment of a replacement.

    Raises Missing, Invalid, Conflict (it is held for too long), NotTrusted (the journal beside it is not its own), Unavailable
    (also where the file system has no locks).
    """
    real = Path(os.path.realpath(path))
    fd = _hold(real)
    try:
        yield HeldFile(real, fd, disk or LocalDisk())
    finally:
        os.close(fd)  # and with it every lock


def _hold(path: Path) -> int:
    """A descriptor of the file that has the name now, locked for changing."""
    while True:
        fd = open_regular(path, os.O_RDWR)
        try:
            _lock(fd, fcntl.F_WRLCK, _CHANGE, path)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass  # replaced or removed while it was waited for: look again
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def journal_of(path: Path) -> Path:
    """Where the journal of a sealed file lies: beside the file itself, not beside a link to it."""
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + SUFFIX)


@contextlib.contextmanager
def _locked(fd: int, kind: int, path: Path) -> Iterator[None]:
    """Hold the tail: shared to read it, alone to replace it."""
    _lock(fd, kind, _TAIL, path)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _TAIL, 1, 0))


def _lock(fd: int, kind: int, byte: int, path: Path) -> None:
    """Lock one byte for this open file (fcntl(2), open file description locks), so that threads exclude each other too."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
            return
        except OSError as cause:
            if cause.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise Unavailable(f"cannot lock {path}: {cause.strerror}") from cause
            if time.monotonic() > deadline:
                raise Conflict(f"{path} is held by another process: try again when that has ended") from cause
        time.sleep(0.005)


def _load(path: Path, of: os.stat_result, *, strict: bool = False) -> bytes | None:
    """A journal's bytes; None when there is none. What another user put there is no journal: ignored, or Conflict if strict."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as cause:
        if strict:
            raise Conflict(f"{path} is in the way, and cannot be read ({cause.strerror}): move it") from cause
        return None
    try:
        found = os.fstat(fd)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid in (of.st_uid, os.geteuid(), 0)
        if ours and found.st_size <= MAX_TAIL + _FIXED.size + 32:
            return os.pread(fd, MAX_TAIL + _FIXED.size + 33, 0)
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
    finally:
        os.close(fd)
    if strict:
        raise Conflict(f"{path} is in the way, and no journal of modelkeep's: move it")
    return None


def _header_hash(reader: Reader, size: int) -> bytes:
    header = bytearray(min(HEADER_SIZE, size))
    reader.read_into(0, memoryview(header))
    return hashlib.sha256(header).digest()
