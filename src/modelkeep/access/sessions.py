"""Session tokens: EdDSA JWTs that control issues and that anyone with its public key can check.

Sources: RFC 7519 (JWT; all times in seconds), RFC 8037 (EdDSA), RFC 8725 (best current practice: the algorithm is pinned,
``typ`` is checked, issuer and audience are required), RFC 9068 (``at+jwt``). The header decides nothing: the key that its
``kid`` names must be one we already know, and that key is an Ed25519 key and nothing else, so neither ``alg: none`` nor an HMAC
made with the public key can get anywhere.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from modelkeep.access.accounts import Account
from modelkeep.access.credentials import DEFAULT_QUOTA
from modelkeep.access.quotas import QUOTA
from modelkeep.core.ports import Change, Clock, Entropy, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import parse_name, to_json
from modelkeep.errors import Invalid, TooLarge, Unauthenticated

REVOCATION = "revocation"
"""Record kind: a session that was ended early; the key is its ``jti``."""

SESSION = "session"
"""Record kind: a session that was issued, for whoever lists them; the key is its ``jti``. No gateway asks for it."""

PASSWORD_ONLY, MULTI_FACTOR = "urn:x-modelkeep:acr:password", "urn:x-modelkeep:acr:mfa"
"""The ``acr`` of a session: how its account proved itself."""

DEFAULT_LIFETIME = 3_600
"""Seconds a session lives, unless told otherwise."""

LONGEST_LIFETIME = 86_400
"""No session that claims to live longer is accepted, whoever signed it."""

MAX_TOKEN = 4_096
"""Characters; a longer token is refused unread."""

CLOCK_SKEW = 30
"""Seconds that a token's ``iat`` may be ahead of this machine. ``exp`` gets no such grace."""

_LINGER = 3_600  # seconds that a session stays in the list after it expired
_TYPE = "at+jwt"
_REFUSED = "the session token is not valid: log in again"

Seconds = Annotated[int, Meta(ge=0, lt=2**40)]


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The claims of a session token.

    ``sub``: account name. ``gen``: generation of the account it was issued for. ``max_requests``: predictions it is good for.
    ``models``: model names it is scoped to, ``operations``: actions likewise, empty = all. ``iat``, ``exp``: Unix seconds.
    ``auth_time``: when the account last proved itself, ``amr``: by what (RFC 8176), ``acr``: how well (RFC 9068, section
    2.2.1).
    """

    iss: str
    aud: str
    sub: str
    jti: Annotated[str, Meta(min_length=16, max_length=64)]
    iat: Seconds
    exp: Seconds
    gen: int
    max_requests: Annotated[int, Meta(ge=1)]
    models: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    auth_time: Seconds = 0
    acr: str = PASSWORD_ONLY
    amr: tuple[str, ...] = ()

    @property
    def mfa_at(self) -> int:
        """Unix second at which a second factor was last shown for this session; 0 = never."""
        return self.auth_time if self.acr == MULTI_FACTOR else 0


class Revocation(msgspec.Struct, frozen=True):
    """``expires``: Unix seconds at which the session would have ended anyway."""

    account: str
    expires: int


class Proof(msgspec.Struct, frozen=True):
    """How an account proved itself: ``amr`` values, at Unix second ``at``, and whether a second factor was among it."""

    at: int
    amr: tuple[str, ...] = ("pwd",)
    multi: bool = False

    def with_factor(self, amr: Sequence[str], at: int) -> "Proof":
        """This proof and a second factor that was shown at Unix second ``at``."""
        return Proof(at, tuple(dict.fromkeys((*self.amr, *amr, "mfa"))), True)


class SessionTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a session may do and for how long. ``lifetime``: seconds; ``proof``: None = a password, now."""

    models: tuple[str, ...] = ()
    max_requests: int = DEFAULT_QUOTA
    lifetime: int = DEFAULT_LIFETIME
    operations: tuple[str, ...] = ()
    proof: Proof | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a session that was issued. ``family``: of the refresh tokens it belongs to, "" = of none."""

    account: str
    generation: int
    issued: int
    expires: int
    max_requests: int
    models: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    amr: tuple[str, ...] = ()
    family: str = ""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The only header there may be: no ``crit``, ``jwk``, ``jku``, ``x5u`` or ``b64``."""

    alg: str
    typ: str
    kid: str


def key_id(public: bytes) -> str:
    """The ``kid`` of a 32-byte Ed25519 public key."""
    return hashlib.sha256(public).hexdigest()[:16]


class SessionIssuer:
    """Signs session tokens for one keep; lives in the control process only."""

    def __init__(self, key: Ed25519PrivateKey, origin: str, *, entropy: Entropy, clock: Clock, issuer: str = "") -> None:
        """``origin``: the keep's name; it becomes audience, and issuer unless ``issuer``, an address, is given."""
        self._key = key
        self._origin, self._issuer = origin, issuer or origin
        self._entropy = entropy
        self._clock = clock
        self._kid = key_id(key.public_key().public_bytes_raw())

    def issue(self, account: Account, terms: SessionTerms | None = None) -> tuple[str, Session]:
        """A token for an account that has just proven itself. Raises Invalid (the terms make no sense)."""
        terms = terms or SessionTerms()
        if not 1 <= terms.lifetime <= LONGEST_LIFETIME or terms.max_requests < 1:
            raise Invalid(f"a session lives 1 to {LONGEST_LIFETIME} seconds and is good for at least one request")
        for name in terms.models:
            parse_name(name, "model name")
        now = self._clock.now_ns() // 1_000_000_000
        proof = terms.proof or Proof(now)
        session = Session(
            iss=self._issuer,
            aud=self._origin,
            sub=account.name,
            jti=self._entropy.token(16).hex(),
            iat=now,
            exp=now + terms.lifetime,
            gen=account.generation,
            max_requests=terms.max_requests,
            models=tuple(sorted(set(terms.models))),
            operations=tuple(sorted(set(terms.operations))),
            auth_time=proof.at,
            acr=MULTI_FACTOR if proof.multi else PASSWORD_ONLY,
            amr=proof.amr,
        )
        header = {"typ": _TYPE, "kid": self._kid}
        token = jwt.encode(msgspec.to_builtins(session), self._key, algorithm="EdDSA", headers=header)
        if len(token) > MAX_TOKEN:
            raise TooLarge(f"a session token scoped to {len(terms.models)} models is too long: name fewer")
        return token, session


