"""The state machine, whole; records of releases; file names."""

import itertools

import pytest

from modelkeep.core.values import ModelSignature, ReleaseRef, ReleaseState, digest_of
from modelkeep.custody import releases as r
from modelkeep.errors import Conflict, Invalid, NotTrusted

S = ReleaseState
ALLOWED = {
    (S.PENDING, "publish"): S.PUBLISHED,
    (S.PUBLISHED, "promote"): S.PROMOTED,
    (S.PUBLISHED, "quarantine"): S.QUARANTINED,
    (S.PROMOTED, "quarantine"): S.QUARANTINED,
    (S.QUARANTINED, "reinstate"): S.PUBLISHED,
    (S.PUBLISHED, "retire"): S.RETIRED,
    (S.PROMOTED, "retire"): S.RETIRED,
    (S.QUARANTINED, "retire"): S.RETIRED,
    (S.RETIRED, "collect"): S.COLLECTED,
}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("verb", ["publish", *r.VERBS, r.COLLECT])
def test_every_pair_of_state_and_verb(state, verb):
    if (state, verb) in ALLOWED:
        assert r.next_state(state, verb) is ALLOWED[state, verb]
    else:
        with pytest.raises(Conflict):
            r.next_state(state, verb)


def test_export_changes_no_state_and_quarantine_forbids_it():
    for state in (S.PUBLISHED, S.PROMOTED, S.RETIRED):
        assert r.next_state(state, r.EXPORT) is state
    for state in (S.PENDING, S.QUARANTINED, S.COLLECTED):
        with pytest.raises(Conflict):
            r.next_state(state, r.EXPORT)


def test_nothing_leads_out_of_retirement_or_straight_out_of_quarantine_to_serving():
    for verbs in itertools.product((*r.VERBS, "publish"), repeat=2):
        with pytest.raises(Conflict):
            r.next_state(S.RETIRED, verbs[0])
        with pytest.raises(Conflict, match="nothing is possible any more"):
            r.next_state(S.COLLECTED, verbs[0])
    assert r.TRANSITIONS.get((S.QUARANTINED, "promote")) is None


def test_an_unknown_verb_is_refused_with_what_is_possible():
    with pytest.raises(Conflict, match="possible now: reinstate, retire"):
        r.next_state(S.QUARANTINED, "explode")


def test_record_round_trip_and_damage():
    release = r.Release(
        ReleaseRef("m", 1), S.PENDING, "c" * 32, digest_of(b"m"), "m.onnx", "onnx", 1, "ada", 1, ModelSignature((), ())
    )
    assert r.Release.parse(release.encode()) == release
    assert r.Counter.parse(r.Counter(7).encode()).last == 7
    for bad in (b"", b"{}", release.encode()[:-2], b"\xff"):
        with pytest.raises(NotTrusted):
            r.Release.parse(bad)
        with pytest.raises(NotTrusted):
            r.Counter.parse(bad)


@pytest.mark.parametrize("name", ["../m.onnx", "a/b", "a\\b", "", ".", "..", "a\nb", "a\x00b", "x" * 256, "\u202eevil"])
def test_names_that_hide_a_path_are_refused(name):
    with pytest.raises(Invalid):
        r.file_name(name)


def test_plain_file_names_pass():
    assert r.file_name("credit risk v2.onnx") == "credit risk v2.onnx"
