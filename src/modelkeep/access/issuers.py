"""Access tokens of other issuers: who they speak for, as the settings say of the issuer and never as the token says.

Sources: RFC 9068 (JWT access tokens), RFC 8725 (best current practice), RFC 7519 (claims; all times in seconds), RFC 7800
and RFC 8705, section 3.1 (``cnf``). The order matters. The issuer that a token names must be one of ours, letter for letter,
before any key is looked for; its ``kid`` must name a key that the issuer publishes; the algorithm is that key's and not the
token's; and no claim counts before the signature holds. Headers that bring or name keys (``jwk``, ``jku``, ``x5u``, ``x5c``)
and those that change what is signed (``crit``, ``b64``) are refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from modelkeep.access.issuerkeys import IssuerKeys
from modelkeep.crypto.jose import Jws, check_signature, decode_part, split_jws
from modelkeep.errors import NotTrusted, Unauthenticated

MAX_TOKEN = 8_192
"""Characters of a token of another issuer; a longer one is refused unread."""

LONGEST_NAME = 200
LONGEST_SUBJECT = 255

_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~+|:@/=-")


class IssuerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one issuer's tokens, and what they are given.

    ``alias``: short name; accounts are ``<name>@<alias>``. ``issuer``: its ``iss``, letter for letter. ``audiences``: one of
    them must be in ``aud``. ``types``: values of ``typ`` that count as access tokens. ``account_claim``: what an account is
    named by; ``roles_claim``: a list, or a text of words, of which ``roles`` says which role each gives; ``tenant_claim``
    with ``tenants``: the values that are let in, none = it is not looked at. ``clock_skew``: seconds that ``iat`` and ``nbf``
    may be ahead; ``max_lifetime``: seconds from ``iat`` to ``exp``. ``binding``: "dpop", "certificate", "any" of the two, or
    "" = none is needed. ``token_requests``: requests that one token is good for, None = as many as the limits let.
    ``max_accounts``: how many may come.
    """

    alias: str
    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    types: tuple[str, ...] = ("at+jwt",)
    account_claim: str = "sub"
    roles_claim: str = "roles"
    roles: Mapping[str, str]
    tenant_claim: str = ""
    tenants: tuple[str, ...] = ()
    clock_skew: int = 30
    max_lifetime: int = 86_400
    binding: str = ""
    token_requests: int | None = None
    max_accounts: int = 10_000


class Binding(NamedTuple):
    """What a token is bound to: the thumbprint of a DPoP key, or the SHA-256 of a client certificate; "" and b"" = not."""

    key: str = ""
    certificate: bytes = b""


class Verified(NamedTuple):
    """What a token says, checked. ``subject``: SHA-256 of alias and ``sub``, hex; ``name``: ``<name>@<alias>``; ``expires``:
    Unix seconds; ``terms``: those of its issuer; ``mfa_at``: when a second factor was shown there, Unix seconds, 0 = never."""

    subject: str
    name: str
    roles: tuple[str, ...]
    expires: int
    binding: Binding | None
    terms: IssuerTerms
    mfa_at: int = 0


class NotYet(Unauthenticated):
    """A token that is not valid yet and will be: the one refusal of its claims that does not stand for good."""


class Issuer(NamedTuple):
    """One issuer whose tokens are taken."""

    terms: IssuerTerms
    keys: IssuerKeys


class _Header(msgspec.Struct, frozen=True):
    alg: str
    typ: str
    kid: str
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET
    jwk: Any = msgspec.UNSET
    jku: Any = msgspec.UNSET
    x5u: Any = msgspec.UNSET
    x5c: Any = msgspec.UNSET
    zip: Any = msgspec.UNSET


_FORBIDDEN = ("crit", "b64", "jwk", "jku", "x5u", "x5c", "zip")


class _Named(msgspec.Struct, frozen=True):
    iss: str


