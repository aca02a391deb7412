"""The trust root: the public keys of a keep, and what each of them may say.

Every key compartment seals a copy, which is the one that modelkeep itself believes; ``trust.toml`` is the public copy that
a verifier without any passphrase works from. It holds no secret.
"""

import tomllib
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Any

import msgspec

from modelkeep.core.values import to_json
from modelkeep.crypto.signatures import PublicIdentity
from modelkeep.errors import Invalid, NotTrusted

ANY = "*"
TRUST_VERSION = 1


class TrustedIdentity(msgspec.Struct, frozen=True):
    """A statement identity and its limits.

    ``may_sign``: short statement types, or ``*``. Only statements at log index ``first`` <= i < ``until`` count (None: no end):
    that is how a rotated or compromised identity stops counting without losing what it said before.
    """

    public: PublicIdentity
    may_sign: tuple[str, ...] = (ANY,)
    first: int = 0
    until: int | None = None

    def check_may_sign(self, short_type: str, index: int) -> None:
        """Raise NotTrusted unless this identity may make a ``short_type`` statement at log index ``index``."""
        if ANY not in self.may_sign and short_type not in self.may_sign:
            raise NotTrusted(f"{self.public.name} may not sign {short_type} statements")
        if index < self.first or (self.until is not None and index >= self.until):
            raise NotTrusted(f"{self.public.name} is not trusted at log index {index}")


class TrustRoot(msgspec.Struct, frozen=True):
    """The public keys of one keep.

    ``origin``: the keep's name, also the releases log's origin prefix; ``releases_log``: its signed-note verifier key (vkey);
    ``audit_key`` and ``token_key``: Ed25519 public keys, 32 bytes, of the audit logs and of session tokens.
    """

    origin: str
    releases_log: str
    audit_key: bytes
    token_key: bytes
    identities: tuple[TrustedIdentity, ...]
    version: int = TRUST_VERSION

    def encode(self) -> bytes:
        """The text of ``trust.toml``."""
        lines = [
            "# The public keys of this keep. No secret is in this file; give it to whoever verifies your releases.",
            f"version = {self.version}",
            f"origin = {_text(self.origin)}",
            f"releases_log = {_text(self.releases_log)}",
            f"audit_key = {_bytes(self.audit_key)}",
            f"token_key = {_bytes(self.token_key)}",
        ]
        for identity in self.identities:
            lines += ["", "[[identity]]", f"name = {_text(identity.public.name)}"]
            lines.append(f"may_sign = [{', '.join(_text(kind) for kind in identity.may_sign)}]")
            lines.append(f"first = {identity.first}")
            lines += [] if identity.until is None else [f"until = {identity.until}"]
            lines.append(f"ed25519 = {_bytes(identity.public.ed25519)}")
            lines.append(f"mldsa65 = {_bytes(identity.public.mldsa65)}")
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> "TrustRoot":
        """Read ``trust.toml``. Raises Invalid (malformed), NotTrusted (of a later version)."""
        try:
            raw = msgspec.convert(tomllib.loads(data.decode()), _TrustFile)
        except (ValueError, msgspec.ValidationError) as cause:
            raise Invalid(f"the trust root (trust.toml) is malformed: {cause}") from cause
        if raw.version != TRUST_VERSION:
            raise NotTrusted(
                f"the trust root (trust.toml) has version {raw.version}; this modelkeep knows version {TRUST_VERSION}"
            )
        identities = tuple(
            TrustedIdentity(PublicIdentity(i.name, _key(i.ed25519), _key(i.mldsa65)), i.may_sign, i.first, i.until)
            for i in raw.identity
        )
        return cls(raw.origin, raw.releases_log, _key(raw.audit_key), _key(raw.token_key), identities, raw.version)

    def check_same(self, public_copy: bytes) -> None:
        """Check that ``trust.toml`` says what the sealed trust root says. Raises NotTrusted, Invalid."""
        if TrustRoot.parse(public_copy) != self:
            raise NotTrusted("trust.toml differs from the trust root sealed in the key compartments: restore it from a copy")

    def to_data(self) -> dict[str, Any]:
        """Plain JSON data, as the key compartments carry it."""
        data: dict[str, Any] = msgspec.json.decode(to_json(self))
        return data


class _IdentityFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    ed25519: str
    mldsa65: str
    may_sign: tuple[str, ...]
    first: int = 0
    until: int | None = None


class _TrustFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    origin: str
    releases_log: str
    audit_key: str
    token_key: str
    identity: tuple[_IdentityFile, ...] = ()


def _text(value: str) -> str:
    return to_json(value).decode()  # a JSON string is a TOML basic string


def _bytes(value: bytes) -> str:
    return f'"{b64encode(value).decode()}"'


def _key(text: str) -> bytes:
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, ValueError) as cause:
        raise Invalid("a public key in the trust root (trust.toml) is not base64") from cause
