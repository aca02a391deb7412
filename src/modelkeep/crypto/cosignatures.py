"""Cosignatures: what a witness says of a checkpoint that it found to continue all it saw before. Source: C2SP tlog-cosignature.

Two kinds, told apart by the type byte of the verifier key: Ed25519 (0x04), which every witness in the field speaks, and
ML-DSA-44 (0x06), which also holds against quantum computers. A cosignature is a signature line of the checkpoint's note.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from modelkeep.core.hidden import never_pickled
from modelkeep.crypto.notes import (
    SignatureLine,
    check_name,
    key_id,
    parse_checkpoint,
    parse_vkey,
    split_note,
    unbase64,
    vkey_of,
)
from modelkeep.errors import Invalid, NotTrusted

SEED_SIZE = 32
_LATEST = (1 << 63) - 1
_SECRET = "PRIVATE+KEY+"  # noqa: S105  # the fixed beginning of every note signing key
_LABEL = b"subtree/v1\n\0"


class Kind(NamedTuple):
    """One algorithm: the type byte of its keys, and sizes in bytes."""

    word: str
    type: bytes
    public_size: int
    signature_size: int


ED25519 = Kind("ed25519", b"\x04", 32, 64)
ML_DSA_44 = Kind("ml-dsa-44", b"\x06", 1312, 2420)
KINDS = {kind.word: kind for kind in (ED25519, ML_DSA_44)}


def _kind(type_byte: bytes) -> Kind | None:
    return next((kind for kind in KINDS.values() if kind.type == type_byte), None)


def ed25519_message(text: str, at: int) -> bytes:
    """What an Ed25519 cosignature of the note text signs. ``at``: Unix seconds."""
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def subtree_message(cosigner: str, at: int, origin: str, leaves: tuple[int, int], root: bytes) -> bytes:
    """What an ML-DSA-44 cosignature signs (``cosigned_message``). ``leaves``: start and end; a checkpoint starts at 0.

    Raises Invalid: a name or an origin of more than 255 bytes.
    """
    names = [cosigner.encode(), origin.encode()]
    if not all(0 < len(name) < 256 for name in names):
        raise Invalid("the names of a cosigner and of a log that ML-DSA-44 signs have 1 to 255 bytes")
    first, second = (bytes([len(name)]) + name for name in names)
    return _LABEL + first + _u64(at) + second + b"".join(map(_u64, leaves)) + root


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _message(kind: Kind, cosigner: str, text: str, at: int) -> bytes:
    checkpoint = parse_checkpoint(text)
    if kind == ED25519:
        return ed25519_message(text, at)
    return subtree_message(cosigner, at, checkpoint.origin, (0, checkpoint.size), checkpoint.root)


@dataclass(frozen=True)
class CosignatureVerifier:
    """The public half of a witness's key."""

    name: str
    key_id: bytes
    kind: Kind
    public: bytes = field(repr=False)

    @classmethod
    def parse(cls, vkey: str) -> "CosignatureVerifier":
        """Parse ``name+keyid+base64(type ‖ public)``. Raises Invalid (malformed, or not a key for cosignatures)."""
        name, key = parse_vkey(vkey)
        kind = _kind(key[:1])
        if kind is None or len(key) != 1 + kind.public_size:
            raise Invalid(
                f"the verifier key of {name!r} is not a witness's: its type must be 0x04 (Ed25519) or 0x06 (ML-DSA-44)"
            )
        return cls(name, key_id(name, key), kind, key[1:])

    @property
    def vkey(self) -> str:
        """Undo ``parse``."""
        return vkey_of(self.name, self.kind.type + self.public)

    def made(self, line: SignatureLine) -> bool:
        """Whether ``line`` says that it is of this key."""
        return line.name == self.name and line.data[:4] == self.key_id

    def check(self, text: str, line: SignatureLine) -> int:
        """The time of a cosignature of the checkpoint ``text``, Unix seconds, once it holds. Raises NotTrusted."""
        wrong = NotTrusted(f"the cosignature of the witness {self.name} does not hold")
        if not self.made(line) or len(line.data) != 12 + self.kind.signature_size:
            raise wrong
        at = int.from_bytes(line.data[4:12], "big")
        if at > _LATEST:
            raise wrong
        try:
            self._verify(line.data[12:], _message(self.kind, self.name, text, at))
        except (InvalidSignature, ValueError, Invalid) as cause:
            raise wrong from cause
        return at

    def _verify(self, signature: bytes, message: bytes) -> None:
        if self.kind == ED25519:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        else:
            MLDSA44PublicKey.from_public_bytes(self.public).verify(signature, message)


