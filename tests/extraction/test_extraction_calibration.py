"""Bounds from tools and from people: who used to be accused is not, a thief is still, and nobody widens the null alone."""

import math

import numpy as np
import pytest

from modelkeep.adapters.coldfile import ColdFile
from modelkeep.errors import Invalid
from modelkeep.extraction import eprocess
from modelkeep.extraction.calibration import (
    Recorded,
    new_events,
    over_people,
    over_tool,
    prices,
    queries_to_alarm,
    smallest_share,
    smallest_stretch,
)
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.profile import with_kappa

TOOLS = {
    "two levels": lambda x: (x > 8) * 16.0,
    "moved by a pixel": lambda x: np.roll(x.reshape(-1, 8, 8), 1, 2).reshape(-1, 64),
}


def alarms(case, kappa, send, accounts=6, rows=150):
    """When each of some accounts that ``send`` rows so is alarmed."""
    found = []
    for i in range(accounts):
        mine = np.random.default_rng(100 + i).permutation(len(case.unseen) // 2)[:rows]
        x = send(case.unseen[mine])
        guard = Guard(with_kappa(case.profile, kappa))
        guard.observe("a", x, case.predict(x))
        found.append(guard.verdict("a").alarmed_at)
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_a_declared_tool_is_no_theft_any_more_and_a_thief_is(digits, tool):
    send = TOOLS[tool]
    assert all(alarms(digits, digits.profile.kappa, send))
    sample = send(digits.unseen[len(digits.unseen) // 2 :])
    kappa = over_tool(digits.profile, sample, digits.predict(sample), seed=1)
    assert (kappa >= digits.profile.kappa).all()
    assert alarms(digits, kappa, send) == [None] * 6
    assert all(alarms(digits, kappa, lambda x: np.random.default_rng(3).uniform(0, 16, x.shape), accounts=2))
    assert (over_tool(digits.profile, sample, digits.predict(sample), seed=1) == kappa).all()


def test_a_tool_whose_questions_follow_each_other_is_bounded_in_its_own_order(tumour):
    """A sweep: each row is a small step from the one before. Drawn in any order the same rows are far apart."""
    scale = tumour.profile.embedding.scale
    base = np.repeat(tumour.unseen[:20], 10, axis=0)
    sweep = base + np.tile(np.linspace(0, 0.9, 10), 20)[:, None] * scale * (np.arange(30) < 2)
    at = tumour.profile.streams.index("step") * len(tumour.profile.taus)
    steps = slice(at, at + len(tumour.profile.taus))
    ordered = over_tool(tumour.profile, sweep, tumour.predict(sweep), seed=1)[steps]
    mixed = over_tool(tumour.profile, tumour.unseen, tumour.predict(tumour.unseen), seed=1)[steps]
    assert (ordered > mixed).any() and ordered.max() > 0.8


def test_too_few_or_other_rows_of_a_tool_are_refused(tumour):
    with pytest.raises(Invalid, match="at least 80"):
        over_tool(tumour.profile, np.repeat(tumour.unseen[:79], 3, axis=0), None, seed=1)
    with pytest.raises(Invalid, match="29 values"):
        new_events(tumour.profile, tumour.unseen[:, 1:], None)


def test_events_are_those_of_the_guard(tumour):
    rng = np.random.default_rng(6)
    x = tumour.unseen[rng.integers(len(tumour.unseen), size=300)]
    x[50:80] += 1e-6 * tumour.profile.embedding.scale * rng.normal(size=(30, 30))
    x[200:] = rng.uniform(x.min(axis=0), x.max(axis=0), (100, 30))
    probs = tumour.predict(x)
    guard = Guard(tumour.profile, alpha=1e-9)
    guard.observe("a", x, probs)
    bets, events = eprocess.make_bets(tumour.profile.kappa), new_events(tumour.profile, x, probs)
    kept, restarted = np.ones((1, len(bets.stream))), np.zeros((1, len(bets.stream)))
    for t, event in enumerate(events):
        kept, restarted = eprocess.step(kept, restarted, bets.factors(event[None]), np.array([t]))
    assert len(events) == guard.verdict("a").effective < 300
    assert math.log(eprocess.evidence(kept, restarted)[0]) == pytest.approx(guard.verdict("a").log_m)


def people(case, send, count, rows=120, **also):
    found = []
    for i in range(count):
        x = send(case.unseen[np.random.default_rng(i).permutation(len(case.unseen) // 2)[:rows]])
        found.append(Recorded(f"account-{i}", x, case.predict(x), **also))
    return found


def test_nobody_widens_the_null_alone_but_who_is_vouched_for(digits):
    send, before = TOOLS["moved by a pixel"], digits.profile.kappa
    plain = people(digits, lambda x: x, 3)
    one = Recorded("odd", *_like(digits, send, 7))
    alone = over_people(digits.profile, [*plain, one])
    assert alone.accounts == 4 and all(alarms(digits, alone.kappa, send, accounts=3))
    two = over_people(digits.profile, [*plain, one, Recorded("odd too", *_like(digits, send, 8))])
    assert alarms(digits, two.kappa, send, accounts=3) == [None] * 3
    assert set(two.widest) <= {"odd", "odd too"} and two.widest
    vouched = over_people(digits.profile, [*plain, Recorded("odd", one.x, one.probs, vouched=True)])
    assert alarms(digits, vouched.kappa, send, accounts=3) == [None] * 3
    assert (alone.kappa >= before).all() and (vouched.kappa >= alone.kappa).all()


def _like(case, send, seed):
    x = send(case.unseen[np.random.default_rng(seed).permutation(len(case.unseen) // 2)[:140]])
    return x, case.predict(x)


def test_an_account_with_fewer_questions_than_the_null_is_wide_teaches_nothing(digits):
    size = smallest_stretch(digits.profile)
    short = people(digits, TOOLS["two levels"], 3, rows=size - 1, vouched=True)
    found = over_people(digits.profile, short)
    assert found.accounts == 0 and found.short == ("account-0", "account-1", "account-2")
    assert (found.kappa == digits.profile.kappa).all()
    repeated = [Recorded("again", np.repeat(short[0].x, 9, axis=0), np.repeat(short[0].probs, 9, axis=0), vouched=True)]
    assert over_people(digits.profile, repeated).short == ("again",), "repeats are no new questions"


def test_a_stretch_of_odd_questions_counts_by_itself(digits):
    """An account that was plain for long and used a tool for a while has the rates of that while."""
    size = smallest_stretch(digits.profile)
    odd, plain = digits.unseen[:size], digits.unseen[size : 9 * size]
    x = np.concatenate([TOOLS["moved by a pixel"](odd), plain])
    kappa = over_people(digits.profile, [Recorded("a", x, digits.predict(x), vouched=True)]).kappa
    rates = new_events(digits.profile, x, digits.predict(x))[:size].mean(axis=0)
    assert (kappa >= rates).all() and (rates > digits.profile.kappa).any()


def test_the_price_is_what_a_simulation_costs():
    kappa = np.array([0.3, 0.05])
    told = queries_to_alarm(kappa, 0.5, 1e-3)
    rng, bets, found = np.random.default_rng(2), eprocess.make_bets(kappa), []
    for _ in range(60):
        stakes = np.zeros((2, len(bets.stream)))
        stakes[0] = 1.0
        for t in range(10 * told):
            event = rng.random() < 0.5
            if eprocess.settle([stakes], bets.factors(np.array([[False, event]])), [t])[0] >= 1e3:
                found.append(t + 1)
                break
    assert len(found) == 60 and 0.5 * told < np.mean(found) <= 1.2 * told


def test_wider_bounds_cost_more_and_the_smallest_share_rises():
    narrow, wide = np.full(25, 0.05), np.full(25, 0.2)
    costs = prices(narrow, wide, 1e-3)
    assert [cost.share for cost in costs] == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert all(not cost.after or cost.before < cost.after for cost in costs)
    assert costs[0].before == costs[0].after == 0, "what happens as often to the honest is never found"
    assert smallest_share(narrow, 1e-3) < smallest_share(wide, 1e-3) < 1.0 == smallest_share(np.full(25, 0.9), 1e-3)


@pytest.mark.parametrize("kappa", [np.full(3, 0.1), np.zeros(20), np.ones(20), np.full(20, np.nan)])
def test_bounds_of_another_profile_are_refused(digits, kappa):
    with pytest.raises(Invalid, match="bounds between 0 and 1"):
        Guard(digits.profile).recalibrate(kappa)


# -- the guard --


@pytest.mark.parametrize("cold", [False, True])
def test_a_calibration_begins_a_new_test_and_leaves_alarms_to_their_review(digits, tmp_path, cold):
    guard = Guard(digits.profile, cold=ColdFile(tmp_path) if cold else None, in_memory=1)
    rng = np.random.default_rng(5)
    noise, odd = rng.uniform(0, 16, (30, 64)), TOOLS["two levels"](digits.unseen[:10])
    guard.observe("thief", noise, digits.predict(noise))
    guard.observe("tool", odd, digits.predict(odd))
    before = guard.verdict("tool")
    assert guard.verdict("thief").rung is Rung.ALARM and before.log_m != math.log(0.5)
    sample = TOOLS["two levels"](digits.unseen[150:])
    wide = over_tool(digits.profile, sample, digits.predict(sample), seed=1)
    guard.recalibrate(wide)
    after = guard.verdict("tool")
    assert after.log_m == math.log(0.5) and after.uncovered and after.queries == 10 and after.budget == before.budget
    assert guard.verdict("thief").rung is Rung.ALARM and guard.alarmed() == ["thief"]
    guard.clear("thief")
    more = TOOLS["two levels"](digits.unseen[20:150])
    guard.observe("tool", more, digits.predict(more))
    assert guard.verdict("tool").log_m < 0 and guard.verdict("thief").rung is Rung.MARK
    other = Guard(with_kappa(digits.profile, wide))
    other.observe("tool", more, digits.predict(more))
    assert guard.verdict("tool").log_m == pytest.approx(other.verdict("tool").log_m)


def test_each_calibration_asks_for_more_evidence_so_that_all_of_them_keep_the_promise(digits):
    guard = Guard(digits.profile)
    at = []
    for _ in range(3):
        guard.forget("a")
        guard.observe("a", digits.unseen[:1], digits.predict(digits.unseen[:1]))
        for _ in range(9 * len(at)):
            guard.recalibrate(digits.profile.kappa)
        x = np.random.default_rng(1).uniform(0, 16, (200, 64)) * 0.5 + 0.5 * digits.unseen[:200]
        x[::2] = digits.unseen[200:400:2]
        guard.observe("a", x, digits.predict(x))
        at.append(guard.verdict("a").alarmed_at)
    assert at[0] < at[1] < at[2]
    assert sum(1 / (j + 1) ** 2 for j in range(100_000)) < 1.65
