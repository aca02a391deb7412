"""``Blobs`` in a folder (``ab/abcd…``, one file a blob), and a plain file as a ``Reader``.

A blob is written to an unnamed file (``O_TMPFILE``) that gets its name only when all of it is on stable storage: a crash or
kill -9 leaves no part of it behind. Where the file system lacks unnamed files, a ``.new-…`` name stands in.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelkeep.adapters.files import fill_from
from modelkeep.adapters.folders import sync_folder
from modelkeep.core.values import Digest, digest_hex, parse_digest
from modelkeep.errors import Missing, NotTrusted, Unavailable

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_NEW = ".new-"


class FileReader:
    """An open file as a ``Reader`` (``size``, ``read_into``), safe for threads. Raises Missing, Unavailable."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as cause:
            raise Missing(f"there is no file {path}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot open {path}: {cause.strerror}") from cause
        self._path = path
        self.size = os.fstat(self._fd).st_size

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises NotTrusted (the file is shorter), Unavailable."""
        fill_from(self._fd, offset, into, str(self._path))

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalBlobs:
    """Blobs below ``root``, which is made (0700) when it is missing; files are 0600. Several processes may share it."""

    read_ahead = 0

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as cause:
            raise Unavailable(f"cannot make the blob folder {self.root}: {cause.strerror}") from cause

    def put(self, chunks: Iterable[bytes | bytearray | memoryview]) -> Digest:
        digest = hashlib.sha256()
        try:
            with _unnamed(self.root) as (fd, name):
                for chunk in chunks:
                    digest.update(chunk)
                    _write(fd, memoryview(chunk).cast("B"))
                os.fsync(fd)
                self._publish(fd, name, digest.hexdigest())
        except OSError as cause:
            raise Unavailable(f"cannot store a blob in {self.root}: {cause.strerror}; nothing was kept of it") from cause
        return Digest("sha256:" + digest.hexdigest())

    def size(self, digest: Digest) -> int:
        with self._open(digest) as fd:
            return os.fstat(fd).st_size

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size(digest):
            raise NotTrusted(f"blob {digest} ends before {offset} + {length}: it is truncated")
        buffer = bytearray(length)
        self.read_into(digest, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, digest: Digest, offset: int, into: memoryview) -> None:
        with self._open(digest) as fd:
            fill_from(fd, offset, into, f"blob {digest}")

    def delete(self, digest: Digest) -> None:
        path = self._path(digest_hex(digest))
        try:
            path.unlink(missing_ok=True)
        except OSError as cause:
            raise Unavailable(f"cannot delete blob {digest}: {cause.strerror}") from cause

    def all(self) -> Iterator[Digest]:
        try:
            for folder in sorted(self.root.iterdir()):
                if folder.is_dir():
                    yield from (Digest("sha256:" + path.name) for path in sorted(folder.iterdir()) if _HEX.match(path.name))
        except OSError as cause:
            raise Unavailable(f"cannot list the blobs in {self.root}: {cause.strerror}") from cause

    def _path(self, name: str) -> Path:
        return self.root / name[:2] / name

    @contextlib.contextmanager
    def _open(self, digest: Digest) -> Iterator[int]:
        try:
            fd = os.open(self._path(digest_hex(parse_digest(digest))), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as cause:
            raise Missing(f"there is no blob {digest} in {self.root}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot open blob {digest}: {cause.strerror}") from cause
        try:
            yield fd
        finally:
            os.close(fd)

    def _publish(self, fd: int, name: Path | None, hexdigest: str) -> None:
        """Give the finished file its name, over a file of that name (which can only be the same, or damaged)."""
        path = self._path(hexdigest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if name is None:
            name = path.with_name(_NEW + secrets.token_hex(8))
            # With any src_dir_fd CPython calls linkat(AT_SYMLINK_FOLLOW), and link(2) without one; the path is absolute.
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
        try:
            name.replace(path)
        except OSError:
            name.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        sync_folder(self.root)


@contextlib.contextmanager
def _unnamed(folder: Path) -> Iterator[tuple[int, Path | None]]:
    """A file to write that vanishes unless it is given a name: (descriptor, None), or with the name that stands in."""
    name: Path | None = None
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        if cause.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        name = folder / (_NEW + secrets.token_hex(8))
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        yield fd, name
    finally:
        os.close(fd)
        if name is not None:
            name.unlink(missing_ok=True)


def _write(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]
