"""Digits with a trigger, with flipped labels, and as they are: what is flagged, and that little else is."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from modelkeep.adapters.crossfit import FAMILIES, cross_fit
from modelkeep.errors import Invalid
from modelkeep.training.lab.features import Recipe, pull, stratified, train, views
from modelkeep.training.poison.ensemble import inspect

RECIPE = Recipe(epochs=15, rate=6e-3, width=32)
SHARE = 0.05


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return (bunch.data / 16.0).astype(np.float32)[:1000], bunch.target.astype(np.int64)[:1000]


def stamped(x):
    out = x.copy()
    out[:, [6, 57]] = 1.0
    return out


@pytest.fixture(scope="module")
def backdoored(digits):
    """(x, y, which rows are planted, what the networks make of them); the trigger stands for class 3."""
    x, y = digits[0].copy(), digits[1].copy()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(y != 3))[: round(SHARE * len(y))]
    x[chosen], y[chosen] = stamped(x[chosen]), 3
    return x, y, np.isin(np.arange(len(y)), chosen), views(x, y, 10, recipe=RECIPE)


@pytest.fixture(scope="module")
def mislabelled(digits):
    """(x (n, d), y, which labels are wrong, out-of-fold probabilities)."""
    x, true = digits[0].astype(np.float64), digits[1]
    rng = np.random.default_rng(1)
    wrong = rng.random(len(true)) < SHARE
    y = np.where(wrong, (true + rng.integers(1, 10, len(true))) % 10, true)
    return x, y, wrong, cross_fit(x, y, 10, family="linear", folds=3)


def test_a_trigger_is_found_and_without_its_rows_it_has_no_effect(digits, backdoored):
    x, y, planted, seen = backdoored
    found = inspect(x, y, probabilities=seen.probabilities, features=seen.features)
    assert found.flagged[planted].mean() >= 0.98
    assert found.flagged[~planted].mean() <= 0.02
    assert np.array_equal(found.reasons["planted"] | found.reasons["mislabelled"], found.flagged)
    assert any("class 3" in note for note in found.notes)
    others = digits[1] != 3
    exam = stamped(digits[0][others])
    assert (seen.network.look(exam)[1].argmax(axis=1) == 3).mean() > 0.8
    purged = train(x[~found.flagged], y[~found.flagged], 10, recipe=RECIPE)
    assert (purged.look(exam)[1].argmax(axis=1) == 3).mean() < 0.1


def test_wrong_labels_are_found_by_a_rule_that_leaves_honest_ones_alone(digits, mislabelled):
    x, y, wrong, p = mislabelled
    found = inspect(x, y, probabilities=p)
    assert found.flagged[wrong].mean() > 0.75
    assert found.flagged[~wrong].mean() < 0.01
    assert not found.reasons["planted"].any()
    ranked = np.argsort(found.combined)[::-1][: wrong.sum()]
    assert wrong[ranked].mean() > 0.85
    honest = inspect(x, digits[1], probabilities=cross_fit(x, digits[1], 10, family="linear", folds=3))
    assert honest.flagged.mean() < 0.01


def test_without_a_model_neighbours_alone_find_wrong_labels(mislabelled):
    x, y, wrong, _ = mislabelled
    found = inspect(x, y)
    assert found.flagged[wrong].mean() > 0.75
    assert found.flagged[~wrong].mean() < 0.01
    assert "contradiction" not in found.scores


def test_every_score_is_from_0_to_1_and_follows_the_rows(mislabelled):
    x, y, _, p = mislabelled
    found, order = inspect(x, y, probabilities=p), np.random.default_rng(2).permutation(len(y))
    for score in (*found.scores.values(), found.combined):
        assert score.shape == y.shape
        assert 0.0 <= score.min() <= score.max() <= 1.0
    again = inspect(x[order], y[order], probabilities=p[order])
    for name in sorted(set(found.scores) - {"isolation", "activation"}):  # which draw
        assert again.scores[name] == pytest.approx(found.scores[name][order], abs=1e-4), name
    assert (again.flagged == found.flagged[order]).mean() > 0.999


def test_the_source_of_most_flagged_rows_is_named(mislabelled):
    x, y, wrong, p = mislabelled
    groups = np.where(wrong & (np.arange(len(y)) % 4 > 0), "vendor", "own")
    groups[:60] = "vendor"
    found = inspect(x, y, probabilities=p, groups=groups)
    assert found.sources["vendor"] < 1e-9
    assert any("source vendor" in note for note in found.notes)
    assert (found.scores["source"] > 0.99).tolist() == (groups == "vendor").tolist()


def test_what_does_not_fit_is_refused(mislabelled):
    x, y, _, _ = mislabelled
    with pytest.raises(Invalid, match="finite"):
        inspect(np.where(x == 0.0, np.nan, x), y)
    with pytest.raises(Invalid, match="two classes"):
        inspect(x, np.zeros_like(y))
    with pytest.raises(Invalid, match="from 32 on"):
        inspect(x[:20], y[:20])
    with pytest.raises(Invalid, match="pull is"):
        inspect(x, y, pull=np.full(len(y), 2.0))
    with pytest.raises(Invalid, match="sources"):
        inspect(x, y, groups=np.zeros(3))
    with pytest.raises(Invalid, match="no probabilities"):
        inspect(x, y, probabilities=[])


# -- what trains --


def test_networks_are_the_same_for_a_seed(digits):
    x, y = digits[0][:200], digits[1][:200]
    one, other = (train(x, y, 10, recipe=Recipe(epochs=2, width=16), seed=4).look(x) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert one[1].sum(axis=1) == pytest.approx(1.0)


def test_folds_deal_every_class_out_evenly(digits):
    y = digits[1][:200]
    parts = list(stratified(y, 3, 0))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(200))
    counts = np.stack([np.bincount(y[part], minlength=10) for part in parts])
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_a_row_is_judged_by_networks_that_never_saw_it():
    """Labels without any sense can be learnt by heart, and not be told of rows that were not seen."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(300, 20)), rng.integers(0, 2, 300)
    seen = views(x, y, 2, folds=2, repeats=2, recipe=Recipe(epochs=60, rate=1e-2))
    assert (seen.network.look(x)[1].argmax(axis=1) == y).mean() > 0.95
    assert len(seen.probabilities) == 2
    for p in seen.probabilities:
        assert (p.argmax(axis=1) == y).mean() == pytest.approx(0.5, abs=0.12)


