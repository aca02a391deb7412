"""Proofs of possession: the example of the RFC, a client's proofs made by PyJWT, and every proof that is almost right."""

import threading

import jwt
import pytest
from access_house import NOW, FakeClock
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from identity import DpopKey, ec_key, private_jwk
from issuer_house import Office

from modelkeep.access.dpop import CLOCK_SKEW, INVALID, NONCE, Proofs, ProofTerms, Replays, host_name, normal_url
from modelkeep.access.externals import EXTERNAL, set_blocked
from modelkeep.access.limits import Limiter
from modelkeep.access.presented import Certificate, Presented, Proof
from modelkeep.crypto.jose import decode_part, encode_part
from modelkeep.errors import NotTrusted, OverBudget, Unauthenticated, Unavailable

# RFC 9449, figures 2, 12 and 13: the same key, at a token endpoint and at a resource.
_JWK = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFV"
    "ZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
)
RFC_PROOF = (
    _JWK
    + ".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNv"
    "dXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9"
    ".2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RFC_AT_TOKEN_ENDPOINT = (
    _JWK
    + ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0Ijox"
    "NTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
RFC_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
RFC_THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
RFC_TIME = 1_562_262_618


def judge(nonce_seconds=0, rate=None, clock=None, hosts=("resource.example.org", "server.example.com", "keep.example")):
    terms = ProofTerms(window=60, nonce_seconds=nonce_seconds, nonce_key=b"k" * 32, hosts=frozenset(hosts))
    return Proofs(terms, (clock or FakeClock()).monotonic, rate)


def rfc(jwt_text=RFC_PROOF, method=b"GET", host=b"resource.example.org", target=b"/protectedresource"):
    return Proof(jwt_text, method, host, target)


def test_the_proof_of_the_rfc_holds_once():
    proofs = judge()
    proofs.check(rfc(), RFC_TOKEN, RFC_THUMBPRINT, RFC_TIME)
    with pytest.raises(Unauthenticated, match="used before") as found:
        proofs.check(rfc(), RFC_TOKEN, RFC_THUMBPRINT, RFC_TIME)
    assert found.value.fault == INVALID


def test_a_proof_for_the_token_endpoint_is_none_for_a_resource():
    with pytest.raises(Unauthenticated, match="lacks what RFC 9449"):
        judge().check(
            rfc(RFC_AT_TOKEN_ENDPOINT, b"POST", b"server.example.com", b"/token"), RFC_TOKEN, RFC_THUMBPRINT, RFC_TIME
        )


@given(st.integers(0, len(RFC_PROOF) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_no_changed_proof_holds(at, letter):
    changed = RFC_PROOF[:at] + letter + RFC_PROOF[at + 1 :]
    if changed != RFC_PROOF:
        with pytest.raises(Unauthenticated):
            judge().check(rfc(changed), RFC_TOKEN, RFC_THUMBPRINT, RFC_TIME)


KEY = DpopKey()
TOKEN = "a-token"
URL = "https://keep.example/v2/models/risk/infer"
ASKED = Proof("", b"POST", b"keep.example", b"/v2/models/risk/infer")


def check(text, proofs=None, token=TOKEN, key=KEY, asked=ASKED, now=NOW):
    (proofs or judge()).check(asked._replace(jwt=text), token, key.thumbprint, now)


def good(**changed):
    return KEY.proof("POST", URL, TOKEN, **({"at": NOW} | changed))


@pytest.mark.parametrize(
    ("key", "alg"),
    [(ec_key(), "ES256"), (Ed25519PrivateKey.generate(), "EdDSA"), (rsa.generate_private_key(65537, 2048), "PS256")],
    ids=["ES256", "EdDSA", "PS256"],
)
def test_proofs_of_clients_hold(key, alg):
    mine = DpopKey(key, alg)
    check(mine.proof("POST", URL, TOKEN, at=NOW), key=mine)


def another_key():
    liar = DpopKey()
    liar.jwk = KEY.jwk
    return liar.proof("POST", URL, TOKEN, at=NOW)


WRONG = {
    "another method": lambda: KEY.proof("GET", URL, TOKEN, at=NOW),
    "the method in small letters": lambda: KEY.proof("post", URL, TOKEN, at=NOW),
    "another path": lambda: KEY.proof("POST", URL + "/", TOKEN, at=NOW),
    "another host": lambda: KEY.proof("POST", URL.replace("keep", "else"), TOKEN, at=NOW),
    "another port": lambda: KEY.proof("POST", URL.replace("example/", "example:8443/"), TOKEN, at=NOW),
    "http": lambda: KEY.proof("POST", URL.replace("https", "http"), TOKEN, at=NOW),
    "a user in it": lambda: KEY.proof("POST", URL.replace("//", "//keep.example@"), TOKEN, at=NOW),
    "no address": lambda: KEY.proof("POST", "/v2/models/risk/infer", TOKEN, at=NOW),
    "a broken escape": lambda: KEY.proof("POST", URL + "%4", TOKEN, at=NOW),
    "another token": lambda: KEY.proof("POST", URL, "another", at=NOW),
    "no token": lambda: KEY.proof("POST", URL, at=NOW),
    "too old": lambda: good(at=NOW - 61),
    "of the future": lambda: good(at=NOW + CLOCK_SKEW + 1),
    "a time that is a word": lambda: good(iat=str(NOW)),
    "another key": lambda: DpopKey().proof("POST", URL, TOKEN, at=NOW),
    "another key, showing the right one": another_key,
    "typ JWT": lambda: good(header={"typ": "JWT"}),
    "no key in it": lambda: good(header={"jwk": None}),
    "a private key in it": lambda: good(header={"jwk": private_jwk(KEY.key, "x", "ES256")}),
    "crit": lambda: good(header={"crit": ["htu"]}),
    "no id": lambda: good(jti=""),
    "a very long id": lambda: good(jti="x" * 257),
    "an id that is a number": lambda: good(jti=7),
    "too long": lambda: good(more="x" * 5_000),
    "nothing": lambda: "",
    "two of them": lambda: good() + ", " + good(),
    "HS256 with the public key": lambda: jwt.encode(
        {}, KEY.jwk["x"] * 2, algorithm="HS256", headers={"typ": "dpop+jwt", "jwk": KEY.jwk}
    ),
    "not ASCII": lambda: good() + "é",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_almost_a_proof_is_refused(what):
    with pytest.raises(Unauthenticated) as found:
        check(WRONG[what]())
    assert found.value.fault == INVALID


def test_a_host_that_is_not_ours_is_no_proof_even_if_both_say_so():
    elsewhere = KEY.proof("POST", URL.replace("keep", "evil"), TOKEN, at=NOW)
    with pytest.raises(Unauthenticated, match=r"gateway\.names"):
        check(elsewhere, asked=ASKED._replace(host=b"evil.example"))


@pytest.mark.parametrize(
    "same",
    [
        "HTTPS://KEEP.example:443/v2/models/risk/infer",
        "https://keep.example/v2/models/risk/infer?x=1#y",
        "https://keep.example/v2/./models/x/../risk/infer",
        "https://keep.example/v2/models/%72isk/infer",
    ],
)
def test_spellings_of_one_address_are_one(same):
    check(KEY.proof("POST", same, TOKEN, at=NOW))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://Example.COM", "https://example.com/"),
        ("https://example.com/a%2fb", "https://example.com/a%2Fb"),
        ("https://example.com/a/b/c/./../../g", "https://example.com/a/g"),  # RFC 3986, section 5.2.4
        ("https://example.com/..", "https://example.com/"),
        ("https://example.com/%7Euser/", "https://example.com/~user/"),  # RFC 3986, section 6.2.2
        ("https://[::1]:8443/x", "https://[::1]:8443/x"),
    ],
)
def test_normal_addresses(text, expected):
    assert normal_url(text) == expected
    assert normal_url(expected) == expected


@given(st.text(max_size=40))
def test_any_text_has_a_normal_form_or_none(text):
    try:
        found = normal_url("https://a/" + text)
    except NotTrusted:
        return
    assert normal_url(found) == found


@pytest.mark.parametrize(
    ("text", "name"), [("Keep.Example:8443", "keep.example"), ("[::1]:1", "::1"), ("127.0.0.1", "127.0.0.1"), ("", "")]
)
def test_names_of_hosts(text, name):
    assert host_name(text) == name


def test_nonces_are_asked_for_and_end():
    proofs = judge(nonce_seconds=300)
    with pytest.raises(Unauthenticated) as found:
        check(good(), proofs)
    assert found.value.fault == NONCE
    nonce = found.value.nonce
    check(good(nonce=nonce), proofs)
    check(KEY.proof("POST", URL, TOKEN, nonce=nonce, at=NOW + 300), proofs, now=NOW + 300)
    with pytest.raises(Unauthenticated) as found:
        check(KEY.proof("POST", URL, TOKEN, nonce=nonce, at=NOW + 301), proofs, now=NOW + 301)
    assert found.value.fault == NONCE and found.value.nonce != nonce


def test_a_nonce_of_another_replica_counts_and_one_of_nobody_does_not():
    nonce = judge(nonce_seconds=300).nonce(NOW + 3)
    check(good(nonce=nonce), judge(nonce_seconds=300))  # the clocks of replicas may differ a little
    stranger = Proofs(ProofTerms(nonce_key=b"x" * 32, hosts={"keep.example"}), FakeClock().monotonic)
    raw = decode_part(nonce)
    for wrong in (
        stranger.nonce(NOW),
        encode_part((NOW + 1).to_bytes(8) + raw[8:]),
        encode_part(raw[:8]),
        encode_part(raw[:-1]),
        judge(nonce_seconds=300).nonce(NOW + 60),
        "é",
        "x",
    ):
        with pytest.raises(Unauthenticated) as found:
            check(good(nonce=wrong), judge(nonce_seconds=300))
        assert found.value.fault == NONCE


def test_signatures_are_looked_at_as_often_as_the_rate_lets():
    clock = FakeClock()
    proofs = judge(rate=Limiter(clock.monotonic, rate=1.0, burst=3, what="proofs"), clock=clock)
    for _ in range(3):
        check(good(), proofs)
    with pytest.raises(OverBudget):
        check(good(), proofs)
    check(DpopKey(KEY.key).proof("POST", URL, TOKEN, at=NOW), judge())
    clock.advance(1)
    check(good(), proofs)


def test_a_proof_of_another_costs_no_signature(monkeypatch):
    monkeypatch.setattr("modelkeep.access.dpop.check_signature", lambda *_: pytest.fail("looked at"))
    for what in ("another key", "another method", "another token", "too old"):
        with pytest.raises(Unauthenticated):
            check(WRONG[what]())


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 40)), max_size=60))
def test_no_proof_passes_twice_within_the_period(events):
    replays, at, last = Replays(65.0, 100), 1_000.0, {}
    for who, wait in events:
        at += wait
        fresh = replays.add(bytes([who]), at)
        assert not fresh or who not in last or at - last[who] >= 65.0
        if fresh:
            last[who] = at


