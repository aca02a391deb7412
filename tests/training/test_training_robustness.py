"""Intervals against known values, alarms that ring when they should and not when they should not, corruptions."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from modelkeep.training import corruptions as harm
from modelkeep.training import robustness as worth
from modelkeep.training.smoothing import normal_quantile
from modelkeep.training.tails import beta_quantile


@pytest.mark.parametrize(("hits", "of"), [(0, 10), (3, 10), (10, 10), (499, 1000), (999, 1000), (1, 1)])
def test_intervals_are_clopper_and_pearsons(hits, of):
    found = worth.share(hits, of)
    assert found.value == hits / of
    assert found.low == pytest.approx(beta.ppf(0.025, hits, of - hits + 1) if hits else 0.0, abs=1e-9)
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 1, of - hits) if hits < of else 1.0, abs=1e-9)


def test_no_share_of_nothing():
    for hits, of in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            worth.share(hits, of)
    with pytest.raises(ValueError, match="quantile"):
        beta_quantile(1.2, 1, 1)


def test_pairs_count_only_where_they_differ():
    one, other = np.array([True] * 120 + [False] * 80), np.array([True] * 100 + [False] * 100)
    found = worth.paired(one, other)
    assert found.difference == 0.1 and 0 < found.low < 0.1 < found.high < 0.2 and found.p == pytest.approx(2 * 0.5**20)
    same = worth.paired(one, one)
    assert (same.difference, same.p) == (0.0, 1.0) and same.low == -same.high > -0.05
    assert worth.paired(other, one)[:3] == pytest.approx((-0.1, -found.high, -found.low))


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.5, 0.9, 0.999999])
def test_quantiles_of_the_normal(p):
    assert normal_quantile(p) == pytest.approx(norm.ppf(p), abs=1e-8)


def test_alarms_ring():
    assert worth.black_box_alarm(20, 500).name == "black-box-beats-gradient"
    assert worth.black_box_alarm(3, 500) is None and worth.black_box_alarm(0, 500) is None
    assert worth.unbounded_alarm(30, 100).name == "unbounded-fails"
    assert worth.unbounded_alarm(2, 100) is None
    assert worth.one_step_alarm(20, 500).name == "one-step-beats-many" and worth.one_step_alarm(2, 500) is None
    stand, more = np.arange(100) < 40, np.arange(100) < 60
    assert worth.radius_alarm(stand, more, 0.1, 0.2).name == "larger-radius-breaks-less"
    assert worth.radius_alarm(more, stand, 0.1, 0.2) is None


def test_alarms_of_the_loss():
    some, none, nobody = np.arange(100) < 10, np.zeros(100, bool), np.zeros(0, bool)
    assert worth.loss_alarms(none, none) == worth.loss_alarms(nobody, nobody) == []
    assert [one.name for one in worth.loss_alarms(some, some)] == ["zero-gradient", "loss-does-not-rise"]
    assert [one.name for one in worth.loss_alarms(none, some)] == ["loss-does-not-rise"]


@pytest.mark.parametrize("picture", [(1, 8, 8), (3, 4, 6), None])
def test_corruptions_stay_in_the_box_and_grow(picture):
    width = int(np.prod(picture)) if picture else 20
    x = np.random.default_rng(0).random((50, width))
    low, high = np.zeros(width), np.ones(width)
    for name in harm.corruptions(picture):
        moved = [np.abs(harm.corrupt(name, x, level, low, high, picture) - x).mean() for level in harm.SEVERITIES]
        assert moved[0] > 0 and (moved[-1] > moved[0] or name == "shift"), name
        made = harm.corrupt(name, x, 3, low, high, picture)
        assert made.shape == x.shape and np.array_equal(made, harm.corrupt(name, x, 3, low, high, picture))
        if name != "unit-shift":
            assert made.min() >= 0 and made.max() <= 1


def test_a_corruption_that_is_not_known():
    with pytest.raises(ValueError, match="no corruption blur"):
        harm.corrupt("blur", np.zeros((1, 4)), 1, np.zeros(4), np.ones(4), None)


def test_alarms_of_the_rows():
    rng = np.random.default_rng(0)
    rows, labels = rng.uniform(size=(100, 3)), rng.integers(0, 2, 100)
    assert worth.row_alarms(rows, labels) == []
    assert [one.name for one in worth.row_alarms(rows, np.ones(100, np.int64))] == ["one-class"]
    assert [one.name for one in worth.row_alarms(rows[np.arange(100) % 49], labels[np.arange(100) % 49])] == ["repeated-rows"]
    assert worth.row_alarms(rows[np.arange(100) % 51], labels[np.arange(100) % 51]) == []
    assert worth.parted_alarm(20, 500).name == "module-falls-alone" and worth.parted_alarm(3, 500) is None
