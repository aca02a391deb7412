"""A thief who deals his questions over many accounts becomes a case, in a running gateway and after a restart."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from gateway_support import PASSPHRASE, live, make_keep, predict, records, soon, watch_of

from modelkeep.app import evidence
from modelkeep.app.caseresults import CaseFile
from modelkeep.app.keep import Keep
from modelkeep.app.verbs import call, table
from modelkeep.cli.main import cli
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Conflict, Denied, Invalid, Missing
from modelkeep.extraction.ladder import DEFAULT, SHIPPED, Rung
from modelkeep.operations.cases import KIND, Accused, CaseMember
from modelkeep.workflows.moves import open_move
from modelkeep.workflows.spendings import spendings

ACCOUNTS = 8
OFFICE, ELSEWHERE = "192.0.2.{}", "198.51.100.7"


@pytest.fixture
def keep(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evidence, "EVERY", 0.1)
    thieves = tuple(f"thief-{i}" for i in range(ACCOUNTS))
    make_keep(tmp_path / "keep", trained, accounts=("alice", *thieves, "bob"))
    with (tmp_path / "keep" / "modelkeep.toml").open("a") as file:
        file.write('[extraction]\nclusters = ["network"]\n')  # all accounts of a test sign up in one hour, or in two
    return Keep.open(tmp_path / "keep", PASSPHRASE)


@pytest.fixture
def tokens(keep):
    return [keep.key_issue(account=f"thief-{i}", quota=100_000).token for i in range(ACCOUNTS)]


def steal(running, keep, tokens):
    """Deal questions round until the accounts are a case; the names of those that asked, and their pseudonyms."""
    rng = np.random.default_rng(8)
    for n in range(10 * ACCOUNTS):
        rows = rng.uniform(-8, 8, (1, 6)).astype(np.float32)
        predict(running, tokens[n % ACCOUNTS], OFFICE.format(n % ACCOUNTS + 1), rows)
        soon(lambda: not watch_of(running).rows_behind())
        if watch_of(running).cases():
            return [row.subject for row in keep.user_list() if row.name.startswith("thief")]
    raise AssertionError("never found")


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from gateway_support import PASSPHRASE, live
from test_http_cases import steal
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.app.keep import Keep
usual = SqliteRecords.commit
def commit(self, changes):
    if {kind!r} in [change.kind for change in changes]:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(self, changes)
SqliteRecords.commit = commit
keep = Keep.open(Path({folder!r}), PASSPHRASE)
with live(keep) as running:
    if {tokens!r}:
        steal(running, keep, {tokens!r})
    time.sleep(60)
"""


def killed_before(kind, keep, tokens=()):
    """Run a gateway, which the ``tokens`` steal from, until it is killed before it writes a record of ``kind``."""
    here = Path(__file__).parent
    program = KILLED.format(path=[str(here), str(here.parent)], kind=kind, folder=str(keep.premises.directory), tokens=tokens)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def run(keep, *words):
    folder = keep.premises.directory
    (folder / "p").write_bytes(PASSPHRASE)
    (folder / "p").chmod(0o600)
    done = CliRunner().invoke(cli, ["--dir", str(folder), "--passphrase-file", str(folder / "p"), *words])
    (folder / "p").unlink()
    return done


