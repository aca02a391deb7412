"""Session tokens, and what people do to them. Every attack must end in Unauthenticated and nothing else."""

import base64
import hmac
import json

import jwt
import msgspec
import pytest
from access_house import NOW, ORIGIN, House
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.access.sessions import (
    CLOCK_SKEW,
    SessionIssuer,
    SessionTerms,
    SessionVerifier,
    check_time,
    forget_old_revocations,
    key_id,
    parse_revocation,
    revoke_session,
)
from modelkeep.core.ports import Record
from modelkeep.errors import Invalid, NotTrusted, TooLarge, Unauthenticated

HOUSE = House()
VERIFIER = SessionVerifier([HOUSE.public], ORIGIN)
TOKEN, SESSION = HOUSE.issuer.issue(HOUSE.anna)
CLAIMS = msgspec.to_builtins(SESSION)
HEADER = {"alg": "EdDSA", "typ": "at+jwt", "kid": key_id(HOUSE.public)}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header=HEADER, claims=CLAIMS, key=None, signer=None):
    """A token made by hand, so that the library's own scruples do not protect us."""
    raw = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    body = f"{b64(json.dumps(header).encode())}.{b64(raw)}"
    signature = signer(body.encode()) if signer else (key or HOUSE.key).sign(body.encode())
    return f"{body}.{b64(signature)}"


def test_a_session_verifies_with_the_public_key_alone():
    assert VERIFIER.verify(TOKEN) == SESSION
    assert SESSION.exp - SESSION.iat == 3600 and SESSION.max_requests == 1000 and SESSION.iat == NOW
    assert VERIFIER.verify(sign()) == SESSION  # the forge below makes honest tokens, too


