"""JSON Web Signatures as far as verifying goes: compact form, public JWKs, thumbprints. Nothing is signed here, no secret read.

Sources: RFC 7515 (JWS), RFC 7517 and RFC 7518 (JWK, algorithms), RFC 8037 (EdDSA), RFC 9864 (Ed25519), RFC 7638 (thumbprint).
Base64url is taken strictly (RFC 7515, section 2: no padding, no other characters, and nothing in the spare bits), so one value
has one text. HMAC and ``none`` do not exist here: there is no name by which a token could ask for them.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from modelkeep.errors import NotTrusted

PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey | RSAPublicKey

RSA_BITS = (2048, 4096)
"""Smallest and largest modulus: below it is weak (RFC 8725, section 3.5), above it one check costs milliseconds."""
_RSA_EXPONENT_BITS = 32

_CURVES: dict[str, tuple[ec.EllipticCurve, int, str]] = {
    "P-256": (ec.SECP256R1(), 32, "ES256"),
    "P-384": (ec.SECP384R1(), 48, "ES384"),
    "P-521": (ec.SECP521R1(), 66, "ES512"),
}
_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = ("EdDSA", "Ed25519", "ES256", "ES384", "ES512", *_RSA)
"""Every algorithm that is understood; all of them are asymmetric."""


class Jws(NamedTuple):
    """A token in compact form, apart: decoded header and payload, the bytes that are signed, and the signature."""

    header: bytes
    payload: bytes
    signed: bytes
    signature: bytes


class Jwk(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON Web Key. ``d`` and ``k`` are there to be refused: a key that holds one is no public key."""

    kty: str
    kid: str = ""
    use: str = "sig"
    key_ops: tuple[str, ...] = ("verify",)
    alg: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""
    n: str = ""
    e: str = ""
    d: Any = None
    k: Any = None


def decode_part(text: str) -> bytes:
    """Base64url without padding, strictly. Raises NotTrusted."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as cause:
        raise NotTrusted("this is not base64url") from cause
    if encode_part(raw) != text:
        raise NotTrusted("this is not canonical base64url")
    return raw


def encode_part(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def split_jws(token: str) -> Jws:
    """Take a compact token apart; nothing of it is believed yet. Raises NotTrusted (it is none)."""
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise NotTrusted("this is not a signed token in compact form")
    header, payload, signature = map(decode_part, parts)
    return Jws(header, payload, token.rpartition(".")[0].encode("ascii"), signature)


def public_key(jwk: Jwk) -> PublicKey:
    """The key that a JWK describes. Raises NotTrusted (none that is understood, too weak, too large, or not public)."""
    if jwk.d is not None or jwk.k is not None:
        raise NotTrusted("this JWK holds a secret: only public keys are taken")
    try:
        if jwk.kty == "OKP" and jwk.crv == "Ed25519":
            return Ed25519PublicKey.from_public_bytes(decode_part(jwk.x))
        if jwk.kty == "EC" and jwk.crv in _CURVES:
            return _on_curve(jwk)
        if jwk.kty == "RSA":
            return _rsa(jwk)
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise NotTrusted("this JWK describes no key") from cause
    raise NotTrusted(f"keys of type {jwk.kty[:16]!r} {jwk.crv[:16]!r} are not taken")


def algorithms_of(key: PublicKey) -> tuple[str, ...]:
    """The algorithms that a key of this type can be used with, of ``ALGORITHMS``."""
    if isinstance(key, Ed25519PublicKey):
        return ("EdDSA", "Ed25519")
    if isinstance(key, RSAPublicKey):
        return _RSA
    return tuple(alg for curve, _, alg in _CURVES.values() if curve.name == key.curve.name)


def check_signature(algorithm: str, key: PublicKey, token: Jws) -> None:
    """Check that ``key`` made the signature of ``token`` with ``algorithm``, which is ours to say and not the token's.

    Raises NotTrusted.
    """
    if algorithm not in algorithms_of(key):
        raise NotTrusted(f"a key of this type makes no {algorithm[:16]!r} signatures")
    try:
        _check(algorithm, key, token.signed, token.signature)
    except InvalidSignature:
        raise NotTrusted("the signature does not hold") from None


def thumbprint(jwk: Jwk) -> str:
    """The SHA-256 thumbprint of a public JWK, base64url (RFC 7638, sections 3.1 and 3.2). Call it on keys that were parsed."""
    members = {"OKP": ("crv", "kty", "x"), "EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}[jwk.kty]
    canonical = msgspec.json.encode({name: getattr(jwk, name) for name in members}, order="sorted")
    return encode_part(hashlib.sha256(canonical).digest())


def _check(algorithm: str, key: PublicKey, signed: bytes, signature: bytes) -> None:
    if isinstance(key, Ed25519PublicKey):
        key.verify(signature, signed)
        return
    digest = _HASHES[algorithm[2:]]()
    if isinstance(key, RSAPublicKey):
        pss = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH)
        key.verify(signature, signed, pss if algorithm.startswith("PS") else padding.PKCS1v15(), digest)
        return
    size = next(size for curve, size, _ in _CURVES.values() if curve.name == key.curve.name)
    if len(signature) != 2 * size:  # RFC 7518, section 3.4: R and S, each of full length
        raise InvalidSignature
    r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))


def _on_curve(jwk: Jwk) -> ec.EllipticCurvePublicKey:
    curve, size, _ = _CURVES[jwk.crv]
    x, y = decode_part(jwk.x), decode_part(jwk.y)
    if len(x) != size or len(y) != size:  # RFC 7518, section 6.2.1.2
        raise NotTrusted("a coordinate of this JWK has not the length of its curve")
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()


def _rsa(jwk: Jwk) -> RSAPublicKey:
    modulus, exponent = int.from_bytes(decode_part(jwk.n)), int.from_bytes(decode_part(jwk.e))
    if not RSA_BITS[0] <= modulus.bit_length() <= RSA_BITS[1] or exponent.bit_length() > _RSA_EXPONENT_BITS:
        raise NotTrusted(f"an RSA key has {RSA_BITS[0]} to {RSA_BITS[1]} bits here, and a small exponent")
    return RSAPublicNumbers(exponent, modulus).public_key()