def test_accounts_of_one_network_that_steal_together_become_a_case(keep, trained, tokens):
    alice = keep.key_issue(account="alice", quota=100).token
    bob = keep.key_issue(account="bob", quota=100).token
    names = {row.name: row.subject for row in keep.user_list()}
    with live(keep) as running:
        predict(running, alice, OFFICE.format(99), trained.fresh[:3])
        predict(running, bob, ELSEWHERE, trained.fresh[:3])
        subjects = steal(running, keep, tokens)
        soon(keep.cases)
        found = watch_of(running)
        assert found.alarmed() == []
        assert all(found.rung(subject) is not Rung.ALARM for subject in subjects)
        limits = {name: found.verdict(subject).budget.limit for name, subject in names.items()}
        assert limits["thief-0"] == limits["alice"] == DEFAULT.case * DEFAULT.questions
        assert limits["bob"] == DEFAULT.questions
        predict(running, alice, OFFICE.format(99), trained.fresh[3:4])  # nobody is suspended
    [row] = keep.cases()
    assert (row.state, row.accounts, row.releases) == ("open", ACCOUNTS + 1, ("iris@1",))
    shown = [one for one in keep.incidents() if row.id in one.id]
    assert [one.state for one in shown] == ["open"]
    with live(keep) as again:  # rebuilt from what is recorded
        [cluster] = watch_of(again).cases()
        assert cluster.id == row.id
        assert watch_of(again).verdict(names["alice"]).cases == (row.id,)
        assert len(keep.cases()) == 1
        keep.case_review(case_id=row.id, outcome="cleared", reason="a class of students")
        soon(lambda: not watch_of(again).cases())
        assert watch_of(again).verdict(names["alice"]).budget.limit == DEFAULT.questions
    assert [one.state for one in keep.incidents() if row.id in one.id] == ["resolved"]
    with live(keep) as third:  # and so with the review
        assert watch_of(third).cases() == []
        time.sleep(0.5)
    assert [one.state for one in keep.cases()] == ["cleared"]
    with pytest.raises(Conflict):
        keep.case_review(case_id=row.id, outcome="confirmed", reason="again")


def test_a_gateway_that_is_killed_before_it_has_written_a_case_loses_none_and_opens_none_twice(keep, tokens):
    killed_before("case", keep, tokens)
    assert keep.cases() == keep.incidents() == ()
    killed_before("incident", keep)  # the one that is started next finds it in what is recorded
    [row] = keep.cases()
    assert (row.state, row.accounts) == ("open", ACCOUNTS) and keep.incidents() == ()
    for _ in range(2):
        with live(keep) as running:
            [cluster] = watch_of(running).cases()
            soon(keep.incidents)
        assert (cluster.id, keep.cases()) == (row.id, (row,))
        assert [row.id in one.id for one in keep.incidents()] == [True]


def test_a_rung_that_a_case_leads_to_is_on_record_is_explained_and_is_left_with_the_review(keep, trained, tokens):
    keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 60").encode())
    alice = keep.key_issue(account="alice", quota=1000).token
    subject = next(row.subject for row in keep.user_list() if row.name == "alice")

    def moves():
        told = [(entry, open_move(key, sealed, subject, "iris@1"))
                for entry, key, sealed in records(keep, "rung") if entry.subject == subject]  # fmt: skip
        return [(move.before, move.after, move.limit, move.odds, entry.outcome) for entry, move in told]

    with live(keep) as running:
        predict(running, alice, OFFICE.format(99), trained.fresh[:24])
        soon(lambda: not watch_of(running).rows_behind())
        learnt = watch_of(running).verdict(subject).budget
        assert learnt.limit == 60 and 0.25 < learnt.share < 0.8 and watch_of(running).rung(subject) is Rung.MARK
        steal(running, keep, tokens)
        soon(keep.cases)
        [case] = keep.cases()
        reached = watch_of(running).rung(subject)
        assert reached in (Rung.QUANTISED, Rung.LABELS) and watch_of(running).verdict(subject).budget.limit == 15
        soon(lambda: ("alice", reached.text) in [(row.account, row.rung) for row in keep.account_list()])
    assert moves() == [("mark", reached.text, 15.0, "none", reached.text)]
    [explained] = keep.account_explain(account="alice").standings
    assert (explained.rung, explained.limit, explained.cases) == (reached.text, 15.0, (case.id,))
    assert explained.learnt == pytest.approx(learnt.equivalent)
    assert [move.after for move in explained.history] == [reached.text]
    assert f"case      {case.id} lowers its budget" in run(keep, "account", "explain", "alice").output
    keep.case_review(case_id=case.id, outcome="cleared", reason="a class of students")
    with live(keep) as again:
        soon(lambda: watch_of(again).rung(subject) is Rung.MARK)
        soon(lambda: "alice" not in [row.account for row in keep.account_list()])
    assert [move[:3] for move in moves()] == [("mark", reached.text, 15.0), (reached.text, "mark", 60.0)]
    [explained] = keep.account_explain(account="alice").standings
    assert (explained.rung, explained.limit, explained.cases) == ("mark", 60.0, ())


