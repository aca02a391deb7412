"""Signed notes and checkpoints: C2SP signed-note (Ed25519, type 0x01) and C2SP tlog-checkpoint.

A note is text that ends in a newline, an empty line, and one signature line for each key. A checkpoint is a note whose text is
a log's origin, its size and its root. Signatures of other keys (witnesses, a key being rotated in) are ignored.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from modelkeep.core.hidden import never_pickled
from modelkeep.crypto.kdf import hkdf
from modelkeep.crypto.merkle import HASH_SIZE
from modelkeep.errors import Invalid, NotTrusted

ED25519 = b"\x01"
MAX_NOTE = 1 << 20
MAX_SIGNATURES = 100
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}\Z")
MAX_SIZE = (1 << 63) - 1
_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


def check_name(text: str) -> str:
    """``text``, once it may name a note key. Raises Invalid."""
    if not _NAME.match(text):
        raise Invalid(f"{text[:80]!r} cannot name a note key: no spaces, no plus, no control characters")
    return text


def key_id(name: str, key: bytes) -> bytes:
    """The 4-byte id of a key. ``key``: signature type byte ‖ public key. Source: C2SP signed-note, "Signatures"."""
    return hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]


def unbase64(text: str) -> bytes:
    """Strict base64 of RFC 4648, section 4: one spelling for each value. Raises Invalid."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise Invalid("not base64") from cause
    if base64.b64encode(data).decode() != text:
        raise Invalid("not canonical base64")
    return data


def encode_vkey(name: str, public: bytes) -> str:
    """The verifier key ``name+keyid+base64(0x01 ‖ public)`` of a 32-byte Ed25519 public key. Raises Invalid."""
    if len(public) != 32:
        raise Invalid(f"an Ed25519 public key has 32 bytes, not {len(public)}")
    return vkey_of(name, ED25519 + public)


def vkey_of(name: str, key: bytes) -> str:
    """``name+keyid+base64(key)``. ``key``: signature type byte ‖ public key. Raises Invalid (the name)."""
    return f"{check_name(name)}+{key_id(name, key).hex()}+{base64.b64encode(key).decode()}"


def parse_vkey(vkey: str) -> tuple[str, bytes]:
    """The name and the key (signature type byte ‖ public key) of a verifier key, whose key id holds. Raises Invalid."""
    parts = vkey.split("+", 2)
    if len(parts) != 3:
        raise Invalid(f"{vkey[:80]!r} is not a verifier key: expected name+keyid+base64")
    try:
        key = unbase64(parts[2])
    except Invalid as cause:
        raise Invalid(f"the verifier key of {parts[0][:80]!r} is not base64") from cause
    if key_id(check_name(parts[0]), key).hex() != parts[1].lower():
        raise Invalid(f"the verifier key of {parts[0]!r} does not match its own key id: it was altered or mistyped")
    return parts[0], key