class SessionVerifier:
    """Checks session tokens with public keys alone. Immutable."""

    def __init__(self, public_keys: Sequence[bytes], origin: str, issuer: str = "") -> None:
        """``public_keys``: 32-byte Ed25519 keys of this keep's token-signing family, old ones too while they verify."""
        self._keys: Mapping[str, Ed25519PublicKey] = {
            key_id(raw): Ed25519PublicKey.from_public_bytes(raw) for raw in public_keys
        }
        self._origin, self._issuer = origin, issuer or origin

    def verify(self, token: str) -> Session:
        """Check form, signature, issuer and audience, but neither time nor revocation. Raises Unauthenticated."""
        if len(token) > MAX_TOKEN or not token.isascii():
            raise Unauthenticated("the session token is longer than any that was issued")
        key = self._key_for(token)
        try:
            # Times are checked by check_time: PyJWT would ask the machine's clock, which may have been set back.
            claims = jwt.decode_complete(
                token,
                key,
                algorithms=["EdDSA"],
                audience=self._origin,
                issuer=self._issuer,
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "strict_aud": True},
            )["payload"]
            return msgspec.convert(claims, Session)
        except (jwt.PyJWTError, msgspec.ValidationError) as cause:
            raise Unauthenticated(_REFUSED) from cause

    def _key_for(self, token: str) -> Ed25519PublicKey:
        head = token.partition(".")[0]
        try:
            header = msgspec.json.decode(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)), type=_Header)
        except (ValueError, msgspec.MsgspecError) as cause:
            raise Unauthenticated(_REFUSED) from cause
        key = self._keys.get(header.kid)
        if header.alg != "EdDSA" or header.typ != _TYPE or key is None:
            raise Unauthenticated(_REFUSED)
        return key


def check_time(session: Session, now: int) -> None:
    """Check that ``session`` is valid at Unix second ``now``. Raises Unauthenticated."""
    if session.iat > now + CLOCK_SKEW:
        raise Unauthenticated("the session token was issued in the future: check the clocks of control and gateway")
    if now >= session.exp:
        raise Unauthenticated("the session has expired: log in again")
    if not 0 < session.exp - session.iat <= LONGEST_LIFETIME:
        raise Unauthenticated(_REFUSED)


def revoke_session(session: Session) -> list[Change]:
    """The change that ends ``session`` now; idempotent."""
    return [Change(REVOCATION, session.jti, to_json(Revocation(session.sub, session.exp)))]


def index_session(session: Session, family: str = "") -> Change:
    """The change that lists ``session``, of the refresh tokens ``family``."""
    kept = Issued(
        account=session.sub,
        generation=session.gen,
        issued=session.iat,
        expires=session.exp,
        max_requests=session.max_requests,
        models=session.models,
        operations=session.operations,
        amr=session.amr,
        family=family,
    )
    return Change(SESSION, session.jti, to_json(kept), 0)


def parse_issued(record: Record) -> Issued:
    """Decode a session's record. Raises NotTrusted (damaged)."""
    return parse_record(record, Issued, f"session {record.key!r}", "delete it, or restore it from a backup")


def end_session(jti: str, issued: Issued) -> Change:
    """The change that ends a listed session now; idempotent."""
    return Change(REVOCATION, jti, to_json(Revocation(issued.account, issued.expires)))


def forget_ended(sessions: Sequence[Record], now: int) -> list[Change]:
    """Changes that drop sessions from the list, and what they used of their quotas.

    An hour after they expired: by then no gateway has a lease of such a quota that it could give back.
    """
    over = [record for record in sessions if parse_issued(record).expires + _LINGER <= now]
    quotas = [Change(QUOTA, f"session:{record.key}", None) for record in over]
    return quotas + [Change(SESSION, record.key, None, record.revision) for record in over]


def public_jwk(public: bytes) -> dict[str, str]:
    """A 32-byte Ed25519 public key as a JSON Web Key (RFC 8037, section 2)."""
    x = base64.urlsafe_b64encode(public).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key_id(public), "x": x}


def parse_revocation(record: Record) -> Revocation:
    """Decode a revocation record. Raises NotTrusted (damaged)."""
    return parse_record(record, Revocation, f"revoked session {record.key!r}")


def forget_old_revocations(revocations: Sequence[Record], now: int) -> list[Change]:
    """Changes that drop revocations whose sessions ended more than a day ago (a day, so that no clock revives one)."""
    margin = LONGEST_LIFETIME
    return [
        Change(REVOCATION, record.key, None, record.revision)
        for record in revocations
        if parse_revocation(record).expires + margin < now
    ]