def test_the_file_of_a_case_says_what_was_found_and_who_may_see_it(keep, trained, tokens):
    keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 10").encode())
    with live(keep) as running:
        subjects = steal(running, keep, tokens)
        [row] = soon(keep.cases)
        soon(lambda: any(one.name == row.id for one in spendings(keep.premises.records)))
    [row] = keep.cases()
    found = keep.case(case_id=row.id, similar=True)
    [release] = found.releases
    assert {one.account for one in release.accounts} <= {f"thief-{i}" for i in range(ACCOUNTS)}
    assert {one.subject for one in release.accounts} <= set(subjects)
    assert sum(count for _, count, _ in release.hours) >= release.accused_at
    assert all(one.first and one.last >= one.first and one.created for one in release.accounts)
    assert any("cleared" in step for step in found.steps)
    assert "case.read" in str(keep.log_show(last=1)[0])
    done = run(keep, "case", row.id)
    assert done.exit_code == 0, done.output
    assert "act as one" in done.output
    assert release.budget.limit == 50.0 and f"together {release.budget.said}; {release.budget.forecast}" in done.output
    assert set(release.budget.accounts) <= {f"thief-{i}" for i in range(ACCOUNTS)}
    assert "thief-0" in done.output
    over = call(table(Keep), keep, "case", msgspec.msgpack.encode({"case_id": row.id}))  # as control answers
    assert msgspec.msgpack.decode(over, type=CaseFile).releases == found.releases
    done = run(keep, "--json", "cases")
    assert json.loads(done.output)[0]["id"] == row.id
    analyst = Keep(keep.premises, Principal("alice", "sub_a", (Role.ANALYST,), "k"))
    for attempt in (analyst.cases, lambda: analyst.case(case_id=row.id), lambda: analyst.alike(ref="iris@1")):
        with pytest.raises(Denied):
            attempt()
    member = Keep(keep.premises, Principal("thief-0", subjects[0], (Role.ADMIN,), "k", strong=True))
    with pytest.raises(Denied, match="own account"):
        member.case_review(case_id=row.id, outcome="cleared", reason="me")
    for outcome in ("gone", "deceived"):
        with pytest.raises(Invalid, match="no outcome of a case"):
            keep.case_review(case_id=row.id, outcome=outcome, reason="?")
    with pytest.raises(Conflict, match=row.id):
        keep.log_erase(subject="thief-0", reason="asked for it")
    with pytest.raises(Missing):
        keep.case(case_id="net-0000000000000000")
    assert set(keep.calibrate(ref="iris@1", everyone=True, dry_run=True).left_out) >= {one.account for one in release.accounts}
    with pytest.raises(Conflict, match="thief-0 is accused"):
        keep.calibrate(ref="iris@1", accounts=("thief-0",))
    assert keep.case_review(case_id=row.id, outcome="confirmed", reason="one thief").state == "confirmed"
    assert keep.case(case_id=row.id).steps == ()


def test_accounts_that_go_round_two_gateways_are_one(keep, trained, tokens):
    rng = np.random.default_rng(2)
    with live(keep) as one, live(keep) as two:
        predict(one, tokens[0], OFFICE.format(0), trained.fresh[:1])
        predict(two, tokens[1], OFFICE.format(1), trained.fresh[1:2])
        watches = [watch_of(one), watch_of(two)]
        subjects = [row.subject for row in keep.user_list()]
        for n in range(12 * ACCOUNTS):
            rows = rng.uniform(-8, 8, (1, 6)).astype(np.float32)
            predict((one, two)[n % 2], tokens[n % ACCOUNTS], OFFICE.format(n % ACCOUNTS), rows)
            if n % ACCOUNTS == ACCOUNTS - 1:  # else a gateway that is behind learns of them all at once, and of one's too many
                soon(lambda n=n: [sum(w.verdict(each).queries for each in subjects) for w in watches] == [n + 3, n + 3])
            if all(watch.cases() for watch in watches):
                break
        soon(lambda: all(watch.cases() for watch in watches))
        assert watches[0].cases()[0].id == watches[1].cases()[0].id
        assert watches[0].alarmed() == watches[1].alarmed() == []
        soon(keep.cases)
        assert len(keep.cases()) == 1


