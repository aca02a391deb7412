"""Acts, audit checkpoints and commitments in the log."""

import pytest

from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.notes import Checkpoint, NoteSigner
from modelkeep.errors import Conflict, Missing
from modelkeep.ledger.predicates import Act, AuditCheckpoint, Commitment
from modelkeep.ledger.statements import open_statement, predicate_of
from modelkeep.workflows.acts import commit_traces, log_act, log_audit_checkpoint
from modelkeep.workflows.publish import publish

FIRST = ReleaseRef("credit", 1)
ONE, TWO = Commitment("sub_1", "11" * 32), Commitment("sub_2", "22" * 32)


def test_acts_and_checkpoints_are_signed_entries(house):
    desk, signer = house.desk(), NoteSigner("keep.example/audit/a", bytes(32))
    point = Checkpoint("keep.example/audit/a", 7, bytes(32))
    assert log_act(desk, "keep.example", "user.add", "bob", actor="ada", detail={"role": "analyst"}) == 0
    assert log_audit_checkpoint(desk, point.sign(signer), point, actor="gateway", phase="final") == 1
    house_view = house.registry()
    house_view.refresh()
    identity = house.trust.identities[0].public
    act, point_said = (open_statement(entry, identity)[0] for entry in house_view.view.entries(0, 2))
    assert predicate_of(act, Act).detail == {"role": "analyst"}
    assert predicate_of(point_said, AuditCheckpoint).size == 7


def test_commitments_are_made_once_and_cannot_be_exchanged(house, model):
    desk = house.desk()
    with pytest.raises(Missing):
        commit_traces(desk, FIRST, [ONE], actor="gateway")
    publish(desk, model, "credit", actor="ada")
    assert [commit_traces(desk, FIRST, entries, actor="g") for entries in ([ONE], [ONE, TWO], [ONE, TWO], [])] == [1, 1, 0, 0]
    with pytest.raises(Conflict, match="the first one stands"):
        commit_traces(desk, FIRST, [Commitment("sub_1", "33" * 32)], actor="g")
    book = house.registry().refresh()
    assert [[one.commitment for one in book.committed(f"sub_{i}", FIRST)] for i in (1, 2, 3)] == [["11" * 32], ["22" * 32], []]
    assert book.size == 5


def test_a_later_epoch_follows_the_one_before_it_and_is_no_exchange(house, model):
    desk = house.desk()
    publish(desk, model, "credit", actor="ada")
    later = Commitment("sub_1", "33" * 32, 1)
    with pytest.raises(Conflict, match="epoch before 1"):
        commit_traces(desk, FIRST, [later], actor="g")
    assert [commit_traces(desk, FIRST, [one], actor="g") for one in (ONE, later, later)] == [1, 1, 0]
    for other in (Commitment("sub_1", "44" * 32), Commitment("sub_1", "44" * 32, 1)):
        with pytest.raises(Conflict, match="the first one stands"):
            commit_traces(desk, FIRST, [other], actor="g")
    book = house.registry().refresh()
    assert [one.commitment for one in book.committed("sub_1", FIRST)] == ["11" * 32, "33" * 32]
    assert [one.entry for one in book.committed("sub_1", FIRST)] == [3, 4]


def test_of_two_who_renew_at_once_both_are_content(house, model):
    """The key of an epoch is the same whoever begins it."""
    publish(house.desk(), model, "credit", actor="ada")
    desk, later = house.desk(), Commitment("sub_1", "33" * 32, 1)
    commit_traces(desk, FIRST, [ONE], actor="g")
    append = desk.log.append

    def racing(entries, **more):
        commit_traces(house.desk(), FIRST, [later], actor="first")
        return append(entries, **more)

    desk.log.append = racing
    assert commit_traces(desk, FIRST, [later], actor="second") == 1
    book = house.registry().refresh()
    assert [one.commitment for one in book.committed("sub_1", FIRST)] == ["11" * 32, "33" * 32] and not book.problems


def test_of_two_writers_at_once_the_first_stands(house, model):
    publish(house.desk(), model, "credit", actor="ada")
    desk = house.desk()
    append = desk.log.append

    def racing(entries, **more):
        commit_traces(house.desk(), FIRST, [ONE], actor="first")
        return append(entries, **more)

    desk.log.append = racing
    with pytest.raises(Conflict):
        commit_traces(desk, FIRST, [Commitment("sub_1", "33" * 32)], actor="second")
    assert house.registry().refresh().committed("sub_1", FIRST)[0].commitment == "11" * 32
