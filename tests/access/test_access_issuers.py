"""Tokens of other issuers, and everything that is almost one."""

import base64
import hashlib
import hmac
import json
from functools import cache

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from identity import ec_key, public_jwk
from issuer_house import ISSUER, RSA_KEY, TERMS, Office

from modelkeep.access import view as room
from modelkeep.access.credentials import KeyTerms, issue_key
from modelkeep.access.directory import LEASE, FirstVisit
from modelkeep.access.externals import (
    EXTERNAL,
    NEWCOMER,
    REASONS,
    TOO_MANY,
    TURNED_AWAY,
    TURNED_AWAY_SECONDS,
    forget_external,
    forget_turned_away,
    set_blocked,
    turn_away,
)
from modelkeep.access.issuers import Issuers
from modelkeep.access.limits import Limiter
from modelkeep.access.presented import Presented
from modelkeep.core.ports import Change
from modelkeep.errors import Denied, OverBudget, Unauthenticated, Unavailable


@pytest.fixture
def office():
    return Office()


def refused(office, token, **presented):
    """The sentence that a client gets; the reason is in our log alone."""
    with pytest.raises(Unauthenticated) as found:
        office.ask(token, **presented)
    assert found.value.fault == "invalid_token"
    return str(found.value)


def test_a_token_speaks_for_an_account_with_a_pseudonym_and_mapped_roles(office):
    grant = office.welcome()
    assert grant.principal.account == "user-1@corp" and grant.principal.roles == ("analyst",)
    assert grant.principal.subject.startswith("sub_") and "user-1" not in grant.principal.subject
    assert grant.kind == "external" and grant.expires == int(office.clock.wall) + 600 and grant.quota is None
    assert office.welcome(office.token(jti="t2")).principal.subject == grant.principal.subject
    assert office.welcome(office.token(sub="user-2")).principal.subject != grant.principal.subject


@pytest.mark.parametrize(
    ("claims", "ago"),
    [
        ({"auth_time": -60, "amr": ["pwd", "mfa"]}, 60),
        ({"auth_time": -60, "amr": ["pwd"]}, None),
        ({"amr": ["mfa"]}, None),
        ({"auth_time": 3_600, "amr": ["mfa"]}, 0),  # a clock of there that is ahead makes nothing younger than now
    ],
    ids=["shown", "password only", "no time", "in the future"],
)
def test_a_token_says_when_a_second_factor_was_shown_there(office, claims, ago):
    now = int(office.clock.wall)
    said = {name: now + value if name == "auth_time" else value for name, value in claims.items()}
    assert office.welcome(office.token(**said)).mfa_at == (0 if ago is None else now - ago)


def test_who_comes_first_is_refused_until_he_is_known_and_pays_one_signature_check(office, monkeypatch):
    token, checks = office.token(), []
    original = Issuers.check_signed
    monkeypatch.setattr(Issuers, "check_signed", staticmethod(lambda *a: checks.append(1) or original(*a)))
    for _ in range(3):
        with pytest.raises(Unavailable):
            office.ask(token)
    assert len(checks) == 1
    office.admit()
    assert office.ask(token) is office.ask(token)
    assert len(checks) == 2