def test_accounts_that_ask_the_same_are_found_in_the_log(keep, trained, tokens):
    rng = np.random.default_rng(1)
    with live(keep) as running:
        for i, token in enumerate(tokens):
            rows = trained.fresh[:60] if i < 3 else trained.fresh[60 + 40 * (i - 3) : 100 + 40 * (i - 3)]
            predict(running, token, OFFICE.format(i), rng.permutation(rows))
    found = keep.alike(ref="iris@1")
    assert set(found[0].accounts) == {"thief-0", "thief-1", "thief-2"}
    assert found[0].similarity > 0.8 > 0.4 > found[0].usual
    done = run(keep, "cases", "--search", "iris@1")
    assert done.exit_code == 0, done.output
    assert "copies" in done.output


def test_what_to_do_next_is_said_once_for_all_and_a_comparison_that_finds_nothing_says_so(keep):
    names = {row.name: row.subject for row in keep.user_list()}
    members = tuple(CaseMember(names[name], 9, 9, "1 : 5,000", alarmed) for name, alarmed in
                    (("thief-1", True), ("thief-0", True), ("bob", False)))  # fmt: skip
    case_id = "net-0123456789abcdef"
    keep.open_case(case_id, Accused("iris@1", "1 : 9,000", 2100.0, 27, 8, members))
    plain, compared = run(keep, "case", case_id), run(keep, "case", case_id, "--similar")
    assert "review first, with 'modelkeep review': thief-0, thief-1 (each is accused by itself)" in plain.output
    assert "was compared" not in plain.output and "What they asked was compared" in compared.output
    forgot = run(keep, "case", case_id, "--reason", "a class of students")
    assert isinstance(forgot.exception, Invalid) and "--outcome" in str(forgot.exception)
    assert keep.cases()[0].state == "open"


def test_a_case_keeps_the_odds_it_rests_on_when_a_calibration_restarts_the_evidence(keep):
    names = {row.name: row.subject for row in keep.user_list()}
    case_id, (thief, bob) = "net-0123456789abcdef", (names["thief-0"], names["bob"])
    before = (CaseMember(thief, 9, 9, "1 : 5,000", True), CaseMember(bob, 9, 9, "1 : 2", False))
    keep.open_case(case_id, Accused("iris@1", "1 : 9,000", 2100.0, 18, 8, before))
    after = (CaseMember(thief, 9, 9, "none", True), CaseMember(bob, 12, 12, "none", False))
    for _ in range(2):  # found again by a gateway that starts
        keep.open_case(case_id, Accused("iris@1", "none", 8400.0, 21, 8, after))
    [release] = keep.case(case_id=case_id).releases
    assert (release.odds, release.needed, release.distinct) == ("1 : 9,000", 2100.0, 21)
    assert [(one.account, one.odds, one.queries) for one in release.accounts] == [
        ("thief-0", "1 : 5,000", 9),
        ("bob", "none", 12),
    ]
    keep.open_case(case_id, Accused("iris@1", "1 : 70,000", 8400.0, 40, 33, after))  # another accusation
    [release] = keep.case(case_id=case_id).releases
    assert (release.odds, release.needed) == ("1 : 70,000", 8400.0)


@pytest.mark.parametrize("outcome", ["cleared", "confirmed"])
def test_a_case_that_the_database_alone_says_is_closed_is_opened_by_the_next_gateway(keep, outcome):
    names = {row.name: row.subject for row in keep.user_list()}
    members = tuple(CaseMember(names[f"thief-{i}"], 9, 9, "none", alarmed=False) for i in range(2))
    case_id, found = "net-0123456789abcdef", Accused("iris@1", "1 : 9,000", 2100.0, 18, 8, members)
    keep.open_case(case_id, found)
    record = keep.premises.records.get(KIND, case_id)
    closed = record.body.replace(b'"open"', f'"{outcome}"'.encode())
    keep.premises.records.commit([Change(KIND, case_id, closed, record.revision)])
    assert keep.cases()[0].state == outcome
    keep.open_case(case_id, found)
    assert keep.cases()[0].state == "open"
    keep.case_review(case_id=case_id, outcome=outcome, reason="somebody looked at it")
    keep.open_case(case_id, found)
    assert keep.cases()[0].state == outcome
