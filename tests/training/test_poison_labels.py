"""Confident learning and what is left of labels without noise: numbers of cleanlab 2.9.0, and laws."""

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.training.poison.labels import (
    below,
    confident_joint,
    floors,
    joint,
    normalised_margin,
    off_diagonal,
    pool,
    replaced,
    self_confidence,
    thresholds,
)

P = np.array(
    [
        [0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7],
        [0.05, 0.05, 0.9], [0.45, 0.45, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.1, 0.4], [0.2, 0.6, 0.2],
    ]
)  # fmt: skip
Y = np.array([0, 0, 0, 1, 1, 2, 2, 1, 1, 0, 2, 1])


def test_the_confident_joint_is_cleanlabs():
    assert thresholds(P, Y) == pytest.approx([0.425, 0.47, 2 / 3])
    assert confident_joint(P, Y).tolist() == [[2, 1, 1], [2, 2, 0], [1, 0, 2]]
    assert joint(P, Y) * 12 == pytest.approx(np.array([[2, 1, 1], [2.5, 2.5, 0], [1, 0, 2]]))  # which cleanlab rounds to counts
    assert np.flatnonzero(off_diagonal(P, Y)).tolist() == [2, 7, 8, 9, 10]


def test_scores_are_one_less_cleanlabs():
    margins = [0.85, 0.65, 0.25, 0.85, 0.45, 0.75, 0.925, 0.5, 0.25, 0.15, 0.45, 0.7]
    assert 1.0 - normalised_margin(P, Y) == pytest.approx(margins)
    assert 1.0 - self_confidence(P, Y) == pytest.approx([0.8, 0.6, 0.2, 0.8, 0.3, 0.7, 0.9, 0.45, 0.2, 0.1, 0.4, 0.6])


def test_a_class_without_rows_takes_no_row_from_another():
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    assert confident_joint(p, np.array([0, 1, 0, 1])).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.fixture(scope="module")
def drawn():
    """Probabilities of 4,000 rows, labels drawn by them, and the labels after 5 % are flipped."""
    rng = np.random.default_rng(0)
    sure = 1.0 / (1.0 + np.exp(-3.0 * rng.normal(size=4000)))
    p = np.stack([sure, 1.0 - sure], axis=1)
    y = (rng.random(4000) > sure).astype(np.int64)
    wrong = rng.random(4000) < 0.05
    return p, y, np.where(wrong, 1 - y, y), wrong


def test_pooling_mends_a_temperature_and_leaves_out_who_knows_nothing(drawn):
    p, y, _, _ = drawn
    hot = p**0.25 / (p**0.25).sum(axis=1, keepdims=True)
    noise = np.random.default_rng(1).dirichlet([1.0, 1.0], 4000)
    assert np.abs(pool([hot], y) - p).mean() < 0.01
    assert np.abs(pool([noise, hot, noise[::-1]], y) - p).mean() < 0.02


def test_labels_drawn_by_the_probabilities_are_below_the_threshold_as_often_as_said(drawn):
    p, y, _, _ = drawn
    for budget in (0.005, 0.02, 0.05):
        told = p[np.arange(4000), y] <= below(p, budget)
        assert told.mean() == pytest.approx(budget, abs=4 * np.sqrt(budget / 4000))


def test_the_noise_is_read_from_rows_that_cannot_be_of_a_class(drawn):
    p, _, flipped, wrong = drawn
    noisy = 0.05 + 0.9 * p
    assert floors(noisy) == pytest.approx([0.05, 0.05], abs=0.005)
    share, left = replaced(noisy, flipped)
    assert np.abs(left - p).max() < 0.01
    likely = share > 0.5
    assert wrong[likely].mean() == pytest.approx(share[likely].mean(), abs=0.08)
    assert likely.sum() > 80


def test_what_does_not_fit_is_refused():
    with pytest.raises(Invalid, match="sum to 1"):
        confident_joint(P * 0.9, Y)
    with pytest.raises(Invalid, match="a label 3"):
        confident_joint(P, np.where(Y == 2, 3, Y))
    with pytest.raises(Invalid, match="whole numbers"):
        confident_joint(P, Y.astype(np.float64))
    with pytest.raises(Invalid, match="have the shape"):
        confident_joint(P[:5], Y)
    with pytest.raises(Invalid, match="no probabilities"):
        pool([], Y)
