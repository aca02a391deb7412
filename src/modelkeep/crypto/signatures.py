"""Statement identities: one name, two keys, and both must sign.

An identity is a *pair* of an Ed25519 key (RFC 8032) and an ML-DSA-65 key (FIPS 204). A message counts as signed only when
both signatures hold, so an attacker must break both schemes, and dropping either signature (stripping) leaves nothing.
"""

import hashlib
from typing import Protocol, Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from modelkeep.core.hidden import never_pickled
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


class Ed25519Signing(Protocol):
    """The Ed25519 half of an identity, wherever its key lives: in this process, or in a token that never gives it away."""

    @property
    def public(self) -> bytes:
        """The raw public key, 32 bytes."""
        ...

    @property
    def where(self) -> str:
        """Where the key lives, without any secret: ``software``, or the URI of a token's object."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The RFC 8032 signature of ``message``, 64 bytes. Raises Denied (the token refuses), Unavailable."""
        ...


SOFTWARE = "software"


@never_pickled
class SeedSigning:
    """``Ed25519Signing`` with a key in memory. Its representation shows no key."""

    __slots__ = ("_key", "public")

    where = SOFTWARE

    def __init__(self, seed: bytes) -> None:
        """``seed``: RFC 8032 private key, 32 bytes. Raises Invalid."""
        if len(seed) != SEED_SIZE:
            raise Invalid(f"an Ed25519 seed has {SEED_SIZE} bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes."""
        return self._key.sign(message)


@never_pickled
class StatementSigner:
    """The private half of an identity. Its representation shows the name and no key."""

    __slots__ = ("_ed25519", "_mldsa65", "public")

    def __init__(self, name: str, ed25519: bytes | Ed25519Signing, mldsa65_seed: bytes) -> None:
        """``ed25519``: RFC 8032 private key of 32 bytes, or what signs with one; ``mldsa65_seed``: FIPS 204 xi, 32 bytes.

        Raises Invalid.
        """
        if len(mldsa65_seed) != SEED_SIZE or (isinstance(ed25519, bytes) and len(ed25519) != SEED_SIZE):
            raise Invalid(f"identity {name[:80]!r} needs two seeds of {SEED_SIZE} bytes")
        self._ed25519: Ed25519Signing = SeedSigning(ed25519) if isinstance(ed25519, bytes) else ed25519
        self._mldsa65 = MLDSA65PrivateKey.from_seed_bytes(mldsa65_seed)
        self.public = PublicIdentity(name, self._ed25519.public, self._mldsa65.public_key().public_bytes_raw())

    @classmethod
    def from_seeds(cls, name: str, ed25519_seed: bytes, mldsa65_seed: bytes) -> Self:
        """The same as the constructor, named for readers. Raises Invalid."""
        return cls(name, ed25519_seed, mldsa65_seed)

    @property
    def name(self) -> str:
        """The identity's name."""
        return self.public.name

    @property
    def where(self) -> str:
        """Where the Ed25519 key lives; the ML-DSA-65 key is always in this process while it signs."""
        return self._ed25519.where

    def sign(self, message: bytes) -> PairSignature:
        """Sign ``message`` with both keys (ML-DSA is hedged: two signatures of one message differ).

        What a token answers is checked before it is used. Raises Denied, Unavailable (the token), NotTrusted (a wrong answer).
        """
        first = self._ed25519.sign(message)
        if self._ed25519.where != SOFTWARE:
            try:
                Ed25519PublicKey.from_public_bytes(self.public.ed25519).verify(first, message)
            except (InvalidSignature, ValueError) as cause:
                raise NotTrusted(f"{self._ed25519.where} gave a signature that its own public key refuses") from cause
        return PairSignature(first, self._mldsa65.sign(message))

    def __repr__(self) -> str:
        return f"StatementSigner({self.name!r})"
