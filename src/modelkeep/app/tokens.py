"""Statement identities whose Ed25519 half lives in a token: made there, and opened to sign with."""

from typing import TYPE_CHECKING

from modelkeep.core.ports import Entropy, Wrapper
from modelkeep.crypto.signatures import SEED_SIZE, Ed25519Signing
from modelkeep.custody.identities import token_material
from modelkeep.custody.succession import MakeMaterial
from modelkeep.errors import Conflict, Invalid, Missing

if TYPE_CHECKING:
    from modelkeep.adapters.keys.pkcs11_signing import Pkcs11Signing

SCHEME = "pkcs11:"
TIMEOUT = 10.0
"""Seconds that the token may take for one answer."""


def check_token_uri(uri: str) -> str:
    """Raises Invalid unless ``uri`` names an object in a token."""
    if not uri.startswith(SCHEME):
        raise Invalid(f"{uri.partition('?')[0][:99]!r} is no token: statements are signed in the key ring or at a {SCHEME} URI")
    return uri


def open_token_identity(place: str, setting: str) -> tuple[Ed25519Signing, Wrapper]:
    """The Ed25519 key at ``place`` and the primary of the token's key that wraps the other half.

    ``place``: a key's URI without a query, as the key ring keeps it; ``setting``: how tokens are reached, a URI with a query.
    Raises Invalid (no token, or the extra is missing), Missing, Denied, NotTrusted, Unavailable.
    """
    name, _, version = place.rpartition("/")
    query = setting.partition("?")[2]
    keys = _signing(f"{name}?{query}" if query else name)
    return keys.signer(int(version)), keys.seed_keys.wrapper()


def in_token(uri: str, entropy: Entropy) -> MakeMaterial:
    """Makes identities whose Ed25519 key is generated in the token at ``uri``, never to leave it."""

    def make(origin: str, version: int) -> dict[str, bytes]:
        keys = _signing(uri)
        try:
            half = keys.create()
        except Conflict:
            half = keys.rotate()
        seeds = keys.seed_keys
        try:
            wrapper = seeds.wrapper()
        except Missing:
            wrapper = seeds.create()
        return token_material(origin, version, half.where, half, wrapper, entropy.token(SEED_SIZE))

    return make


def _signing(uri: str) -> "Pkcs11Signing":
    try:
        from modelkeep.adapters.keys.pkcs11_signing import Pkcs11Signing
    except ImportError as cause:
        raise Invalid("keys in a token need 'pip install modelkeep[hsm]'") from cause
    return Pkcs11Signing(check_token_uri(uri), timeout=TIMEOUT)