def test_stock_jwt_software_reads_it():
    claims = jwt.decode(
        TOKEN,
        HOUSE.key.public_key(),
        algorithms=["EdDSA"],
        audience=ORIGIN,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["sub"] == "anna" and jwt.get_unverified_header(TOKEN) == HEADER


def _hs256(body):
    return hmac.digest(HOUSE.public, body, "sha256")


def _hs256_pem(body):
    pem = HOUSE.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(pem, body, "sha256")


STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
ATTACKS = {
    "empty": "",
    "two parts": TOKEN.rpartition(".")[0],
    "four parts": TOKEN + ".x",
    "alg none": sign(HEADER | {"alg": "none"}, signer=lambda _: b""),
    "alg None": sign(HEADER | {"alg": "None"}, signer=lambda _: b""),
    "alg none, kept signature": sign(HEADER | {"alg": "none"}),
    "alg missing": sign({"typ": "at+jwt", "kid": HEADER["kid"]}),
    "HS256 with the public key": sign(HEADER | {"alg": "HS256"}, signer=_hs256),
    "HS256 with the public PEM": sign(HEADER | {"alg": "HS256"}, signer=_hs256_pem),
    "EdDSA header over an HMAC": sign(signer=_hs256),
    "another algorithm's name": sign(HEADER | {"alg": "ES256"}),
    "Ed25519 under its other name": sign(HEADER | {"alg": "Ed25519"}),
    "another key": sign(key=STRANGER),
    "another key, its own kid": sign(HEADER | {"kid": key_id(STRANGER.public_key().public_bytes_raw())}, key=STRANGER),
    "a key in the header": sign(HEADER | {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}, key=STRANGER),
    "a key behind a link": sign(HEADER | {"jku": "https://evil.example/keys"}, key=STRANGER),
    "crit": sign(HEADER | {"crit": ["b64"], "b64": False}),
    "kid missing": sign({"alg": "EdDSA", "typ": "at+jwt"}),
    "kid is a path": sign(HEADER | {"kid": "../../dev/null"}),
    "kid is a number": sign(HEADER | {"kid": 7}),
    "an identity token": sign(HEADER | {"typ": "JWT"}),
    "wrong audience": sign(claims=CLAIMS | {"aud": "other"}),
    "audience list": sign(claims=CLAIMS | {"aud": [ORIGIN, "other"]}),
    "no audience": sign(claims={k: v for k, v in CLAIMS.items() if k != "aud"}),
    "wrong issuer": sign(claims=CLAIMS | {"iss": "other"}),
    "no expiry": sign(claims={k: v for k, v in CLAIMS.items() if k != "exp"}),
    "expiry is text": sign(claims=CLAIMS | {"exp": "9999999999"}),
    "expiry is a float": sign(claims=CLAIMS | {"exp": 1e300}),
    "expiry is true": sign(claims=CLAIMS | {"exp": True}),
    "huge expiry": sign(claims=CLAIMS | {"exp": 2**80}),
    "negative iat": sign(claims=CLAIMS | {"iat": -1}),
    "no jti": sign(claims=CLAIMS | {"jti": ""}),
    "no requests": sign(claims=CLAIMS | {"max_requests": 0}),
    "a claim we did not make": sign(claims=CLAIMS | {"roles": ["admin"]}),
    "claims are a list": sign(claims=[1]),
    "claims are not JSON": sign(claims=b"{"),
    "claims are not UTF-8": sign(claims=b'{"a":"\xff"}'),
    "deep header": b64(b"[" * 3000) + "." + b64(b"{}") + "." + b64(b"x" * 64),
    "header not UTF-8": b64(b"\xff\xfe") + "." + b64(b"{}") + "." + b64(b"x" * 64),
    "oversized": TOKEN + "A" * 5000,
    "oversized, well signed": sign(claims=CLAIMS | {"models": ["m" * 60] * 60}),
    "not ASCII": TOKEN[:-1] + "é",
    "lone surrogate": "\ud800" + TOKEN,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    with pytest.raises(Unauthenticated):
        VERIFIER.verify(ATTACKS[name])


@given(st.integers(0, len(TOKEN) - 1), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_refused(position, bit):
    changed = chr(ord(TOKEN[position]) ^ (1 << bit))
    forged = TOKEN[:position] + changed + TOKEN[position + 1 :]
    if position == len(TOKEN) - 1 and changed in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        return  # base64url of 64 bytes leaves spare bits in its last digit: the same signature, written otherwise
    with pytest.raises(Unauthenticated):
        VERIFIER.verify(forged)


@given(st.one_of(st.text(max_size=200), st.from_regex(r"[A-Za-z0-9_-]{0,90}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,90}")))
@settings(max_examples=150, deadline=None)
def test_junk_is_refused(text):
    with pytest.raises(Unauthenticated):
        VERIFIER.verify(text)


@pytest.mark.parametrize(
    ("at", "good"),
    [(0, True), (-CLOCK_SKEW, True), (-CLOCK_SKEW - 1, False), (3599, True), (3600, False), (10**9, False)],
)
def test_times_in_seconds(at, good):
    if good:
        check_time(SESSION, NOW + at)
    else:
        with pytest.raises(Unauthenticated):
            check_time(SESSION, NOW + at)


@pytest.mark.parametrize(
    "change", [{"exp": NOW + 86_401}, {"iat": NOW + 10, "exp": NOW + 10}, {"iat": NOW + 20, "exp": NOW + 10}]
)
def test_an_absurd_lifetime_is_refused_whoever_signed_it(change):
    with pytest.raises(Unauthenticated):
        check_time(VERIFIER.verify(sign(claims=CLAIMS | change)), NOW)


@pytest.mark.parametrize("terms", [{"lifetime": 0}, {"lifetime": 86_401}, {"max_requests": 0}, {"models": ("../x",)}])
def test_bad_terms_are_refused(terms):
    with pytest.raises(Invalid):
        HOUSE.issuer.issue(HOUSE.anna, SessionTerms(**terms))


def test_a_token_that_would_be_too_long_is_not_issued():
    with pytest.raises(TooLarge):
        HOUSE.issuer.issue(HOUSE.anna, SessionTerms(models=tuple(f"{number:064d}" for number in range(60))))


def test_an_old_key_verifies_while_it_is_listed():
    old = SessionIssuer(STRANGER, ORIGIN, entropy=HOUSE.entropy, clock=HOUSE.clock).issue(HOUSE.anna)[0]
    both = SessionVerifier([HOUSE.public, STRANGER.public_key().public_bytes_raw()], ORIGIN)
    assert both.verify(old).sub == both.verify(TOKEN).sub == "anna"


def test_revocations_are_forgotten_a_day_after_the_session_would_have_ended():
    changes = revoke_session(SESSION)
    HOUSE.records.commit(changes)
    HOUSE.records.commit(changes)  # idempotent
    records = HOUSE.records.scan("revocation")
    assert parse_revocation(records[0]).account == "anna"
    assert forget_old_revocations(records, SESSION.exp + 86_400) == []
    assert [change.key for change in forget_old_revocations(records, SESSION.exp + 86_401)] == [SESSION.jti]
    with pytest.raises(NotTrusted):
        parse_revocation(Record("revocation", "x", b"{", 1))