@never_pickled
class NoteSigner:
    """An Ed25519 key under a name. For a log the name is its origin."""

    __slots__ = ("_key", "_seed", "name", "public", "vkey")

    def __init__(self, name: str, seed: bytes) -> None:
        """``seed``: the 32-byte private key of RFC 8032. Raises Invalid."""
        if len(seed) != 32:
            raise Invalid("the seed of a note key has 32 bytes")
        self.name = check_name(name)
        self._seed = bytes(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(self._seed)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.vkey = encode_vkey(name, self.public)

    def __repr__(self) -> str:
        return f"NoteSigner({self.vkey})"

    def sign(self, text: str) -> bytes:
        """The whole note: ``text`` with this key's signature. ``text`` must end in a newline. Raises Invalid."""
        if not text.endswith("\n") or _CONTROL.search(text):
            raise Invalid("the text of a note ends in a newline and has no other control characters")
        body = text.encode()
        line = SignatureLine(self.name, key_id(self.name, ED25519 + self.public) + self._key.sign(body))
        return body + b"\n" + line.encode()

    def subkey(self, purpose: bytes) -> bytes:
        """32 secret bytes for ``purpose``, derived from the seed and the name (HKDF-SHA-512)."""
        info = b"modelkeep/note-subkey/1\x00" + purpose + b"\x00" + self.name.encode()
        return hkdf(self._seed, salt=b"", info=info)


@dataclass(frozen=True)
class NoteVerifier:
    """The public half of a note key."""

    name: str
    key_id: bytes
    key: Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def parse(cls, vkey: str) -> "NoteVerifier":
        """Parse ``name+keyid+base64(0x01 ‖ public)``. Raises Invalid (malformed, another algorithm, a wrong key id)."""
        name, key = parse_vkey(vkey)
        if key[:1] != ED25519 or len(key) != 33:
            raise Invalid(f"the verifier key of {name[:80]!r} is not an Ed25519 note key")
        return cls(name, key_id(name, key), Ed25519PublicKey.from_public_bytes(key[1:]))


class SignatureLine(NamedTuple):
    """One signature line of a note. ``data``: key id (4 bytes) ‖ signature."""

    name: str
    data: bytes

    def encode(self) -> bytes:
        """The line, with its newline."""
        return f"\u2014 {self.name} {base64.b64encode(self.data).decode()}\n".encode()


def open_note(note: bytes, verifier: NoteVerifier) -> str:
    """The text of ``note``, once ``verifier``'s signature on it holds.

    Lines of other keys are ignored, but must be well formed. Source: C2SP signed-note.
    Raises NotTrusted: malformed, not signed by this key, or its signature is wrong.
    """
    text, signatures = split_note(note)
    wanted = [data for name, data in signatures if name == verifier.name and data[:4] == verifier.key_id]
    if not wanted:
        raise NotTrusted(f"the note is not signed by {verifier.name}")
    try:
        for signature in wanted:
            verifier.key.verify(signature[4:], text.encode())
    except InvalidSignature as cause:
        raise NotTrusted(f"the signature of {verifier.name} does not hold: the note was altered") from cause
    return text


def split_note(note: bytes) -> tuple[str, list[SignatureLine]]:
    """The text and the signature lines of a note, none of them checked. Raises NotTrusted (malformed)."""
    if len(note) > MAX_NOTE:
        raise NotTrusted(f"a note of {len(note)} bytes is too large")
    try:
        decoded = note.decode()
    except UnicodeDecodeError as cause:
        raise NotTrusted("a note must be UTF-8") from cause
    text, blank, tail = decoded.rpartition("\n\n")
    if not blank or not tail.endswith("\n") or _CONTROL.search(decoded):
        raise NotTrusted("not a signed note: expected text, an empty line and signature lines")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NotTrusted(f"a note with {len(lines)} signatures is too large")
    return text + "\n", [signature_line(line) for line in lines]


def signature_line(line: str) -> SignatureLine:
    """Undo ``SignatureLine.encode``; ``line`` is without its newline. Raises NotTrusted (malformed)."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014" or not _NAME.match(parts[1]):
        raise NotTrusted("malformed signature line in a note")
    try:
        data = unbase64(parts[2])
    except Invalid as cause:
        raise NotTrusted("malformed signature in a note") from cause
    if len(data) < 5:
        raise NotTrusted("a note signature is too short")
    return SignatureLine(parts[1], data)


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log: everything that ``root`` covers is fixed for good."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note text. Source: C2SP tlog-checkpoint."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, signer: NoteSigner) -> bytes:
        """The signed note."""
        return signer.sign(self.text())


def open_checkpoint(note: bytes, vkey: str, origin: str) -> Checkpoint:
    """The checkpoint in ``note``, once its signature by ``vkey`` holds and it is of the log ``origin``.

    Extension lines are allowed and ignored. Raises NotTrusted, Invalid (the vkey is malformed).
    """
    verifier = NoteVerifier.parse(vkey)
    try:
        text = open_note(note, verifier)
    except NotTrusted as cause:
        raise NotTrusted(f"the checkpoint of the log {origin} does not hold: {cause}") from cause
    found = parse_checkpoint(text)
    if found.origin != origin:
        raise NotTrusted(f"the checkpoint is of the log {found.origin[:80]!r}, not of {origin!r}")
    return found


def parse_checkpoint(text: str) -> Checkpoint:
    """The checkpoint that the text of a note is; extension lines are allowed and ignored. Raises NotTrusted."""
    lines = text.split("\n")
    if len(lines) < 4 or not all(lines[:-1]) or not _SIZE.match(lines[1]):
        raise NotTrusted("the note is not a checkpoint: expected an origin, a size and a root")
    try:
        root = unbase64(lines[2])
    except Invalid as cause:
        raise NotTrusted("the root in the checkpoint is not base64") from cause
    if len(root) != HASH_SIZE:
        raise NotTrusted("the root in the checkpoint does not have 32 bytes")
    if int(lines[1]) > MAX_SIZE:  # where every other implementation ends, so that none sees another tree than we do
        raise NotTrusted("the size in the checkpoint is larger than any log")
    return Checkpoint(lines[0], int(lines[1]), root)