class Issuers:
    """Every issuer whose tokens are taken. ``verify`` belongs to one thread."""

    def __init__(self, issuers: Sequence[Issuer] = (), own: str = "") -> None:
        """``own``: what the keep's own tokens say issued them, "" = its origin."""
        self.own = own
        self._by_name = {issuer.terms.issuer: issuer for issuer in issuers}

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def __bool__(self) -> bool:
        return bool(self._by_name)

    @property
    def version(self) -> int:
        """Rises when keys of any issuer change."""
        return sum(issuer.keys.version for issuer in self._by_name.values())

    def of(self, token: str) -> Issuer | None:
        """The issuer that an unread token claims to be from, None when it is none of these (it may be one of our own)."""
        if not self._by_name or token.count(".") != 2:
            return None
        try:
            claimed = msgspec.json.decode(decode_part(token.split(".")[1]), type=_Named)
        except (NotTrusted, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return self._by_name.get(claimed.iss)

    @staticmethod
    def check_signed(issuer: Issuer, token: str) -> Mapping[str, Any]:
        """The claims of a token that ``issuer`` signed.

        Raises NotTrusted (it never will be good), Unauthenticated (its key is not known now), Unavailable (the keys are old).
        """
        parts = split_jws(token)
        header = _header(parts)
        if _media_type(header.typ) not in map(_media_type, issuer.terms.types):
            raise NotTrusted(f"its typ {header.typ[:40]!r} is none of an access token")
        if header.alg not in issuer.terms.algorithms:
            raise NotTrusted(f"its algorithm {header.alg[:16]!r} is not allowed")
        pinned = issuer.keys.find(header.kid)
        if header.alg != pinned.algorithm:
            raise NotTrusted(f"its algorithm {header.alg[:16]!r} is not that of the key {header.kid[:40]!r}")
        check_signature(pinned.algorithm, pinned.key, parts)
        try:
            return msgspec.json.decode(parts.payload, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
            raise NotTrusted("its claims are no JSON object") from cause


def _header(parts: Jws) -> _Header:
    try:
        header = msgspec.json.decode(parts.header, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise NotTrusted("its header is not that of an access token: alg, typ and kid are needed") from cause
    if found := [name for name in _FORBIDDEN if getattr(header, name) is not msgspec.UNSET]:
        raise NotTrusted(f"its header has {found[0]!r}, which is not taken")
    return header


def _media_type(text: str) -> str:
    """``typ`` without the ``application/`` that may be left out, in lower case (RFC 7515, section 4.1.9)."""
    return text.lower().removeprefix("application/")


def check_claims(claims: Mapping[str, Any], terms: IssuerTerms, now: int) -> Verified:
    """Judge the claims of a token whose signature holds, at Unix second ``now``. Raises Unauthenticated, NotYet."""
    if claims.get("iss") != terms.issuer:
        raise Unauthenticated("it names another issuer")
    if not set(_texts(claims.get("aud"))) & set(terms.audiences):
        raise Unauthenticated("it is for another audience")
    expires = _check_times(claims, terms, now)
    if terms.tenants and _at(claims, terms.tenant_claim) not in terms.tenants:
        raise Unauthenticated("it is of a tenant that is not let in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT:
        raise Unauthenticated("it names no subject")
    return Verified(
        subject=subject_digest(terms.alias, subject),
        name=account_name(_at(claims, terms.account_claim), terms.alias),
        roles=_roles(_at(claims, terms.roles_claim), terms),
        expires=expires,
        binding=_binding(claims.get("cnf"), terms),
        terms=terms,
        mfa_at=_second_factor(claims, now),
    )


def _second_factor(claims: Mapping[str, Any], now: int) -> int:
    """When its user showed a second factor, as ``amr`` (RFC 8176) and ``auth_time`` say (RFC 9068, section 2.2.1); 0 =
    never."""
    at = _seconds(claims.get("auth_time"))
    return min(int(at), now) if at is not None and "mfa" in _texts(claims.get("amr")) else 0


def account_name(name: object, alias: str) -> str:
    """What an account of an issuer is called here. Raises Unauthenticated (the claim has no such name)."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not _NAME.issuperset(name):
        raise Unauthenticated(f"its account claim is no name: 1 to {LONGEST_NAME} of letters, digits and ._~+|:@/=-")
    return f"{name}@{alias}"


def subject_digest(alias: str, subject: str) -> str:
    """What an account of an issuer is found by, whatever it is called."""
    return hashlib.sha256(f"{alias}\0{subject}".encode("utf-8", "surrogatepass")).hexdigest()


def _check_times(claims: Mapping[str, Any], terms: IssuerTerms, now: int) -> int:
    issued, expires, begins = (_seconds(claims.get(name)) for name in ("iat", "exp", "nbf"))
    if issued is None or expires is None or (begins is None and "nbf" in claims):
        raise Unauthenticated("it does not say when it was issued and when it ends")
    if issued > now + terms.clock_skew or (begins or 0) > now + terms.clock_skew:
        raise NotYet("it is not valid yet: compare the clocks of its issuer and this machine")
    if now >= expires:
        raise Unauthenticated("it has expired")
    if not 0 < expires - issued <= terms.max_lifetime:
        raise Unauthenticated(f"it lives longer than {terms.max_lifetime} seconds")
    return int(expires)


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
        return None
    return value


def _texts(value: object) -> list[str]:
    """A text, or a list of them; words of a text stay one."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, str)]


def _at(claims: Mapping[str, Any], path: str) -> object:
    """A claim by its name or, where none is called so, by the way to it: ``realm_access.roles``."""
    if path in claims:
        return claims[path]
    found: object = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _roles(value: object, terms: IssuerTerms) -> tuple[str, ...]:
    said = value.split() if isinstance(value, str) else _texts(value)
    return tuple(sorted({terms.roles[one] for one in said if one in terms.roles}))


def _binding(confirmation: object, terms: IssuerTerms) -> Binding | None:
    """What ``cnf`` binds the token to. Raises Unauthenticated (it is not understood, or the issuer owes another one)."""
    if confirmation is None:
        if terms.binding:
            raise Unauthenticated("it is bound to no key, and tokens of this issuer must be")
        return None
    found = confirmation if isinstance(confirmation, dict) else {}
    key, certificate = found.get("jkt", ""), found.get("x5t#S256", "")
    try:
        bound = Binding(key, decode_part(certificate))
        if (key and len(decode_part(key)) != 32) or len(bound.certificate) not in (0, 32) or not (key or certificate):
            raise NotTrusted("neither a thumbprint of a key nor one of a certificate")
    except (NotTrusted, TypeError, AttributeError) as cause:
        raise Unauthenticated("it is bound by a confirmation that is not understood") from cause
    if (terms.binding == "dpop" and not key) or (terms.binding == "certificate" and not certificate):
        raise Unauthenticated(f"it is not bound the way that tokens of this issuer must be: {terms.binding}")
    return bound
