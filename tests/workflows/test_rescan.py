"""Models judged again: new rules, the statement on the digest, quarantine, and being cut off anywhere between."""

import contextlib
from dataclasses import replace

import msgspec
import pytest
from workflow_house import ORIGIN, Cut

from modelkeep.core.values import Opinion, OpinionVerdict, ReleaseRef, ReleaseState, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.opinions import Nobody, Scanner
from modelkeep.custody.releases import PROMOTE, RETIRE
from modelkeep.custody.scan import scan
from modelkeep.custody.signing import MOST_OF_FINDINGS
from modelkeep.errors import Conflict, Missing, NotTrusted
from modelkeep.ledger.predicates import Finding, Scan
from modelkeep.ledger.statements import parse_statement, predicate_of
from modelkeep.workflows.collect import collect
from modelkeep.workflows.publish import publish
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.rescan import rescan, stale

REF, OTHER = ReleaseRef("credit", 1), ReleaseRef("debit", 1)
BROKEN = Opinion("picklescan", "2", OpinionVerdict.FAILED, "it crashed")


def rules(version, *findings):
    """Rules of some version, that find these things in every file."""

    def judge(data, filename):
        found = scan(data, filename)
        all_found = (*found.findings, *findings)
        return msgspec.structs.replace(found, clean=not all_found, findings=all_found, rules_version=version)

    return Scanner(rules=judge, rules_version=version)


OLD, STRICT = rules("1"), rules("900", Finding("new-rule", "w", "this is known to be bad now"))


class Others(Nobody):
    """One scanner, which says what it was told to."""

    def __init__(self, opinion):
        self.opinion = opinion

    def tools(self, format_id):
        return ((self.opinion.tool, self.opinion.version),)

    def opinions(self, data, format_id):
        return (self.opinion,)


def desk_of(house, scanner):
    return replace(house.desk(), scanner=scanner)


@pytest.fixture
def judged(house, model):
    """The same model released under two names, one promoted, judged by old rules."""
    desk = desk_of(house, OLD)
    publish(desk, model, "credit", actor="alice")
    house.clock.sleep(1)
    publish(desk, model, "debit", actor="alice")
    change_state(desk, REF, PROMOTE, actor="alice")
    return house


def scans(house):
    """Every scan statement in the log: its index, its subject's digest, its predicate."""
    view = house.registry().view
    view.refresh()
    found = []
    for index, entry in enumerate(view.entries(0, view.checkpoint.size)):
        statement = parse_statement(parse_envelope(entry).unverified_payload())
        if statement.predicate_type == Scan.TYPE:
            found.append((index, statement.subject[0].digest, predicate_of(statement, Scan)))
    return found


def test_what_older_rules_judged_is_stale_once_for_each_model(judged, another):
    desk = desk_of(judged, Scanner())
    publish(desk, another(7), "credit", actor="alice")
    assert [evidence.ref for evidence in stale(desk.registry, desk.scanner)] == [REF]
    assert stale(desk.registry, OLD) == ()
    assert [evidence.ref for evidence in stale(desk.registry, STRICT)] == [REF, ReleaseRef("credit", 2)]


def test_a_clean_model_gets_a_new_statement_on_its_digest(judged, model):
    desk = desk_of(judged, Scanner())
    done = rescan(desk, REF, actor="control@local")
    assert done.verdict.clean and done.quarantined == ()
    index, digest, said = scans(judged)[-1]
    assert (index, digest) == (done.index, digest_of(model.data))
    assert (said.actor, said.rules_version, said.clean, said.size) == (
        "control@local", Scanner().rules_version, True, len(model.data),
    )  # fmt: skip
    assert desk.registry.book.problem_count == 0
    found = desk.registry.release(REF)
    assert (found.state, found.scan, found.entries["scan"]) == (ReleaseState.PROMOTED, said, index)
    assert REF not in [evidence.ref for evidence in stale(desk.registry, desk.scanner)], "judged by the rules of now"


def test_a_bad_model_is_taken_away_in_every_release_and_the_statement_follows(judged):
    desk = desk_of(judged, STRICT)
    done = rescan(desk, REF, actor="control@local")
    assert not done.verdict.clean and set(done.quarantined) == {REF, OTHER}
    for ref in (REF, OTHER):
        evidence = desk.registry.release(ref)
        assert evidence.state is ReleaseState.QUARANTINED
        assert evidence.history[-1].reason == "scan by rules 900: this is known to be bad now [new-rule at w]"
        assert evidence.history[-1].index < done.index
    said = scans(judged)[-1][2]
    assert (said.clean, [finding.rule for finding in said.findings]) == (False, ["new-rule"])
    again = rescan(desk, REF, actor="control@local")
    assert again.quarantined == () and again.index > done.index


