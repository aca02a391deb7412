"""The trust root: the public keys of a keep, and what each of them may say.

Every key compartment seals a copy, which is the one that modelkeep itself believes; ``trust.toml`` is the public copy that
a verifier without any passphrase works from. It holds no secret. What the log says about trust builds on it
(custody/signatories).
"""

import re
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
_PATTERN = re.compile(r"[a-z0-9._*?-]{1,64}\Z")


def check_pattern(pattern: str) -> str:
    """A pattern of model names, checked: 1-64 characters of a-z 0-9 . _ - * ?. Raises Invalid."""
    if not _PATTERN.match(pattern):
        raise Invalid(f"{pattern[:80]!r} is not a pattern of model names: use 1-64 of a-z 0-9 . _ - and * and ?")
    return pattern


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` covers all of ``name``: ``*`` any run of characters, also none; ``?`` exactly one; others themselves.

    Quadratic at worst: on a mismatch only the last ``*`` is made one character longer.
    """
    at = here = 0
    star, resume = -1, 0
    while here < len(name):
        if at < len(pattern) and pattern[at] == ANY:
            star, resume = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", name[here]):
            at, here = at + 1, here + 1
        elif star >= 0:
            resume += 1
            at, here = star + 1, resume
        else:
            return False
    return not pattern[at:].strip(ANY)


class Rights(msgspec.Struct, frozen=True):
    """What an identity may say: ``may_sign`` short statement types, ``releases`` patterns of model names; ``*`` is all."""

    may_sign: tuple[str, ...] = (ANY,)
    releases: tuple[str, ...] = (ANY,)

    def __post_init__(self) -> None:
        for pattern in self.releases:
            check_pattern(pattern)
        for kind in self.may_sign:
            if not kind or len(kind) > 200 or not kind.isprintable():
                raise Invalid(f"{kind[:80]!r} is not a statement type")

    def covers(self, other: "Rights") -> bool:
        """Whether ``other`` grants nothing beyond this: each entry of its stands here literally, or here stands ``*``."""
        pairs = ((self.may_sign, other.may_sign), (self.releases, other.releases))
        return all(ANY in mine or set(theirs) <= set(mine) for mine, theirs in pairs)


class TrustedIdentity(msgspec.Struct, frozen=True):
    """A statement identity and its limits, for one stretch of the releases log.

    ``may_sign``: short statement types, or ``*``; ``releases``: patterns of the model names that it may speak about. Only
    statements at log index ``first`` <= i < ``until`` count (None: no end): that is how a rotated or compromised identity stops
    counting without losing what it said before. An identity whose limits changed stands once for each stretch.
    """

    public: PublicIdentity
    may_sign: tuple[str, ...] = (ANY,)
    first: int = 0
    until: int | None = None
    releases: tuple[str, ...] = (ANY,)
    compromised: bool = False

    @property
    def name(self) -> str:
        """The identity's name."""
        return self.public.name

    @property
    def rights(self) -> Rights:
        """What it may say. Raises Invalid (malformed)."""
        return Rights(self.may_sign, self.releases)

    def holds_at(self, index: int) -> bool:
        """Whether this stretch covers log index ``index``."""
        return self.first <= index and (self.until is None or index < self.until)

    def check_may_sign(self, short_type: str, index: int) -> None:
        """Raise NotTrusted unless this identity may make a ``short_type`` statement at log index ``index``."""
        if ANY not in self.may_sign and short_type not in self.may_sign:
            raise NotTrusted(f"{self.public.name} may not sign {short_type} statements")
        if not self.holds_at(index):
            raise NotTrusted(f"{self.public.name} is not trusted at log index {index}")

    def check_about(self, short_type: str, model: str | None) -> None:
        """Raise NotTrusted unless this identity may speak about the model name ``model`` (None: about none in particular)."""
        if ANY in self.releases:
            return
        if model is None:
            only = ", ".join(self.releases)
            raise NotTrusted(f"{self.public.name} may speak about {only} only, and a {short_type} statement is about no model")
        if not any(matches(pattern, model) for pattern in self.releases):
            raise NotTrusted(
                f"{self.public.name} may speak about {', '.join(self.releases) or 'no release'} only, not about {model[:64]}"
            )


class TrustedOmsKey(msgspec.Struct, frozen=True):
    """A key whose OpenSSF model-signing bundles count: ``public`` SubjectPublicKeyInfo DER; ``releases`` as of an identity.

    ``until``: set when the key was compromised: from then on only bundles that stand in the log below that index count, and
    none outside it, where nothing says when they were made. A rotated key has no such end.
    """

    name: str
    public: bytes
    releases: tuple[str, ...] = (ANY,)
    until: int | None = None

    def check_may_sign(self, model: str, index: int) -> None:
        """Raise NotTrusted unless a bundle of this key counts for a release of ``model`` that stands at log ``index``."""
        if not any(matches(pattern, model) for pattern in self.releases):
            raise NotTrusted(f"{self.name} may not sign releases of {model[:64]}")
        if self.until is not None and index >= self.until:
            raise NotTrusted(f"{self.name} is not trusted at log index {index}: it was compromised")


class TrustRoot(msgspec.Struct, frozen=True):
    """The public keys of one keep.

    ``origin``: the keep's name, also the releases log's origin prefix; ``releases_log``: its signed-note verifier key (vkey);
    ``audit_key`` and ``token_key``: Ed25519 public keys, 32 bytes, of the audit logs and of session tokens.
    ``token_key_before``: while ``token-signing`` is being rotated the former key, which still verifies; else empty.
    """

    origin: str
    releases_log: str
    audit_key: bytes
    token_key: bytes
    identities: tuple[TrustedIdentity, ...]
    version: int = TRUST_VERSION
    token_key_before: bytes = b""
    oms: tuple[TrustedOmsKey, ...] = ()
    releases_before: tuple[str, ...] = ()

    @property
    def releases_origin(self) -> str:
        """The origin of the releases log of now: the name of its key."""
        return origin_of(self.releases_log)

    @property
    def token_keys(self) -> tuple[bytes, ...]:
        """The keys that session tokens and signed records may be signed with, the current one first."""
        return (self.token_key, self.token_key_before) if self.token_key_before else (self.token_key,)

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
        lines += [f"releases_before = {_texts(self.releases_before)}"] if self.releases_before else []
        lines += [f"token_key_before = {_bytes(self.token_key_before)}"] if self.token_key_before else []
        for identity in self.identities:
            lines += ["", "[[identity]]", f"name = {_text(identity.public.name)}"]
            lines.append(f"may_sign = {_texts(identity.may_sign)}")
            lines.append(f"releases = {_texts(identity.releases)}")
            lines.append(f"first = {identity.first}")
            lines += [] if identity.until is None else [f"until = {identity.until}"]
            lines += ["compromised = true"] if identity.compromised else []
            lines.append(f"ed25519 = {_bytes(identity.public.ed25519)}")
            lines.append(f"mldsa65 = {_bytes(identity.public.mldsa65)}")
        for key in self.oms:
            lines += ["", "[[oms]]", f"name = {_text(key.name)}", f"releases = {_texts(key.releases)}"]
            lines += [] if key.until is None else [f"until = {key.until}"]
            lines.append(f"public = {_bytes(key.public)}")
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
        return cls(
            origin=raw.origin,
            releases_log=raw.releases_log,
            audit_key=_key(raw.audit_key),
            token_key=_key(raw.token_key),
            identities=tuple(each.trusted() for each in raw.identity),
            version=raw.version,
            token_key_before=_key(raw.token_key_before),
            releases_before=raw.releases_before,
            oms=tuple(TrustedOmsKey(each.name, _key(each.public), each.releases, each.until) for each in raw.oms),
        )

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
    may_sign: tuple[str, ...] = (ANY,)
    first: int = 0
    until: int | None = None
    releases: tuple[str, ...] = (ANY,)
    compromised: bool = False

    def trusted(self) -> TrustedIdentity:
        rights = Rights(self.may_sign, self.releases)
        public = PublicIdentity(self.name, _key(self.ed25519), _key(self.mldsa65))
        return TrustedIdentity(public, rights.may_sign, self.first, self.until, rights.releases, self.compromised)


class _OmsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    public: str
    releases: tuple[str, ...] = (ANY,)
    until: int | None = None


class _TrustFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    origin: str
    releases_log: str
    audit_key: str
    token_key: str
    token_key_before: str = ""
    releases_before: tuple[str, ...] = ()
    identity: tuple[_IdentityFile, ...] = ()
    oms: tuple[_OmsFile, ...] = ()


class _Listed(msgspec.Struct, frozen=True):
    identity: tuple[_IdentityFile, ...] = ()


def origin_of(vkey: str) -> str:
    """The origin of the log that a verifier key is of."""
    return vkey.partition("+")[0]


def parse_identities(data: bytes) -> tuple[PublicIdentity, ...]:
    """The identities in an identity file or in another keep's ``trust.toml`` that have no end there, each once.

    Raises Invalid (malformed, or none).
    """
    try:
        listed = msgspec.convert(tomllib.loads(data.decode()), _Listed).identity
    except (ValueError, msgspec.ValidationError) as cause:
        raise Invalid(f"this is no file of identities: {cause}") from cause
    found = {each.name: each.trusted().public for each in listed if each.until is None and not each.compromised}
    if not found:
        raise Invalid("this file names no identity: it needs an [[identity]] with name, ed25519 and mldsa65")
    return tuple(found.values())


def encode_identity(public: PublicIdentity) -> bytes:
    """An identity file: what ``parse_identities`` reads."""
    text = (
        f"[[identity]]\nname = {_text(public.name)}\ned25519 = {_bytes(public.ed25519)}\nmldsa65 = {_bytes(public.mldsa65)}\n"
    )
    return text.encode()


def _text(value: str) -> str:
    return to_json(value).decode()  # a JSON string is a TOML basic string


def _texts(values: tuple[str, ...]) -> str:
    return f"[{', '.join(_text(value) for value in values)}]"


def _bytes(value: bytes) -> str:
    return f'"{b64encode(value).decode()}"'


def _key(text: str) -> bytes:
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, ValueError) as cause:
        raise Invalid("a public key in the trust root (trust.toml) is not base64") from cause