@never_pickled
class Cosigner:
    """The private half of a witness's key. Its representation shows the verifier key only."""

    __slots__ = ("_key", "_seed", "kind", "name", "verifier")

    def __init__(self, name: str, seed: bytes, kind: Kind = ED25519) -> None:
        """``seed``: 32 bytes, the private key of RFC 8032 or xi of FIPS 204. Raises Invalid."""
        if len(seed) != SEED_SIZE:
            raise Invalid(f"the seed of a witness's key has {SEED_SIZE} bytes")
        self.name, self.kind, self._seed = check_name(name), kind, bytes(seed)
        maker = Ed25519PrivateKey.from_private_bytes if kind == ED25519 else MLDSA44PrivateKey.from_seed_bytes
        self._key: Ed25519PrivateKey | MLDSA44PrivateKey = maker(self._seed)
        public = self._key.public_key().public_bytes_raw()
        self.verifier = CosignatureVerifier(name, key_id(name, kind.type + public), kind, public)

    def __repr__(self) -> str:
        return f"Cosigner({self.verifier.name}+{self.verifier.key_id.hex()})"

    @classmethod
    def parse(cls, secret: str) -> "Cosigner":
        """Undo ``secret``. Raises Invalid; what it says names no secret."""
        wrong = Invalid("this is not the key of a witness: expected PRIVATE+KEY+name+keyid+base64")
        parts = secret.removeprefix(_SECRET).split("+", 2)
        if not secret.startswith(_SECRET) or len(parts) != 3:
            raise wrong
        try:
            key = unbase64(parts[2])
            kind = _kind(key[:1])
            if kind is None:
                raise wrong
            made = cls(parts[0], key[1:], kind)
        except Invalid:
            raise wrong from None
        if made.verifier.key_id.hex() != parts[1]:
            raise Invalid(f"the key of the witness {made.name} does not match its own key id: it was altered")
        return made

    def secret(self) -> str:
        """The key as text, to be kept secret: the form of Go's note signing keys with this type byte and the seed."""
        data = base64.b64encode(self.kind.type + self._seed).decode()
        return f"{_SECRET}{self.name}+{self.verifier.key_id.hex()}+{data}"

    def cosign(self, text: str, at: int) -> SignatureLine:
        """Cosign the checkpoint ``text`` at ``at``, Unix seconds. Raises NotTrusted (no checkpoint), Invalid (time or name)."""
        if not 0 < at <= _LATEST:
            raise Invalid(f"a witness cannot sign at the time {at}: set its clock")
        signature = self._key.sign(_message(self.kind, self.name, text, at))
        return SignatureLine(self.name, self.verifier.key_id + _u64(at) + signature)


def cosignatures(note: bytes, verifiers: Iterable[CosignatureVerifier]) -> dict[CosignatureVerifier, int]:
    """Who of ``verifiers`` cosigned the checkpoint ``note``, and when, Unix seconds. Lines of other keys are ignored.

    Raises NotTrusted: malformed, or a cosignature of one of them does not hold (C2SP signed-note: then the whole note is bad).
    """
    text, lines = split_note(note)
    found: dict[CosignatureVerifier, int] = {}
    for verifier in verifiers:
        times = [verifier.check(text, line) for line in lines if verifier.made(line)]
        if times:
            found[verifier] = max(times)
    return found


def with_lines(note: bytes, lines: Iterable[SignatureLine]) -> bytes:
    """``note`` with those of ``lines`` appended whose key has not signed it yet. Raises NotTrusted (malformed)."""
    there = {(line.name, line.data[:4]) for line in split_note(note)[1]}
    fresh = {(line.name, line.data[:4]): line for line in lines}
    return note + b"".join(line.encode() for key, line in fresh.items() if key not in there)
