"""Rotation of the statement identity, and other identities: announced, followed, cut off anywhere, attacked."""

import contextlib

import msgspec
import pytest
from trust_house import FIRST, OTHER, TEAM, Office, announcement, log_raw, promote
from workflow_house import Cut

from modelkeep.core.values import ReleaseRef, ReleaseState, Resource, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody import keys
from modelkeep.custody.releases import SealedBody
from modelkeep.custody.scan import ScanVerdict
from modelkeep.custody.signing import ReleaseFacts, release_statements, state_statement
from modelkeep.custody.trust import Rights
from modelkeep.errors import Conflict, Missing, Unavailable
from modelkeep.ledger import predicates
from modelkeep.ledger import statements as s
from modelkeep.workflows.decisions import Decisions
from modelkeep.workflows.publish import publish
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.trust_changes import (
    add_identity,
    limit_identity,
    remove_identity,
)
from modelkeep.workflows.verify import verify_release

ALL = Rights()


@pytest.fixture
def office(tmp_path):
    return Office(tmp_path)


def test_a_rotation_is_followed_by_whoever_holds_an_older_root(office, model, another):
    publish(office.house.desk(), model, "credit", actor="ada")
    old_root, running = office.house.trust, office.house.registry()
    running.refresh()
    done = office.rotate()
    assert (done.former, done.name) == ("keep.example/statement-signing/1", "keep.example/statement-signing/2")
    root = office.check_agrees()
    assert [(each.name[-1], each.first, each.until) for each in root.identities] == [("1", 0, 4), ("2", 4, None)]
    assert [(i.version, i.state) for i in office.house.ring.inventory() if i.family == keys.STATEMENT_SIGNING] == [
        (1, "verify-only"), (2, "primary"),
    ]  # fmt: skip
    assert promote(office).state is ReleaseState.PROMOTED
    assert running.refresh().release(FIRST).state is ReleaseState.PROMOTED  # a process that runs on
    book = office.reader(old_root)
    assert (book.release(FIRST).state, book.suspicious, book.signatories.root) == (ReleaseState.PROMOTED, None, root)
    made = publish(office.house.desk(), another(2), "credit", actor="ada")
    assert made.signer == done.name
    for each in (FIRST, made.ref):
        assert verify_release(office.house.registry(), office.house.trust, each).opened


