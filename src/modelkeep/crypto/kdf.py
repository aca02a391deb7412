"""Keys from keys (HKDF-SHA-512) and keys from passphrases (Argon2id)."""

import msgspec
from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from modelkeep.errors import Invalid, NotTrusted, Unavailable

MAX_MEMORY_KIB = 1 << 20
MAX_PASSES = 16
MAX_LANES = 16
MIN_SALT = 8

_SHA512 = SHA512()


def hkdf(ikm: bytes, *, salt: bytes, info: bytes, size: int = 32) -> bytes:
    """Derive ``size`` bytes from the uniformly random key ``ikm``.

    ``salt`` may be empty; ``info`` names the purpose and must begin with a label of its own. Source: RFC 5869, with SHA-512.
    Raises ValueError when ``size`` is over 255 · 64 bytes.
    """
    return HKDF(_SHA512, size, salt, info).derive(ikm)


class Argon2Params(msgspec.Struct, frozen=True):
    """How hard a passphrase is stretched: ``memory_kib`` KiB of memory, ``passes`` over it, in ``lanes`` threads.

    The default is the second recommended option of RFC 9106, section 4. Raises Invalid outside 8·lanes KiB - 1 GiB, 1-16 passes
    and 1-16 lanes: a file must not be able to ask for more work than that.
    """

    memory_kib: int = 65536
    passes: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        if not (
            1 <= self.lanes <= MAX_LANES
            and 1 <= self.passes <= MAX_PASSES
            and 8 * self.lanes <= self.memory_kib <= MAX_MEMORY_KIB
        ):
            raise Invalid(
                f"Argon2id with {self.memory_kib} KiB, {self.passes} passes and {self.lanes} lanes is out of bounds: "
                f"at most {MAX_MEMORY_KIB} KiB, {MAX_PASSES} passes, {MAX_LANES} lanes, and at least 8 KiB a lane"
            )

    @classmethod
    def read(cls, memory_kib: int, passes: int, lanes: int) -> "Argon2Params":
        """Parameters that came out of a file. Raises NotTrusted when they are out of bounds."""
        try:
            return cls(memory_kib, passes, lanes)
        except Invalid as cause:
            raise NotTrusted(f"the file asks for {cause}") from cause


def argon2id(passphrase: bytes, salt: bytes, *, params: Argon2Params, size: int = 32) -> bytes:
    """Stretch ``passphrase`` to ``size`` key bytes. Source: RFC 9106, version 0x13.

    Raises Invalid (empty passphrase, or a salt under 8 bytes), Unavailable (not enough memory).
    """
    if not passphrase:
        raise Invalid("the passphrase is empty: give one of at least one character")
    if len(salt) < MIN_SALT:
        raise Invalid(f"an Argon2id salt has at least {MIN_SALT} bytes, not {len(salt)}")
    try:
        return hash_secret_raw(passphrase, salt, params.passes, params.memory_kib, params.lanes, size, Type.ID)
    except HashingError as cause:
        raise Unavailable(f"Argon2id with {params.memory_kib} KiB failed ({cause}): free some memory") from cause
