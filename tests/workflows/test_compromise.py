"""A stolen key: what it said from some log index on does not count, and what was taken away stays away."""

import pytest
from trust_house import FIRST, OTHER, Office, announcement, log_raw, promote
from workflow_house import Cut

from modelkeep.core.values import ReleaseRef, ReleaseState, Resource, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.scan import ScanVerdict
from modelkeep.custody.signing import ReleaseFacts, release_statements, state_statement
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger import attestations as a
from modelkeep.ledger import predicates as p
from modelkeep.ledger import statements as s
from modelkeep.workflows.policies import Chosen, set_policy
from modelkeep.workflows.publish import publish
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.resign import resign
from modelkeep.workflows.trust_changes import (
    disowned,
    index_of_time,
    remove_identity,
)
from modelkeep.workflows.verify import verify_release


@pytest.fixture
def office(tmp_path):
    return Office(tmp_path)


def test_what_a_stolen_key_said_later_does_not_count(office, model, another):
    publish(office.house.desk(), model, "credit", actor="ada")
    promote(office)
    since = office.size
    second = publish(office.house.desk(), another(1), "credit", actor="thief").ref
    promote(office, second)
    lost = office.compromise(1, since)
    assert (lost.gone, lost.held) == ((second,), ())
    root = office.check_agrees()
    book = office.reader(root)
    assert [str(found.ref) for found in book.releases()] == ["credit@1"]
    assert book.release(FIRST).state is ReleaseState.PROMOTED
    assert (book.problem_count, book.suspicious) == (4, None)  # accounted for: nobody tampered with the log
    assert change_state(office.house.desk(), FIRST, "quarantine", actor="ops").state is ReleaseState.QUARANTINED
    assert office.house.ring.statement_signer().name.endswith("/2")
    again = office.compromise(1, since)
    assert (again.gone, office.check_agrees()) == ((), root)
    earlier = office.compromise(1, 0)
    assert earlier.gone == (FIRST,)
    assert office.compromise(1, since).gone == ()
    assert office.check_agrees().identities[0].until == 0, "a later index gives nothing back"


def test_what_was_taken_away_stays_away(office, model, another):
    """A quarantine and a retirement that the rightful holder logged after the theft must not end with the trust in his key."""
    publish(office.house.desk(), model, "credit", actor="ada")
    publish(office.house.desk(), another(1), "credit", actor="ada")
    for ref in (FIRST, ReleaseRef("credit", 2)):
        promote(office, ref)
    since = office.size
    change_state(office.house.desk(), FIRST, "quarantine", actor="ops", reason="backdoor")
    change_state(office.house.desk(), ReleaseRef("credit", 2), "retire", actor="ops")
    office.compromise(1, since)
    book = office.reader(office.check_agrees())
    assert {found.state for found in book.releases()} == {ReleaseState.QUARANTINED}
    assert change_state(office.house.desk(), FIRST, "reinstate", actor="ops").state is ReleaseState.PUBLISHED
    log_raw(office, office.view().entries(since, since + 1)[0])  # a copy by whoever has the log key
    assert office.house.registry().release(FIRST).state is ReleaseState.PUBLISHED


@pytest.mark.parametrize("kind", ["reject", "scan", "vulnerabilities"])
def test_what_was_said_against_a_release_stays(office, model, kind):
    publish(office.house.desk(), model, "credit", actor="ada")
    promote(office)
    known, since = office.house.registry().release(FIRST), office.size
    by = {"actor": "bo", "at": 9}
    advisory = a.Advisory("GHSA-1", "torch", "2.1.0", "critical")
    said = {
        "reject": a.Approval(**by, release=str(FIRST), verdict="reject", id="ab" * 16, reason="a backdoor"),
        "scan": p.Scan(**by, scanner="modelkeep", rules_version="9", format="onnx", size=1, clean=False),
        "vulnerabilities": a.Vulnerabilities(
            **by, source="osv", snapshot=known.model, snapshot_at=9, lock=known.model, audited=1, advisories=(advisory,)
        ),
    }[kind]
    office.house.desk().log_statements([s.make_statement(said, Resource(known.filename, known.model))])
    assert office.compromise(1, since).held == (FIRST,)
    found = office.house.registry().release(FIRST)
    assert found.state is ReleaseState.QUARANTINED and found.history[-1].reason.startswith("by a compromised key: ")


def test_a_policy_that_falls_away_is_told(office):
    desk = office.house.desk()
    set_policy(desk, "keep.example", "admission", Chosen("standard"), actor="ada")
    since = office.size
    set_policy(desk, "keep.example", "admission", Chosen("strict"), actor="ada")
    assert office.compromise(1, since).policies == ("admission",)
    assert office.house.registry().refresh().policies.in_force("admission").said.name == "standard"


