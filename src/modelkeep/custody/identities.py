"""The statement identities of the key ring: which keys a version of ``statement-signing`` is, and where they live.

A version in software holds two seeds (``ed25519``, ``mldsa65``). A version in a token holds the URI of the Ed25519 key there
(``token``), both public keys, and the ML-DSA-65 seed wrapped by a key of the same token (``mldsa65-wrapped``), because many
tokens sign with Ed25519 and few with ML-DSA. Either half alone signs nothing that counts.
"""

from collections.abc import Callable

from modelkeep.core.ports import Wrapper
from modelkeep.crypto.signatures import SOFTWARE, Ed25519Signing, PublicIdentity, StatementSigner
from modelkeep.custody.keys import DESTROYED, KeyVersion
from modelkeep.errors import Denied, Unavailable

TokenHalves = Callable[[str], tuple[Ed25519Signing, Wrapper]]
"""The Ed25519 key at a token's URI, and the key there that wraps the other half. Raises Unavailable, Missing, Denied."""


def no_token(uri: str) -> tuple[Ed25519Signing, Wrapper]:
    """For a process that reaches no token. Raises Unavailable."""
    raise Unavailable(f"this process has no way to the token that signs statements ({uri})")


def identity_name(origin: str, version: int) -> str:
    """The name of a keep's statement identity, by key version."""
    return f"{origin}/statement-signing/{version}"


def seed_context(origin: str, version: int) -> bytes:
    """What the ML-DSA-65 seed of a version is wrapped for, so that it cannot be put in another's place."""
    return f"modelkeep/mldsa65-seed/1\0{identity_name(origin, version)}".encode()


def place_of(key: KeyVersion) -> str:
    """Where the Ed25519 half of a version lives: ``software``, a token's URI, or "" once it is destroyed."""
    if key.state == DESTROYED:
        return ""
    return key.material["token"].decode() if "token" in key.material else SOFTWARE


def public_of(origin: str, key: KeyVersion) -> PublicIdentity:
    """The public half of a version; needs no token. Raises Denied (it is destroyed)."""
    if "token" in key.material:
        return PublicIdentity(
            identity_name(origin, key.version), key.material["ed25519-public"], key.material["mldsa65-public"]
        )
    return signer_of(origin, key).public


def signer_of(origin: str, key: KeyVersion, tokens: TokenHalves = no_token) -> StatementSigner:
    """What signs with a version. Raises Denied (it is destroyed, or the token refuses), Unavailable, NotTrusted."""
    name = identity_name(origin, key.version)
    if key.state == DESTROYED:
        raise Denied(f"the keys of {name} were destroyed")
    if "token" not in key.material:
        return StatementSigner(name, key.material["ed25519"], key.material["mldsa65"])
    half, wrapper = tokens(key.material["token"].decode())
    seed = wrapper.unwrap(key.material["mldsa65-wrapped"], seed_context(origin, key.version))
    return StatementSigner(name, half, seed)


def token_material(
    origin: str, version: int, uri: str, half: Ed25519Signing, wrapper: Wrapper, seed: bytes
) -> dict[str, bytes]:
    """What the key ring keeps of a version whose Ed25519 half lives in a token. ``seed``: 32 bytes. Raises Unavailable."""
    public = StatementSigner(identity_name(origin, version), half, seed).public
    return {
        "token": uri.encode(),
        "ed25519-public": public.ed25519,
        "mldsa65-public": public.mldsa65,
        "mldsa65-wrapped": wrapper.wrap(seed, seed_context(origin, version)),
    }
