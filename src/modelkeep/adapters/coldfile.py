"""``Cold`` in a file without a name, sealed under a key that this process alone has and forgets.

What goes there was learnt from what people asked, so it is encrypted (AES-256-GCM, a fresh nonce at every write, bound to its
slot); when the process ends, however it ends, the file system drops the file and nobody has the key.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from modelkeep.errors import NotTrusted, Unavailable

_NONCE, _TAG = 12, 16


class ColdFile:
    """Slots of one size. The file is made at the first ``put``; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """``folder``: on whose disk the file lies."""
        self._folder = folder
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._writes = 0
        self._size = 0
        self._fd = -1

    def put(self, slot: int, data: bytes) -> None:
        """Keep ``data`` in ``slot``. Raises Unavailable."""
        self._size = self._size or len(data)
        if len(data) != self._size:
            raise ValueError(f"a slot of this file holds {self._size} bytes, not {len(data)}")
        nonce = self._writes.to_bytes(_NONCE)
        self._writes += 1  # also when the write fails: no nonce is used twice
        sealed = nonce + self._cipher.encrypt(nonce, data, slot.to_bytes(8))
        try:
            if self._fd < 0:
                self._fd = _nameless(self._folder)
            if os.pwrite(self._fd, sealed, slot * len(sealed)) != len(sealed):
                raise Unavailable(f"the disk under {self._folder} is full: cold accounts stay in memory")
        except OSError as cause:
            raise Unavailable(f"cannot put cold accounts on the disk under {self._folder}: {cause.strerror}") from cause

    def get(self, slot: int) -> bytes:
        """What ``slot`` was given last. Raises NotTrusted (altered), Unavailable."""
        length = _NONCE + self._size + _TAG
        try:
            sealed = os.pread(self._fd, length, slot * length)
        except OSError as cause:
            raise Unavailable(f"cannot read cold accounts under {self._folder}: {cause.strerror}") from cause
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], slot.to_bytes(8))
        except (InvalidTag, ValueError) as cause:
            raise NotTrusted(f"the cold accounts of this process under {self._folder} were altered") from cause

    def __del__(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)


def _nameless(folder: Path) -> int:
    """A new file that no name leads to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # not every file system has it
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    fd, name = tempfile.mkstemp(prefix=".cold-", dir=folder)
    Path(name).unlink()
    return fd
