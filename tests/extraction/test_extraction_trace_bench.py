"""The trace bench's own parts: what it keeps, how it judges DAWN, and how accounts mix their answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from benchmarks import _trace_dawn as dawn
from benchmarks._extraction import Setting
from benchmarks._trace_copies import FOREST
from benchmarks._trace_results import Kept, summary
from benchmarks._trace_thefts import Thefts, averaged, corrected, pooled, served

NAMES = {"part": "traced", "setting": "digits/mlp", "case": "trees", "queries": 500}


@pytest.fixture(scope="module")
def thefts(digits):
    clean = np.asarray(digits.predict(digits.unseen))
    return Thefts(Setting("digits/mlp", digits.predict, digits.profile, digits.unseen, digits.unseen, digits.unseen, clean))


def test_a_theft_that_is_kept_is_not_measured_again(tmp_path):
    kept = Kept(tmp_path)
    for run, log in enumerate((-12.0, -7.0, -3.0)):
        kept.once(lambda log=log: {"log": log, "probes": 0.0}, **NAMES, run=run)
    again = Kept(tmp_path)
    assert again.once(lambda: pytest.fail("measured again"), **NAMES, run=1)["log"] == -7.0
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 3
    (row,) = summary(again.of("traced"))
    assert row["with the account's log"] == "1e-7" and row["with the account's log, weakest"] == "1e-3"
    assert (row["log < 1e-9"], row["log < 1e-6"], row["from fresh probes alone"]) == ("1/3", "2/3", "1")
    assert json.dumps(row)


def test_dawn_accuses_who_repeats_its_flips_and_is_exact():
    rng = np.random.default_rng(1)
    x, key = rng.normal(size=(4000, 3)), bytes(32)
    clean = rng.dirichlet(np.ones(4), size=4000)
    answers, false = dawn.answered(key, x, clean), dawn.flipped(key, x)
    assert 8 <= false.sum() <= 36
    assert (answers.argmax(axis=1) != clean.argmax(axis=1)).tolist() == false.tolist()
    assert dawn.p_value(key, x, clean, answers) < 1e-30
    noisy = np.where(rng.random((4000, 1)) < 0.3, clean[:, ::-1], clean)
    p = np.array([dawn.p_value(rng.bytes(32), x[:1000], clean[:1000], noisy[:1000]) for _ in range(100)])
    assert (p <= 0.1).mean() <= 0.1 + 3 * np.sqrt(0.1 / 100)


def test_accounts_that_act_together_are_answered_each_with_its_own_mark(thefts):
    theft = thefts.theft(0, 120)
    keys, mean = averaged(thefts.setting, theft, 2)
    both = [served(thefts.setting, key, theft.x, theft.clean) for key, _ in keys]
    assert np.array_equal(mean, (both[0] + both[1]) / 2) and np.array_equal(both[0], theft.served)
    shares, mixed = pooled(thefts.setting, theft, 2)
    assert [len(theft.x[share]) for _, share in shares] == [60, 60]
    assert np.array_equal(mixed[0::2], both[0][0::2]) and np.array_equal(mixed[1::2], both[1][1::2])


def test_a_theft_is_drawn_by_its_run_alone_and_its_account_is_named(thefts):
    with threadpool_limits(1):
        theft, copy = thefts.copy(FOREST, 1, 300)
        found, other = (thefts.weighed(copy.predict, one) for one in (theft, replace(theft, key=bytes(32))))
    assert np.array_equal(theft.served, Thefts(thefts.setting).theft(1, 300).served)
    assert found["log"] < -3.0 and other["log"] == 0.0
    assert corrected(1e-12) == -7.0 and corrected(0.5) == 0.0