def test_a_promotion_by_the_stolen_key_is_undone(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    since = office.size
    promote(office)
    assert office.compromise(1, since).held == (FIRST,)
    assert office.house.registry().release(FIRST).state is ReleaseState.PUBLISHED


def test_identities_that_the_thief_brought_in_never_counted(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    since, stolen = office.size, office.house.ring.statement_signer()
    nominee = StatementSigner("keep.example/statement-signing/2", bytes([6]) * 32, bytes([6]) * 32)  # even the name of the next
    log_raw(office, announcement(stolen, nominee, change="add", name=nominee.name, co=[]))
    log_raw(office, announcement(nominee, OTHER, change="add", name="other", co=[]))
    late = state_statement(
        Resource(model.filename, digest_of(model.data)), FIRST, "promote", actor="eve", at=1, nonce=bytes(16), reason=""
    )
    log_raw(office, s.sign_statement(late, OTHER))
    office.restart()  # whoever opened the keys meanwhile believed the log
    assert office.house.registry().release(FIRST).state is ReleaseState.PROMOTED
    lost = office.compromise(1, since)
    root = office.check_agrees()
    assert lost.held == (FIRST,)
    assert [(each.name, each.first == each.until, each.compromised) for each in root.identities[1:]] == [
        (nominee.name, True, True), ("other", True, True), ("keep.example/statement-signing/3", False, False),
    ]  # fmt: skip
    assert office.reader(root).suspicious is None
    assert promote(office).state is ReleaseState.PROMOTED


def test_a_release_that_fell_away_is_signed_again_once_its_body_is_proven(office, model, calibration):
    made = publish(office.house.desk(), model, "credit", actor="ada", calibration=calibration)
    office.compromise(1, 0)
    with pytest.raises(Missing):
        office.house.registry().release(FIRST)
    again = resign(office.house.desk(), FIRST, actor="ops")
    assert (again.model, again.body, again.profile_body, again.state) == (
        made.model, made.body, made.profile_body, ReleaseState.PUBLISHED,
    )  # fmt: skip
    assert again.signer.endswith("/2")
    assert verify_release(office.house.registry(), office.house.trust, FIRST).opened
    with pytest.raises(Conflict, match="stand: there"):
        resign(office.house.desk(), FIRST, actor="ops")
    with pytest.raises(Missing):
        resign(office.house.desk(), ReleaseRef("nothing", 1), actor="ops")


def test_a_false_release_of_the_thief_is_not_signed_again(office, model, calibration):
    """He logged a release whose body holds other bytes than it says."""
    made = publish(office.house.desk(), model, "credit", actor="ada", calibration=calibration)
    stolen = office.house.ring.statement_signer()
    facts = ReleaseFacts(
        ReleaseRef("risk", 1), digest_of(b"another"), "m.safetensors", made.size,
        ScanVerdict(True, "safetensors", ()), made.body, None, "eve", 1,
    )  # fmt: skip
    log_raw(office, *(s.sign_statement(one, stolen) for one in release_statements(facts)))
    assert office.house.registry().release(ReleaseRef("risk", 1)).body == made.body
    office.compromise(1, 0)
    with pytest.raises(NotTrusted):
        resign(office.house.desk(), ReleaseRef("risk", 1), actor="ops")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_compromise_is_one_step(office, model, after):
    publish(office.house.desk(), model, "credit", actor="ada")
    office.house.faults.arm(1, after=after)
    with pytest.raises(Cut):
        office.compromise(1, 0)
    office.house.faults.arm(0)
    office.restart()
    cut = office.check_agrees().identities[0].until
    assert cut == (0 if after else None)
    office.compromise(1, 0)
    assert office.check_agrees().identities[0].until == 0
    assert disowned(office.view(), office.house.trust).release(FIRST).ref == FIRST


def test_misuse(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    for version, since, error in ((9, 0, Missing), (1, 99, Invalid), (1, -1, Invalid)):
        with pytest.raises(error):
            office.compromise(version, since)
    with pytest.raises(Invalid):
        remove_identity(office.house.desk(), office.amend, "keep.example/statement-signing/1", actor="o", reason="x" * 2001)


def test_an_index_from_a_time(office, model, another):
    publish(office.house.desk(), model, "credit", actor="ada")
    office.house.clock.sleep(100)
    between = office.house.clock.now_ns()
    office.house.clock.sleep(100)
    publish(office.house.desk(), another(1), "credit", actor="ada")
    assert [index_of_time(office.view(), at) for at in (0, between, 1 << 62)] == [0, 3, 6]
