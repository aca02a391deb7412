"""The trust root: text and back, and what malformed or later text does."""

import tomllib

import pytest

from modelkeep.crypto.signatures import PublicIdentity, StatementSigner
from modelkeep.custody.trust import TrustedIdentity, TrustRoot
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
