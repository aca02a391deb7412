"""Planted rows of small known examples: each method finds what it is for, and says what it does whatever the order of rows."""

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.training.poison.clumps import grow
from modelkeep.training.poison.clusters import activation
from modelkeep.training.poison.neighbours import disagreement, isolation, nearest, votes
from modelkeep.training.poison.sources import excess, influence, left_out
from modelkeep.training.poison.spectra import quantum, signature, whiten

PLANTED = 40


def planted(count=PLANTED, far=4.0, seed=0):
    """Features (600, 12) of three classes, whose first has ``count`` rows moved along a direction of small variance."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), 200)
    scale = np.linspace(3.0, 0.5, 12)
    features = rng.normal(size=(600, 12)) * scale + 8.0 * np.eye(3, 12)[y]
    wrong = np.zeros(600, dtype=bool)
    wrong[:count] = True
    features[wrong, 8] += far * scale[8] * 2
    return features, y, wrong


def caught(scores, wrong):
    """The share of planted rows above all but 2 % of the others."""
    return (scores[wrong] > np.quantile(scores[~wrong], 0.98)).mean()


def test_whitening_finds_what_the_first_direction_does_not():
    features, y, wrong = planted(count=20, far=3.0)
    assert caught(quantum(features, y, directions=12), wrong) > 0.9
    assert caught(signature(features, y), wrong) < 0.2


def test_whitening_holds_when_a_third_of_a_class_is_planted():
    features, y, wrong = planted(count=65)
    assert caught(quantum(features, y, directions=12), wrong) > 0.9


def test_the_signature_is_the_first_singular_vector():
    features, y, _ = planted()
    rows = features[y == 1] - features[y == 1].mean(axis=0)
    first = np.linalg.svd(rows)[2][0]
    assert signature(features, y)[y == 1] == pytest.approx((rows @ first) ** 2)


def test_honest_rows_are_white():
    white = whiten(np.random.default_rng(1).normal(size=(4000, 3)) @ np.diag([9.0, 3.0, 0.1]), 3)
    spread = np.cov(white, rowvar=False)
    assert spread / spread[0, 0] == pytest.approx(np.eye(3), abs=0.15)


def test_a_cluster_of_its_own_is_the_smaller_one():
    features, y, wrong = planted(far=12.0)
    found = activation(features, y)
    assert found[wrong].min() > 0.1
    assert found[(y == 0) & ~wrong].max() == 0.0


def test_a_clump_grows_from_few_seeds_and_is_refused_from_fewer():
    features, y, wrong = planted(far=5.0)
    own, told = features[y == 0], wrong[y == 0]
    seeds = told & (np.cumsum(told) <= 8)
    found = grow(own, seeds)
    assert ((found.share > 0.5) == told).mean() > 0.97
    assert found.apart > 2.5
    assert grow(own, told & (np.cumsum(told) <= 3)) is None


def test_neighbours_are_the_nearest_and_never_oneself():
    rows = np.random.default_rng(2).normal(size=(700, 3))
    far = ((rows[:, None] - rows) ** 2).sum(axis=2)
    np.fill_diagonal(far, np.inf)
    assert np.array_equal(nearest(rows, 5), far.argsort(axis=1)[:, :5])
    with pytest.raises(Invalid):
        nearest(rows[:5], 5)


def test_a_label_that_no_neighbour_has_is_told():
    features, y, _ = planted(count=0)
    told = y.copy()
    told[[0, 300, 599]] = [1, 2, 0]
    assert disagreement(features, told)[[0, 300, 599]].min() > 0.9
    assert disagreement(features, told).mean() < 0.1
    p = votes(y[nearest(features, 15)], y, 3)
    assert p.sum(axis=1) == pytest.approx(1.0)
    assert (p.argmax(axis=1) == y).mean() > 0.95


def test_what_is_easily_set_apart_is_isolated():
    rows = np.random.default_rng(3).normal(size=(500, 4))
    rows[7] = 9.0
    found = isolation(rows)
    assert found.argmax() == 7
    assert found[7] > 0.65
    assert np.median(found) == pytest.approx(0.45, abs=0.06)


@pytest.mark.parametrize("score", [signature, quantum, disagreement])
def test_the_order_of_rows_does_not_matter(score):
    features, y, _ = planted()
    order = np.random.default_rng(4).permutation(len(y))
    assert score(features[order], y[order]) == pytest.approx(score(features, y)[order], rel=1e-6, abs=1e-9)


def test_a_small_class_and_one_that_does_not_vary_are_no_error():
    features, y, _ = planted()
    y[-3:] = 3
    features[y == 2] = 1.0
    for score in (signature(features, y), quantum(features, y), activation(features, y)):
        assert np.isfinite(score).all()
        assert score[y == 2].max() <= 1e-9


# -- sources --


def test_a_source_whose_rows_are_suspected_too_often_is_named():
    groups = np.repeat(["a", "b", "c"], [500, 400, 100])
    suspected = np.zeros(1000, dtype=bool)
    suspected[[3, 99, 700]] = True
    assert min(excess(suspected, groups).values()) > 0.2
    suspected[900:910] = True
    found = excess(suspected, groups)
    assert found["c"] < 1e-6
    assert found["a"] == found["b"] == 1.0


def test_influence_is_the_slope_of_the_held_out_loss():
    rng = np.random.default_rng(5)
    w, f, g = rng.normal(size=(3, 5)), rng.normal(size=(6, 4)), rng.normal(size=(7, 4))
    y, z = rng.integers(0, 3, 6), rng.integers(0, 3, 7)

    def told(weights, rows):
        scores = np.concatenate([rows, np.ones((len(rows), 1))], axis=1) @ weights.T
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    def loss(weights, rows, labels):
        return -np.log(told(weights, rows)[np.arange(len(labels)), labels]).mean()

    found = influence(f, told(w, f), y, g, told(w, g), z)
    for row in range(6):
        wrong = told(w, f[row : row + 1])[0] - np.eye(3)[y[row]]
        stepped = w - 1e-6 * np.outer(wrong, [*f[row], 1.0])
        assert (loss(w, g, z) - loss(stepped, g, z)) / 1e-6 == pytest.approx(found[row], rel=1e-3, abs=1e-5)


def test_without_the_source_of_wrong_labels_the_loss_is_lower():
    rng = np.random.default_rng(6)
    x, held = rng.normal(size=300), rng.normal(size=200)
    groups = np.repeat(["good", "bad", "fine"], 100)
    y = np.where(groups == "bad", -x, x)

    def losses(rows):
        return (held - held * (x[rows] @ y[rows]) / (x[rows] @ x[rows])) ** 2

    found = left_out(losses, groups)
    gain, error = found["bad"]
    assert gain > 4 * error > 0
    assert found["good"][0] < 0
    with pytest.raises(Invalid):
        left_out(losses, np.repeat("one", 300))
