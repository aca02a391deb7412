"""The budget that accounts of one network share, in a running gateway and after a restart; what people are told of budgets."""

import json
import re

import msgspec
import pytest
from click.testing import CliRunner
from gateway_support import PASSPHRASE, live, make_keep, predict, soon, watch_of

from modelkeep.app import evidence
from modelkeep.app.accountresults import AccountExplained, AccountRow
from modelkeep.app.keep import Keep
from modelkeep.app.results import Status
from modelkeep.cli.main import cli
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied, Missing, NotTrusted
from modelkeep.extraction.ladder import SHIPPED, Rung
from modelkeep.workflows.covariates import is_case
from modelkeep.workflows.spendings import LEARNT, spendings

ACCOUNTS = 10
OFFICE = "192.0.2.{}"
SMALL = SHIPPED.replace("questions = 1000", "questions = 10").replace("cluster = 5 ", "cluster = 3 ")


@pytest.fixture
def keep(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evidence, "EVERY", 0.1)
    keep = make_keep(tmp_path / "keep", trained, accounts=("alice", *(f"sybil-{i}" for i in range(ACCOUNTS))))
    with (tmp_path / "keep" / "modelkeep.toml").open("a") as file:
        file.write('[extraction]\nclusters = ["network"]\n')  # all accounts of a test sign up in one hour, or in two
    keep.policy_set(kind="ladder", text=SMALL.encode())
    return Keep.open(tmp_path / "keep", PASSPHRASE)


@pytest.fixture
def tokens(keep):
    return [keep.key_issue(account=f"sybil-{i}", quota=100_000).token for i in range(ACCOUNTS)]


def verdicts(running, keep):
    soon(lambda: not watch_of(running).rows_behind())
    return [watch_of(running).verdict(row.subject) for row in keep.user_list() if row.name.startswith("sybil")]


def divide(running, tokens, rows):
    """A natural set of questions, dealt round."""
    return [predict(running, tokens[i % ACCOUNTS], OFFICE.format(i % ACCOUNTS + 1), rows[i : i + 1]) for i in range(len(rows))]


def run(keep, kind, *words):
    """What a command says, and the same as ``kind`` from its JSON."""
    folder = keep.premises.directory
    (folder / "p").write_bytes(PASSPHRASE)
    (folder / "p").chmod(0o600)
    head = ["--dir", str(folder), "--passphrase-file", str(folder / "p")]
    said = CliRunner().invoke(cli, [*head, *words])
    plain = CliRunner().invoke(cli, [*head, "--json", *words])
    (folder / "p").unlink()
    assert said.exit_code == plain.exit_code == 0, (said.output, plain.output)
    return said.output, msgspec.convert(json.loads(plain.output), kind)


def test_accounts_of_one_network_that_divide_a_natural_set_are_held_as_one_and_accused_of_nothing(keep, trained, tokens):
    with live(keep) as running:
        notices = [answer.notice for answer in divide(running, tokens, trained.fresh[:80])]
        found = verdicts(running, keep)
        learnt = watch_of(running).learnt(found[0].shared.id).budget.equivalent
        told = predict(running, tokens[0], OFFICE.format(1), trained.fresh[0:1]).notice
    assert {one.rung for one in found} == {found[0].rung} and found[0].rung in (Rung.QUANTISED, Rung.LABELS)
    assert all(one.budget.share < 1.0 and one.alarmed_at is None and not one.cases for one in found)
    shared = found[0].shared
    assert is_case(shared.id) and shared.accounts == ACCOUNTS and shared.budget.limit == 30.0
    assert notices[0] == "" and re.search(r"; the information budget that it shares with others begins anew on \d{4}-", told)
    assert keep.cases() == () and keep.incidents() == ()
    with live(keep) as again:  # rebuilt from what is recorded
        rebuilt = verdicts(again, keep)
        assert [(one.rung, one.shared.accounts) for one in rebuilt] == [(one.rung, ACCOUNTS) for one in found]
        assert watch_of(again).learnt(shared.id).budget.equivalent == pytest.approx(learnt, rel=1e-4), "the last was a repeat"
        keep.account_allow(account=shared.id, times=20, days=1, reason="an office of 300 people")
        own = [Rung.COARSE if one.budget.share >= 0.8 else Rung.MARK for one in rebuilt]
        soon(lambda: [one.rung for one in verdicts(again, keep)] == own)
        keep.account_allow(account=shared.id, times=1, days=1, reason="taken back")
        soon(lambda: {one.rung for one in verdicts(again, keep)} == {found[0].rung})