def test_replays_are_bounded_and_a_full_table_takes_no_proof():
    replays = Replays(65.0, 4)
    assert all(replays.add(bytes([n]), 1_000.0) for n in range(4))
    with pytest.raises(OverBudget):
        replays.add(b"x", 1_001.0)
    assert not replays.add(bytes([1]), 1_002.0)
    assert replays.add(b"x", 1_065.0) and not replays.add(bytes([1]), 1_066.0)
    assert replays.add(bytes([1]), 1_130.0)


# -- with tokens --


def dpop(office, key, token, **changed):
    proof = key.proof("POST", URL, token, **({"at": office.clock.wall} | changed))
    return office.ask(token, proof=ASKED._replace(jwt=proof))


def bound_office(key, **options):
    office = Office(**options)
    token = office.token(cnf={"jkt": key.thumbprint})
    with pytest.raises(Unavailable):
        office.ask(token)
    office.admit()
    return office, token


def test_a_bound_token_needs_a_proof_every_time():
    office, token = bound_office(KEY)
    assert dpop(office, KEY, token).principal.account == "user-1@corp"
    assert dpop(office, KEY, token)
    with pytest.raises(Unauthenticated) as found:
        office.ask(token)
    assert found.value.fault == "invalid_token"
    with pytest.raises(Unauthenticated):
        dpop(office, DpopKey(), token)
    assert dpop(office, KEY, token)


