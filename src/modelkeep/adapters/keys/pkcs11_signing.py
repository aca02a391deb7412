"""Ed25519 signing keys that are made in a token and never leave it: the classical half of a statement identity.

A version is the key pair ``NAME/<version>``. No token here makes ML-DSA-65, so the other half of an identity is software: its
seed is wrapped by a wrapping key of the same token (``seed_keys``), and is in memory while it signs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as p11

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.keys.pkcs11 import Pkcs11Keys
from modelkeep.adapters.keys.pkcs11_token import TokenUri, module, parse_uri
from modelkeep.errors import Conflict, Denied, Missing, NotTrusted, Unavailable

T = TypeVar("T")

_CURVE = b"\x13\x0cedwards25519"
"""CKA_EC_PARAMS: the curve's name as a DER PrintableString. Source: PKCS #11 v3.0, section 2.3.7."""
_POINT = b"\x04\x20"
"""CKA_EC_POINT of Ed25519 is a DER OCTET STRING of 32 bytes; some tokens leave this head out."""
_TEMPLATE = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}


@dataclass(frozen=True)
class TokenEd25519:
    """``Ed25519Signing`` with one key pair of a token. ``key_id``: the URI without query, and the version."""

    keys: "Pkcs11Signing"
    key_id: str
    version: int
    public: bytes

    @property
    def where(self) -> str:
        """Where the key lives."""
        return self.key_id

    def sign(self, message: bytes) -> bytes:
        """The RFC 8032 signature of ``message``, 64 bytes, checked before it is given out. Raises Denied, Unavailable."""
        signature = self.keys.sign(self.version, message)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            raise NotTrusted(f"{self.key_id} signs with another key than its public one: the token was meddled with") from None
        return signature

    def describe(self) -> str:
        """Which half of the identity is where, in one sentence."""
        return (
            f"Ed25519: in the token, {self.key_id}, never extractable; ML-DSA-65: software, its seed wrapped by "
            f"{self.keys.seed_keys.uri.partition('?')[0]}"
        )


class Pkcs11Signing:
    """The Ed25519 keys called NAME in a token, in versions. Its representation shows no secret."""

    def __init__(self, uri: str, *, timeout: float) -> None:
        """Raises Invalid (malformed, or a PIN in the URI). The token is not touched yet."""
        self.uri = uri
        self._uri: TokenUri = parse_uri(uri)
        self._module, self._timeout = module(self._uri.module), timeout

    def __repr__(self) -> str:
        return f"Pkcs11Signing({self._uri.text!r})"

    @property
    def seed_keys(self) -> Pkcs11Keys:
        """The wrapping key in the same token for the ML-DSA-65 seed: object ``NAME-seed``. Create it before its first use."""
        _, _, query = self.uri.partition("?")
        text = self._uri._replace(name=f"{self._uri.name}-seed").text
        return Pkcs11Keys(f"{text}?{query}" if query else text, timeout=self._timeout, clock=SystemClock())

    def create(self) -> TokenEd25519:
        """Generate version 1 in the token. Raises Conflict (it exists), Denied, Unavailable (it cannot do Ed25519)."""

        def work(session: "pkcs11.Session") -> int:
            if self._publics(session):
                raise Conflict(f"{self._uri.text} exists already: it was not touched")
            return self._generate(session, 1)

        return self.signer(self._call(work))

    def rotate(self) -> TokenEd25519:
        """Generate the next version. The former ones stay as they are. Raises Missing, Denied, Unavailable."""

        def work(session: "pkcs11.Session") -> int:
            return self._generate(session, max(self._found(session)) + 1)

        return self.signer(self._call(work))

    def versions(self) -> tuple[int, ...]:
        """Every version, oldest first, also those whose private half was destroyed. Raises Missing, Unavailable."""
        return self._call(lambda session: tuple(sorted(self._found(session))))

    def signer(self, version: int | None = None) -> TokenEd25519:
        """One version to sign with; None = the latest. Raises Missing, NotTrusted (it may leave the token), Unavailable."""

        def work(session: "pkcs11.Session") -> TokenEd25519:
            publics = self._found(session)
            number = max(publics) if version is None else version
            if number not in publics:
                raise Missing(f"{self._uri.text} has no version {number}")
            self._private(session, number)
            return TokenEd25519(self, f"{self._uri.text}/{number}", number, publics[number])

        return self._call(work)

    def destroy(self, version: int) -> None:
        """Destroy a version's private half; the public one stays, so that its number is never used again.

        Raises Missing, Denied (destroyed already), Unavailable.
        """
        self._call(lambda session: self._private(session, version).destroy())

    def sign(self, version: int, message: bytes) -> bytes:
        """The token's EdDSA signature of ``message``, 64 bytes. Raises Denied, Missing, NotTrusted, Unavailable."""
        return self._call(lambda session: bytes(self._private(session, version).sign(message, mechanism=Mechanism.EDDSA)))

    def _call(self, work: "Callable[[pkcs11.Session], T]") -> T:
        return self._module.call(self._uri, work, self._timeout)

    def _generate(self, session: "pkcs11.Session", version: int) -> int:
        if Mechanism.EDDSA not in session.token.slot.get_mechanisms():
            raise Unavailable(
                f"the token of {self._uri.text} cannot make Ed25519 keys: take another, or keep this key in software"
            )
        curve = session.create_domain_parameters(KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _CURVE}, local=True)
        curve.generate_keypair(
            mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
            label=f"{self._uri.name}/{version}",
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template=_TEMPLATE,
        )
        self._private(session, version)
        return version

    def _found(self, session: "pkcs11.Session") -> dict[int, bytes]:
        found = self._publics(session)
        if not found:
            raise p11.NoSuchKey(self._uri.text)
        return found

    def _publics(self, session: "pkcs11.Session") -> dict[int, bytes]:
        """The public key of every version. Raises NotTrusted when two objects have one name."""
        found: dict[int, bytes] = {}
        for key in session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.KEY_TYPE: KeyType.EC_EDWARDS}):
            name, _, version = key[Attribute.LABEL].rpartition("/")
            if name == self._uri.name and version.isdecimal():
                if int(version) in found:
                    raise NotTrusted(f"the token holds two public keys called {self._uri.text}/{version}: remove the wrong one")
                found[int(version)] = bytes(key[Attribute.EC_POINT]).removeprefix(_POINT)[-32:]
        return found

    def _private(self, session: "pkcs11.Session", version: int) -> Any:
        label = f"{self._uri.name}/{version}"
        found = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: label}))
        if not found and version in self._found(session):
            raise Denied(f"{self._uri.text}/{version} is destroyed: it signs no more")
        if not found:
            raise p11.NoSuchKey(label)
        if len(found) > 1 or found[0][Attribute.EXTRACTABLE] or not found[0][Attribute.SENSITIVE]:
            raise NotTrusted(f"{self._uri.text}/{version} is not one key that stays in its token: rotate away from it")
        return found[0]
