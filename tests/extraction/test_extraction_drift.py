"""The calibration guard: evidence that rises everywhere is drift, a thief is not, and what it takes a thief to look like it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.extraction.drift import LEAST, LEVEL, Drift, Standing, find_drift, tail
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import Rung


def crowd(calm, risen, queries=100):
    return {f"calm-{i}": Standing(0.1, queries) for i in range(calm)} | {
        f"risen-{i}": Standing(500.0, queries) for i in range(risen)
    }


@pytest.mark.parametrize(("n", "k", "p"), [(3, 0, 1.0), (3, 3, 0.125), (4, 1, 0.9375), (10, 10, 2.0**-10), (5, 6, 0.0)])
def test_the_tail_is_that_of_the_binomial(n, k, p):
    assert tail(n, k, 0.5) == pytest.approx(p)


@pytest.mark.parametrize(("calm", "least"), [(10, 5), (30, 10), (100, 34), (300, 100)])
def test_it_takes_a_quarter_of_all_groups(calm, least):
    assert find_drift(crowd(calm, least - 1)) is None
    found = find_drift(crowd(calm, least))
    assert found is not None and (found.groups, found.risen) == (calm + least, least) and found.p <= LEVEL


def test_few_accounts_cannot_tell_drift_from_theft():
    assert find_drift(crowd(0, LEAST - 1)) is None and find_drift(crowd(0, LEAST)) is not None


def test_accounts_that_share_a_covariate_are_one():
    many = crowd(10, 400)
    assert find_drift(many) is not None
    assert find_drift(many, lambda subject: subject.partition("-")[0] if "risen" in subject else subject) is None


@given(st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_an_honest_crowd_at_the_bound_of_its_e_values_hardly_ever_looks_like_drift(count, seed):
    """The worst that Markov allows: each group over 20 with probability 1/20. Over all draws it is held by ``LEVEL``."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(count) < 0.05, 20.0, 0.0)
    found = find_drift({str(i): Standing(float(value), 50) for i, value in enumerate(values)})
    assert found is None or found.p <= LEVEL


def test_who_rises_as_fast_as_the_others_is_one_of_them_and_who_is_three_times_as_fast_is_not():
    drift = Drift(30, 20, 1e-9, growth=0.2)
    assert not drift.stands_out(Standing(1000.0, 40)) and drift.stands_out(Standing(1000.0, 8))


# -- in the guard --


def moved(x):
    return np.roll(x.reshape(-1, 8, 8), 1, 2).reshape(-1, 64)


def run(case, guard, drifting, people=30, turns=70, thief_at=45, covariates=None, seed=1):
    """People ask by turns; those below ``drifting`` send moved pictures; a thief comes in between."""
    rng = np.random.default_rng(seed)
    order = [rng.permutation(len(case.unseen)) for _ in range(people)]
    x = np.stack([np.stack([moved(r[None])[0] if i < drifting else r for r in case.unseen[o[:turns]]])
                  for i, o in enumerate(order)])  # fmt: skip
    answers = case.predict(x.reshape(-1, 64)).reshape(people, turns, -1)
    for t in range(turns):
        guard.observe_many([f"account-{i}" for i in range(people)], x[:, t], answers[:, t], covariates)
        if t == thief_at:
            noise = rng.uniform(0, 16, (40, 64))
            guard.observe("thief", noise, case.predict(noise))
    return guard


def test_a_population_that_moved_is_not_accused_and_a_thief_in_it_is(digits):
    guard = run(digits, Guard(digits.profile), drifting=30)
    assert "thief" in guard.alarmed() and len(guard.alarmed()) <= 6
    assert len(guard.withheld()) >= 20 and guard.drift() is not None
    one = guard.verdict(guard.withheld()[0])
    assert one.withheld and one.rung is Rung.QUANTISED and one.alarmed_at is None and one.log_m > np.log(1000)


def test_while_the_population_drifts_more_evidence_never_leads_lower_and_never_over_quantised(digits):
    """Between the odds of *labels* and the alarm, too: who comes there once drift is known is told quarters, as all others."""
    guard, seen = Guard(digits.profile), dict[str, list]()
    observe = guard.observe_many

    def watched(subjects, x, answers, covariates=None, **more):
        observe(subjects, x, answers, covariates, **more)
        for subject in subjects:
            seen.setdefault(subject, []).append(guard.verdict(subject))

    guard.observe_many = watched
    run(digits, guard, drifting=30, seed=2)
    drifting = {subject: [one for one in verdicts if one.drifting] for subject, verdicts in seen.items()}
    for verdicts in drifting.values():
        rungs = [one.rung for one in sorted(verdicts, key=lambda one: one.log_m)]
        assert rungs == sorted(rungs) and (not rungs or rungs[-1] <= Rung.QUANTISED)
    between = [one for verdicts in drifting.values() for one in verdicts if np.log(500) < one.log_m < np.log(1000)]
    assert between and {one.rung for one in between} == {Rung.QUANTISED} and not any(one.withheld for one in between)
    before = [one for verdicts in seen.values() for one in verdicts if not one.drifting and one.rung is Rung.LABELS]
    assert before, "and before it was found, at its own rung"
    guard.recalibrate(np.maximum(digits.profile.kappa, 0.7))
    assert not any(guard.verdict(subject).drifting for subject in seen)


def test_one_who_moved_alone_is_accused(digits):
    guard = run(digits, Guard(digits.profile), drifting=1, turns=140)
    assert "account-0" in guard.alarmed() and guard.withheld() == [] and guard.drift() is None


def test_accounts_that_clusters_link_cannot_look_like_a_population_that_moved(digits):
    """Twelve accounts, two by two on one network, and each pair with the next by the hour of a sign-up."""
    shared = [(f"net-{i // 2}", f"hour-{(i + 1) // 2}") if i < 12 else () for i in range(30)]
    guard = run(digits, Guard(digits.profile), drifting=12, thief_at=-1, covariates=shared)
    assert len(guard.alarmed()) >= 8 and guard.withheld() == []
    alone = run(digits, Guard(digits.profile), drifting=12, thief_at=-1)
    assert len(alone.withheld()) >= 3


def test_once_calibrated_nobody_is_withheld_any_more(digits):
    guard = run(digits, Guard(digits.profile), drifting=30)
    guard.recalibrate(np.maximum(digits.profile.kappa, 0.7))
    assert guard.withheld() == [] and guard.drift() is None
    guard.forget("account-0")
    guard.clear("account-1")
    assert guard.verdict("account-0").queries == 0


def test_how_queries_are_cut_into_batches_does_not_matter(digits):
    rng = np.random.default_rng(3)
    subjects = [f"account-{i}" for i in rng.integers(0, 12, 800)]
    x = moved(digits.unseen[rng.integers(0, len(digits.unseen), 800)])
    answers = digits.predict(x)
    whole, parts = Guard(digits.profile), Guard(digits.profile)
    whole.observe_many(subjects, x, answers)
    for at in range(0, 800, 13):
        parts.observe_many(subjects[at : at + 13], x[at : at + 13], answers[at : at + 13])
    assert whole.withheld() and sorted(whole.withheld()) == sorted(parts.withheld())
    assert all(whole.verdict(subject) == parts.verdict(subject) for subject in set(subjects))