def test_one_request_may_be_asked_about_twice_and_the_token_is_judged_anew():
    office, token = bound_office(KEY)
    presented = Presented(token, "192.0.2.1", proof=ASKED._replace(jwt=KEY.proof("POST", URL, token, at=NOW)))
    assert office.directory.authenticate(presented)
    assert office.directory.authenticate(presented.proven())
    with pytest.raises(Unauthenticated):
        office.directory.authenticate(presented)
    office.house.do(set_blocked(office.house.records.scan(EXTERNAL), "user-1@corp", True))
    office.directory.refresh()
    with pytest.raises(Unauthenticated):
        office.directory.authenticate(presented.proven())


def test_of_many_threads_with_one_proof_one_passes():
    replays, start, passed = Replays(65.0), threading.Barrier(8), []

    def bring():
        start.wait()
        passed.extend(n for n in range(200) if replays.add(n.to_bytes(2), 1_000.0))

    threads = [threading.Thread(target=bring) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(passed) == list(range(200))


def test_the_reason_for_a_bad_proof_is_not_told():
    office, token = bound_office(KEY)
    said = set()
    for proof in (KEY.proof("GET", URL, token, at=NOW), DpopKey().proof("POST", URL, token, at=NOW), "junk"):
        with pytest.raises(Unauthenticated) as found:
            office.ask(token, proof=ASKED._replace(jwt=proof))
        said.add(str(found.value))
    assert len(said) == 1 and len(office.said) == 1 and "another method" in office.said[0]


def test_a_token_that_is_not_bound_is_not_taken_with_a_proof():
    office = Office()
    token = office.token()
    office.welcome(token)
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="Bearer"):
            dpop(office, KEY, token)
    assert office.ask(token)


