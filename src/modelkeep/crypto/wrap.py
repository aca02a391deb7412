"""Wrap a key, or seal a small body, under another key: one-time key from a random salt, AES-256-GCM, and a key commitment.

The bytes, for both: ``salt(32) ‖ commitment(32) ‖ ciphertext ‖ tag(16)`` where
``HKDF-SHA-512(key, salt, info=label ‖ context, 64 bytes) = one-time key ‖ commitment``, the nonce is twelve zero bytes (every
one-time key is used once) and the associated data is ``context``. AES-GCM alone lets one ciphertext open under two keys; the
commitment does not (Albertini et al. 2022, "How to Abuse and Fix Authenticated Encryption Without Key Commitment", section 5).

A ``Sealer`` seals many bodies under one such key: ``salt ‖ commitment ‖ nonce(12) ‖ ciphertext ‖ tag``, where the label is
another, which tells the two forms apart, and the nonce counts up from zero (NIST SP 800-38D, section 8.2.1; at most 2^32
messages a key, section 8.3).
"""

import hmac
import itertools
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from modelkeep.crypto.kdf import hkdf
from modelkeep.errors import Invalid, NotTrusted

KEY_SIZE = 32
SALT_SIZE = 32
OVERHEAD = SALT_SIZE + 32 + 16
WRAPPED_SIZE = KEY_SIZE + OVERHEAD

_WRAP = b"modelkeep/wrap/1"
_BYTES = b"modelkeep/bytes/1"
_STREAM = b"modelkeep/bytes/2"
_MESSAGES = 1 << 32
_NONCE = bytes(12)


def wrap_key(kek: bytes, key: bytes, context: bytes) -> bytes:
    """Wrap the 32-byte ``key`` under the 32-byte ``kek``, bound to ``context``: 112 bytes. Raises Invalid (wrong sizes)."""
    if len(key) != KEY_SIZE:
        raise Invalid(f"a key to wrap has {KEY_SIZE} bytes, not {len(key)}")
    return _seal(kek, key, context, _WRAP)


def unwrap_key(kek: bytes, wrapped: bytes, context: bytes) -> bytes:
    """Undo ``wrap_key``. Raises NotTrusted (altered, other key or other context), Invalid (``kek`` has a wrong size)."""
    if len(wrapped) != WRAPPED_SIZE:
        raise NotTrusted(f"a wrapped key has {WRAPPED_SIZE} bytes, not {len(wrapped)}")
    return _open(kek, wrapped, context, _WRAP)


def join_wrapped(key_id: str, wrapped: bytes) -> bytes:
    """A wrapped key with the id of what wrapped it: length of the id (2 bytes, big-endian), id, wrapped key."""
    return struct.pack(">H", len(key_id.encode())) + key_id.encode() + wrapped


def split_wrapped(body: bytes, what: str) -> tuple[str, bytes]:
    """Undo ``join_wrapped``; ``what``: for the message. Raises NotTrusted (malformed)."""
    length = int.from_bytes(body[:2])
    try:
        if len(body) > 2 + length:
            return body[2 : 2 + length].decode(), body[2 + length :]
    except UnicodeDecodeError:
        pass
    raise NotTrusted(f"the record of {what} is malformed: restore it from a backup")


def seal_bytes(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Encrypt a small body under the 32-byte ``key``, bound to ``aad``: 80 bytes longer than ``plaintext``. Raises Invalid."""
    return _seal(key, plaintext, aad, _BYTES)


class Sealer:
    """Seals small bodies under ``key`` (32 bytes), all bound to ``aad``: 92 bytes longer each. Thread-safe. Raises Invalid."""

    def __init__(self, key: bytes, aad: bytes, *, messages: int = _MESSAGES) -> None:
        self._key, self._aad, self._messages = key, aad, messages
        self._renew()

    def _renew(self) -> None:
        salt = os.urandom(SALT_SIZE)
        once, commitment = _keys(self._key, salt, self._aad, _STREAM)
        self._state = salt + commitment, AESGCM(once).encrypt, itertools.count()

    def seal(self, plaintext: bytes) -> bytes:
        """One body, sealed."""
        while True:
            head, encrypt, numbers = self._state
            number = next(numbers)
            if number < self._messages:
                nonce = number.to_bytes(12, "big")
                return head + nonce + encrypt(nonce, plaintext, self._aad)
            self._renew()


def open_bytes(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Undo ``seal_bytes`` or ``Sealer.seal``.

    Raises NotTrusted (altered, other key or other ``aad``), Invalid (``key`` has a wrong size).
    """
    if len(sealed) >= OVERHEAD + 12:
        once, commitment = _keys(key, sealed[:SALT_SIZE], aad, _STREAM)
        if hmac.compare_digest(commitment, sealed[SALT_SIZE:64]):
            return _decrypt(once, sealed[64:76], sealed[76:], aad)
    return _open(key, sealed, aad, _BYTES)


def _keys(key: bytes, salt: bytes, context: bytes, label: bytes) -> tuple[bytes, bytes]:
    if len(key) != KEY_SIZE:
        raise Invalid(f"the key has {len(key)} bytes, not {KEY_SIZE}")
    derived = hkdf(key, salt=salt, info=label + context, size=64)
    return derived[:32], derived[32:]


def _seal(key: bytes, plaintext: bytes, context: bytes, label: bytes) -> bytes:
    salt = os.urandom(SALT_SIZE)
    once, commitment = _keys(key, salt, context, label)
    return salt + commitment + AESGCM(once).encrypt(_NONCE, plaintext, context)


def _open(key: bytes, sealed: bytes, context: bytes, label: bytes) -> bytes:
    if len(sealed) < OVERHEAD:
        raise NotTrusted(f"sealed bytes have at least {OVERHEAD} bytes, not {len(sealed)}")
    once, commitment = _keys(key, sealed[:SALT_SIZE], context, label)
    if not hmac.compare_digest(commitment, sealed[SALT_SIZE:64]):
        raise NotTrusted("the sealed bytes were made under another key or for another purpose, or were altered")
    return _decrypt(once, _NONCE, sealed[64:], context)


def _decrypt(once: bytes, nonce: bytes, sealed: bytes, context: bytes) -> bytes:
    try:
        return AESGCM(once).decrypt(nonce, sealed, context)
    except InvalidTag as cause:
        raise NotTrusted("the sealed bytes were altered") from cause
