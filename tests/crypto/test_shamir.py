"""Shamir's secret sharing: published numbers, then laws, then what people get wrong."""

import base64
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.shamir import (
    MAX_SHARES,
    Share,
    combine,
    evaluate,
    interpolate,
    inverse,
    multiply,
    parse_share,
    share_text,
    split,
)
from modelkeep.errors import Conflict, Invalid

SECRETS = st.binary(min_size=32, max_size=32)
ELEMENTS = st.integers(0, 255)


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [(0x57, 0x83, 0xC1), (0x57, 0x13, 0xFE), (0x57, 0x02, 0xAE), (0x57, 0x10, 0x07), (3, 7, 9), (3, 0, 0), (0, 3, 0)],
)
def test_products_of_fips_197_and_of_vaults_own_tests(a, b, product):
    assert multiply(a, b) == product


def test_the_inverse_that_fips_197_gives():
    assert inverse(0x53) == 0xCA
    assert inverse(0) == 0


def test_the_test_case_of_the_tss_draft():
    """draft-mcgrew-tss-03, section 9: secret 7465737400, two shares needed, numbers 1 and 2."""
    points = [(1, bytes.fromhex("b9fa07e185")), (2, bytes.fromhex("f5409b4511"))]
    assert interpolate(points) == bytes.fromhex("7465737400")
    assert interpolate(points[::-1]) == bytes.fromhex("7465737400")


def test_the_field_is_a_field():
    for a in range(1, 256):
        assert multiply(a, inverse(a)) == 1
        assert multiply(a, 1) == a


@given(ELEMENTS, ELEMENTS, ELEMENTS)
def test_products_are_as_polynomials_modulo_rijndaels(a, b, c):
    slow = 0
    for i, j in itertools.product(range(8), range(8)):
        slow ^= ((a >> i) & (b >> j) & 1) << (i + j)
    for bit in range(14, 7, -1):
        if slow >> bit & 1:
            slow ^= 0x11B << (bit - 8)
    assert multiply(a, b) == slow == multiply(b, a)
    assert multiply(a, b ^ c) == multiply(a, b) ^ multiply(a, c)


@settings(max_examples=25, deadline=None)
@given(SECRETS, st.data())
def test_any_threshold_of_shares_gives_the_secret_back_and_one_fewer_fits_any(secret, data):
    count = data.draw(st.integers(2, 7))
    threshold = data.draw(st.integers(2, count))
    shares = split(secret, threshold, count)
    chosen = data.draw(st.permutations(shares))[:threshold]
    assert combine([parse_share(share_text(share)) for share in chosen]) == secret
    with pytest.raises(Invalid, match=f"{threshold} shares are needed"):
        combine(chosen[1:])
    # One fewer says nothing: for every other secret there is a last share that would make it of the same ones.
    other = bytes(byte ^ 0x5A for byte in secret)
    points = [(share.x, share.y) for share in chosen[1:]]
    last = bytes(_through([(0, other[at]), *((x, y[at]) for x, y in points)], chosen[0].x) for at in range(len(secret)))
    assert interpolate([(chosen[0].x, last), *points]) == other


def _through(points, x):
    """The polynomial through ``points`` at ``x``, slowly."""
    total = 0
    for xi, yi in points:
        weight = 1
        for xj, _ in points:
            if xj != xi:
                weight = multiply(weight, multiply(x ^ xj, inverse(xi ^ xj)))
        total ^= multiply(weight, yi)
    return total


@given(st.lists(ELEMENTS, min_size=1, max_size=6), ELEMENTS)
def test_evaluation_is_the_sum_of_powers(coefficients, x):
    total, power = 0, 1
    for coefficient in coefficients:
        total ^= multiply(coefficient, power)
        power = multiply(power, x)
    assert evaluate(coefficients, x) == total


def test_a_share_has_one_known_text():
    share = Share(b"\x01\x02\x03\x04", 3, 2, bytes(range(32)))
    text = share_text(share)
    assert text.startswith("keepshare-aeaqe-") and len(text.replace("-", "")) == len("keepshare") + 69
    raw = base64.b32decode(text.removeprefix("keepshare-").replace("-", "").upper() + "===")
    assert raw[:39] == b"\x01\x01\x02\x03\x04\x03\x02" + bytes(range(32))
    assert repr(share) == "Share(set 01020304, number 2, 3 needed)"


def test_how_a_share_is_typed_does_not_matter_and_every_typing_error_is_found():
    text = share_text(split(bytes(range(32)), 2, 3)[0])
    assert parse_share(text.upper().replace("-", " ")).x == parse_share(text.replace("-", "")).x == 1
    body = text.removeprefix("keepshare-")
    for at, letter in enumerate(body):
        if letter == "-":
            continue
        wrong = "keepshare-" + body[:at] + ("a" if letter != "a" else "b") + body[at + 1 :]
        with pytest.raises(Invalid, match="mistyped") as refusal:
            parse_share(wrong)
        assert body[:10] not in str(refusal.value)
    for wrong in ("", "keepshare-", text[:-1], text + "a", "modelkeep-recovery-aaaa", body, "keepshare-\u00e4"):
        with pytest.raises(Invalid, match="mistyped"):
            parse_share(wrong)


def test_shares_that_do_not_belong_together_are_refused():
    one, other = split(bytes(32), 2, 3), split(bytes(32), 2, 3)
    with pytest.raises(Conflict, match="different sets"):
        combine([one[0], other[1]])
    with pytest.raises(Conflict, match="twice"):
        combine([one[0], one[0]])
    with pytest.raises(Invalid, match="needed"):
        combine([])
    with pytest.raises(Invalid, match="one size"):
        interpolate([(1, b"a"), (2, b"ab")])


@pytest.mark.parametrize(("threshold", "count"), [(1, 3), (4, 3), (2, MAX_SHARES + 1), (0, 0)])
def test_numbers_that_make_no_sense(threshold, count):
    with pytest.raises(Invalid, match="people"):
        split(bytes(32), threshold, count)
    with pytest.raises(Invalid, match="32 bytes"):
        split(b"short", 2, 3)
