"""Aliases, metadata and holds as the evidence book folds them: what counts, and that nothing else does."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_custody_admission import EVIL, KEEP, MODEL, PLAIN, REF, SCANNER, STRANGER, TRUST, Log, body, facts

from modelkeep.core.values import ReleaseRef, ReleaseState, Resource, digest_of
from modelkeep.custody.catalogue import ADD, REMOVE, parse_alias, reference_name
from modelkeep.custody.metadata import About, Classification, alias_statement, hold_statement, metadata_statement
from modelkeep.custody.signing import release_statements
from modelkeep.custody.trust import TrustedIdentity
from modelkeep.errors import Conflict, Invalid, Missing
from modelkeep.ledger import predicates
from modelkeep.ledger import statements as s

SECOND = ReleaseRef("m", 2)
ABOUT = About("risk", Classification.INTERNAL, tags=("pd",))


@pytest.fixture
def log():
    return Log().add(*release_statements(facts())).add(*release_statements(facts(SECOND, EVIL, sealed=b"other")))


def move(log, version, replaces, *, alias="champion", name="m", model=None, signer=KEEP):
    digest = model or {1: MODEL, 2: EVIL}.get(version or replaces, MODEL)
    nonce = len(log.list).to_bytes(16)
    said = alias_statement(Resource("x", digest), (name, alias), version, replaces, actor="bo", at=2, nonce=nonce)
    return log.add(said, signer=signer)


def held(log, verb=ADD, hold_id="ab" * 16, *, ref=REF, model=MODEL, signer=KEEP):
    at = len(log.list)
    return log.add(hold_statement(Resource("x", model), ref, verb, hold_id, actor="bo", at=at, reason="case"), signer=signer)


def described(log, about=ABOUT, *, ref=REF, model=MODEL, card=None, signer=KEEP):
    nonce = len(log.list).to_bytes(16)
    said = metadata_statement(Resource("x", model), ref, about, card, actor="bo", at=2, nonce=nonce)
    return log.add(said, signer=signer)


def test_an_alias_moves_and_keeps_its_history(log):
    move(move(move(log, 1, 0), 2, 1), 0, 2)
    catalogue = log.book.catalogue
    assert [(m.version, m.replaced) for m in catalogue.alias_history("m", "champion")] == [(1, 0), (2, 1), (0, 2)]
    assert catalogue.aliases() == {} and catalogue.alias("m", "champion") == 0
    assert log.why == []
    move(log, 2, 0)
    assert catalogue.aliases() == {("m", "champion"): 2} and catalogue.aliases_of(SECOND) == ("champion",)
    assert (catalogue.resolve("m@champion"), catalogue.resolve("m@1")) == (SECOND, REF)
    for text, error in (("m@challenger", Missing), ("x@champion", Missing), ("m@", Invalid), ("@champion", Invalid),
                        ("m@Champion", Invalid), ("m", Invalid), ("M@champion", Invalid), ("m@01", Invalid)):  # fmt: skip
        with pytest.raises(error):
            catalogue.resolve(text)


def test_what_an_alias_replaces_must_be_what_it_means(log):
    move(move(log, 1, 0), 2, 0)
    assert log.book.catalogue.alias("m", "champion") == 1
    assert log.book.problems[-1].honest and "means version 1, not none" in log.why[-1]
    move(log, 1, 1)  # to itself
    assert len(log.why) == 2


def test_alias_statements_that_do_not_count(log):
    move(log, 3, 0)  # no such release
    move(log, 1, 0, model=EVIL)  # about another model
    move(log, 1, 0, alias="v2")
    move(log, 1, 0, alias="Champion")
    move(log, 1, 0, name="../m")
    move(log, 1, 0, signer=SCANNER)  # may sign scans only
    move(log, 1, 0, signer=STRANGER)
    assert log.book.catalogue.aliases() == {} and len(log.why) == 7
    entry = s.sign_statement(alias_statement(PLAIN, ("m", "champion"), 1, 0, actor="bo", at=2, nonce=bytes(16)), KEEP)
    log.add_raw(entry)
    move(log, 0, 1)
    log.add_raw(entry)  # a copy, after it was removed
    assert log.book.catalogue.alias("m", "champion") == 0


@pytest.mark.parametrize("text", ["champion", "a", "a.b_c-d", "x" * 64, "version", "v", "vnext", "latest-stable", "v2x"])
def test_names_that_aliases_may_have(text):
    assert parse_alias(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1a", "v1", "v10", "v1.2", "v.", "latest", "newest", "infer", "ready", "A", "a/b", "a..b", "a.", "-a",
        "x" * 65, "ä", "a\n",
    ],
)  # fmt: skip
def test_names_that_aliases_may_not_have(text):
    with pytest.raises(Invalid):
        parse_alias(text)


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_alias_is_ever_taken_for_a_version(name, last):
    try:
        parse_alias(last)
    except Invalid:
        return
    with pytest.raises(Invalid):
        ReleaseRef.parse(f"{name}@{last}")


def test_the_name_in_a_reference():
    assert (reference_name("credit-risk@3"), reference_name("credit-risk@champion")) == ("credit-risk", "credit-risk")
    for text in ("credit-risk", "@3", "a@b@3", "A@1", "a@A", "a@0", "../x@1", ""):
        with pytest.raises(Invalid):
            reference_name(text)


def test_metadata_take_the_place_of_what_was_said_before(log):
    card = body(b"card")
    described(described(log), About("other", Classification.PUBLIC), card=(card, digest_of(b"# text")))
    found = log.book.catalogue.metadata(REF)
    assert [each.said.owner for each in found] == ["risk", "other"]
    assert (found[-1].card, found[-1].card_digest) == (card, digest_of(b"# text"))
    assert list(log.book.catalogue.cards()) == [card] and log.book.bodies()[card.sealed] == card
    assert log.book.catalogue.described(SECOND) is None
    described(log)
    assert list(log.book.catalogue.cards()) == [] and log.book.bodies()[card.sealed] == card
    assert log.why == []


def test_metadata_that_do_not_count(log):
    described(log, model=EVIL)
    described(log, ref=ReleaseRef("m", 9))
    described(log, signer=STRANGER)
    said = metadata_statement(PLAIN, REF, ABOUT, (body(b"card"), digest_of(b"t")), actor="bo", at=2, nonce=bytes(16))
    log.add(s.make_statement(s.predicate_of(said, predicates.Metadata), PLAIN))  # a card without its subject
    assert log.book.catalogue.metadata(REF) == () and len(log.why) == 4


def test_a_held_release_is_not_collected_whoever_signs_it(log):
    held(log).state("retire").state("collect")
    assert log.book.release(REF).state is ReleaseState.RETIRED and "is held by abababab" in log.why[-1]
    held(log, REMOVE).state("collect")
    assert log.book.release(REF).state is ReleaseState.COLLECTED
    held(log, hold_id="cd" * 16)
    assert "nothing left to hold" in log.why[-1]


@pytest.mark.parametrize("before", [(), ("promote",), ("quarantine",)])
def test_only_what_is_retired_is_collected(log, before):
    for verb in (*before, "collect"):
        log.state(verb)
    assert log.book.release(REF).state is not ReleaseState.COLLECTED


def test_nothing_leads_out_of_collection(log):
    log.state("retire").state("collect")
    for verb in ("promote", "quarantine", "reinstate", "retire", "export", "collect", "publish"):
        log.state(verb)
    assert log.book.release(REF).state is ReleaseState.COLLECTED
    log.add(*release_statements(facts(sealed=b"again")))
    assert log.book.release(REF).state is ReleaseState.COLLECTED and "never reused" in log.why[-1]


def test_holds_that_do_not_count(log):
    held(log, model=EVIL)
    held(log, ref=ReleaseRef("m", 9))
    held(log, hold_id="short")
    held(log, "explode")
    held(log, REMOVE)
    held(log, signer=STRANGER)
    assert log.book.catalogue.holds() == () and len(log.why) == 6
    held(log)
    held(log, ref=SECOND, model=EVIL)  # the same id on another release
    held(log, REMOVE, ref=SECOND, model=EVIL)
    assert len(log.book.catalogue.holds_on(REF)) == 1 and log.book.catalogue.holds_on(SECOND) == ()
    held(log, REMOVE)
    held(log, REMOVE)
    assert log.book.catalogue.holds_on(REF) == () and len(log.why) == 9


def test_holds_by_a_beginning_of_their_id(log):
    held(held(log, hold_id="ab" * 16), hold_id="ab" * 15 + "cd")
    catalogue = log.book.catalogue
    assert catalogue.hold("ab" * 16).id == "ab" * 16
    with pytest.raises(Invalid, match="2 holds"):
        catalogue.hold("abababab")
    for unknown in ("", "ab", "ff" * 8):
        with pytest.raises(Missing):
            catalogue.hold(unknown)
    with pytest.raises(Conflict):
        catalogue.check_free(REF)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_the_history_of_an_alias_is_a_chain(moves):
    log = Log().add(*release_statements(facts())).add(*release_statements(facts(SECOND, EVIL, sealed=b"other")))
    expected = {}
    for alias, version, replaces in moves:
        move(log, version, replaces, alias=alias)
        if replaces == expected.get(alias, 0) and version != replaces and version < 3:
            expected[alias] = version
    catalogue = log.book.catalogue
    assert catalogue.aliases() == {("m", alias): version for alias, version in expected.items() if version}
    for alias in expected:
        history = catalogue.alias_history("m", alias)
        assert [m.replaced for m in history] == [0, *(m.version for m in history[:-1])]


def test_a_hold_outlives_the_key_that_added_it(log):
    """The key is found to be stolen: what it released and described goes, and nobody may delete for that what was held."""
    held(log, hold_id="ab" * 16)
    held(log, hold_id="cd" * 16)
    held(log, REMOVE, "cd" * 16)
    for since in (0, len(release_statements(facts())) * 2):  # the releases are gone too, or stand
        lost = TrustedIdentity(KEEP.public, until=since, compromised=True)
        after = Log(msgspec.structs.replace(TRUST, identities=(lost, *TRUST.identities[1:])))
        after.add_raw(*log.list)
        holds = after.book.catalogue.holds_on(REF)
        assert [(hold.id[:2], hold.reason) for hold in holds] == [(name, "by a compromised key: case") for name in ("ab", "cd")]
        with pytest.raises(Conflict, match="held"):
            after.book.catalogue.check_free(REF)
        assert after.book.suspicious is None