def test_a_chain_of_rotations_is_followed(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    oldest = office.house.trust
    names = [office.rotate().name for _ in range(3)]
    promote(office)
    root = office.check_agrees()
    assert [each.name for each in root.identities][1:] == names
    book = office.reader(oldest)
    assert (book.signatories.root, book.suspicious, len(book.signatories.roots)) == (root, None, 4)
    assert book.release(FIRST).state is ReleaseState.PROMOTED


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_rotation_cut_off_at_every_step_is_finished_or_begun_again(office, model, at, after):
    publish(office.house.desk(), model, "credit", actor="ada")
    old_root = office.house.trust
    office.house.faults.arm(at, after=after)
    with contextlib.suppress(Cut):
        office.rotate()
    office.house.faults.arm(0)
    running = office.house.registry()  # of a process that has the old ring
    office.restart()
    office.check_agrees()
    assert promote(office).state is ReleaseState.PROMOTED  # whoever signs now, counts
    assert running.refresh().release(FIRST).state is ReleaseState.PROMOTED
    pending = office.house.ring.pending_signer()
    if office.house.ring.statement_signer().name.endswith("/1"):
        assert office.rotate().name == (pending.name if pending else "keep.example/statement-signing/2")
    root = office.check_agrees()
    assert [each.name[-1] for each in root.identities] == ["1", "2"]
    assert office.reader(old_root).suspicious is None


def test_the_steps_above_cover_a_rotation(office):
    office.house.faults.arm(0)
    office.rotate()
    assert 4 <= office.house.faults.count < 9


def test_whoever_holds_the_former_keys_logs_nothing_any_more(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    stale = office.house.desk()
    office.rotate()
    with pytest.raises(Unavailable, match="no longer in force"):
        change_state(stale, FIRST, "promote", actor="mel")
    assert office.size == 4  # three of the release (no profile), one announcement
    assert office.reader(office.house.trust).problem_count == 0


NEW = StatementSigner("new", bytes([1]) * 32, bytes([2]) * 32)


def test_forged_announcements_change_nothing(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    ours, root = office.house.ring.statement_signer(), office.house.trust
    elsewhere = s.make_statement(
        predicates.Trust(
            actor="e", at=1, change="rotate", name=ours.name, id="1" * 32, may_sign=("*",), releases=("*",),
            identity=predicates.NamedIdentity.of(NEW.public),
        ),
        s.keep_resource("another.example"),
    )  # fmt: skip
    thief = StatementSigner(ours.name, bytes([9]) * 32, bytes([9]) * 32)
    forgeries = {
        "signed by the new identity alone": announcement(NEW, NEW, name=ours.name, co=[]),
        "our name with other keys": announcement(thief, NEW),
        "without proof of possession": announcement(ours, NEW, co=[]),
        "proof by somebody else": announcement(ours, NEW, co=[OTHER]),
        "in the name of another": announcement(ours, NEW, name="keep.example/statement-signing/7"),
        "of another keep": s.sign_statement(elsewhere, ours, NEW),
        "a change that there is not": announcement(ours, NEW, change="widen"),
        "a limit for nobody": announcement(ours, NEW, change="limit", name="nobody", identity=None),
        "our own name again": announcement(ours, StatementSigner(ours.name, bytes([5]) * 32, bytes(32))),
        "no identity": announcement(ours, NEW, identity=None),
    }
    stripped = msgspec.json.decode(announcement(ours, NEW))
    for number in range(4):
        copy = {**stripped, "signatures": [one for at, one in enumerate(stripped["signatures"]) if at != number]}
        forgeries[f"without signature {number}"] = msgspec.json.encode(copy)
    log_raw(office, *forgeries.values())
    book = office.reader(root)
    assert book.signatories.root == root
    assert book.problem_count == len(forgeries)
    assert {problem.index for problem in book.problems} == set(range(3, 3 + len(forgeries)))
    assert promote(office).state is ReleaseState.PROMOTED


def test_replayed_late_and_reordered_announcements_change_nothing(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    first_root, old = office.house.trust, office.house.ring.statement_signer()
    early = announcement(NEW, OTHER)  # the second link of a chain, before the first
    log_raw(office, early)
    log_raw(office, announcement(old, NEW), announcement(old, OTHER, id="2" * 32))  # two successors: the first stands
    book = office.reader(first_root)
    assert [each.name for each in book.signatories.root.identities] == [old.name, "new"]
    log_raw(office, announcement(old, NEW), early)  # a copy of the first; the second link, now that its signer is known
    book = office.reader(first_root)
    assert [each.name for each in book.signatories.root.identities] == [old.name, "new", "other"]
    reordered = msgspec.json.decode(announcement(old, NEW))
    reordered["signatures"].reverse()
    log_raw(office, msgspec.json.encode(reordered))
    after = office.reader(first_root)
    assert after.signatories.root == book.signatories.root
    assert after.problem_count == 4


def test_a_successor_has_no_more_rights_than_who_announces_it(office, model):
    publish(office.house.desk(), model, "credit", actor="ada")
    rights = Rights(("scan", "trust", "state"), ("credit", "risk-*"))
    add_identity(office.house.desk(), office.amend, TEAM.public, rights, actor="ops")
    root = office.check_agrees()
    ours = "keep.example/statement-signing/1"
    alone = {"identity": None, "co": [], "releases": ("credit",)}
    too_much = [
        announcement(TEAM, NEW),
        announcement(TEAM, NEW, may_sign=("scan", "release"), releases=("credit",)),
        announcement(TEAM, NEW, may_sign=("scan",), releases=("credit", "risk-1")),  # narrower in fact, not literally there
        announcement(TEAM, NEW, change="add", name="new", co=[]),
        announcement(TEAM, NEW, change="remove", name=ours, **alone),
        announcement(TEAM, NEW, change="limit", name=ours, **alone),
        announcement(TEAM, NEW, change="limit", name="team-b", may_sign=("scan", "release"), **alone),
    ]
    log_raw(office, *too_much)
    assert office.reader(root).signatories.root == root
    assert office.reader(root).problem_count == len(too_much)
    log_raw(office, announcement(TEAM, NEW, may_sign=("scan", "trust"), releases=("risk-*",)))
    names = [(each.name, each.until) for each in office.reader(root).signatories.root.identities]
    assert names == [("keep.example/statement-signing/1", None), ("team-b", office.size), ("new", None)]


def other_release(name, at=9):
    body = SealedBody(digest_of(name.encode()), "ab" * 32, "cd" * 32, 100)
    model = digest_of(b"model of " + name.encode())
    return release_statements(
        ReleaseFacts(ReleaseRef(name, 1), model, "m.onnx", 90, ScanVerdict(True, "onnx", ()), body, None, "bo", at)
    )


def test_a_second_team_signs_for_its_own_models_and_for_no_others(office):
    before = office.house.trust
    rights = Rights(("scan", "sealing", "profile", "release", "state"), ("fraud-*", "churn"))
    index = add_identity(office.house.desk(), office.amend, TEAM.public, rights, actor="ops")
    assert index == 0
    for name in ("fraud-cards", "churn", "fraud", "churn2", "credit"):
        log_raw(office, *(s.sign_statement(one, TEAM) for one in other_release(name)))
    for root in (before, office.check_agrees()):
        book = office.reader(root)
        assert [str(found.ref) for found in book.releases()] == ["churn@1", "fraud-cards@1"]
        assert {problem.index for problem in book.problems} == {8, 9, 11, 12, 14, 15}  # the scans are about bytes
        assert all("may speak about fraud-*, churn only" in problem.why for problem in book.problems)
    model = Resource("m.onnx", digest_of(b"model of churn"))
    late = state_statement(model, ReleaseRef("churn", 1), "promote", actor="bo", at=1, nonce=bytes(16), reason="")
    log_raw(office, s.sign_statement(late, TEAM))
    assert office.reader(before).release(ReleaseRef("churn", 1)).state is ReleaseState.PROMOTED


def test_a_scan_by_somebody_who_may_not_speak_about_the_model_is_no_evidence(office):
    add_identity(office.house.desk(), office.amend, TEAM.public, Rights(("scan",), ("fraud-*",)), actor="ops")
    scan, *rest = other_release("credit")
    log_raw(
        office, s.sign_statement(scan, TEAM), *(s.sign_statement(one, office.house.ring.statement_signer()) for one in rest)
    )
    book = office.reader(office.house.trust)
    assert list(book.releases()) == []
    assert "not about credit" in book.problems[0].why


def decided(reviews, view):
    told = []
    reviews.catch_up(view, view.checkpoint.size)
    reviews.hand_over(told.append)
    return told


def test_a_decision_that_could_not_be_taken_is_told_again(office):
    """A look that failed after it had read a review, or while that was taken, lost it until a restart."""
    reviews = Decisions(office.house.trust)
    acts = [
        predicates.Act(actor="ada", at=9, verb="review", about=subject, detail={"outcome": "cleared"})
        for subject in ("sub_1", "sub_2")
    ]
    office.house.desk().log_statements([s.make_statement(act, s.keep_resource("keep.example")) for act in acts])
    view, told = office.view(), []
    reviews.catch_up(view, view.checkpoint.size)

    def take(decision):
        told.append(decision.subject)
        if told == ["sub_1", "sub_2"]:
            raise Unavailable("the disk under the cold accounts is full")

    with pytest.raises(Unavailable):
        reviews.hand_over(take)
    assert [found.subject for found in decided(reviews, view)] == ["sub_2"]
    assert decided(reviews, view) == []


def test_an_identity_that_is_limited_says_nothing_about_the_keep(office):
    add_identity(office.house.desk(), office.amend, TEAM.public, Rights(("*",), ("fraud-*",)), actor="ops")
    root = office.house.trust
    act = predicates.Act(actor="eve", at=9, verb="review", about="sub_1", detail={"outcome": "cleared"})
    entry = s.make_statement(act, s.keep_resource("keep.example"))
    log_raw(office, s.sign_statement(entry, TEAM))
    reviews, view = Decisions(root), office.view()
    assert decided(reviews, view) == []
    log_raw(office, s.sign_statement(entry, office.house.ring.statement_signer()))
    view = office.view()
    assert [found.subject for found in decided(reviews, view)] == ["sub_1"]


def test_neither_a_copy_of_an_act_nor_that_of_another_keep_decides_anything(office):
    reviews, signer = Decisions(office.house.trust), office.house.ring.statement_signer()
    cleared = predicates.Act(actor="ada", at=9, verb="review", about="sub_1", detail={"outcome": "cleared"})
    erased = predicates.Act(actor="ada", at=9, verb="audit.erase", about="sub_1")
    entries = [s.sign_statement(s.make_statement(said, s.keep_resource("keep.example")), signer) for said in (cleared, erased)]
    log_raw(office, *entries)
    view = office.view()
    assert len(decided(reviews, view)) == 2
    elsewhere = s.sign_statement(s.make_statement(erased, s.keep_resource("another.example")), signer)
    log_raw(office, *entries, elsewhere)  # as whoever has the key of the log alone may
    view = office.view()
    assert decided(reviews, view) == []
    assert (reviews.epochs()("sub_1"), len(reviews.erasures), len(reviews.cleared_at("sub_1"))) == (2, 1, 1)


def test_what_a_review_says_that_is_not_known_here_lifts_no_sanction_and_a_case_is_under_none(office):
    case = "net-00000000000000aa"
    said = [
        ("sub_1", "deceived"),
        ("sub_1", "of a later version"),
        (case, "deceived"),
        ("sub_2", "deceived"),
        ("sub_2", "cleared"),
    ]
    acts = [
        predicates.Act(actor="ada", at=at, verb="review", about=about, detail={"outcome": outcome})
        for at, (about, outcome) in enumerate(said)
    ]
    office.house.desk().log_statements([s.make_statement(act, s.keep_resource("keep.example")) for act in acts])
    reviews = Decisions(office.house.trust)
    decided(reviews, office.view())
    assert list(reviews.sanctioned) == ["sub_1"]


def test_a_review_says_which_share_of_labels_is_flipped_until_the_next(office):
    def said(subject, **detail):
        act = predicates.Act(actor="ada", at=next(times), verb="review", about=subject, detail=detail)
        office.house.desk().log_statements([s.make_statement(act, s.keep_resource("keep.example"))])

    times = iter(range(1, 99))
    for number, share in enumerate(("0.005", "0.5", "none", "nan", "1e-9")):
        said(f"sub_{number}", outcome="deceived", flips=share)
    said("sub_9", outcome="cleared", flips="0.005")
    reviews = Decisions(office.house.trust)
    decided(reviews, office.view())
    told = {subject: reviews.flipping(subject) for subject in ("sub_0", "sub_1", "sub_2", "sub_3", "sub_4", "sub_9")}
    assert told == {"sub_0": 0.005, "sub_1": 0.0, "sub_2": 0.0, "sub_3": 0.0, "sub_4": 0.0, "sub_9": None}
    assert reviews.reviews["sub_0"][0].text == "deceived, 0.5% of labels flipped"
    said("sub_0", outcome="deceived")
    decided(reviews, office.view())
    assert (reviews.flipping("sub_0"), reviews.reviews["sub_0"][1].text) == (0.0, "deceived")
    said("sub_0", outcome="cleared")
    decided(reviews, office.view())
    assert reviews.flipping("sub_0") is None


def test_reviews_follow_a_rotation(office):
    reviews = Decisions(office.house.trust)
    office.rotate()
    act = predicates.Act(actor="eve", at=9, verb="review", about="sub_1", detail={"outcome": "cleared"})
    office.house.desk().log_statements([s.make_statement(act, s.keep_resource("keep.example"))])
    view = office.view()
    assert len(decided(reviews, view)) == 1


def test_limits_and_removal_count_from_then_on(office):
    rights = Rights(("scan", "sealing", "release"), ("*",))
    add_identity(office.house.desk(), office.amend, TEAM.public, rights, actor="ops")
    log_raw(office, *(s.sign_statement(one, TEAM) for one in other_release("credit")))
    narrow = Rights(("scan", "sealing", "release"), ("fraud",))
    assert limit_identity(office.house.desk(), office.amend, "team-b", narrow, actor="ops") == 4
    assert limit_identity(office.house.desk(), office.amend, "team-b", narrow, actor="ops") == 4  # again: nothing to do
    for name in ("churn", "fraud"):
        log_raw(office, *(s.sign_statement(one, TEAM) for one in other_release(name)))
    root = office.check_agrees()
    assert [str(found.ref) for found in office.reader(root).releases()] == ["credit@1", "fraud@1"]
    with pytest.raises(Conflict, match="already"):
        other = StatementSigner("team-b", bytes(32), bytes(32))
        add_identity(office.house.desk(), office.amend, other.public, rights, actor="ops")
    index = remove_identity(office.house.desk(), office.amend, "team-b", actor="ops")
    log_raw(office, *(s.sign_statement(one, TEAM) for one in other_release("fraud", 10)))
    root = office.check_agrees()
    assert [(each.first, each.until) for each in root.identities[1:]] == [(1, 5), (5, index + 1)]
    assert [str(found.ref) for found in office.reader(root).releases()] == ["credit@1", "fraud@1"]
    for call in (
        lambda: remove_identity(office.house.desk(), office.amend, "team-b", actor="ops"),
        lambda: limit_identity(office.house.desk(), office.amend, "team-b", rights, actor="ops"),
    ):
        with pytest.raises(Conflict, match="ended"):
            call()
    with pytest.raises(Missing):
        remove_identity(office.house.desk(), office.amend, "nobody", actor="ops")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("what", ["add", "limit", "remove"])
def test_a_change_cut_off_at_every_step_is_finished_or_has_not_begun(office, what, at, after):
    rights = Rights(("scan",), ("fraud-*",))
    if what != "add":
        add_identity(office.house.desk(), office.amend, TEAM.public, ALL, actor="ops")
    before = office.check_agrees()
    acts = {
        "add": lambda: add_identity(office.house.desk(), office.amend, TEAM.public, rights, actor="ops"),
        "limit": lambda: limit_identity(office.house.desk(), office.amend, "team-b", rights, actor="ops"),
        "remove": lambda: remove_identity(office.house.desk(), office.amend, "team-b", actor="ops"),
    }
    office.house.faults.arm(at, after=after)
    with contextlib.suppress(Cut):
        acts[what]()
    office.house.faults.arm(0)
    office.restart()
    root = office.check_agrees()
    if root == before:
        acts[what]()
        root = office.check_agrees()
    else:
        with contextlib.suppress(Conflict):
            acts[what]()
        assert office.check_agrees() == root
    last = root.identities[-1]
    assert (last.rights == rights, last.until is None) == {"remove": (False, False)}.get(what, (True, True))
