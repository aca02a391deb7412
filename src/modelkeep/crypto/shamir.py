"""Shamir's secret sharing: k of n shares give a secret back, and fewer say nothing about it.

Every byte of the secret is the constant term of a random polynomial of degree k-1 over GF(2^8); share x holds the values at x.
The field is Rijndael's (modulus x^8 + x^4 + x^3 + x + 1), as in HashiCorp Vault, SLIP-39 and draft-mcgrew-tss-03, and its
arithmetic has neither tables nor branches on secrets. Source: Shamir 1979, "How to share a secret".

The text form of a share is ``keepshare-`` and groups of lower-case base32 of
``version(1) ‖ set(4) ‖ threshold(1) ‖ x(1) ‖ y(32) ‖ check(4)``, where ``set`` is random and the same in all shares of one
secret, and ``check`` is the first 4 bytes of SHA-256 of the prefix and everything before it: a mistyped share is found before
any other share is needed.
"""

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Sequence

from modelkeep.core.hidden import never_pickled
from modelkeep.errors import Conflict, Invalid

SECRET_SIZE = 32
MAX_SHARES = 32
"""More people than this do not come together; the field itself has room for 255."""

_PREFIX = "keepshare-"
_VERSION = 1
_HEAD = struct.Struct(">B4sBB")
_CHECK = 4
_GROUP = 5
_INVERSE_EXPONENT = 254  # a^254 = a^-1 in a field of 256 elements


@never_pickled
class Share:
    """One share. Its representation shows which it is, and nothing of its value."""

    __slots__ = ("set_id", "threshold", "x", "y")

    def __init__(self, set_id: bytes, threshold: int, x: int, y: bytes) -> None:
        self.set_id, self.threshold, self.x, self.y = set_id, threshold, x, y

    def __repr__(self) -> str:
        return f"Share(set {self.set_id.hex()}, number {self.x}, {self.threshold} needed)"


def multiply(a: int, b: int) -> int:
    """The product of two elements of GF(2^8), in the same eight steps for all of them. Source: FIPS 197, section 4.2."""
    product = 0
    for bit in range(8):
        product ^= -((b >> bit) & 1) & a
        a = ((a << 1) ^ (-((a >> 7) & 1) & 0x11B)) & 0xFF
    return product & 0xFF


def inverse(a: int) -> int:
    """The inverse of an element, as a^254; that of zero is zero, so no secret decides what happens."""
    result, exponent = 1, _INVERSE_EXPONENT
    while exponent:  # the exponent is public
        if exponent & 1:
            result = multiply(result, a)
        a = multiply(a, a)
        exponent >>= 1
    return result


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """The polynomial with ``coefficients``, constant term first, at ``x`` (Horner)."""
    value = 0
    for coefficient in reversed(coefficients):
        value = multiply(value, x) ^ coefficient
    return value


def interpolate(points: Sequence[tuple[int, bytes]]) -> bytes:
    """The values at zero of the polynomials through ``points``, one for each byte. Raises Invalid (an x twice, zero, sizes)."""
    xs = [x for x, _ in points]
    if not xs or len(set(xs)) != len(xs) or not all(1 <= x <= 255 for x in xs) or len({len(y) for _, y in points}) != 1:
        raise Invalid("shares to combine have different numbers from 1 to 255 and one size")
    secret = bytearray(len(points[0][1]))
    for x, y in points:
        weight = 1
        for other in xs:
            if other != x:  # public: which shares they are
                weight = multiply(weight, multiply(other, inverse(other ^ x)))
        for at, value in enumerate(y):
            secret[at] ^= multiply(weight, value)
    return bytes(secret)


def split(secret: bytes, threshold: int, count: int) -> list[Share]:
    """``count`` shares of a 32-byte secret, of which any ``threshold`` give it back. Raises Invalid (sizes, numbers)."""
    if len(secret) != SECRET_SIZE:
        raise Invalid(f"a secret to share has {SECRET_SIZE} bytes, not {len(secret)}")
    if not 2 <= threshold <= count <= MAX_SHARES:
        raise Invalid(f"share among 2 to {MAX_SHARES} people, of whom 2 to all are needed: not {threshold} of {count}")
    polynomials = [bytes([byte]) + os.urandom(threshold - 1) for byte in secret]
    set_id = os.urandom(4)
    return [Share(set_id, threshold, x, bytes(evaluate(p, x) for p in polynomials)) for x in range(1, count + 1)]


def combine(shares: Sequence[Share]) -> bytes:
    """The secret, from as many shares as it needs. What comes of a forged share is no secret of anybody's: check it.

    Raises Conflict (of different sets, or one twice), Invalid (too few).
    """
    first = shares[0] if shares else None
    if first is None or len(shares) < first.threshold:
        raise Invalid(f"{first.threshold if first else 2} shares are needed, and there are {len(shares)}")
    if any((one.set_id, one.threshold) != (first.set_id, first.threshold) for one in shares):
        raise Conflict("these shares are of different sets: one of them is of another keep, or of shares that were replaced")
    if len({one.x for one in shares}) != len(shares):
        raise Conflict("the same share was given twice: every share counts once")
    return interpolate([(one.x, one.y) for one in shares[: first.threshold]])


def share_text(share: Share) -> str:
    """The text form of a share, which is given to one person."""
    raw = _HEAD.pack(_VERSION, share.set_id, share.threshold, share.x) + share.y
    body = base64.b32encode(raw + _check(raw)).decode().rstrip("=").lower()
    return _PREFIX + "-".join(body[at : at + _GROUP] for at in range(0, len(body), _GROUP))


def parse_share(text: str) -> Share:
    """Undo ``share_text``; case, spaces and dashes do not matter. Raises Invalid, never repeating the text: it is a secret."""
    compact = "".join(text.split()).replace("-", "").lower()
    body = compact.removeprefix(_PREFIX.rstrip("-")).upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):  # `from None`: the cause would quote the secret
        raise Invalid(_MISTYPED) from None
    head, check = raw[:-_CHECK], raw[-_CHECK:]
    canonical = base64.b32encode(raw).decode().rstrip("=") == body
    if (
        not compact.startswith(_PREFIX.rstrip("-"))
        or len(head) != _HEAD.size + SECRET_SIZE
        or check != _check(head)
        or not canonical
    ):
        raise Invalid(_MISTYPED)
    version, set_id, threshold, x = _HEAD.unpack_from(head)
    if version != _VERSION:
        raise Invalid(f"this share has format {version}, and this modelkeep knows format {_VERSION}: upgrade it")
    if not 2 <= threshold <= MAX_SHARES or not 1 <= x <= MAX_SHARES:
        raise Invalid(_MISTYPED)
    return Share(set_id, threshold, x, head[_HEAD.size :])


_MISTYPED = "this is not a share, or it is mistyped: a share begins with keepshare- and has 69 more characters of a-z 2-7"


def _check(raw: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + raw).digest()[:_CHECK]