def test_opinions_are_in_the_statement(judged):
    agrees = Opinion("picklescan", "2", OpinionVerdict.CLEAN)
    desk = desk_of(judged, Scanner(others=Others(agrees)))
    assert [evidence.ref for evidence in stale(desk.registry, desk.scanner)] == [REF]
    assert rescan(desk, REF, actor="a").verdict.clean
    assert scans(judged)[-1][2].opinions == (agrees,)
    other = desk_of(judged, Scanner(others=Others(Opinion("picklescan", "3", OpinionVerdict.UNCLEAN, "os.system"))))
    done = rescan(other, REF, actor="a")
    assert set(done.quarantined) == {REF, OTHER}
    assert "os.system [second-opinion at picklescan 3]" in other.registry.release(REF).history[-1].reason


def test_a_scanner_that_fails_takes_nothing_away_and_decides_nothing(judged):
    """Else a broken update of a tool of others would stop every model that is served."""
    desk = desk_of(judged, Scanner(others=Others(BROKEN)))
    before = len(scans(judged))
    done = rescan(desk, REF, actor="a")
    assert (done.verdict.clean, done.index, done.quarantined) == (False, -1, ())
    assert len(scans(judged)) == before and desk.registry.release(REF).state is ReleaseState.PROMOTED
    assert [evidence.ref for evidence in stale(desk.registry, desk.scanner)] == [REF]


def test_a_scanner_that_fails_does_not_hide_what_the_rules_found(judged):
    strict = Scanner(rules=STRICT.rules, rules_version="900", others=Others(BROKEN))
    done = rescan(desk_of(judged, strict), REF, actor="a")
    assert set(done.quarantined) == {REF, OTHER} and done.index > 0


def test_nothing_is_published_while_a_scanner_fails(house, model):
    desk = desk_of(house, Scanner(others=Others(BROKEN)))
    with pytest.raises(NotTrusted, match=r"it crashed .second-opinion-failed at picklescan 2"):
        publish(desk, model, "credit", actor="alice")
    assert scans(house) == []


@pytest.mark.parametrize("at", range(1, 17))
def test_cut_off_anywhere_it_is_found_again_and_never_known_bad_and_at_large(judged, at):
    judged.faults.arm(at)  # cut off before a step is cut off after the one before it
    with contextlib.suppress(Cut):
        rescan(desk_of(judged, STRICT), REF, actor="a")
    judged.faults.arm(0)
    desk = desk_of(judged, STRICT)
    known_bad = not scans(judged)[-1][2].clean
    at_large = any(desk.registry.release(ref).state is not ReleaseState.QUARANTINED for ref in (REF, OTHER))
    assert not (known_bad and at_large)
    rescan(desk, REF, actor="a")
    assert all(desk.registry.release(ref).state is ReleaseState.QUARANTINED for ref in (REF, OTHER))
    assert not scans(judged)[-1][2].clean


def test_there_are_no_more_steps_than_were_cut(judged):
    judged.faults.arm(0)
    rescan(desk_of(judged, STRICT), REF, actor="a")
    assert judged.faults.count <= 16


def test_what_is_retired_is_judged_when_asked_for_and_stays_retired(judged):
    desk = desk_of(judged, STRICT)
    for ref in (REF, OTHER):
        change_state(desk, ref, RETIRE, actor="a")
    assert stale(desk.registry, STRICT) == ()
    done = rescan(desk, REF, actor="a")
    assert (done.quarantined, done.verdict.clean) == ((), False)
    assert desk.registry.release(REF).state is ReleaseState.RETIRED


def test_what_is_gone_cannot_be_judged(judged):
    desk = desk_of(judged, STRICT)
    with pytest.raises(Missing):
        rescan(desk, ReleaseRef("credit", 9), actor="a")
    for ref in (REF, OTHER):
        change_state(desk, ref, RETIRE, actor="a")
    judged.clock.sleep(10)
    collect(desk, ORIGIN, actor="a", retired_for=1)
    with pytest.raises(Conflict, match="collected"):
        rescan(desk, REF, actor="a")


def test_a_damaged_body_is_not_judged(judged):
    desk = desk_of(judged, STRICT)
    judged.blobs.delete(desk.registry.release(REF).body.sealed)
    with pytest.raises(NotTrusted):
        rescan(desk, REF, actor="a")
    assert desk.registry.release(REF).state is ReleaseState.PROMOTED


def test_many_findings_still_fit_an_entry(judged):
    many = rules("900", *(Finding("r", "\u20ac" * 200, "m" * 200) for _ in range(2000)))
    done = rescan(desk_of(judged, many), REF, actor="a")
    said = scans(judged)[-1][2]
    assert done.index > 0 and not said.clean
    assert said.findings[-1].rule == "more"
    assert int(said.findings[-1].message.split()[0]) + len(said.findings) - 1 == 2000
    assert sum(len(msgspec.json.encode(finding)) for finding in said.findings[:-1]) <= MOST_OF_FINDINGS
