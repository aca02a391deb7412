"""The table of key URIs: which provider a wrapping key lives in. docs/keys.md describes each.

A provider's SDK is imported only when a URI names it, so the core works without the extras.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from modelkeep.adapters.clock import SystemClock
from modelkeep.core.ports import Clock, WrappingKeys
from modelkeep.errors import Invalid

if TYPE_CHECKING:
    from modelkeep.adapters.keys.pkcs11_signing import Pkcs11Signing

TIMEOUT = 10.0
"""Seconds that one call to a provider may take, unless told otherwise."""

SCHEMES = {"file": "", "pkcs11": "hsm", "vault": "vault", "aws-kms": "aws"}
"""Scheme of a key URI -> the extra that its SDK comes with."""

_SDKS = ("pkcs11", "hvac", "requests", "boto3", "botocore")


def is_key_uri(text: str) -> bool:
    """Whether ``text`` begins as a key URI does; nothing else of it is checked."""
    return text.partition(":")[0] in SCHEMES and ":" in text


def open_keys(
    uri: str, *, passphrase: Callable[[], bytes] | None = None, timeout: float = TIMEOUT, clock: Clock | None = None
) -> WrappingKeys:
    """The wrapping key that ``uri`` names. Nothing is asked of the provider yet.

    ``passphrase``: asked once, when a ``file:`` ring is first opened; ``timeout``: seconds that one call may take.
    Raises Invalid: unknown scheme, malformed, a secret in the URI, a missing environment variable, or an extra that is not
    installed. No message repeats the URI: it could hold a PIN.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise Invalid(f"this is not a key URI: it begins with none of {', '.join(f'{known}:' for known in SCHEMES)}")
    if not rest:
        raise Invalid(f"the key URI {scheme}: names no key")
    if timeout <= 0:
        raise Invalid("the timeout of a key provider must be longer than 0 seconds")
    try:
        return _open(scheme, uri, passphrase, timeout, clock or SystemClock())
    except ModuleNotFoundError as cause:
        raise _missing(scheme, cause) from cause


def open_signing(uri: str, *, timeout: float = TIMEOUT) -> "Pkcs11Signing":
    """The Ed25519 key in a token that a ``pkcs11:`` URI names. Raises Invalid: another scheme, and as ``open_keys``."""
    if not uri.startswith("pkcs11:"):
        raise Invalid("only a pkcs11: URI names a signing key in a token")
    try:
        from modelkeep.adapters.keys.pkcs11_signing import Pkcs11Signing

        return Pkcs11Signing(uri, timeout=timeout)
    except ModuleNotFoundError as cause:
        raise _missing("pkcs11", cause) from cause


def _open(scheme: str, uri: str, passphrase: Callable[[], bytes] | None, timeout: float, clock: Clock) -> WrappingKeys:
    if scheme == "file":
        from modelkeep.adapters.keys.ring import RingFile

        return RingFile(uri, passphrase, timeout=timeout, clock=clock)
    if scheme == "pkcs11":
        from modelkeep.adapters.keys.pkcs11 import Pkcs11Keys

        return Pkcs11Keys(uri, timeout=timeout, clock=clock)
    if scheme == "vault":
        from modelkeep.adapters.keys.vault import VaultKeys

        return VaultKeys(uri, timeout=timeout, clock=clock)
    from modelkeep.adapters.keys.aws_kms import AwsKmsKeys

    return AwsKmsKeys(uri, timeout=timeout, clock=clock)


def _missing(scheme: str, cause: ModuleNotFoundError) -> Invalid:
    if (cause.name or "").partition(".")[0] not in _SDKS:
        raise cause
    return Invalid(f"a key at {scheme}: needs 'pip install modelkeep[{SCHEMES[scheme]}]'")
