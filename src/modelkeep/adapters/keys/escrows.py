"""Escrows as files: ``unseal/<kind>.json`` in the keep's folder, mode 0600, replaced whole or not at all."""

import contextlib
from pathlib import Path

from modelkeep.adapters.files import NewFile
from modelkeep.adapters.folders import sync_folder
from modelkeep.adapters.keys.file import read_private
from modelkeep.errors import Missing, Unavailable


class FolderEscrows:
    """The escrows of one keep."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, kind: str) -> bytes | None:
        """One of them; None when there is none. Raises NotTrusted (others may read or write it), Unavailable."""
        try:
            return read_private(self._root / f"{kind}.json", "escrow")
        except Missing:
            return None

    def write(self, kind: str, data: bytes) -> None:
        """Put one there, durably. Raises Unavailable."""
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
        except OSError as cause:
            raise Unavailable(f"cannot make {self._root}: {cause.strerror}") from cause
        with NewFile(self._root / f"{kind}.json") as file:
            file.write([data])
            file.publish(replace=True)

    def remove(self, kind: str) -> bool:
        """Take one away, durably; whether there was one. Raises Unavailable."""
        try:
            (self._root / f"{kind}.json").unlink()
        except FileNotFoundError:
            return False
        except OSError as cause:
            raise Unavailable(f"cannot remove {self._root / kind}.json: {cause.strerror}") from cause
        with contextlib.suppress(OSError):
            sync_folder(self._root)
        return True
