"""``LogFiles`` in a folder of this machine."""

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modelkeep.adapters.folders import sync_folder
from modelkeep.errors import Conflict, Invalid, Missing, Unavailable

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_TEMPORARY = ".new-"
_LOCK = ".lock"
_AT_ONCE = 64
"""Files that are open together."""


def _read_regular(path: Path) -> bytes:
    """The bytes of a regular file: in a copy that somebody else made, a pipe would never end, and a device neither."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        kind = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.readall()


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


class FolderLogFiles:
    """The files of one log below ``root``; folders are 0700, files 0600. Names that begin with a dot are this adapter's own."""

    def __init__(self, root: Path) -> None:
        """Nothing is touched yet; the first write makes the folder."""
        self._root = root

    def __repr__(self) -> str:
        return f"FolderLogFiles({str(self._root)!r})"

    def _at(self, path: str) -> Path:
        if not all(_SEGMENT.match(part) for part in path.split("/")):
            raise Invalid(f"{path[:120]!r} is not a path inside a log folder")
        return self._root / path

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Invalid (a path that leaves the folder), Unavailable (also: it is no regular file)."""
        try:
            return _read_regular(self._at(path))
        except _ABSENT as cause:
            raise Missing(f"there is no {path} in the log folder {self._root}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot read {path} in the log folder {self._root}: {_why(cause)}") from cause

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically and durably. Raises Unavailable, and then the old file still stands."""
        self.write_all({path: data})

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Replace several files, each atomically, all of them durably. Raises Unavailable, and then any may be the old one.

        Everything is written before anything is synced: the first sync makes the file system's journal take all of it, so that
        the others, and what another thread syncs meanwhile, wait for one commit instead of one a file.
        """
        named = [(self._at(path), data) for path, data in files.items()]
        for begin in range(0, len(named), _AT_ONCE):
            some = named[begin : begin + _AT_ONCE]
            try:
                self._replace(some)
            except OSError as cause:
                what = some[0][0].relative_to(self._root)
                raise Unavailable(f"cannot write {what} in the log folder {self._root}: {_why(cause)}") from cause

    def _replace(self, files: Sequence[tuple[Path, bytes]]) -> None:
        fresh = [(target.with_name(_TEMPORARY + target.name), target) for target, _ in files]
        try:
            with contextlib.ExitStack() as held:
                for fd in [self._fill(temporary, data, held) for (temporary, _), (_, data) in zip(fresh, files, strict=True)]:
                    os.fsync(fd)
            for temporary, target in fresh:
                temporary.replace(target)
        except OSError:
            for temporary, _ in fresh:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise
        for folder in dict.fromkeys(target.parent for target, _ in files):
            sync_folder(folder)

    def _fill(self, path: Path, data: bytes, held: contextlib.ExitStack) -> int:
        """The descriptor of a new file with ``data``, which ``held`` closes."""
        self._make(path.parent)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        held.callback(os.close, fd)
        _write_all(fd, data)
        return fd

    def _make(self, folder: Path) -> None:
        """Make ``folder`` and what leads to it, each made durable in its parent."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            made.mkdir(mode=0o700, exist_ok=True)
            sync_folder(made.parent)

    def paths(self, prefix: str = "") -> list[str]:
        """Relative paths of the files whose path begins with ``prefix``, sorted. Raises Unavailable."""
        try:
            return sorted(path for path in self._walk(prefix.rpartition("/")[0]) if path.startswith(prefix))
        except OSError as cause:
            raise Unavailable(f"cannot list the log folder {self._root}: {_why(cause)}") from cause

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            found = list(os.scandir(self._root / folder))
        except _ABSENT:
            return
        for item in found:
            if item.name.startswith("."):
                continue
            path = f"{folder}/{item.name}" if folder else item.name
            if item.is_dir(follow_symlinks=False):
                yield from self._walk(path)
            else:
                yield path

    def delete(self, path: str) -> None:
        """Remove a file; silent when it is not there. Raises Unavailable."""
        try:
            self._at(path).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as cause:
            raise Unavailable(f"cannot delete {path} in the log folder {self._root}: {_why(cause)}") from cause

    def journal(self, path: str) -> "FileJournal":
        """Open (or make) an append-only file. Raises Unavailable."""
        target = self._at(path)
        try:
            self._make(target.parent)
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                sync_folder(target.parent)
                return FileJournal(target, fd)
            except OSError:
                os.close(fd)
                raise
        except OSError as cause:
            raise Unavailable(f"cannot open {path} in the log folder {self._root}: {_why(cause)}") from cause

    def truncate(self, path: str, size: int) -> None:
        """Cut a file to ``size`` bytes, durably. Raises Missing, Unavailable."""
        try:
            fd = os.open(self._at(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, size)
                os.fsync(fd)
            finally:
                os.close(fd)
        except _ABSENT as cause:
            raise Missing(f"there is no {path} in the log folder {self._root}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot cut {path} in the log folder {self._root}: {_why(cause)}") from cause

    @contextlib.contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """Hold the folder with ``flock``, which ends with the process. Raises Conflict, Unavailable."""
        try:
            self._make(self._root)
            fd = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as cause:
            raise Unavailable(f"cannot lock the log folder {self._root}: {_why(cause)}") from cause
        try:
            self._flock(fd, wait)
            yield
        finally:
            os.close(fd)

    def _flock(self, fd: int, wait: bool) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as cause:
            raise Conflict(f"another process holds the log folder {self._root}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot lock the log folder {self._root}: {_why(cause)}") from cause


class FileJournal:
    """``Journal`` on one file descriptor. The size is known, so that bytes written or cut by others are noticed too."""

    def __init__(self, path: Path, fd: int) -> None:
        """Takes over ``fd``, opened with O_APPEND. Raises OSError."""
        self._path = path
        self._fd = fd
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        self._size = status.st_size
        self._broken = ""

    def _check(self) -> None:
        if self._broken:
            raise Unavailable(f"the journal {self._path} failed and takes nothing more: {self._broken}")
        if self._fd < 0:
            raise Unavailable(f"the journal {self._path} is closed")

    def _poison(self, why: str) -> Unavailable:
        self._broken = why
        return Unavailable(f"the journal {self._path} failed: {why}")

    def append(self, data: bytes) -> None:
        """Add bytes at the end. Raises Unavailable, and then the journal is poisoned (part of ``data`` may be in the file)."""
        self._check()
        try:
            _write_all(self._fd, data)
        except OSError as cause:
            raise self._poison(_why(cause)) from cause
        self._size += len(data)

    def sync(self) -> None:
        """fdatasync, then ``check``. Raises Unavailable, and then it is poisoned."""
        self._check()
        try:
            os.fdatasync(self._fd)
        except OSError as cause:
            raise self._poison(_why(cause)) from cause
        self.check()

    def check(self) -> None:
        """See that the path still names this file at this size. Raises Unavailable, and then it is poisoned."""
        self._check()
        try:
            status = self._path.stat(follow_symlinks=False)
        except OSError as cause:
            gone = cause.errno in (errno.ENOENT, errno.ENOTDIR)
            raise self._poison("its file was deleted" if gone else _why(cause)) from cause
        if (status.st_dev, status.st_ino) != self._identity:
            raise self._poison("its file was replaced by another")
        if status.st_size != self._size:
            raise self._poison(f"its file has {status.st_size} bytes where {self._size} were written")

    def size(self) -> int:
        """Bytes in the file. Raises Unavailable."""
        self._check()
        return self._size

    def close(self) -> None:
        """Release the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
