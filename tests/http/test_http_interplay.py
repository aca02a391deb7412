"""Calibrations, cases, reviews, false alarms, ladders and a deception together: what a restarted gateway and `account explain`
find in the record is what the gateway held that was there."""

import re

import numpy as np
import pytest
from gateway_support import live, make_keep, predict, soon, strangers, watch_of

from modelkeep.app import evidence
from modelkeep.errors import Refused
from modelkeep.extraction.ladder import SHIPPED, Rung

GANG = tuple(f"gang-{i}" for i in range(6))
LONE = ("tool", "ada", "dan", "honest")


@pytest.fixture
def keep(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evidence, "EVERY", 0.1)
    return make_keep(tmp_path / "keep", trained)


def ask(running, token, rows, place):
    """Ask one row after the other until the gateway refuses; whether it did."""
    for row in rows:
        try:
            predict(running, token, f"198.18.{place}.7", row)
        except Refused:
            return True
        soon(lambda: not watch_of(running).rows_behind())
    return False


def uniform(seed, count):
    return np.random.default_rng(seed).uniform(-8, 8, (count, 6)).astype(np.float32)


def steal(running, tokens, seed):
    """Deal questions round the gang until it is a case."""
    rows = uniform(seed, 200)
    for n, row in enumerate(rows):
        ask(running, tokens[GANG[n % len(GANG)]], row[None], 99)
        if watch_of(running).cases():
            return
    raise AssertionError("never found")


def by_name(keep, watch):
    return {row.name: watch.verdict(row.subject) for row in keep.user_list() if watch.verdict(row.subject).queries}


def told(verdict):
    """A verdict to six digits: how a stream was cut into batches shows in the last ones of what clusters learnt."""
    return re.sub(r"\d+\.\d+(?:e-?\d+)?", lambda number: f"{float(number[0]):.6g}", repr(verdict))


def test_a_restart_and_an_explanation_find_what_the_gateway_held(keep, trained, tmp_path):
    tokens = strangers(keep, (*LONE, *GANG))
    subjects = {row.name: row.subject for row in keep.user_list()}
    sheet = np.rint(trained.fresh * 0.75).astype(np.float32)
    np.savez(tmp_path / "tool.npz", x=np.rint(trained.reference * 0.75).astype(np.float32))
    with live(keep) as running:
        assert ask(running, tokens["ada"], uniform(1, 40), 1)
        keep.review(account="ada", outcome="cleared", reason="a load test of ours", false_alarm=True)
        ask(running, tokens["tool"], sheet[:12], 2)
        ask(running, tokens["honest"], trained.fresh[:30], 3)
        keep.calibrate(ref="iris@1", tools=((tmp_path / "tool.npz").read_bytes(),))
        soon(lambda: watch_of(running).verdict(subjects["tool"]).uncovered)
        ask(running, tokens["tool"], sheet[12:40], 2)
        steal(running, tokens, 2)
        soon(keep.cases)
        keep.case_review(case_id=keep.cases()[0].id, outcome="cleared", reason="a class of students")
        soon(lambda: not watch_of(running).cases())
        ask(running, tokens["dan"], trained.fresh[60:80], 4)
        learnt = watch_of(running).verdict(subjects["honest"]).budget.equivalent
        weekly = SHIPPED.replace("days = 30 ", "days = 7 ").replace("questions = 1000", "questions = 30")
        keep.policy_set(kind="ladder", text=weekly.encode(), reason="a trial")
        assert watch_of(running).verdict(subjects["honest"]).budget.equivalent == 0.0 < learnt, "a period of a week began"
        ask(running, tokens["honest"], trained.fresh[80:90], 3)
        keep.review(account="dan", outcome="deceived", reason="his copy is on sale")
        ask(running, tokens["dan"], trained.fresh[90:100], 4)
        steal(running, tokens, 3)
        soon(lambda: [one.state for one in keep.cases()] == ["open"])
        assert not ask(running, tokens["ada"], trained.fresh[100:130], 1)
        held = by_name(keep, watch_of(running))
    assert {name: held[name].rung for name in LONE} == {
        "tool": Rung.MARK,
        "ada": held["ada"].rung,
        "dan": Rung.SANCTION,
        "honest": Rung.MARK,
    }
    assert held["ada"].rung < Rung.ALARM and all(held[name].cases and held[name].budget.limit == 7.5 for name in GANG)
    with live(keep) as again:
        found = by_name(keep, watch_of(again))
    assert {name: told(verdict) for name, verdict in found.items()} == {name: told(verdict) for name, verdict in held.items()}
    for name, verdict in held.items():
        [shown] = keep.account_explain(account=name).standings
        spent = verdict.budget
        assert (shown.rung, shown.odds, shown.queries, shown.effective) == (
            *(verdict.rung.text, verdict.odds, verdict.queries, verdict.effective),
        )
        assert (shown.learnt, shown.limit, shown.fidelity) == (spent.equivalent, spent.limit, spent.fidelity)
        assert (shown.cases, shown.drifting) == (verdict.cases, verdict.drifting)


def test_whoever_is_not_accused_while_the_population_drifts_is_explained_so(keep):
    names = tuple(f"branch-{i}" for i in range(12))
    tokens = strangers(keep, names)
    subjects = {row.name: row.subject for row in keep.user_list()}
    with live(keep) as running:
        for turn in range(12):
            for place, name in enumerate(names):
                ask(running, tokens[name], uniform(100 * turn + place, 1), place)
        watch = watch_of(running)
        waiting = next(name for name in names if watch.verdict(subjects[name]).withheld)
        accused = next(name for name in names if subjects[name] in watch.alarmed())
        held = {name: watch.verdict(subjects[name]) for name in (waiting, accused)}
    for name, verdict in held.items():
        [shown] = keep.account_explain(account=name).standings
        assert (shown.rung, shown.odds, shown.drifting) == (verdict.rung.text, verdict.odds, verdict.drifting)
    assert held[waiting].rung is Rung.QUANTISED and held[accused].rung is Rung.ALARM
