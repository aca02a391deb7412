"""Verbs of the facade: in which order they leave their traces, and what they refuse before they do anything."""

import shutil

import pytest
from commandline import PASSPHRASE

from modelkeep.app.keep import Keep
from modelkeep.core.values import Principal, ReleaseRef, Resource, Role
from modelkeep.custody.signing import state_statement
from modelkeep.errors import Denied, Invalid, NotTrusted

REF = "risk@1"


@pytest.fixture
def keep(cli):
    return Keep.open(cli.keep, PASSPHRASE.encode())


def test_marks_are_committed_before_a_release_is_promoted(keep):
    """Cut off in between, a promoted release would answer nobody; so the promotion comes last."""
    keep.quarantine(ref=REF, reason="for the test")
    keep.reinstate(ref=REF, reason="for the test")
    keep.user_add(name="carl", roles=(Role.ANALYST,))
    before = len(keep.log_show(last=1000))
    keep.promote(ref=REF)
    assert [row.type for row in keep.log_show(last=1000)[before:]] == ["trace-commitments", "state"]


def test_two_who_quarantine_at_once_do_not_spoil_the_log(keep):
    """Both looked before either had logged: the second statement has no effect, and nothing was tampered with."""
    desk = keep.premises.desk()
    found = keep.premises.registry().release(ReleaseRef.parse(REF))
    model = Resource(found.filename, found.model)
    for number in (1, 2):
        said = state_statement(
            model, found.ref, "quarantine", actor="ops", at=number, nonce=bytes([number] * 16), reason="at once"
        )
        desk.log_statements([said])
    assert [checked.origin for checked in keep.log_verify()]
    assert keep.premises.registry().book.problem_count == 1


def test_a_log_put_back_to_an_earlier_day_is_noticed_by_a_fresh_process(keep, cli, tmp_path):
    """Only the log's folder goes back, with every signature in it sound: the records still know how far it was."""
    folder = cli.keep / "log" / "releases"
    shutil.copytree(folder, tmp_path / "yesterday")
    keep.quarantine(ref=REF, reason="stolen")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "yesterday", folder)
    fresh = Keep.open(cli.keep, PASSPHRASE.encode())
    for ask in (fresh.releases, fresh.log_verify, fresh.status):
        with pytest.raises(NotTrusted, match="rolled back"):
            ask()
    with pytest.raises(NotTrusted, match="rolled back"):
        fresh.promote(ref=REF)


def test_nobody_is_accused_on_request(keep):
    for significance in (0.0, 0.5, 1e9, float("nan")):
        with pytest.raises(Invalid, match="significance"):
            keep.trace(ref=REF, suspect=b"", probes=b"", significance=significance)


def test_nobody_clears_himself(keep):
    suspect = keep.acting_as(Principal("alice", "sub_x", (Role.ADMIN,), "session:x"))
    with pytest.raises(Denied, match="own account"):
        suspect.review(account="alice", outcome="cleared", reason="it was not me")


def test_a_note_is_a_note(keep):
    with pytest.raises(Invalid, match="note"):
        keep.incident_resolve(incident_id="integrity:risk@1", note="x" * 2001)


def test_a_key_that_lives_for_ever_is_not_issued(keep):
    """Its end in nanoseconds would not fit 64 bits, and no list of keys could be told any more."""
    for bad in ({"days": 10**12}, {"quota": 2**70}):
        with pytest.raises(Invalid):
            keep.key_issue(account="alice", **bad)
    assert keep.key_list() == ()
