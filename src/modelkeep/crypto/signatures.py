"""Statement identities: one name, two keys, and both must sign.

An identity is a *pair* of an Ed25519 key (RFC 8032) and an ML-DSA-65 key (FIPS 204). A message counts as signed only when
both signatures hold, so an attacker must break both schemes, and dropping either signature (stripping) leaves nothing.
"""

import hashlib
from typing import Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from modelkeep.errors import Invalid, NotTrusted

SEED_SIZE = 32
ED25519_KEY_SIZE, ED25519_SIGNATURE_SIZE = 32, 64
MLDSA65_KEY_SIZE, MLDSA65_SIGNATURE_SIZE = 1952, 3309


def key_id(algorithm: str, public: bytes) -> str:
    """The DSSE ``keyid`` of a public key: ``<algorithm>:`` and the SHA-256 of its raw bytes, in hex. Only ever a hint."""
    return f"{algorithm}:{hashlib.sha256(public).hexdigest()}"


class PairSignature(msgspec.Struct, frozen=True):
    """The two signatures of one message: ``ed25519`` 64 bytes, ``mldsa65`` 3,309 bytes."""

    ed25519: bytes
    mldsa65: bytes


class PublicIdentity(msgspec.Struct, frozen=True):
    """The public half of an identity: ``ed25519`` 32 bytes, ``mldsa65`` 1,952 bytes."""

    name: str
    ed25519: bytes
    mldsa65: bytes

    def __post_init__(self) -> None:
        if len(self.ed25519) != ED25519_KEY_SIZE or len(self.mldsa65) != MLDSA65_KEY_SIZE:
            raise Invalid(
                f"identity {self.name[:80]!r} needs a {ED25519_KEY_SIZE}-byte Ed25519 and a {MLDSA65_KEY_SIZE}-byte "
                f"ML-DSA-65 key, but has {len(self.ed25519)} and {len(self.mldsa65)} bytes"
            )

    @property
    def key_ids(self) -> tuple[str, str]:
        """The ``keyid`` of the Ed25519 and of the ML-DSA-65 key."""
        return key_id("ed25519", self.ed25519), key_id("ml-dsa-65", self.mldsa65)

    def check(self, message: bytes, signature: PairSignature) -> None:
        """Check both signatures of ``message``. Raises NotTrusted when either does not hold."""
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(signature.ed25519, message)
        except (InvalidSignature, ValueError) as cause:
            raise NotTrusted(f"the Ed25519 signature of {self.name} does not hold") from cause
        try:
            MLDSA65PublicKey.from_public_bytes(self.mldsa65).verify(signature.mldsa65, message)
        except (InvalidSignature, ValueError) as cause:
            raise NotTrusted(f"the ML-DSA-65 signature of {self.name} does not hold") from cause


class StatementSigner:
    """The private half of an identity. Its representation shows the name and no key."""

    __slots__ = ("_ed25519", "_mldsa65", "public")

    def __init__(self, name: str, ed25519_seed: bytes, mldsa65_seed: bytes) -> None:
        """``ed25519_seed``: RFC 8032 private key; ``mldsa65_seed``: FIPS 204 xi; 32 bytes each. Raises Invalid."""
        if len(ed25519_seed) != SEED_SIZE or len(mldsa65_seed) != SEED_SIZE:
            raise Invalid(f"identity {name[:80]!r} needs two seeds of {SEED_SIZE} bytes")
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(ed25519_seed)
        self._mldsa65 = MLDSA65PrivateKey.from_seed_bytes(mldsa65_seed)
        self.public = PublicIdentity(
            name, self._ed25519.public_key().public_bytes_raw(), self._mldsa65.public_key().public_bytes_raw()
        )

    @classmethod
    def from_seeds(cls, name: str, ed25519_seed: bytes, mldsa65_seed: bytes) -> Self:
        """The same as the constructor, named for readers. Raises Invalid."""
        return cls(name, ed25519_seed, mldsa65_seed)

    @property
    def name(self) -> str:
        """The identity's name."""
        return self.public.name

    def sign(self, message: bytes) -> PairSignature:
        """Sign ``message`` with both keys (ML-DSA is hedged: two signatures of one message differ)."""
        return PairSignature(self._ed25519.sign(message), self._mldsa65.sign(message))

    def __repr__(self) -> str:
        return f"StatementSigner({self.name!r})"
