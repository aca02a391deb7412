"""Puzzles: known answers computed here with hashlib, and the law of what solves one."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.crypto.puzzle import check_solution, solve
from modelkeep.errors import Invalid, NotTrusted

CHALLENGE, BODY = bytes(range(32)), b"a question"
BYTES = st.binary(max_size=40)


def head(challenge, body, nonce):
    """The number that a solution makes small, as the page of the format says it."""
    digest = hashlib.sha256(challenge + hashlib.sha256(body).digest() + nonce).hexdigest()
    return int(digest[:16], 16)


def solves(*puzzle):
    try:
        check_solution(*puzzle)
    except NotTrusted:
        return False
    return True


def test_known_answers():
    """12 leading zero bits; the first nonce that has them, and its digest, were found with sha256sum."""
    assert solve(CHALLENGE, BODY, 1 << 12, 1 << 16) == bytes.fromhex("0000000000000645")
    check_solution(CHALLENGE, BODY, 1 << 12, bytes.fromhex("0000000000000645"))


@given(st.binary(min_size=32, max_size=32), BYTES, st.integers(1, 300))
def test_the_first_nonce_that_solves_is_found(challenge, body, hashes):
    nonce = solve(challenge, body, hashes, 20_000)
    assert head(challenge, body, nonce) * hashes < 1 << 64
    check_solution(challenge, body, hashes, nonce)
    before = [count.to_bytes(8, "big") for count in range(int.from_bytes(nonce))]
    assert all(head(challenge, body, each) * hashes >= 1 << 64 for each in before)


@given(BYTES, st.integers(0, (1 << 64) - 1))
def test_a_bit_too_much_is_refused(body, count):
    """Of a nonce with b leading zero bits puzzles of up to 2^b hashes are solved, and none of 2^(b + 1)."""
    nonce = count.to_bytes(8, "big")
    bits = 64 - head(CHALLENGE, body, nonce).bit_length()
    assert [solves(CHALLENGE, body, 1 << b, nonce) for b in range(bits + 2)] == [True] * (bits + 1) + [False]


@given(BYTES, BYTES)
def test_a_solution_is_of_one_body_and_one_challenge(body, other):
    nonce = solve(CHALLENGE, body, 1 << 8, 1 << 14)
    for challenge, asked in ((CHALLENGE, other), (other.ljust(32), body)):
        assert solves(challenge, asked, 1 << 8, nonce) == (head(challenge, asked, nonce) < 1 << 56)


def test_giving_up():
    with pytest.raises(Invalid, match="none of 3 nonces"):
        solve(CHALLENGE, BODY, 1 << 40, 3)
