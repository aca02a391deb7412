"""Which files under some folders are opened while a command runs, by whichever process: inotify(7), which needs no privilege.

Every folder is watched, and so is every file that has a second name (a hard link, or the target of a symbolic link that leads
out), whose opening under that name the folder would not tell. A folder or a link that is new is not watched; whoever asks
afterwards gets its name and has to take everything there for opened. What cannot be seen: files that were open before, what
other machines do to a network file system, and whoever exchanges a folder above the watched ones and puts it back.
"""

import ctypes
import errno
import os
import select
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from modelkeep.errors import Conflict, Invalid, Unavailable

_MODIFY, _OPEN, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x20, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IS_FOLDER = 0x2000, 0x4000, 0x40000000
_FOLDER_MASK = _OPEN | _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_FILE_MASK = _OPEN | _MODIFY
_NAMES = _CREATE | _MOVED_TO | _MOVED_FROM | _DELETE
_EVENT = struct.Struct("iIII")
_BUFFER = 1 << 18
MAX_FILES = 2_000_000
_LIMITS = "raise fs.inotify.max_user_watches and max_user_instances, or name smaller folders"


class Seen(NamedTuple):
    """What happened while a watch stood: names of files that were opened, of files written to or taken away, and new names.

    A new name may be that of a file, a folder or a link to anything; what was done below it was not seen.
    """

    opened: frozenset[Path]
    written: frozenset[Path]
    new: frozenset[Path]


NOTHING_SEEN = Seen(frozenset(), frozenset(), frozenset())


class Watch:
    """Watches ``folders`` from when it is made until ``finish``. Use it as a context, so that it is closed in any case.

    Raises Unavailable (no inotify here, or its limits are reached).
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._inotify = -1
        self._thread: threading.Thread | None = None
        if not folders:
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError as cause:
            raise Unavailable("this system has no inotify: declare the inputs with --input, without --data") from cause
        if self._inotify < 0:
            raise Unavailable(f"cannot watch the data folders: {os.strerror(ctypes.get_errno())}; {_LIMITS}")
        self._places: dict[int, set[Path]] = {}
        self._folders: dict[Path, tuple[int, int]] = {}
        self._opened: set[Path] = set()
        self._written: set[Path] = set()
        self._new: set[Path] = set()
        self._problem = ""
        self._wake_reader, self._wake = os.pipe()
        try:
            for path, _, second in walk(folders, self._add_folder):
                if second:
                    self._add(path, _FILE_MASK)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Read what happens from now on in a thread; what happened since the watch was made is read first."""
        if self._inotify < 0:
            return
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self._thread.start()

    def finish(self) -> Seen:
        """What was seen. Raises Conflict (something may have gone unseen)."""
        if self._inotify < 0:
            return NOTHING_SEEN
        if self._thread is not None:
            os.write(self._wake, b"x")
            self._thread.join()
            self._thread = None
        self._read()  # whatever the command did stands in the queue once it has ended
        for path, known in self._folders.items():
            if _identity(path) != known:
                self._problem = self._problem or _exchanged(path)
        if self._problem:
            raise Conflict(self._problem)
        return Seen(frozenset(self._opened), frozenset(self._written), frozenset(self._new))

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._inotify < 0:
            return
        if self._thread is not None:
            os.write(self._wake, b"x")
            self._thread.join()
            self._thread = None
        for descriptor in (self._inotify, self._wake_reader, self._wake):
            os.close(descriptor)
        self._inotify = -1

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_folder(self, path: Path) -> None:
        self._folders[path] = _identity(path)
        self._add(path, _FOLDER_MASK)

    def _add(self, path: Path, mask: int) -> None:
        watch = self._libc.inotify_add_watch(self._inotify, os.fsencode(path), mask)
        if watch < 0:
            code = ctypes.get_errno()
            why = "the limit of watches is reached" if code == errno.ENOSPC else os.strerror(code)
            raise Unavailable(f"cannot watch {path}: {why}; {_LIMITS}")
        self._places.setdefault(watch, set()).add(path)

    def _follow(self) -> None:
        poll = select.poll()
        for descriptor in (self._inotify, self._wake_reader):
            poll.register(descriptor, select.POLLIN)
        while not any(descriptor == self._wake_reader for descriptor, _ in poll.poll()):
            self._read()

    def _read(self) -> None:
        """Take in all that is queued."""
        while True:
            try:
                data = os.read(self._inotify, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                self._take(watch, mask, os.fsdecode(name))

    def _take(self, watch: int, mask: int, name: str) -> None:
        if mask & _OVERFLOW:
            self._problem = (
                "could not see every file that was opened: they were too many at once "
                "(raise fs.inotify.max_queued_events, or declare whole folders with --input)"
            )
        for place in self._places.get(watch, ()):
            path = place / name if name else place
            if mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT) or (mask & _NAMES and path in self._folders):
                self._problem = self._problem or _exchanged(path)
            elif mask & (_CREATE | _MOVED_TO):
                self._new.add(path)
            elif mask & _IS_FOLDER:
                continue
            elif mask & _OPEN:
                self._opened.add(path)
            elif mask & (_MODIFY | _MOVED_FROM | _DELETE):
                self._written.add(path)


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _exchanged(path: Path) -> str:
    return f"the folder {path} was moved, removed or exchanged while the command ran: nothing was recorded"


def walk(
    folders: Sequence[Path], before_folder: Callable[[Path], None] | None = None
) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """Every regular file under ``folders``, links followed, with its status and whether it has a second name.

    ``before_folder`` is told of each folder before it is listed. What is reached on two ways is given twice; a folder that
    leads back to itself ends there. Raises Invalid (more than ``MAX_FILES``), Unavailable.
    """
    count = 0
    for folder in folders:
        for found in _below(folder, before_folder, frozenset()):
            count += 1
            if count > MAX_FILES:
                raise Invalid(f"{folder} has more than {MAX_FILES:,} files: name the folders that the command reads")
            yield found


def _below(
    folder: Path, before_folder: Callable[[Path], None] | None, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[Path, os.stat_result, bool]]:
    try:
        found = folder.stat()
        if (found.st_dev, found.st_ino) in above:
            return
        if before_folder is not None:
            before_folder(folder)
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as cause:
        raise Unavailable(f"cannot look into {folder}: {cause.strerror}") from cause
    below = above | {(found.st_dev, found.st_ino)}
    for entry in entries:
        path = folder / entry.name
        try:
            status = path.stat()
        except FileNotFoundError:  # a link that leads nowhere, or it went meanwhile
            continue
        except OSError as cause:
            raise Unavailable(f"cannot look at {path}: {cause.strerror}") from cause
        if stat.S_ISDIR(status.st_mode):
            yield from _below(path, before_folder, below)
        elif stat.S_ISREG(status.st_mode):
            yield path, status, entry.is_symlink() or status.st_nlink > 1
