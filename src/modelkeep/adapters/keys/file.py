"""Key compartments as files: ``<family>.keep`` in one folder, replaced as a set or not at all.

A set is written below ``.staged/``, synced, and committed by renaming that folder to ``.commit``: before the rename nothing has
changed, after it everything has, because whoever comes next moves the remaining files into place first.
"""

import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from modelkeep.adapters.folders import sync_folder
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable

_FAMILY = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_ESCROW = ".json"
MAX_SIZE = 1 << 20
STAGED, COMMIT, LOCK = ".staged", ".commit", ".lock"
TRUST = "trust.toml"
"""The public copy of the trust root lies beside the folder, and changes in the same step as the sealed ones."""
ESCROWS = "unseal"
"""So does the folder of escrows: a change of passphrase changes them and the compartments in one step."""


class FileKeys:
    """The folder of sealed compartments of one keep."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def families(self) -> list[str]:
        """Families that have a compartment here, sorted. Hold the lock."""
        return sorted(path.stem for path in self._root.glob("*.keep") if _FAMILY.match(path.stem))

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever a compartment is replaced; needs no lock and reads no content. Raises Unavailable."""
        try:
            found = [(path.name, path.stat()) for path in sorted(self._root.glob("*.keep"))]
        except OSError as cause:
            raise Unavailable(f"cannot look at the key compartments in {self._root}: {cause.strerror}") from cause
        return tuple((name, state.st_ino, state.st_mtime_ns) for name, state in found)

    def read(self, family: str) -> bytes:
        """One compartment's sealed bytes. Hold the lock.

        Raises Missing, NotTrusted (others may read or write the file, or it is not a plain file), Unavailable.
        """
        return read_private(self._path(family), "key compartment")

    def replace(self, files: Mapping[str, bytes], *, trust: bytes = b"", escrows: Mapping[str, bytes] = {}) -> None:
        """Replace or add compartments, all of them or none, durably. Hold the lock. Raises Unavailable, Invalid.

        What lies beside the folder changes with them: ``trust``, the new ``trust.toml``, empty = it stays as it is; ``escrows``
        by kind, those that are not named stay.
        """
        staged = self._root / STAGED
        try:
            self._clear(staged)
            staged.mkdir(mode=0o700)
            for family, data in files.items():
                self._write(staged / self._path(family).name, data)
            if trust:
                self._write(staged / TRUST, trust)
            for kind, data in escrows.items():
                self._write(staged / f"{kind}{_ESCROW}", data)
            sync_folder(staged)
            staged.rename(self._root / COMMIT)
            sync_folder(self._root)
            self._finish()
        except OSError as cause:
            raise Unavailable(f"cannot write the key compartments in {self._root}: {cause.strerror}") from cause

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against every other process, after finishing or undoing a replacement that was cut off.

        Raises Missing (no such folder), Unavailable.
        """
        try:
            handle = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as cause:
            raise Missing(f"there is no key folder {self._root}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot lock the key folder {self._root}: {cause.strerror}") from cause
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._finish()
                self._clear(self._root / STAGED)
            except OSError as cause:
                raise Unavailable(f"cannot settle the key folder {self._root}: {cause.strerror}") from cause
            yield
        finally:
            os.close(handle)

    def _path(self, family: str) -> Path:
        if not _FAMILY.match(family):
            raise Invalid(f"{family[:80]!r} is not a key family")
        return self._root / f"{family}.keep"

    def _finish(self) -> None:
        commit = self._root / COMMIT
        if not commit.is_dir():
            return
        beside = self._root.parent
        for path in sorted(commit.iterdir()):
            if path.suffix == _ESCROW:
                (beside / ESCROWS).mkdir(mode=0o700, exist_ok=True)
                path.rename(beside / ESCROWS / path.name)
                sync_folder(beside / ESCROWS)
            else:
                path.rename((beside if path.name == TRUST else self._root) / path.name)
        sync_folder(self._root)
        sync_folder(beside)
        commit.rmdir()
        sync_folder(self._root)

    @staticmethod
    def _clear(folder: Path) -> None:
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def read_private(path: Path, what: str) -> bytes:
    """The bytes of a file that only its owner may open. ``what``: what it should be, for the message.

    Raises Missing, NotTrusted (others may read or write it, it is not a plain file, or too large), Unavailable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as cause:
        raise Missing(f"there is no {what} at {path}") from cause
    except OSError as cause:
        raise Unavailable(f"cannot open {path}: {cause.strerror}") from cause
    try:
        _check_private(path, os.fstat(handle))
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
    finally:
        os.close(handle)
    if len(data) > MAX_SIZE:
        raise NotTrusted(f"{path} is too large to be a {what}")
    return data


def _check_private(path: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise NotTrusted(f"{path} is not a file: restore the compartment from a backup")
    if mode & 0o077 or found.st_uid != os.geteuid():
        raise NotTrusted(f"{path} is open to others (mode {mode:04o}, owner {found.st_uid}): make it 0600 and your own")
