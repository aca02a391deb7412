"""``LogFiles`` in memory, with the faults of a disk: a full one, a failing one, a hanging one, power loss, and kill -9."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

from modelkeep.errors import Conflict, Missing, Unavailable


class Killed(BaseException):
    """The process ended here. Not an Exception: nothing may catch it."""


class MemoryLogFiles:
    """A folder as a dict. Each change counts as one step.

    ``kill_at``: the step at which the process dies; ``torn``: how many bytes of that step still reach the disk (a whole-file
    write is atomic, so it either happened, ``torn`` > 0, or did not). ``fail_from``: from this step on, changes raise
    Unavailable. ``hang``: while it is clear, ``sync`` does not return. ``watch``: called before each change.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {path: bytearray(data) for path, data in (files or {}).items()}
        self.steps = 0
        self.kill_at = self.fail_from = -1
        self.torn = 0
        self.hang = threading.Event()
        self.hang.set()
        self.syncs = 0
        self.watch: Callable[[], None] = lambda: None
        self._held = threading.Lock()
        self.guard = threading.RLock()

    def copy(self) -> "MemoryLogFiles":
        """The folder as another process, started now, would find it."""
        with self.guard:
            return MemoryLogFiles({path: bytes(data) for path, data in self.files.items()})

    def step(self) -> int:
        """Count a change; returns how many bytes of it happen (-1: all)."""
        with self.guard:
            self.watch()
            self.steps += 1
            if 0 <= self.fail_from < self.steps:
                raise Unavailable("the disk is full")
            return self.torn if self.steps - 1 == self.kill_at else -1

    def read(self, path: str) -> bytes:
        with self.guard:
            if path not in self.files:
                raise Missing(f"no {path}")
            return bytes(self.files[path])

    def write(self, path: str, data: bytes) -> None:
        with self.guard:
            torn = self.step()
            if torn:
                self.files[path] = bytearray(data)
            if torn >= 0:
                raise Killed

    def write_all(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            self.write(path, data)

    def paths(self, prefix: str = "") -> list[str]:
        with self.guard:
            return sorted(path for path in self.files if path.startswith(prefix))

    def delete(self, path: str) -> None:
        with self.guard:
            torn = self.step()
            if torn:
                self.files.pop(path, None)
            if torn >= 0:
                raise Killed

    def truncate(self, path: str, size: int) -> None:
        with self.guard:
            torn = self.step()
            if path not in self.files:
                raise Missing(f"no {path}")
            if torn:
                del self.files[path][size:]
            if torn >= 0:
                raise Killed

    def journal(self, path: str) -> "MemoryJournal":
        with self.guard:
            torn = self.step()
            if torn:
                self.files.setdefault(path, bytearray())
            if torn >= 0:
                raise Killed
            return MemoryJournal(self, path)

    @contextlib.contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        if not self._held.acquire(blocking=wait):
            raise Conflict("held")
        try:
            yield
        finally:
            self._held.release()


class MemoryJournal:
    def __init__(self, folder: MemoryLogFiles, path: str) -> None:
        self.folder = folder
        self.path = path
        self.file = folder.files[path]
        self.broken = self.closed = False

    def _check(self) -> None:
        if self.broken or self.closed:
            raise Unavailable("the journal is poisoned or closed")

    def append(self, data: bytes) -> None:
        self._check()
        try:
            torn = self.folder.step()
        except Unavailable:
            self.broken = True
            self.file += data[: len(data) // 2]  # what a full disk does
            raise
        self.file += data if torn < 0 else data[:torn]
        if torn >= 0:
            raise Killed

    def sync(self) -> None:
        self._check()
        self.folder.hang.wait()
        self.folder.syncs += 1
        self.check()
        try:
            torn = self.folder.step()
        except Unavailable:
            self.broken = True
            raise
        if torn >= 0:
            raise Killed

    def check(self) -> None:
        self._check()
        if self.folder.files.get(self.path) is not self.file:
            self.broken = True
            raise Unavailable("the journal's file was deleted or replaced")

    def size(self) -> int:
        self._check()
        return len(self.file)

    def close(self) -> None:
        self.closed = True
