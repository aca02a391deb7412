"""Recovery recipients: HPKE with the X-Wing KEM (ML-KEM-768 and X25519), so a recorded file outlives either of the two.

The private key is its 32-byte X-Wing seed, expanded with SHAKE-256 (draft-connolly-cfrg-xwing-kem, section 5.2). Text forms:

- identity ``modelkeep-recovery-`` + lower-case base32 of ``seed(32) ‖ check(4)``: 77 characters, kept offline;
- recipient ``modelkeep-recipient-`` + base64url of ``ML-KEM-768 key(1184) ‖ X25519 key(32) ‖ check(4)``;

where ``check`` is the first 4 bytes of SHA-256 of the prefix and the key, and no padding is written.
A wrapped key is the HPKE (RFC 9180) base-mode message ``enc(1120) ‖ ciphertext``, suite MLKEM768-X25519, HKDF-SHA-512,
AES-256-GCM, empty associated data.
"""

import base64
import binascii
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Invalid, NotTrusted

WRAPPED_SIZE = 1120 + KEY_SIZE + 16

_IDENTITY = "modelkeep-recovery-"
_RECIPIENT = "modelkeep-recipient-"
_MLKEM_SIZE = 1184
_PUBLIC_SIZE = _MLKEM_SIZE + 32
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA512, AEAD.AES_256_GCM)


def generate_identity() -> str:
    """A fresh private key in its text form. Whoever holds it opens what is wrapped for its recipient: keep it offline."""
    return _identity_text(os.urandom(32))


def identity_of(seed: bytes) -> str:
    """The private key whose seed is ``seed``, 32 random bytes that are kept elsewhere, in its text form. Raises Invalid."""
    if len(seed) != KEY_SIZE:
        raise Invalid(f"the seed of a recovery identity has {KEY_SIZE} bytes, not {len(seed)}")
    return _identity_text(seed)


def recipient_of(identity: str) -> str:
    """The public recipient, as text, of a private ``identity``. Raises Invalid (not an identity, or mistyped)."""
    mlkem, x25519 = _private_keys(_parse_identity(identity))
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return _RECIPIENT + base64.urlsafe_b64encode(public + _check(_RECIPIENT, public)).decode().rstrip("=")


def recipient_id(recipient: str) -> bytes:
    """The first 16 bytes of SHA-256 of the public key: what a recipient stanza carries. Raises Invalid."""
    return hashlib.sha256(_parse_recipient(recipient)).digest()[:16]


def xwing_wrap(recipient: str, key: bytes, info: bytes) -> bytes:
    """Wrap the 32-byte ``key`` for ``recipient``, bound to ``info``: 1168 bytes. Raises Invalid."""
    if len(key) != KEY_SIZE:
        raise Invalid(f"a key to wrap has {KEY_SIZE} bytes, not {len(key)}")
    public = _parse_recipient(recipient)
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_SIZE])
        x25519 = X25519PublicKey.from_public_bytes(public[_MLKEM_SIZE:])
        return _SUITE.encrypt(key, MLKEM768X25519PublicKey(mlkem, x25519), info)
    except ValueError as cause:
        raise Invalid("the recovery recipient is not a valid public key: copy it again") from cause


def xwing_unwrap(identity: str, wrapped: bytes, info: bytes) -> bytes:
    """Undo ``xwing_wrap``. Raises NotTrusted (altered, other recipient or other ``info``), Invalid (not an identity)."""
    private = MLKEM768X25519PrivateKey(*_private_keys(_parse_identity(identity)))
    try:
        key = _SUITE.decrypt(wrapped, private, info)
    except (InvalidTag, ValueError) as cause:
        raise NotTrusted("the wrapped key was altered, or is not for this recovery identity") from cause
    if len(key) != KEY_SIZE:
        raise NotTrusted(f"the wrapped key has {len(key)} bytes, not {KEY_SIZE}")
    return key


def _private_keys(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    expanded = hashlib.shake_256(seed).digest(96)
    return MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])


def _check(prefix: str, key: bytes) -> bytes:
    return hashlib.sha256(prefix.encode() + key).digest()[:4]


def _identity_text(seed: bytes) -> str:
    return _IDENTITY + base64.b32encode(seed + _check(_IDENTITY, seed)).decode().rstrip("=").lower()


def _parse_identity(text: str) -> bytes:
    """The seed. The message never repeats the text: it is a secret."""
    compact = "".join(text.split()).lower()
    body = compact.removeprefix(_IDENTITY).upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):  # `from None`: the cause would quote the secret
        raise Invalid(f"this is not a recovery identity: expected {_IDENTITY} and 58 characters of a-z 2-7") from None
    seed, check = raw[:32], raw[32:]
    if (
        not compact.startswith(_IDENTITY)
        or len(raw) != 36
        or check != _check(_IDENTITY, seed)
        or _identity_text(seed) != compact
    ):
        raise Invalid(f"the recovery identity is mistyped or cut: expected {_IDENTITY} and 58 characters of a-z 2-7")
    return seed


def _parse_recipient(text: str) -> bytes:
    compact = "".join(text.split())
    body = compact.removeprefix(_RECIPIENT)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as cause:
        raise Invalid(f"this is not a recovery recipient: expected {_RECIPIENT} and base64url") from cause
    public, check = raw[:_PUBLIC_SIZE], raw[_PUBLIC_SIZE:]
    if not compact.startswith(_RECIPIENT) or len(raw) != _PUBLIC_SIZE + 4 or check != _check(_RECIPIENT, public):
        raise Invalid(
            f"the recovery recipient is mistyped or cut: expected {_RECIPIENT} and {4 * (_PUBLIC_SIZE + 4) // 3 + 1} characters"
        )
    return public
