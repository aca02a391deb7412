"""Files that go into a run and come out of it: what they are before and after, and their digests."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.watching import walk
from modelkeep.core.values import Digest
from modelkeep.errors import Conflict, Unavailable

_CHUNK = 1 << 20


class Stamp(NamedTuple):
    """What changes when a file is written to or replaced; nobody but root can set ``changed`` (ctime). Times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """From its status."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def stamp(path: Path) -> Stamp | None:
    """The stamp of what is at ``path``, links followed; None when nothing is. Raises Unavailable."""
    try:
        return Stamp.of(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as cause:
        raise Unavailable(f"cannot look at {path}: {cause.strerror}") from cause


def survey(folders: Sequence[Path]) -> dict[Path, Stamp]:
    """The stamp of every regular file under ``folders``. Raises Invalid (too many), Unavailable."""
    return {path: Stamp.of(status) for path, status, _ in walk(folders)}


def digest_file(path: Path) -> tuple[Digest, Stamp]:
    """The SHA-256 of a regular file and its stamp. Raises Missing, Invalid, Conflict (it changes meanwhile), Unavailable."""
    with SourceFile(path) as source:
        first, found = Stamp.of(source.found), hashlib.sha256()
        try:
            while chunk := os.read(source.fileno(), _CHUNK):
                found.update(chunk)
            last = Stamp.of(os.fstat(source.fileno()))
        except OSError as cause:
            raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
    if first != last:
        raise Conflict(f"{path} changed while it was read: run it again when nobody writes to it")
    return Digest("sha256:" + found.hexdigest()), first


def first_bytes(path: Path, size: int) -> bytes:
    """At most ``size`` bytes from the start of a regular file. Raises Missing, Invalid, Unavailable."""
    with SourceFile(path) as source:
        found = bytearray(min(size, source.size))
        source.read_into(0, memoryview(found))
        return bytes(found)
