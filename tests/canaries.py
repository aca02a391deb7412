"""Secrets as they could show up again in what somebody prints, logs or keeps."""

import base64
import re
from collections.abc import Iterable, Iterator

from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from modelkeep.app.keep import Keep
from modelkeep.container.recipients import unlock
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import FAMILIES
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.workflows.registry import MODEL

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}")
WINDOW = 9
"""Bytes of a secret that may not be seen: a multiple of three, so that base64 has its own characters for them."""


class Canaries:
    """Some secrets, in every form that we think of. ``found`` names the first that stands in some bytes."""

    def __init__(self) -> None:
        self._needles: dict[bytes, str] = {}

    def key(self, name: str, secret: bytes) -> None:
        """Random bytes: any ``WINDOW`` of them in a row, raw, in hex, base64, as Python or JSON writes them."""
        assert len(set(secret)) > 8, f"{name} is no random secret"
        for at in (*range(0, len(secret) - WINDOW + 1, 6), len(secret) - WINDOW):
            for form in _forms(secret[at : at + WINDOW]):
                self._needles[form] = f"{name} from byte {at}"
        for form in _whole(secret):
            self._needles[form] = name

    def word(self, name: str, text: str) -> None:
        """Something that people type: as it is, and in the forms of a key."""
        raw = text.encode()
        for form in (raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"=")):
            self._needles[form] = name

    def found(self, data: bytes | str) -> str:
        """Which canary stands in ``data`` and how; "" when none does."""
        data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
        for needle, name in self._needles.items():
            if needle in data:
                return f"{name}, as {needle!r}"
        inner = b"\n".join(map(_decoded, _BASE64.findall(data)))
        return self.found(inner) if inner.strip() else ""


def key_canaries(keep: Keep, canaries: Canaries) -> Keyring:
    """Every secret of a keep's key ring, and the data keys of its releases."""
    keyring = keep.keyring(FAMILIES)
    for family in FAMILIES:
        for version in keyring._compartments[family].versions:
            for part, secret in version.material.items():
                name = f"{family}/{version.version} {part}"
                canaries.key(name, secret if len(secret) == 32 else private_scalar(secret))
    desk = keep.premises.desk()
    for evidence in desk.registry.book.releases():
        block = keep.premises.records.get(RECIPIENTS, evidence.body.sealed).body
        dek = unlock(block, bytes.fromhex(evidence.body.header), desk.registry.openers, purpose=MODEL)
        canaries.key(f"data key of {evidence.ref}", dek)
    return keyring


def _decoded(run: bytes) -> bytes:
    """What a run of base64 says, if it began there: secrets may be encoded more than once."""
    whole = run.replace(b"-", b"+").replace(b"_", b"/")
    return base64.b64decode(whole[: len(whole) // 4 * 4])


def private_scalar(key: bytes) -> bytes:
    """The secret number of an elliptic-curve key, DER or PEM: the rest of such a file is no secret."""
    loaded = load_pem_private_key(key, None) if key.startswith(b"-----") else load_der_private_key(key, None)
    number: int = loaded.private_numbers().private_value  # type: ignore[union-attr]
    return number.to_bytes(32)


def _forms(window: bytes) -> Iterator[bytes]:
    yield window
    yield window.hex().encode()
    yield window.hex().upper().encode()
    yield window.hex(" ").encode()
    yield repr(window)[2:-1].encode()
    yield ", ".join(map(str, window)).encode()
    yield ",".join(map(str, window)).encode()
    for shift in range(3):  # wherever the window stands in what was encoded, one of the three gives its inner characters
        inner = base64.b64encode(bytes(shift) + window)[2 * shift if shift < 2 else 4 : -4 if shift else None]
        if len(inner) >= 8:
            yield inner
            yield inner.replace(b"+", b"-").replace(b"/", b"_")


def _whole(secret: bytes) -> Iterable[bytes]:
    return (str(int.from_bytes(secret)).encode(), f"{int.from_bytes(secret):x}".encode())
