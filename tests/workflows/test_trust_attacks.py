"""Attacks on who may sign: names taken in advance, rights that a thief widens or takes away, what a resigning forgets."""

import sys

import msgspec
import pytest
from trust_house import FIRST, OTHER, TEAM, Office, announcement, log_raw, promote
from workflow_house import Cut, safetensors

from modelkeep.core.values import ReleaseState, Resource
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody import succession
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.trust import Rights
from modelkeep.errors import Conflict, NotTrusted
from modelkeep.ledger import predicates
from modelkeep.ledger import statements as s
from modelkeep.workflows.bodies import seal_anew
from modelkeep.workflows.follow import open_release
from modelkeep.workflows.publish import ModelFile, publish
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.resign import resign
from modelkeep.workflows.trust_changes import add_identity, limit_identity, rotate_identity

NEXT = "keep.example/statement-signing/2"


@pytest.fixture
def office(tmp_path):
    return Office(tmp_path)


def rights_of(root, name):
    return [each.rights for each in root.identities if each.name == name][-1]


def test_whoever_takes_the_name_of_the_next_key_does_not_stop_its_rotation(office, model):
    squatter = StatementSigner(NEXT, bytes([9]) * 32, bytes([9]) * 32)
    add_identity(office.house.desk(), office.amend, squatter.public, Rights(("scan",)), actor="ops")
    office.rotate()
    office.restart()
    assert office.house.ring.statement_signer().name == "keep.example/statement-signing/3"
    publish(office.house.desk(), model, "credit", actor="ada")
    assert promote(office).state is ReleaseState.PROMOTED
    office.check_agrees()


def test_a_key_is_not_taken_into_use_because_another_of_its_name_is_announced(office, model):
    """The name is taken while the pending key waits: nothing may be signed with keys that nobody trusts."""
    office.amend(succession.prepared(succession.software(office.entropy), 1))
    squatter = StatementSigner(NEXT, bytes([9]) * 32, bytes([9]) * 32)
    add_identity(office.house.desk(), office.amend, squatter.public, Rights(("scan",)), actor="ops")
    office.restart()
    assert office.house.ring.statement_signer().name.endswith("/1")
    publish(office.house.desk(), model, "credit", actor="ada")
    office.rotate()
    office.restart()
    assert promote(office).state is ReleaseState.PROMOTED


def test_rights_that_the_thief_widened_fall_with_his_key(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    narrow = Rights(("scan",), ("fraud-*",))
    add_identity(office.house.desk(), office.amend, TEAM.public, narrow, actor="ops")
    since, stolen = office.size, office.house.ring.statement_signer()
    log_raw(office, announcement(stolen, OTHER, change="limit", name="team-b", identity=None, co=[]))
    office.restart()
    assert rights_of(office.house.ring.trust, "team-b") == Rights()
    office.compromise(1, since)
    root = office.check_agrees()
    assert rights_of(root, "team-b") == narrow
    known = office.house.registry().release(FIRST)
    said = predicates.State(actor="eve", at=1, release=str(FIRST), verb="promote", id="0" * 32)
    log_raw(office, s.sign_statement(s.make_statement(said, Resource("m", known.model)), TEAM))
    assert office.house.registry().release(FIRST).state is ReleaseState.PUBLISHED
    office.compromise(1, since)
    assert office.check_agrees() == root


def test_rights_that_were_narrowed_after_the_theft_stay_narrow(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    add_identity(office.house.desk(), office.amend, TEAM.public, Rights(), actor="ops")
    since = office.size
    limit_identity(office.house.desk(), office.amend, "team-b", Rights(("scan",)), actor="ops")
    office.compromise(1, since)
    assert rights_of(office.check_agrees(), "team-b") == Rights(("scan",))


def test_a_thief_who_limits_the_keep_itself_does_not_cripple_its_successor(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    since, stolen = office.size, office.house.ring.statement_signer()
    limit = {"change": "limit", "name": stolen.name, "identity": None, "may_sign": ("scan",), "co": []}
    log_raw(office, announcement(stolen, OTHER, **limit))
    office.restart()
    office.compromise(1, since)
    office.check_agrees()
    assert promote(office).state is ReleaseState.PROMOTED


@pytest.mark.parametrize("verbs", [["quarantine"], ["retire"], ["quarantine", "reinstate"]], ids="+".join)
def test_signing_again_does_not_end_a_quarantine(office, model, verbs):
    publish(office.house.desk(), model, "credit", actor="ada")
    for verb in verbs:
        change_state(office.house.desk(), FIRST, verb, actor="ops", reason="backdoor")
    office.compromise(1, 0)
    assert resign(office.house.desk(), FIRST, actor="ops").state is ReleaseState.QUARANTINED
    with pytest.raises(Conflict):
        promote(office)
    assert change_state(office.house.desk(), FIRST, "reinstate", actor="ops").state is ReleaseState.PUBLISHED


def test_a_rotation_that_was_cut_off_is_not_undone_by_a_compromise(office, model):
    """The former key ended with the announcement, whatever the compromise that follows says."""
    steps = [office.amend(succession.prepared(succession.software(office.entropy), 1))]

    def amend(_change):
        if not steps:
            raise Cut
        return steps.pop()

    with pytest.raises(Cut):
        rotate_identity(office.house.desk(), amend, succession.software(office.entropy), actor="ops")
    assert office.house.ring.pending_signer() is not None
    announced = office.size
    log_raw(office, b"{}", b"{}")
    office.compromise(1, office.size)
    assert office.check_agrees().identities[0].until == announced


def test_who_may_seal_anew_may_not_change_what_is_inside(office, model):
    """A later sealing names another root: what is in it is digested before it is served."""
    known = publish(office.house.desk(), model, "credit", actor="ada")
    add_identity(office.house.desk(), office.amend, TEAM.public, Rights(("sealing",)), actor="ops")
    evil = forged_body(office, known.model)
    said = predicates.Sealing(
        actor="eve", at=1, release=str(FIRST), sealed=evil.sealed, root=evil.root, header=evil.header, size=evil.size,
        replaces=known.body.sealed,
    )  # fmt: skip
    log_raw(office, s.sign_statement(s.make_statement(said, Resource("m", known.model)), TEAM))
    found = office.house.registry().release(FIRST)
    assert found.body == evil
    with pytest.raises(NotTrusted):
        open_release(office.house.registry(), found)


def forged_body(office, claimed):
    """A body with another model in it, whose sealer says that it has the digest ``claimed``."""
    desk = office.house.desk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[seal_anew.__globals__["seal"].__module__], "Digest", lambda _: claimed)
        made = seal_anew(desk, ModelFile(safetensors(9), "x.safetensors").data, MODEL)
    desk.registry.records.commit([made.change])
    return made.body


def test_a_trust_statement_that_once_failed_does_not_count_when_it_is_copied_later(office):
    own = office.house.ring.statement_signer()
    widen = announcement(own, OTHER, change="limit", name="team-b", identity=None, may_sign=("*",), co=[])
    log_raw(office, widen)  # nobody of that name yet
    add_identity(office.house.desk(), office.amend, TEAM.public, Rights(("scan",)), actor="ops")
    log_raw(office, widen)
    book = EvidenceBook(office.house.trust)
    view = office.view()
    book.catch_up(view, view.checkpoint.size)
    assert rights_of(book.signatories.root, "team-b") == Rights(("scan",))
    assert msgspec.structs.asdict(book.problems[-1])["index"] == office.size - 1
