"""Claims: names that a live process holds, so that others can tell work in progress from work cut off.

One file per claim, held with ``flock``: the kernel lets go of it when the process ends, however it ends.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelkeep.errors import Conflict, Invalid, Unavailable

_NAME = re.compile(r"[0-9a-f]{16,64}\Z|[a-z][a-z-]{3,40}\Z")


class FolderClaims:
    """Claims as files of one folder, which is made when first needed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold ``name`` (16-64 hex digits, or a word) for the length of the block; its file is gone afterwards.

        Raises Conflict (someone holds it), Invalid, Unavailable.
        """
        if not _NAME.match(name):
            raise Invalid(f"{name[:80]!r} is not a claim")
        path = self._root / name
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as cause:
            raise Unavailable(f"cannot claim {path}: {cause.strerror}") from cause
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise Conflict(f"another process holds the claim {name}") from cause
            except OSError as cause:
                raise Unavailable(f"cannot claim {path}: {cause.strerror}") from cause
            if not _same(path, handle):  # whoever held it removed the file between our opening and our locking it
                raise Conflict(f"another process held the claim {name} a moment ago")
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _same(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
