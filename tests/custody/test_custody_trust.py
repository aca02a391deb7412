"""The trust root: text and back, and what malformed or later text does."""

import re
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.values import to_json
from modelkeep.crypto.signatures import PublicIdentity, StatementSigner
from modelkeep.custody.trust import Rights, TrustedIdentity, TrustRoot, encode_identity, matches, parse_identities
from modelkeep.errors import Invalid, NotTrusted

ONE = StatementSigner('keep "é" \\ \n/1', bytes(32), bytes(32)).public
ROOT = TrustRoot(
    "keep.example",
    "keep.example/releases+00000000+AAAA",
    b"a" * 32,
    b"t" * 32,
    (TrustedIdentity(ONE, ("scan", "release"), 3, 9), TrustedIdentity(PublicIdentity("two", b"2" * 32, b"3" * 1952))),
)


def test_round_trip():
    assert TrustRoot.parse(ROOT.encode()) == ROOT
    assert tomllib.loads(ROOT.encode().decode())["identity"][0]["may_sign"] == ["scan", "release"]
    ROOT.check_same(ROOT.encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("version = 1", "version = true"),
        lambda text: text.replace("audit_key", "audit_kez"),
        lambda text: text.replace('ed25519 = "', 'ed25519 = "!'),
        lambda text: text.replace("first = 3", "first = 'x'"),
        lambda text: text + "surprise = 1\n",
        lambda text: text[: len(text) // 2],
        lambda text: "",
    ],
)
def test_malformed_text_is_refused(change):
    with pytest.raises(Invalid):
        TrustRoot.parse(change(ROOT.encode().decode()).encode())
    with pytest.raises(Invalid):
        TrustRoot.parse(b"\xff\xfe")


def test_a_later_version_is_refused():
    with pytest.raises(NotTrusted, match="version 2"):
        TrustRoot.parse(ROOT.encode().replace(b"version = 1", b"version = 2"))


def test_a_public_copy_that_differs_is_refused():
    with pytest.raises(NotTrusted, match="differs"):
        ROOT.check_same(ROOT.encode().replace(b"keep.example", b"evil.example"))


def test_what_an_identity_may_sign_and_when():
    trusted = ROOT.identities[0]
    trusted.check_may_sign("scan", 3)
    trusted.check_may_sign("release", 8)
    for kind, index in (("state", 5), ("scan", 2), ("scan", 9)):
        with pytest.raises(NotTrusted):
            trusted.check_may_sign(kind, index)
    ROOT.identities[1].check_may_sign("anything", 10**9)


# -- patterns and rights --


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("*", ["a", "credit-risk", "x.y_z"], []),
        ("credit-*", ["credit-", "credit-risk", "credit-*"], ["credit", "a-credit-x", "Credit-x"]),
        ("*-risk", ["-risk", "credit-risk", "a-risk-risk"], ["risk", "credit-risk2"]),
        ("a?c", ["abc", "a.c"], ["ac", "abbc"]),
        ("a*b*c", ["abc", "aXbYc", "abbcc", "acbc"], ["ab", "acb", "abcd"]),
        ("a.c", ["a.c"], ["abc"]),
        ("??", ["ab"], ["a", "abc"]),
        ("credit", ["credit"], ["credit2", "cred"]),
        ("a**b", ["ab", "axb"], ["a", "b"]),
    ],
)
def test_patterns(pattern, covered, not_covered):
    assert [name for name in covered if not matches(pattern, name)] == []
    assert [name for name in not_covered if matches(pattern, name)] == []


@given(st.text("ab*?", max_size=8), st.text("abc", max_size=8))
def test_patterns_agree_with_the_regular_expression(pattern, name):
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    assert matches(pattern, name) == bool(re.fullmatch(regex, name))


def test_a_pattern_made_to_take_long_does_not():
    assert not matches("*a" * 32, "a" * 31 + "b" * 10_000)


@pytest.mark.parametrize("pattern", ["", "A", "a b", "[ab]", "a/b", "a" * 65, "é", "a\n"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(Invalid):
        Rights(("*",), (pattern,))
    with pytest.raises(Invalid):
        TrustRoot.parse(ROOT.encode().replace(b'releases = ["*"]', b"releases = [%s]" % to_json(pattern), 1))


NAMES = st.lists(st.sampled_from(["*", "scan", "release", "state"]), max_size=3).map(tuple)


@given(NAMES, NAMES, NAMES, NAMES)
def test_whoever_covers_may_do_all_that_is_covered(mine, theirs, ours, others):
    wide, narrow = Rights(mine, ours), Rights(theirs, others)
    if wide.covers(narrow):
        first, second = TrustedIdentity(ONE, mine, releases=ours), TrustedIdentity(ONE, theirs, releases=others)
        for kind in ("scan", "release", "state", "other"):
            for model in ("scan", "release", "x", None):
                assert _may(first, kind, model) or not _may(second, kind, model)


def _may(identity, kind, model):
    try:
        identity.check_may_sign(kind, 0)
        identity.check_about(kind, model)
    except NotTrusted:
        return False
    return True


def test_a_trust_root_of_before_patterns_trusts_as_it_did():
    old = b"\n".join(line for line in ROOT.encode().splitlines() if not line.startswith(b"releases = "))
    assert TrustRoot.parse(old) == ROOT


def test_every_field_survives():
    full = msgspec.structs.replace(
        ROOT,
        identities=(TrustedIdentity(ONE, ("scan",), 1, 5, ("a-*", "b?"), True), TrustedIdentity(ONE, ("*",), 5)),
        token_key_before=b"o" * 32,
    )
    assert TrustRoot.parse(full.encode()) == full
    assert full.token_keys == (b"t" * 32, b"o" * 32)
    full.identities[0].check_about("release", "a-x")
    for model in ("c", None, "xa-x"):
        with pytest.raises(NotTrusted, match="may speak about"):
            full.identities[0].check_about("release", model)


def test_identity_files():
    (found,) = parse_identities(encode_identity(ONE))
    assert found == ONE
    assert {each.name for each in parse_identities(ROOT.encode())} == {"two"}  # the other one has an end
    for bad in (b"", b"\xff", b"[[identity]]\nname = 'x'\n", encode_identity(ONE).replace(b'mldsa65 = "', b'mldsa65 = "!')):
        with pytest.raises(Invalid):
            parse_identities(bad)
