"""Calibration on a whole gateway: a declared tool is taken up without a restart, and still known after one."""

import numpy as np
import pytest
from gateway_support import IRIS, live, make_keep, predict, soon, strangers, watch_of

from modelkeep.errors import Conflict, Invalid, Missing, Refused
from modelkeep.extraction.ladder import Rung


@pytest.fixture
def keep(tmp_path, trained):
    return make_keep(tmp_path / "keep", trained)


def tool(rows):
    """What a tool makes of rows: whole numbers."""
    return np.rint(rows * 0.75).astype(np.float32)


def npz(tmp_path, rows):
    np.savez(tmp_path / "tool.npz", x=rows)
    return (tmp_path / "tool.npz").read_bytes()


def ask(running, token, rows, most=8, place=1):
    """Ask until the gateway refuses, from the network ``place``; how many rows were answered."""
    done = 0
    for at in range(0, len(rows), most):
        try:
            predict(running, token, f"198.18.{place}.7", rows[at : at + most])
        except Refused:
            return done
        done += len(rows[at : at + most])
    soon(lambda: watch_of(running).rows_behind() == 0)
    return done


def test_a_declared_tool_is_taken_up_without_a_restart(keep, trained, tmp_path):
    keep.user_add(name="tool", roles=("analyst",))
    subject = next(row.subject for row in keep.user_list() if row.name == "tool")
    token = keep.key_issue(account="tool", quota=100_000).token
    before = keep.premises.registry().book.size
    dry = keep.calibrate(ref="iris@1", tools=(npz(tmp_path, tool(trained.reference)),), dry_run=True)
    assert dry.log_index == -1 and keep.premises.registry().refresh().size == before
    with live(keep) as running:
        watch = watch_of(running)
        ask(running, token, tool(trained.fresh[:40]))
        told = watch.verdict(subject).log_m
        done = keep.calibrate(ref="iris@1", tools=(npz(tmp_path, tool(trained.reference)),), reason="the scoring sheet")
        assert done.log_index >= before and any(row.after > row.before for row in done.scores)
        assert done.scores == dry.scores and done.smallest_share[1] >= done.smallest_share[0]
        soon(lambda: watch.verdict(subject).uncovered)
        assert ask(running, token, tool(trained.fresh[40:])) == len(trained.fresh) - 40
        now = watch.verdict(subject)
        assert now.rung is Rung.MARK and now.log_m < told
    with live(keep) as again:
        verdict = watch_of(again).verdict(subject)
        assert verdict.log_m == pytest.approx(now.log_m) and verdict.effective == now.effective
    keep.calibrate(ref="iris@1", afresh=True)
    book = keep.premises.registry().refresh()
    assert [said.afresh for _, said in book.calibrations(IRIS)] == [False, True]
    assert [said.reason for _, said in book.calibrations(IRIS)] == ["the scoring sheet", ""]
    shown = [row.summary for row in keep.show(ref="iris@1").statements if row.type == "calibration"]
    assert shown == ["bounds over 1 tools and 0 accounts: the scoring sheet", "bounds over 0 tools and 0 accounts"]


