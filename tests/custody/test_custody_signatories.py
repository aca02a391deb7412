"""Who may sign at each log index: every road to one trust root agrees, and nothing but its rules opens one."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelkeep.core.values import ReleaseRef, Resource, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.signing import state_statement
from modelkeep.custody.trust import TrustedIdentity, TrustRoot
from modelkeep.errors import Conflict, ModelkeepError, NotTrusted
from modelkeep.ledger import predicates
from modelkeep.ledger import statements as s

ORIGIN = "keep"
SIGNERS = [StatementSigner(f"{ORIGIN}/{number}", bytes([number]) * 32, bytes([number + 100]) * 32) for number in range(5)]
ROOT = TrustRoot(ORIGIN, "vkey", bytes(32), bytes(32), (TrustedIdentity(SIGNERS[0].public),))
_ids = itertools.count(1)


def trust(change, signer, name, *, identity=None, may_sign=("*",), releases=("*",), co=()):
    said = predicates.Trust(
        actor="a", at=1, change=change, name=name, id=f"{next(_ids):032x}", may_sign=may_sign, releases=releases,
        identity=predicates.NamedIdentity.of(identity.public) if identity else None,
    )  # fmt: skip
    return s.sign_statement(s.make_statement(said, s.keep_resource(ORIGIN)), signer, *co)


def rotate(old, new):
    return trust("rotate", old, old.name, identity=new, co=(new,))


def fed(root, entries):
    found, counted = Signatories(root), []
    for index, entry in enumerate(entries):
        envelope = parse_envelope(entry)
        try:
            found.follow(index, envelope, found.check(envelope, index)[0])
            counted.append(index)
        except ModelkeepError:
            continue
    return found, counted


def test_a_rotation_ends_one_and_begins_the_other():
    found, counted = fed(ROOT, [rotate(SIGNERS[0], SIGNERS[1])])
    assert counted == [0]
    assert [(each.name, each.first, each.until) for each in found] == [("keep/0", 0, 1), ("keep/1", 1, None)]
    found.check_signs(SIGNERS[1].public, 1)
    for signer, index in ((SIGNERS[0], 1), (SIGNERS[1], 0), (SIGNERS[2], 0)):
        with pytest.raises(NotTrusted):
            found.check_signs(signer.public, index)


def test_a_key_under_two_names_and_a_name_with_two_keys_are_refused():
    other = StatementSigner("other", bytes([0]) * 32, bytes([100]) * 32)  # the keys of keep/0
    again = StatementSigner("keep/0", bytes([9]) * 32, bytes([9]) * 32)
    for stranger in (other, again):
        with pytest.raises(NotTrusted, match="share a name or a key"):
            Signatories(TrustRoot(ORIGIN, "v", b"", b"", (*ROOT.identities, TrustedIdentity(stranger.public))))
        assert fed(ROOT, [trust("add", SIGNERS[0], stranger.name, identity=stranger)])[1] == []
        assert fed(ROOT, [rotate(SIGNERS[0], stranger)])[1] == []


def test_an_announcement_after_the_end_of_its_signer_counts_for_nothing():
    ended = TrustRoot(ORIGIN, "v", bytes(32), bytes(32), (TrustedIdentity(SIGNERS[0].public, until=1),))
    entries = [rotate(SIGNERS[1], SIGNERS[2]), rotate(SIGNERS[0], SIGNERS[1])]
    assert fed(ended, entries)[1] == []


def test_an_identity_that_may_not_sign_trust_announces_nobody():
    limited = TrustRoot(ORIGIN, "v", bytes(32), bytes(32), (TrustedIdentity(SIGNERS[0].public, ("release",)),))
    entry = trust("rotate", SIGNERS[0], "keep/0", identity=SIGNERS[1], may_sign=("release",), co=(SIGNERS[1],))
    assert fed(limited, [entry])[1] == []


def test_a_compromise_by_hand_stands_before_what_the_log_says():
    entries = [rotate(SIGNERS[0], SIGNERS[1]), rotate(SIGNERS[1], SIGNERS[2])]
    by_hand = TrustRoot(
        ORIGIN, "vkey", bytes(32), bytes(32),
        (TrustedIdentity(SIGNERS[0].public, until=0, compromised=True), TrustedIdentity(SIGNERS[3].public)),
    )  # fmt: skip
    found, counted = fed(by_hand, entries)
    assert (counted, found.root) == ([], by_hand)
    with pytest.raises(Conflict, match="compromised"):
        found.at("keep/0", 5)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["rotate", "add", "limit", "remove"]),
        st.integers(0, 4),
        st.integers(0, 4),
        st.sampled_from([("*",), ("scan", "trust"), ("scan",)]),
        st.sampled_from([("*",), ("a-*",), ("a-*", "b")]),
    ),
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
@example([("limit", 0, 2, ("*",), ("*",)), ("rotate", 0, 2, ("*",), ("*",))])  # who is limited begins only later
def test_whoever_begins_with_any_root_on_the_way_comes_to_the_same_root(changes):
    """Roots handed out at any moment, an older one or the newest, agree on who may sign at every index of the whole log."""
    entries = []
    for change, by, about, may_sign, releases in changes:
        signer, other = SIGNERS[by], SIGNERS[about]
        if change == "rotate":
            entries.append(
                trust(change, signer, signer.name, identity=other, may_sign=may_sign, releases=releases, co=(other,))
            )
        else:
            fresh = other if change == "add" else None
            entries.append(trust(change, signer, other.name, identity=fresh, may_sign=may_sign, releases=releases))
    found, _ = fed(ROOT, entries)
    for root in found.roots:
        assert fed(root, entries)[0].root == found.root
    for index in range(len(entries) + 1):
        names = [each.name for each in found if each.holds_at(index)]
        assert len(names) == len(set(names)), "one stretch at a time"


@settings(max_examples=30, deadline=None)
@given(CHANGES)
def test_nobody_gains_rights_that_the_root_did_not_have(changes):
    narrow = TrustRoot(
        ORIGIN, "v", bytes(32), bytes(32), (TrustedIdentity(SIGNERS[0].public, ("scan", "trust"), releases=("a-*",)),)
    )
    entries = []
    for change, by, about, may_sign, releases in changes:
        signer, other = SIGNERS[by], SIGNERS[about]
        name = signer.name if change == "rotate" else other.name
        entries.append(trust(change, signer, name, identity=other, may_sign=may_sign, releases=releases, co=(other,)))
    for each in fed(narrow, entries)[0]:
        assert narrow.identities[0].rights.covers(each.rights)


def test_the_book_says_why_and_goes_on():
    book = EvidenceBook(ROOT)
    state = state_statement(
        Resource("m", digest_of(b"m")), ReleaseRef("m", 1), "promote", actor="a", at=1, nonce=bytes(16), reason=""
    )
    for index, entry in enumerate(
        [rotate(SIGNERS[0], SIGNERS[1]), s.sign_statement(state, SIGNERS[0]), rotate(SIGNERS[0], SIGNERS[2]), b"junk"]
    ):
        book.apply(index, entry)
    assert [problem.index for problem in book.problems] == [1, 2, 3]
    assert "not trusted at log index 1" in book.problems[0].why
    assert book.suspicious == book.problems[0]
    assert [each.name for each in book.signatories] == ["keep/0", "keep/1"]