def test_missing_nonces_are_no_failures_and_bad_proofs_are():
    clock = FakeClock()
    failures = Limiter(clock.monotonic, rate=0.001, burst=3, what="bad credentials from this address")
    office, token = bound_office(KEY, nonce_seconds=300, options={"failures": failures})
    for _ in range(9):
        with pytest.raises(Unauthenticated) as found:
            dpop(office, KEY, token)
        assert found.value.fault == NONCE
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            dpop(office, DpopKey(), token)
    with pytest.raises(OverBudget):
        office.ask(office.token(key=ec_key()))
    assert dpop(office, KEY, token, nonce=found.value.nonce)  # the owner is not locked out by a thief beside him


def test_a_token_bound_to_a_certificate():
    office = Office()
    shown, other = Certificate(b"\1" * 32, (), NOW + 900), Certificate(b"\2" * 32, (), NOW + 900)
    token = office.token(cnf={"x5t#S256": encode_part(shown.digest)})
    office.welcome(token, certificate=shown)
    assert office.ask(token, certificate=shown)
    for wrong in (None, other):
        with pytest.raises(Unauthenticated):
            office.ask(token, certificate=wrong)


def test_a_token_bound_to_both_needs_both():
    office = Office()
    shown = Certificate(b"\1" * 32, (), NOW + 900)
    token = office.token(cnf={"x5t#S256": encode_part(shown.digest), "jkt": KEY.thumbprint})
    with pytest.raises(Unavailable):
        office.ask(token)
    office.admit()
    proof = lambda: ASKED._replace(jwt=KEY.proof("POST", URL, token, at=NOW))  # noqa: E731
    assert office.ask(token, certificate=shown, proof=proof())
    for lacking in ({"certificate": shown}, {"proof": proof()}, {}):
        with pytest.raises(Unauthenticated):
            office.ask(token, **lacking)
