"""A private folder for what an isolated command writes, and the way out of it for what was asked for.

What a command left there was made by somebody who may wish us ill: nothing is followed that is a link, only plain files of
bounded size are taken out, by copying, under names that were declared, and never over what is code. It has ended by then.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.sandbox import READ, WRITE, Mount
from modelkeep.errors import Conflict, Invalid, Unavailable

MAX_FILES = 100_000
MAX_DEPTH = 100
"""Folders in folders, of an output."""
COPIED = 1 << 20
"""Code files of more bytes than this are shown to the command where they are, and not copied."""
_CHUNK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOTHING = "nothing was taken out"
_SPECIAL = stat.S_ISUID | stat.S_ISGID
_BARE = {"HEAD", "objects", "refs"}
"""What git takes a folder for a repository by, whose settings name programs."""


class Staging:
    """Folders that a command writes to, each in the place of one of this machine's. Use it as a context: then it is gone.

    ``limit``: bytes that may be taken out in all; 0 = any number.
    """

    def __init__(self, limit: int) -> None:
        try:
            self.root = Path(tempfile.mkdtemp(prefix="modelkeep-run-", dir=os.environ.get("TMPDIR") or "/var/tmp"))  # noqa: S108  # a folder of our own, mode 0700
        except OSError as cause:
            raise Unavailable(f"cannot make a folder for what the command writes: {cause.strerror}") from cause
        self._limit, self._places = limit, dict[Path, Path]()

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self.root)

    def stand_for(self, place: Path) -> None:
        """Let the command write to ``place``, an absolute path: it has an empty folder there."""
        if all(place != one and one not in place.parents for one in self._places):
            made = self.root / str(len(self._places))
            made.mkdir()
            self._places[place] = made

    def mounts(self) -> list[Mount]:
        """What shows these folders to the command."""
        return [Mount(WRITE, str(made), str(place)) for place, made in self._places.items()]

    def inside(self, path: Path) -> Path:
        """Where in the staging what the command calls ``path`` is. Raises Invalid when it cannot write there."""
        for place, made in self._places.items():
            if path == place or place in path.parents:
                return made / path.relative_to(place)
        raise Invalid(f"{path} is in no folder that the command can write to")

    def make_folder(self, path: Path) -> None:
        """Let a folder be there when the command begins."""
        self.inside(path).mkdir(parents=True, exist_ok=True)

    def copy_code(self, top: Path, files: Iterable[str], apart: Collection[Path]) -> list[Mount]:
        """Give the command the ``files`` of the working tree ``top``, but for those that are ``apart``, hold one that is, or
        are in one. Large ones are returned: to be shown as they are. Raises Unavailable.
        """
        large = []
        for name in files:
            path = top / name
            if any(path == one or one in path.parents or path in one.parents for one in apart):
                continue
            into = self.inside(path)
            try:
                into.parent.mkdir(parents=True, exist_ok=True)
                found = path.lstat()
                if stat.S_ISLNK(found.st_mode):
                    into.symlink_to(path.readlink())
                elif stat.S_ISREG(found.st_mode) and found.st_size <= COPIED:
                    shutil.copyfile(path, into, follow_symlinks=False)
                    into.chmod(0o755 if found.st_mode & 0o100 else 0o644)
                elif stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                    large.append(Mount(READ, str(path), str(path)))
            except FileNotFoundError:  # a commit's file that is gone: its absence is what is recorded
                continue
            except OSError as cause:
                raise Unavailable(f"cannot show {path} to the command: {cause.strerror}") from cause
        return large

    # -- out --

    def take_out(self, files: Iterable[Path], folders: Iterable[Path], code: Collection[Path]) -> None:
        """Copy what the command left under these names to where they are on this machine; what it did not write, not.

        ``code``: files that nothing in a folder may overwrite. Raises Conflict, with nothing copied, when something is no
        plain file, or is too large; Unavailable.
        """
        try:
            found = [*self._named(files), *self._below(folders, code)]
            size = sum(one.source.lstat().st_size for one in found)
            if self._limit and size > self._limit:
                raise Conflict(f"the command wrote more than {self._limit:,} bytes of output: {_NOTHING}")
            if size > min((_free(one.base) for one in found), default=0):  # of a file with holes, its copy has none
                raise Conflict(f"the command left {size:,} bytes of output, and there is no room for them: {_NOTHING}")
            for one in found:
                one.copy()
        except OSError as cause:
            raise Unavailable(f"cannot take out what the command wrote: {cause.strerror}") from cause

    def _named(self, files: Iterable[Path]) -> "Iterator[_Copy]":
        for path in files:
            source = self._reached(path)
            if source is not None:
                _check_plain(source, path)
                yield _Copy(source, path.parent, (path.name,))

    def _below(self, folders: Iterable[Path], code: Collection[Path]) -> "Iterator[_Copy]":
        count = 0
        for path in folders:
            root = self._reached(path)
            if root is None:
                continue
            if not stat.S_ISDIR(root.lstat().st_mode):
                raise Conflict(f"the command put something else where its folder {path} was: {_NOTHING}")
            for names in _walk(root, ()):
                count += 1
                place = path.joinpath(*names)
                if count > MAX_FILES:
                    raise Conflict(f"the command left more than {MAX_FILES:,} files in {path}: {_NOTHING}")
                if place in code:
                    raise Conflict(f"the command wrote {place}, which is code: {_NOTHING}")
                _check_plain(root.joinpath(*names), place)
                yield _Copy(root.joinpath(*names), path, names)

    def _reached(self, path: Path) -> Path | None:
        """Where ``path`` is in the staging; None when nothing is. Raises Conflict when a link is on the way there."""
        place, made = next((place, made) for place, made in self._places.items() if place in (path, *path.parents))
        for name in path.relative_to(place).parts:
            if not stat.S_ISDIR(made.lstat().st_mode):
                raise Conflict(f"the command put something else where a folder above {path} was: {_NOTHING}")
            made /= name
            if not os.path.lexists(made):
                return None
        return made


class _Copy(NamedTuple):
    """A plain file and where it goes: to these names, below a folder that was declared."""

    source: Path
    base: Path
    names: tuple[str, ...]

    def copy(self) -> None:
        """Put it there, whole or not at all. No link below the declared folder is followed."""
        with contextlib.ExitStack() as opened:
            source = os.open(self.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened.callback(os.close, source)
            self.base.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.base, _FOLDER)
            opened.callback(os.close, folder)
            for name in self.names[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
                folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                opened.callback(os.close, folder)
            _copy(source, folder, self.names[-1])


def _copy(source: int, folder: int, name: str) -> None:
    beside = f".modelkeep-{os.urandom(8).hex()}"
    made = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        with os.fdopen(made, "wb", buffering=0) as into:
            while chunk := os.read(source, _CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[into.write(view) :]
            os.fsync(into.fileno())
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise


def _check_plain(path: Path, said: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) or mode & _SPECIAL:
        raise Conflict(f"the command left no plain file at {said}, but a link, a device or a file of another kind: {_NOTHING}")


def _walk(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names of all that is in a folder and is no folder, no link followed."""
    if len(names) > MAX_DEPTH:
        raise Conflict(f"the command left more than {MAX_DEPTH} folders in each other: {_NOTHING}")
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    bare = {entry.name for entry in entries} >= _BARE
    for entry in entries:
        if entry.name == ".git" or bare:  # whose hooks and settings name programs
            raise Conflict(f"the command left a git repository in an output folder: {_NOTHING}")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), (*names, entry.name))
        else:
            yield (*names, entry.name)


def _free(folder: Path) -> int:
    """Bytes that fit where a folder is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _remove(root: Path) -> None:
    """All of a folder, however deep and unreadable the command made it: what is in a folder moves up before it is emptied."""
    left, count = [root], 0
    while left:
        folder = left.pop()
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
            with os.scandir(folder) as listed:
                entries = list(listed)
            for entry in entries:
                path = Path(entry.path)
                if not entry.is_dir(follow_symlinks=False):
                    path.unlink()
                    continue
                path.chmod(0o700)
                count += 1
                left.append(path.rename(root / f".left-{count}-{os.urandom(8).hex()}"))
            if folder != root:
                folder.rmdir()
    with contextlib.suppress(OSError):
        root.rmdir()