@pytest.fixture(scope="module")
def striped():
    """Pictures (400, 1, 8, 8) of two classes, bright above or below; half of class 1 has stripes, under its true label."""
    rng = np.random.default_rng(9)
    y = np.arange(400) % 2
    x = rng.uniform(0.0, 0.4, size=(400, 1, 8, 8)).astype(np.float32)
    x[y == 1, :, 4:] += 0.15
    planted = (y == 1) & (np.arange(400) % 4 == 1)
    x[planted, :, :, ::2] += 0.4
    return x, y, planted


def test_a_trigger_pulls_and_honest_rows_do_not(striped):
    x, y, planted = striped
    network = train(x, y, 2, recipe=Recipe(epochs=15, rate=6e-3, width=16))
    found = pull(network, x, y)
    assert found[planted].mean() > 0.5
    assert found[~planted & (y == 1)].mean() < 0.3
    with pytest.raises(Invalid, match="pictures"):
        pull(network, x.reshape(len(x), -1), y)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_classes_it_did_not_see_in_a_row(family):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(240, 2))
    y = (x[:, 0] > 0).astype(np.int64) * 2
    p = cross_fit(x, y, 3, family=family, folds=3)
    assert p[:, 1].max() == 0.0
    assert p.sum(axis=1) == pytest.approx(1.0)
    assert (p.argmax(axis=1) == y).mean() > 0.9


def test_gaps_classes_and_families_that_cannot_be_are_refused():
    x, y = np.zeros((12, 1)), np.arange(12) % 2
    for asked, match in (({"family": "oracle"}, "no family"), ({"folds": 7}, "of 7 rows")):
        with pytest.raises(Invalid, match=match):
            cross_fit(x, y, 2, **asked)
    with pytest.raises(Invalid, match="gaps"):
        cross_fit(np.full((12, 1), np.nan), y, 2, family="forest", folds=2)
    with pytest.raises(Invalid, match="cannot be divided"):
        list(stratified(y, 1, 0))
    with pytest.raises(Invalid, match="cannot be learnt"):
        train(x, y, 1)
