"""The keys of an issuer: when they are read, how long they count, and what cannot make us read them."""

import json

import pytest
from access_house import FakeClock
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from identity import ec_key, private_jwk, public_jwk
from issuer_house import RSA_KEY, Published

from modelkeep.access.issuerkeys import MAX_KEYS, IssuerKeys, parse_key_set
from modelkeep.errors import NotTrusted, Unauthenticated, Unavailable

ALLOWED = ("ES256", "EdDSA", "PS256", "RS256")
KEY = ec_key()


def key_set(*keys):
    return json.dumps({"keys": list(keys)}).encode()


def test_each_key_has_one_algorithm():
    found = parse_key_set(
        key_set(
            public_jwk(KEY, "ec"),
            public_jwk(Ed25519PrivateKey.generate(), "ed", "EdDSA"),
            public_jwk(RSA_KEY, "rsa"),
            public_jwk(RSA_KEY, "rsa-v1.5", "RS256"),
        ),
        ALLOWED,
    )
    assert {kid: key.algorithm for kid, key in found.items()} == {
        "ec": "ES256",
        "ed": "EdDSA",
        "rsa": "PS256",  # the first allowed one that fits, since it names none
        "rsa-v1.5": "RS256",
    }


IGNORED = {
    "for encryption": public_jwk(KEY, "x") | {"use": "enc"},
    "for deriving": public_jwk(KEY, "x") | {"key_ops": ["deriveBits"]},
    "without an id": public_jwk(KEY),
    "an id of 257 letters": public_jwk(KEY, "x" * 257),
    "an algorithm that is not allowed": public_jwk(RSA_KEY, "x", "RS512"),
    "an algorithm of another type": public_jwk(KEY, "x", "RS256"),
    "a curve that is not allowed": public_jwk(ec.generate_private_key(ec.SECP384R1()), "x"),
    "a secret": {"kty": "oct", "kid": "x", "k": "c2VjcmV0", "alg": "HS256"},
    "a private key": private_jwk(KEY, "x", "ES256"),
    "a weak key": public_jwk(rsa.generate_private_key(65537, 1024), "x"),
    "an unknown type": {"kty": "LMS", "kid": "x"},
    "no key": {"kid": "x"},
    "a number": 7,
    "an id that is a number": public_jwk(KEY, "x") | {"kid": 7},
}


@pytest.mark.parametrize("what", IGNORED)
def test_what_is_no_key_for_tokens_is_left_out(what):
    good = public_jwk(KEY, "good")
    assert list(parse_key_set(key_set(good, IGNORED[what]), ALLOWED)) == ["good"]
    with pytest.raises(NotTrusted):
        parse_key_set(key_set(IGNORED[what]), ALLOWED)


def test_an_id_that_two_keys_have_names_none():
    twins = [public_jwk(ec_key(), "twin"), public_jwk(ec_key(), "twin"), public_jwk(ec_key(), "twin")]
    assert list(parse_key_set(key_set(*twins, public_jwk(KEY, "good")), ALLOWED)) == ["good"]


VALUES = st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=5)


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps({"keys": value}).encode()))
def test_what_is_no_key_set(raw):
    with pytest.raises(NotTrusted):
        parse_key_set(raw, ALLOWED)


def test_a_key_set_is_bounded():
    keys = [public_jwk(KEY, str(n)) for n in range(MAX_KEYS + 1)]
    assert len(parse_key_set(key_set(*keys[:-1]), ALLOWED)) == MAX_KEYS
    with pytest.raises(NotTrusted):
        parse_key_set(key_set(*keys), ALLOWED)


class Desk:
    def __init__(self):
        self.clock = FakeClock()
        self.source = Published(public_jwk(KEY, "one"))
        self.keys = IssuerKeys(
            self.source, ALLOWED, self.clock.monotonic, refresh_seconds=300.0, stale_seconds=3600.0, retry_seconds=10.0
        )

    def look(self):
        """What the background does, four times a second."""
        if self.keys.due():
            try:
                self.keys.refresh()
            except Unavailable:
                return False
        return True


def test_nothing_is_known_before_the_first_read():
    desk = Desk()
    with pytest.raises(Unavailable):
        desk.keys.find("one")
    assert desk.keys.due()
    desk.look()
    assert desk.keys.find("one").algorithm == "ES256" and not desk.keys.due()


def test_keys_are_read_again_now_and_then():
    desk = Desk()
    desk.look()
    desk.clock.advance(299)
    assert not desk.keys.due()
    desk.clock.advance(1)
    desk.look()
    assert desk.source.fetches == 2 and not desk.keys.due()


def test_a_flood_of_unknown_ids_makes_one_read_in_each_interval():
    desk = Desk()
    desk.look()
    for second in range(100):
        for n in range(50):
            with pytest.raises(Unauthenticated):
                desk.keys.find(f"{second}/{n}")
        desk.look()
        desk.clock.advance(1)
    assert desk.source.fetches == 1 + 9  # at seconds 10, 20 ... 90
    assert desk.keys.version == 1


def test_a_new_key_is_found_after_one_read():
    desk = Desk()
    desk.look()
    desk.clock.advance(10)
    desk.source.keys.append(public_jwk(ec_key(), "two"))
    with pytest.raises(Unauthenticated):
        desk.keys.find("two")
    desk.look()
    assert desk.keys.find("two") and desk.keys.find("one") and desk.keys.version == 2


def test_while_the_issuer_is_down_keys_count_until_they_are_stale_and_reads_are_rare():
    desk = Desk()
    desk.look()
    desk.source.down = True
    for _ in range(3599 * 4):
        desk.look()
        desk.clock.advance(0.25)
        assert desk.keys.find("one")
    desk.clock.advance(1)
    with pytest.raises(Unavailable):
        desk.keys.find("one")
    assert desk.source.fetches <= 1 + 3600 / 10 and "down" in desk.keys.failure
    desk.source.down = False
    desk.clock.advance(10)
    desk.look()
    assert desk.keys.find("one") and desk.keys.failure == ""


def test_a_bad_key_set_changes_nothing():
    desk = Desk()
    desk.look()
    desk.source.keys = []
    desk.clock.advance(300)
    with pytest.raises(NotTrusted):
        desk.keys.refresh()
    assert desk.keys.find("one") and desk.keys.version == 1


def test_a_read_under_way_keeps_others_away():
    desk = Desk()
    during = []
    desk.source.fetch = lambda: during.append(desk.keys.due()) or desk.keys.refresh() or key_set(public_jwk(KEY, "one"))
    desk.keys.refresh()
    assert during == [False] and desk.keys.version == 1
