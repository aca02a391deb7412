"""Files that a person names: a regular file to read, and a new file that appears whole or not at all.

A new file is written without a name (``O_TMPFILE``) and gets one when all of it is on stable storage, so a crash or kill -9
leaves no part of it behind. Where the file system lacks unnamed files, a ``.NAME.…new`` name stands in until then.
"""

import contextlib
import errno
import glob
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from modelkeep.adapters.folders import sync_folder
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable

_KINDS = (
    (stat.S_ISDIR, "a folder: name a file in it, or an archive of it"),
    (stat.S_ISFIFO, "a pipe: its size is not known, so write it to a file first"),
    (stat.S_ISCHR, "a device: name a file"),
    (stat.S_ISBLK, "a device: name a file"),
    (stat.S_ISSOCK, "a socket: name a file"),
)


def clear_stand_ins(path: Path) -> None:
    """Remove the names that writers of ``path`` who were killed in a replacement left beside it.

    Only for whoever keeps every other writer out meanwhile. Raises OSError.
    """
    for left in path.parent.glob(f".{glob.escape(path.name[:200])}.{'[0-9a-f]' * 12}.new"):
        left.unlink(missing_ok=True)


class SourceFile:
    """A regular file, opened for reading; a ``Reader`` (``size``, ``read_into``) that is safe for threads.

    Raises Missing, Invalid (a folder, pipe, device or socket), Unavailable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._fd = open_regular(self.path, os.O_RDONLY)
        self.found = os.fstat(self._fd)
        self.size = self.found.st_size

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises NotTrusted (the file is shorter), Unavailable."""
        fill_from(self._fd, offset, into, str(self.path))

    def check_unchanged(self) -> None:
        """Raises Conflict when somebody wrote to the file since it was opened."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.found.st_size, self.found.st_mtime_ns):
            raise Conflict(f"{self.path} changed while it was read: run it again when nobody writes to it")

    def forget(self) -> None:
        """Ask the kernel to drop what it cached, so that the next read comes from the disk as far as it can be told to."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NewFile:
    """A file to be, in the folder of ``path``; without ``publish`` nothing of it stays.

    It has mode 0600, or owner and mode of ``like``, as far as this process may give files away.
    Raises Unavailable (the folder cannot be written, the disk is full), Missing (there is no such folder).
    """

    def __init__(self, path: str | Path, *, like: os.stat_result | None = None) -> None:
        self.path = Path(path)
        self._stand_in: Path | None = None
        self._fd = -1
        try:
            self._fd = self._make()
            if like is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(self._fd, like.st_uid, like.st_gid)
            os.fchmod(self._fd, 0o600 if like is None else stat.S_IMODE(like.st_mode))
        except FileNotFoundError as cause:
            raise Missing(f"there is no folder {self.path.parent}") from cause
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def write(self, chunks: Iterable[bytes | bytearray | memoryview]) -> int:
        """Append ``chunks``; how many bytes they had. Raises Unavailable and what the iterator raises."""
        size = 0
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            size += view.nbytes
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as cause:
                raise self._unwritable(cause) from cause
        return size

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``; several threads may. Raises Unavailable."""
        try:
            while data:
                done = os.pwrite(self._fd, data, offset)
                data, offset = data[done:], offset + done
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def sync(self) -> None:
        """Return once what was written is on stable storage. Raises Unavailable."""
        try:
            os.fsync(self._fd)
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def reader(self) -> SourceFile:
        """What was written, to be read back. Close it."""
        return SourceFile(f"/proc/self/fd/{self._fd}")

    def publish(self, *, replace: bool = False) -> None:
        """Give the finished file its name, durably. Raises Conflict (the name is taken, without ``replace``), Unavailable."""
        self.sync()
        try:
            if replace:
                self._rename()
            else:
                self._link(self.path)
            sync_folder(self.path.parent)
        except FileExistsError as cause:
            raise Conflict(f"{self.path} exists already: it was not touched, name another output") from cause
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def close(self) -> None:
        """Let go of the file; what was not published is gone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._stand_in is not None:
            with contextlib.suppress(OSError):
                self._stand_in.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> int:
        try:
            return os.open(self.path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as cause:
            if cause.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        self._stand_in = self._fresh_name()
        return os.open(self._stand_in, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def _fresh_name(self) -> Path:
        return self.path.with_name(f".{self.path.name[:200]}.{secrets.token_hex(6)}.new")

    def _link(self, name: Path) -> None:
        if self._stand_in is None:
            # With any src_dir_fd CPython calls linkat(AT_SYMLINK_FOLLOW), and link(2) without one; the path is absolute.
            os.link(f"/proc/self/fd/{self._fd}", name, src_dir_fd=self._fd, follow_symlinks=True)
        else:
            try:
                name.hardlink_to(self._stand_in)
            except OSError as cause:
                if cause.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                if os.path.lexists(name):  # no links here: between this look and the rename somebody could come
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from cause
                self._stand_in.rename(name)

    def _rename(self) -> None:
        name = self._stand_in
        if name is None:
            name = self._fresh_name()
            self._link(name)
        try:
            name.replace(self.path)
        except OSError:
            name.unlink(missing_ok=True)
            raise

    def _unwritable(self, cause: OSError) -> Unavailable:
        return Unavailable(f"cannot write {self.path}: {cause.strerror}; nothing was kept of it")


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a regular file, links followed. Raises Missing, Invalid (anything else than a file), Unavailable."""
    try:
        # a pipe would block here, without O_NONBLOCK, until somebody wrote to it
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as cause:
        raise Missing(f"there is no file {path}") from cause
    except IsADirectoryError as cause:
        raise Invalid(f"{path} is {_KINDS[0][1]}") from cause
    except OSError as cause:
        raise Unavailable(f"cannot open {path}: {cause.strerror}") from cause
    mode = os.fstat(fd).st_mode
    for found, what in _KINDS:
        if found(mode):
            os.close(fd)
            raise Invalid(f"{path} is {what}")
    return fd


def fill_from(fd: int, offset: int, into: memoryview, what: str) -> None:
    """Fill ``into`` from ``offset`` of an open file. Raises NotTrusted (``what`` is shorter), Unavailable."""
    at = 0
    try:
        while at < into.nbytes:
            done = os.preadv(fd, [into[at:]], offset + at)
            if done == 0:
                raise NotTrusted(f"{what} ends before {offset} + {into.nbytes}: it is truncated")
            at += done
    except OSError as cause:
        raise Unavailable(f"cannot read {what}: {cause.strerror}") from cause
