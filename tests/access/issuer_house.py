"""An issuer of tokens in this process, made by PyJWT: another implementation than the one that judges them."""

import json
from dataclasses import dataclass, field

import jwt
from access_house import NOW, FakeClock, House
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from identity import ec_key, public_jwk

from modelkeep.access.directory import Directory
from modelkeep.access.dpop import Proofs, ProofTerms
from modelkeep.access.externals import EXTERNAL, NEWCOMER, admit, parse_newcomer
from modelkeep.access.issuerkeys import IssuerKeys
from modelkeep.access.issuers import Issuer, Issuers, IssuerTerms
from modelkeep.access.presented import Presented
from modelkeep.errors import Unavailable

ISSUER = "https://login.example"
AUDIENCE = "https://keep.example"
RSA_KEY = rsa.generate_private_key(65537, 2048)
TERMS = IssuerTerms(
    alias="corp",
    issuer=ISSUER,
    audiences=(AUDIENCE, "other-name"),
    algorithms=("ES256", "PS256", "RS256"),
    roles={"scorers": "analyst", "chiefs": "admin"},
    roles_claim="groups",
)


class Published:
    """``KeySource`` that says what it is told to, and counts."""

    def __init__(self, *keys: dict) -> None:
        self.keys, self.down, self.fetches = list(keys), False, 0

    def fetch(self) -> bytes:
        self.fetches += 1
        if self.down:
            raise Unavailable("the issuer is down")
        return json.dumps({"keys": self.keys}).encode()


@dataclass
class Office:
    """A keep that takes tokens of one issuer."""

    terms: IssuerTerms = TERMS
    house: House = field(default_factory=House)
    key: ec.EllipticCurvePrivateKey = field(default_factory=ec_key)
    options: dict = field(default_factory=dict)
    nonce_seconds: int = 0

    def __post_init__(self) -> None:
        self.source = Published(
            public_jwk(self.key, "one", "ES256"),
            public_jwk(RSA_KEY, "rsa-pss", "PS256"),
        )
        self.keys = self.key_cache(self.source)
        self.keys.refresh()
        terms = ProofTerms(nonce_seconds=self.nonce_seconds, nonce_key=b"n" * 32, hosts={"keep.example", "127.0.0.1"})
        self.said: list[str] = []
        self.proofs = Proofs(terms, self.clock.monotonic, self.options.pop("proof_rate", None))
        self.directory: Directory = self.house.directory(
            issuers=Issuers([Issuer(self.terms, self.keys)]), proofs=self.proofs, report=self.said.append, **self.options
        )

    @property
    def clock(self) -> FakeClock:
        return self.house.clock

    def key_cache(self, source) -> IssuerKeys:
        monotonic = self.clock.monotonic
        return IssuerKeys(source, self.terms.algorithms, monotonic, refresh_seconds=300.0, stale_seconds=3600.0)

    def claims(self, **changed) -> dict:
        now = int(self.clock.wall)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "user-1",
            "iat": now,
            "exp": now + 600,
            "jti": "t1",
            "client_id": "app",
            "groups": ["scorers", "unknown"],
        } | changed
        return {name: value for name, value in claims.items() if value is not ...}

    def token(self, *, key=None, alg: str = "ES256", header: dict | None = None, **changed) -> str:
        """A token; ``...`` leaves a claim or a header out."""
        headers = {"typ": "at+jwt", "kid": "one"} | (header or {})
        headers = {name: value for name, value in headers.items() if value is not ...}
        return jwt.encode(self.claims(**changed), key or self.key, algorithm=alg, headers=headers)

    def admit(self) -> None:
        """What control does with whom the directory announces."""
        self.directory.announce()
        records = self.house.records
        for record in records.scan(NEWCOMER):
            _, changes = admit(
                records.scan(EXTERNAL), parse_newcomer(record), 100, entropy=self.house.entropy, clock=self.clock
            )
            records.commit(changes)
        self.directory.refresh()

    def ask(self, token: str, address: str = "192.0.2.1", **presented):
        return self.directory.authenticate(Presented(token, address, **presented))

    def welcome(self, token: str | None = None, **presented):
        """Ask with a token of somebody who is known by then."""
        token = token or self.token()
        try:
            return self.ask(token, **presented)
        except Unavailable:
            self.admit()
            return self.ask(token, **presented)


__all__ = ["AUDIENCE", "ISSUER", "NOW", "RSA_KEY", "TERMS", "Office", "Published"]