def test_a_known_token_costs_no_look_at_it(office):
    token = office.token()
    office.welcome(token)
    assert office.ask(token) is office.ask(token)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(office, header=None, **changed):
    """What PyJWT would not encode."""
    header = b64(json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": "one"} | (header or {})).encode())
    signed = f"{header}.{b64(json.dumps(office.claims(**changed)).encode())}"
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(signed.encode(), office.key)
    return f"{signed}.{b64(signature)}"


def deep(office):
    header = b64(json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": "one"}).encode())
    body = f'{{"iss":"{ISSUER}","x":{"[" * 3_000}{"]" * 3_000}}}'
    signed = f"{header}.{b64(body.encode())}"
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(signed.encode(), office.key)
    return f"{signed}.{b64(signature)}"


def unsigned(office, alg):
    header = b64(json.dumps({"alg": alg, "typ": "at+jwt", "kid": "one"}).encode())
    return f"{header}.{b64(json.dumps(office.claims()).encode())}.{b64(b'x')}"


def pem(office):
    return office.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hmac_with(office, secret):
    header = b64(json.dumps({"alg": "HS256", "typ": "at+jwt", "kid": "one"}).encode())
    signed = f"{header}.{b64(json.dumps(office.claims()).encode())}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def renamed(token, alg):
    head, body, signature = token.split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    return f"{b64(json.dumps(header | {'alg': alg}).encode())}.{body}.{signature}"


def with_own_key(office):
    evil = ec_key()
    return office.token(key=evil, header={"jwk": public_jwk(evil, "one", "ES256")})


BAD = {
    "expired": lambda o: o.token(iat=int(o.clock.wall) - 700, exp=int(o.clock.wall) - 100),
    "ends now": lambda o: o.token(iat=int(o.clock.wall) - 100, exp=int(o.clock.wall)),
    "issued in the future": lambda o: o.token(iat=int(o.clock.wall) + 31),
    "not valid yet": lambda o: o.token(nbf=int(o.clock.wall) + 31),
    "lives too long": lambda o: o.token(exp=int(o.clock.wall) + 86_401),
    "ends before it begins": lambda o: o.token(iat=int(o.clock.wall) + 20, exp=int(o.clock.wall) + 10),
    "no end": lambda o: o.token(exp=...),
    "no start": lambda o: o.token(iat=...),
    "an end that is a word": lambda o: forge(o, exp="9999999999"),
    "an end that is true": lambda o: forge(o, exp=True),
    "nbf that is a word": lambda o: forge(o, nbf="now"),
    "another audience": lambda o: o.token(aud="https://else.example"),
    "no audience": lambda o: o.token(aud=...),
    "an audience that begins alike": lambda o: o.token(aud="https://keep.example/"),
    "no subject": lambda o: o.token(sub=...),
    "a subject that is a number": lambda o: forge(o, sub=7),
    "an empty subject": lambda o: o.token(sub=""),
    "a subject of 256 letters": lambda o: o.token(sub="a" * 256),
    "a name with a space": lambda o: o.token(sub="user 1"),
    "a name with a line break": lambda o: o.token(sub="user\n1"),
    "a key of another issuer": lambda o: o.token(key=ec_key()),
    "a kid that is not published": lambda o: o.token(header={"kid": "two"}),
    "no kid": lambda o: o.token(header={"kid": ...}),
    "a kid that is a path": lambda o: o.token(header={"kid": "../../../dev/null"}),
    "a kid that is SQL": lambda o: o.token(header={"kid": "one' OR '1'='1"}),
    "an ID token": lambda o: o.token(header={"typ": "JWT"}),
    "no typ": lambda o: o.token(header={"typ": ...}),
    "jku": lambda o: o.token(header={"jku": "https://evil.example/keys"}),
    "x5u": lambda o: o.token(header={"x5u": "https://evil.example/chain"}),
    "x5c": lambda o: o.token(header={"x5c": ["AAAA"]}),
    "crit": lambda o: o.token(header={"crit": ["exp"]}),
    "b64": lambda o: forge(o, {"b64": True}),
    "jwk of the attacker": with_own_key,
    "alg none": lambda o: unsigned(o, "none"),
    "alg NONE": lambda o: unsigned(o, "NONE"),
    "HS256 with the public key in PEM": lambda o: hmac_with(o, pem(o)),
    "HS256 with the public key as JWK": lambda o: hmac_with(o, json.dumps(public_jwk(o.key)).encode()),
    "RS256 where the key says PS256": lambda o: o.token(key=RSA_KEY, alg="RS256", header={"kid": "rsa-pss"}),
    "ES256 named, of an RSA key": lambda o: renamed(o.token(key=RSA_KEY, alg="PS256", header={"kid": "rsa-pss"}), "ES256"),
    "ES384 is not allowed": lambda o: renamed(o.token(), "ES384"),
    "bound by something unknown": lambda o: o.token(cnf={"kid": "x"}),
    "bound by nothing": lambda o: o.token(cnf={}),
    "bound by a word": lambda o: o.token(cnf="jkt"),
    "bound by half a thumbprint": lambda o: o.token(cnf={"jkt": "AAAA"}),
    "bound by a number": lambda o: o.token(cnf={"jkt": 7}),
    "cut": lambda o: o.token()[:-3],
    "a long one": lambda o: o.token(more="x" * 7_000),
    "a very deep one": deep,
    "no JSON": lambda o: ".".join(b64(part) for part in (b"{", b"{", b"x")),
    "two of them": lambda o: o.token() + "." + o.token(),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_almost_a_token_is_refused_with_one_sentence(office, what):
    office.welcome()
    fetches = office.source.fetches
    said = refused(office, BAD[what](office))
    alien = {"cut", "no JSON", "a long one", "a very deep one", "two of them"}  # not even the issuer can be read, or nothing is
    assert "get a new one from your identity provider" in said or what in alien, said
    assert office.source.fetches == fetches  # whatever a token says, asking makes us fetch nothing


def test_the_reason_is_told_to_us_once_a_second(office):
    office.welcome()
    for what in ("another audience", "alg none", "expired"):
        refused(office, BAD[what](office))
    assert len(office.said) == 1 and "audience" in office.said[0]
    office.clock.advance(1.0)
    office.directory.refresh()
    refused(office, BAD["expired"](office))
    assert len(office.said) == 2 and "expired" in office.said[1]


def test_an_issuer_that_is_not_ours_letter_for_letter_is_no_issuer(office):
    office.welcome()
    for other in (ISSUER + "/", ISSUER.upper(), "https://evil.example", "", None, 7):
        token = office.token(iss=other) if isinstance(other, str) else forge(office, iss=other)
        refused(office, token)
    assert office.source.fetches == 1 and office.said == []


@given(st.data())
@settings(max_examples=150)
def test_no_mutated_token_is_taken(data):
    office, token = busy()
    kind = data.draw(st.sampled_from(["replace", "insert", "delete", "claims", "header"]))
    if kind in ("claims", "header"):
        parts = token.split(".")
        at = 1 if kind == "claims" else 0
        body = json.loads(base64.urlsafe_b64decode(parts[at] + "=="))
        name = data.draw(st.sampled_from(sorted(body)) | st.text(max_size=5))
        words = st.text(max_size=8)
        value = data.draw(st.none() | st.booleans() | st.integers() | words | st.lists(words, max_size=2))
        if name in body and body[name] == value and type(body[name]) is type(value):
            return
        parts[at] = b64(json.dumps(body | {name: value}).encode())
        changed = ".".join(parts)
    else:
        at = data.draw(st.integers(0, len(token) - 1))
        letter = "" if kind == "delete" else data.draw(st.characters(min_codepoint=1, max_codepoint=127))
        changed = token[:at] + letter + token[at + (kind != "insert") :]
    if changed != token:
        with pytest.raises(Unauthenticated):
            office.directory.authenticate(Presented(changed))


@cache
def busy():
    office = Office()
    office.welcome()
    return office, office.token()


def test_the_other_accepted_forms(office):
    now = int(office.clock.wall)
    assert office.welcome(office.token(aud=["x", "other-name"]))
    assert office.welcome(office.token(header={"typ": "application/at+JWT"}))
    assert office.welcome(office.token(iat=now + 30, nbf=now + 30))
    assert office.welcome(office.token(exp=now + 600.5))
    assert office.welcome(office.token(key=RSA_KEY, alg="PS256", header={"kid": "rsa-pss"}))
    assert office.welcome(office.token(header={"x5t": "AAAA", "nonce": "y"}))  # what RFC 7515 lets one ignore


@pytest.mark.parametrize(
    ("path", "claim", "roles"),
    [
        ("groups", ["chiefs", "scorers"], ("admin", "analyst")),
        ("scope", "openid scorers", ("analyst",)),
        ("realm_access.roles", {"roles": ["scorers"]}, ("analyst",)),
        ("https://corp.example/roles", ["scorers"], ("analyst",)),
        ("realm_access.roles", ["scorers"], ()),
        ("groups", None, ()),
        ("groups", [7, {"a": 1}, ["scorers"]], ()),
        ("groups", "analyst admin", ()),  # roles of ours, said by them
    ],
)
def test_roles_are_what_the_mapping_makes_of_the_claim(path, claim, roles):
    office = Office(msgspec.structs.replace(TERMS, roles_claim=path))
    name = path if path.startswith("http") else path.split(".")[0]
    token = office.token(**({"groups": ...} | {name: claim}))
    assert office.welcome(token).principal.roles == roles


def test_tenants():
    office = Office(msgspec.structs.replace(TERMS, tenant_claim="tid", tenants=("t1",)))
    assert office.welcome(office.token(tid="t1"))
    for other in ({"tid": "t2"}, {}, {"tid": ["t1"]}):
        refused(office, office.token(**other))


def test_a_new_name_at_the_issuer_is_no_new_account_and_a_name_is_given_once():
    office = Office(msgspec.structs.replace(TERMS, account_claim="preferred_username"))
    anna = office.welcome(office.token(preferred_username="anna")).principal
    renamed_since = office.welcome(office.token(preferred_username="hanna", jti="t2")).principal
    assert anna.account == renamed_since.account == "anna@corp" and renamed_since.subject == anna.subject
    with pytest.raises(FirstVisit):  # somebody else who calls himself anna stays unknown
        office.ask(office.token(sub="user-2", preferred_username="anna"))
    with pytest.raises(Denied, match="is the name of another"):
        office.admit()


@pytest.mark.parametrize("reason", REASONS)
def test_who_gets_no_account_is_told_why_until_he_is_judged_anew(office, reason):
    records, token = office.house.records, office.token()
    known = office.welcome(office.token(sub="user-2"))
    with pytest.raises(FirstVisit):
        office.ask(token)
    office.directory.announce()
    (announced,) = records.scan(NEWCOMER)
    records.commit([Change(NEWCOMER, announced.key, None), turn_away(announced.key, reason, int(office.clock.wall))])
    office.directory.refresh()
    for asked in (token, token, office.token(jti="another")):
        with pytest.raises(Denied, match="ask an administrator") as told:
            office.ask(asked)
        assert str(told.value) == REASONS[reason]
    office.directory.announce()
    assert records.scan(NEWCOMER) == [], "and he is not announced meanwhile"
    assert office.ask(office.token(sub="user-2")) is not known, "another token"
    assert forget_turned_away(records.scan(TURNED_AWAY), int(office.clock.wall)) == []
    office.clock.advance(TURNED_AWAY_SECONDS)
    records.commit(forget_turned_away(records.scan(TURNED_AWAY), int(office.clock.wall)))
    office.directory.refresh()
    with pytest.raises(FirstVisit):
        office.ask(token)
    office.admit()
    assert office.ask(token)


@pytest.mark.parametrize("body", [b"", b"{", b'{"reason":"because","until":9999999999}', b'{"reason":"too-many","until":"x"}'])
def test_a_refusal_that_control_did_not_write_stops_nobody_and_goes(office, body):
    with pytest.raises(FirstVisit):
        office.ask(office.token())
    office.house.records.commit([Change(TURNED_AWAY, next(iter(office.directory._newcomers)), body)])
    office.directory.refresh()
    assert office.welcome()
    assert len(forget_turned_away(office.house.records.scan(TURNED_AWAY), int(office.clock.wall))) == 1


def test_who_is_turned_away_does_not_empty_the_memory_of_others(office):
    token = office.token()
    grant = office.welcome(token)
    office.house.records.commit([turn_away("0" * 64, TOO_MANY, int(office.clock.wall))])
    office.directory.refresh()
    assert office.ask(token) is grant


def test_a_block_counts_at_once_where_it_is_read_and_within_the_lease_elsewhere(office):
    token = office.token()
    office.welcome(token)
    office.house.do(set_blocked(office.house.records.scan(EXTERNAL), "user-1@corp", True))
    office.directory.refresh()
    refused(office, token)
    refused(office, office.token(jti="t2"))
    office.house.do(set_blocked(office.house.records.scan(EXTERNAL), "user-1@corp", False))
    office.directory.refresh()
    assert office.ask(token)
    office.clock.advance(LEASE + 0.1)
    with pytest.raises(Unavailable):
        office.ask(token)


def test_who_was_forgotten_comes_back_as_somebody_else(office):
    before = office.welcome().principal.subject
    office.house.do(forget_external(office.house.records.scan(EXTERNAL), "user-1@corp"))
    office.directory.refresh()
    assert office.welcome().principal.subject != before


def test_newcomers_do_not_empty_the_memory_of_others(office):
    token = office.token()
    grant = office.welcome(token)
    key = office.house.do(issue_key("anna", KeyTerms(), entropy=office.house.entropy, clock=office.clock))
    office.directory.refresh()
    grant, known = office.ask(token), office.ask(key.text)
    office.welcome(office.token(sub="user-9"))
    assert office.ask(token) is grant and office.ask(key.text) is known


def test_an_accepted_token_ends_with_its_end(office):
    token = office.token()
    office.welcome(token)
    office.clock.advance(599)
    office.directory.refresh()
    assert office.ask(token)
    office.clock.advance(1)
    office.directory.refresh()
    refused(office, token)


def test_keys_that_change_end_what_was_signed_by_the_old_ones(office):
    token = office.token()
    office.welcome(token)
    office.source.keys = [public_jwk(ec_key(), "one", "ES256")]
    office.keys.refresh()
    assert office.ask(token)  # until the next look, a quarter of a second
    office.directory.refresh()
    refused(office, token)


def test_stale_keys_end_what_they_let_in(office):
    token = office.token(exp=int(office.clock.wall) + 80_000)
    office.welcome(token)
    office.source.down = True
    office.clock.advance(3_599)
    office.directory.refresh()
    assert office.ask(token)
    office.clock.advance(1)
    office.directory.refresh()
    with pytest.raises(Unavailable):
        office.ask(token)


def test_bad_tokens_cost_their_address_before_any_signature_is_looked_at():
    office = Office()
    failures = Limiter(office.clock.monotonic, rate=1.0, burst=5, what="bad credentials from this address")
    office = Office(house=office.house, options={"failures": failures})
    good = office.token()
    office.welcome(good)
    for n in range(5):
        refused(office, office.token(key=ec_key(), jti=str(n)), address="198.51.100.7")
    fetches = office.source.fetches
    with pytest.raises(OverBudget):
        office.ask(office.token(jti="x"), address="198.51.100.7")
    assert office.ask(good, address="198.51.100.7")  # what is known already is not affected by its neighbours
    assert office.source.fetches == fetches


def test_tables_of_tokens_are_bounded(office, monkeypatch):
    monkeypatch.setattr(room, "CACHE_SIZE", 4)
    office.welcome()
    for n in range(9):
        office.ask(office.token(jti=str(n)))
        refused(office, office.token(key=ec_key(), jti=str(n)))
    view = office.directory._view
    assert len(view.accepted) == 4 and len(view.refused) == 4


def test_a_bad_signature_is_remembered_and_an_unknown_key_is_not(office):
    office.welcome()
    bad = office.token(key=ec_key())
    refused(office, bad)
    assert len(office.directory._view.refused) == 1
    fresh = ec_key()
    token = office.token(key=fresh, header={"kid": "two"})
    refused(office, token)
    office.clock.advance(10)
    office.source.keys.append(public_jwk(fresh, "two", "ES256"))
    assert office.keys.due()
    office.keys.refresh()
    office.directory.refresh()
    assert office.ask(token)


@pytest.mark.parametrize("what", ["another audience", "expired", "no subject", "a key of another issuer", "alg none"])
def test_what_never_will_be_good_is_looked_at_once(office, monkeypatch, what):
    office.welcome()
    bad = BAD[what](office)
    refused(office, bad)
    monkeypatch.setattr(Issuers, "check_signed", staticmethod(lambda *_: pytest.fail("looked at again")))
    assert refused(office, bad)


def test_what_is_not_valid_yet_is_later(office):
    office.welcome()
    token = BAD["not valid yet"](office)
    refused(office, token)
    office.clock.advance(1)
    office.directory.refresh()
    assert office.ask(token)


def test_who_cannot_be_announced_now_is_announced_later(office):
    with pytest.raises(Unavailable):
        office.ask(office.token())
    office.house.records.down = True
    with pytest.raises(Unavailable):
        office.directory.announce()
    office.house.records.down = False
    office.admit()
    assert office.ask(office.token())


def test_own_sessions_go_on_beside_an_issuer(office):
    token, _ = office.house.issuer.issue(office.house.anna)
    assert office.ask(token).kind == "session"
