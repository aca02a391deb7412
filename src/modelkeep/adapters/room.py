"""``Room`` on a disk of this machine: free space as the file system tells it, and a reserve held in a file of its own."""

import os
from pathlib import Path

from modelkeep.errors import Unavailable

_RESERVE = ".reserve"


class FolderRoom:
    """The room for what is written below ``folder``; ``reserve`` bytes of it are kept back."""

    def __init__(self, folder: Path, reserve: int) -> None:
        """Nothing is touched before ``prepare``."""
        self._folder, self._reserve = folder, reserve
        self._released = False

    @property
    def held(self) -> bool:
        """Whether a reserve is held there, by this process or one that is gone."""
        return (self._folder / _RESERVE).exists()

    def prepare(self) -> None:
        """Take the reserve. Raises Unavailable."""
        self._see(2 * self._reserve)
        self._take()

    def _take(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._folder / _RESERVE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._reserve)
            finally:
                os.close(fd)
        except OSError as cause:
            self.release()
            raise Unavailable(f"cannot keep {self._reserve:,} bytes back in {self._folder}: {cause.strerror}") from cause
        self._released = False

    def check(self) -> None:
        """Look at the file system. Raises Unavailable when it is read-only, or has no more left than the reserve.

        A reserve that was given back is taken again once there is room for it besides.
        """
        self._see(2 * self._reserve if self._released else self._reserve)
        if self._released:
            self._take()

    def _see(self, wanted: int) -> None:
        try:
            found = self._statvfs()
        except OSError as cause:
            raise Unavailable(f"cannot look at the disk under {self._folder}: {cause.strerror}") from cause
        if found.f_flag & os.ST_RDONLY:
            raise Unavailable(f"the disk under {self._folder} is read-only: make it writable again")
        free = found.f_bavail * found.f_frsize
        if free < wanted or (found.f_files and not found.f_favail):
            raise Unavailable(f"the disk under {self._folder} is full ({free:,} bytes left): make room")

    def _statvfs(self) -> os.statvfs_result:
        """Of the folder, or of the next one above it that is there."""
        for place in (self._folder, *self._folder.parents):
            try:
                return os.statvfs(place)
            except FileNotFoundError:
                continue
        return os.statvfs("/")

    def release(self) -> None:
        """Give the reserve back."""
        self._released = True
        try:
            (self._folder / _RESERVE).unlink(missing_ok=True)
        except OSError:  # a disk that is gone has nothing to give back
            return
