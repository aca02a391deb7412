"""One-time codes: the numbers of the standards, the window, the URI."""

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.access.totp import code_of, key_uri, matching_step, step_at, text_of

SECRET = b"12345678901234567890"
RFC_4226 = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"]
"""Appendix D: counters 0 to 9."""
RFC_6238 = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
"""Appendix B: 8 digits with SHA-1, SHA-256 and SHA-512, whose secrets have 20, 32 and 64 bytes."""


@pytest.mark.parametrize(("counter", "code"), list(enumerate(RFC_4226)))
def test_the_numbers_of_rfc_4226(counter, code):
    assert code_of(SECRET, counter) == code


@pytest.mark.parametrize(("at", "sha1", "sha256", "sha512"), RFC_6238, ids=[str(row[0]) for row in RFC_6238])
def test_the_numbers_of_rfc_6238(at, sha1, sha256, sha512):
    for name, size, code in (("sha1", 20, sha1), ("sha256", 32, sha256), ("sha512", 64, sha512)):
        assert code_of((SECRET * 4)[:size], step_at(at), digits=8, hash_name=name) == code


@pytest.mark.parametrize(("off", "taken"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_one_step_either_way_is_taken(off, taken):
    now = 1_800_000_015
    assert matching_step(SECRET, code_of(SECRET, step_at(now) + off), now) == (step_at(now) + off if taken else None)


@given(st.text(max_size=12))
def test_nothing_but_the_three_codes_is_taken(code):
    now = 1_800_000_015
    codes = {code_of(SECRET, step_at(now) + off) for off in (-1, 0, 1)}
    assert (matching_step(SECRET, code, now) is not None) == (code in codes)


def test_the_uri_that_apps_read():
    parts = urlsplit(key_uri(SECRET, "an:na", "keep of acme"))
    assert (parts.scheme, parts.netloc, unquote(parts.path)) == ("otpauth", "totp", "/keep of acme:an:na")
    assert parse_qs(parts.query) == {
        "secret": ["GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"],
        "issuer": ["keep of acme"],
        "algorithm": ["SHA1"],
        "digits": ["6"],
        "period": ["30"],
    }
    assert text_of(SECRET) == "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