def test_budgets_are_quoted_in_natural_questions_fidelity_and_days_in_words_and_json(keep, trained, tokens):
    names = {row.name: row.subject for row in keep.user_list() if row.name.startswith("sybil")}
    with live(keep) as running:
        divide(running, tokens, trained.fresh[:80])
        predict(running, tokens[0], "198.51.100.7", trained.fresh[80:100])  # one account more than its own budget
        verdict = verdicts(running, keep)[0]
        cluster = verdict.shared.id
        soon(lambda: {one.name for one in spendings(keep.premises.records)} >= {cluster, *names.values()})
        soon(lambda: any(one.name == names["sybil-0"] and one.spending.share > 1 for one in spendings(keep.premises.records)))
    quote = (
        r"learnt as much as \d+ natural questions \(limit \d+\), which gives a simple copy that agrees on about \d+% of rows"
    )

    text, rows = run(keep, tuple[AccountRow, ...], "account", "list")
    by_name = {row.account: row for row in rows}
    assert re.search(rf"{cluster} +iris@1 .* learnt as much as \d+ natural questions \(limit 30\)", text)
    own, pool = by_name["sybil-0"].budget, by_name[cluster].budget
    assert own.learnt == pytest.approx(verdict.budget.equivalent, rel=0.1) and own.limit == 10.0 and own.left == 0.0
    assert own.measure == "agreement" and 0.3 < own.fidelity <= 1.0 and re.fullmatch(quote, own.said)
    assert pool.accounts == tuple(f"sybil-{i}" for i in range(ACCOUNTS)) and pool.limit == 30.0
    assert by_name[cluster].rung in ("quantised", "labels") and "of the usual rate" in by_name[cluster].told

    text, explained = run(keep, AccountExplained, "account", "explain", "sybil-3")
    (standing,) = explained.standings
    assert re.search(r"budget +" + quote + "$", text, re.MULTILINE)
    assert re.search(rf"shared +{cluster} \({ACCOUNTS} accounts together\) on iris@1: {quote}; the budget is spent", text)
    assert re.fullmatch(quote, standing.said) and explained.shared[0].name == cluster

    text, status = run(keep, Status, "status")
    assert status.budgets[0].name in (cluster, names["sybil-0"])
    assert re.search(rf"{cluster} \(\d+ accounts together\) on iris@1: {quote}; the budget is spent", text)
    assert "sybil-0" not in text, "by pseudonym, as incidents are"


def test_who_may_raise_a_shared_budget(keep, trained, tokens):
    with live(keep) as running:
        divide(running, tokens, trained.fresh[:60])
        cluster = verdicts(running, keep)[0].shared.id
        soon(lambda: len({one.name for one in spendings(keep.premises.records)}) == ACCOUNTS + 1)
    with pytest.raises(Missing, match="never spent"):
        keep.account_allow(account="net-0123456789abcdef", times=2, days=1, reason="nobody is there")
    subject, erased = (row.subject for row in keep.user_list() if row.name in ("sybil-1", "sybil-2"))
    member = Keep(keep.premises, Principal("sybil-1", subject, (Role.ADMIN,), "k", strong=True))
    with pytest.raises(Denied, match="own account shares"):
        member.account_allow(account=cluster, times=2, days=1, reason="for us")
    keep.log_erase(subject="sybil-2")
    assert not [one for one in spendings(keep.premises.records) if one.name in (cluster, erased)]
    record = next(record for record in keep.premises.records.scan(LEARNT))
    keep.premises.records.commit([Change(LEARNT, record.key, b"{}", record.revision)])
    with pytest.raises(NotTrusted, match="damaged"):
        keep.account_list()