def test_the_recorded_questions_of_accounts_calibrate_but_not_those_of_thieves(keep, trained):
    token = strangers(keep, ("one", "two", "few", "thief", "convict"))
    rng = np.random.default_rng(8)
    with live(keep) as running:
        ask(running, token["one"], tool(trained.fresh[:120]), place=1)
        ask(running, token["two"], tool(trained.fresh[120:240]), place=2)
        ask(running, token["few"], trained.fresh[:4], place=3)
        ask(running, token["convict"], trained.fresh[:100], place=4)
        for _ in range(20):
            if ask(running, token["thief"], rng.uniform(-8, 8, (16, 6)).astype(np.float32), place=5) == 0:
                break
        soon(lambda: any("alarm" in row.detail and "modelkeep account list" in row.detail for row in keep.incidents()))
        assert watch_of(running).cases() == [], "they share nothing"
    keep.review(account="convict", outcome="confirmed", reason="a test")
    everyone = keep.calibrate(ref="iris@1", everyone=True, dry_run=True)
    assert everyone.left_out == ("convict", "thief") and everyone.short == ("few",) and everyone.accounts == 2
    assert set(everyone.widest) <= {"one", "two"}
    alone = keep.calibrate(ref="iris@1", accounts=("one",), dry_run=True)
    assert alone.accounts == 1 and alone.rows == 120
    nobody = keep.calibrate(ref="iris@1", everyone=True, period=(0, 1), dry_run=True)
    assert nobody.accounts == 0 and all(row.before == row.after for row in nobody.scores), "no rounding moves a bound"
    with pytest.raises(Invalid, match="say why"):
        keep.review(account="thief", outcome="cleared", reason=" ")
    with pytest.raises(Conflict, match="thief is accused"):
        keep.calibrate(ref="iris@1", accounts=("thief",))
    with pytest.raises(Conflict, match="convict is accused or was confirmed"):
        keep.calibrate(ref="iris@1", accounts=("convict",))
    review = keep.calibrate(ref="iris@1", accounts=("thief",), dry_run=True)
    assert review.accounts + len(review.short) == 1 and review.left_out == () and review.log_index == -1
    with pytest.raises(Missing, match="nobody"):
        keep.calibrate(ref="iris@1", accounts=("nobody",))
    keep.review(account="thief", outcome="cleared", reason="a penetration test")
    again = keep.calibrate(ref="iris@1", everyone=True, dry_run=True)
    assert again.left_out == ("convict",) and again.accounts + len(again.short) == 4
    keep.review(account="two", outcome="deceived", reason="a copy is on sale")
    assert keep.calibrate(ref="iris@1", everyone=True, dry_run=True).left_out == ("convict", "two")
    with pytest.raises(Conflict, match="two is accused"):
        keep.calibrate(ref="iris@1", accounts=("two",))
    keep.review(account="two", outcome="cleared", reason="it was another's", false_alarm=True)
    named = keep.calibrate(ref="iris@1", accounts=("one",), dry_run=True)
    assert (named.accounts, named.rows, named.left_out) == (2, 240, ()), "and who was accused wrongly, named or not"


def test_when_everybody_s_evidence_rises_the_house_asks_for_a_calibration(keep, trained):
    names = [f"branch-{i}" for i in range(14)]
    tokens = list(strangers(keep, names).values())
    subjects = {row.name: row.subject for row in keep.user_list()}
    rng = np.random.default_rng(8)
    with live(keep) as running:
        watch = watch_of(running)
        for _ in range(12):
            for place, token in enumerate(tokens):
                ask(running, token, rng.uniform(-8, 8, (1, 6)).astype(np.float32), place=place)
        assert watch.withheld >= 3 and len(watch.alarmed()) <= 11 and watch.cases() == []
        soon(lambda: any(row.id == "drift:iris@1" for row in keep.status().incidents))
        waiting = next(name for name in names if watch.verdict(subjects[name]).withheld)
        assert watch.rung(subjects[waiting]) is Rung.QUANTISED
        at = names.index(waiting)
        assert ask(running, tokens[at], trained.fresh[:1], place=at) == 1, "it is served, coarsely"
        assert not any(subjects[waiting] in row.id for row in keep.incidents())
        keep.calibrate(ref="iris@1", afresh=True)
        soon(lambda: watch.withheld == 0)
        assert not any(row.id == "drift:iris@1" for row in keep.status().incidents)
        assert watch.alarmed(), "an accusation waits for its review"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "say over what"),
        ({"tools": (b"x",) * 17}, "at most 16"),
        ({"everyone": True, "reason": "x" * 501}, "at most 16 tools and a reason of 500"),
    ],
)
def test_what_cannot_be_is_refused(keep, arguments, why):
    with pytest.raises(Invalid, match=why):
        keep.calibrate(ref="iris@1", **arguments)
