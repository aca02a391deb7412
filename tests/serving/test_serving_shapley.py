"""Shapley values: known answers, the axioms for every game, and an independent definition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.errors import TooLarge
from modelkeep.serving.shapley import Attribution, in_units, shapley

PLENTY = 1 << 16


def explain(ask, x, background, pairs=16, max_rows=PLENTY, seed=1):
    return shapley(ask, np.asarray(x, float), np.asarray(background, float), pairs=pairs, max_rows=max_rows, seed=seed)


def by_permutations(ask, x, background):
    """The definition: the mean marginal contribution over all orders and background rows."""
    phi = np.zeros(len(x))
    orders = list(itertools.permutations(range(len(x))))
    for row in background:
        for order in orders:
            now = row.copy()
            before = ask(now[None])[0]
            for j in order:
                now[j] = x[j]
                after = ask(now[None])[0]
                phi[j] += after - before
                before = after
    return phi / (len(orders) * len(background))


def network(features, seed):
    """Some function in which everything interacts."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(features, 8)), rng.normal(size=8)
    return lambda rows: np.tanh(rows @ first) @ second


def test_the_glove_game():
    """One left and two right gloves; a pair is worth 1: (2/3, 1/6, 1/6) (Shapley 1953; Maschler, Solan, Zamir, ex. 18.8)."""
    pair = lambda rows: np.minimum(rows[:, 0], np.maximum(rows[:, 1], rows[:, 2]))  # noqa: E731
    assert explain(pair, [1, 1, 1], [[0, 0, 0]]).phi == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@pytest.mark.parametrize("features", [3, 40])
def test_a_linear_model_is_explained_exactly_by_its_weights(features):
    rng = np.random.default_rng(0)
    weights, x, background = rng.normal(size=features), rng.normal(size=features), rng.normal(size=(32, features))
    found = explain(lambda rows: rows @ weights + 5, x, background, pairs=32)
    assert found.phi == pytest.approx(weights * (x - background.mean(axis=0)))
    assert (found.value, found.base) == pytest.approx((x @ weights + 5, (background @ weights + 5).mean()))
    assert (found.pairs == 0) == (features == 3)


def test_an_additive_forest_is_explained_exactly_by_its_trees():
    """A sum of stumps: each number has what its own stumps say, whatever the sample."""
    rng = np.random.default_rng(1)
    cuts, gains = rng.normal(size=20), rng.normal(size=20)
    ask = lambda rows: ((rows > cuts) * gains).sum(axis=1)  # noqa: E731
    x, background = rng.normal(size=20), rng.normal(size=(8, 20))
    found = explain(ask, x, background, pairs=8)
    assert found.phi == pytest.approx((gains * (x > cuts)) - (gains * (background > cuts)).mean(axis=0))


def test_small_rows_are_explained_as_the_definition_says():
    ask, rng = network(5, 3), np.random.default_rng(2)
    x, background = rng.normal(size=5), rng.normal(size=(3, 5))
    assert explain(ask, x, background, pairs=32).phi == pytest.approx(by_permutations(ask, x, background))


def test_a_sample_comes_close_to_the_exact_values_and_closer_with_more():
    ask, rng = network(6, 4), np.random.default_rng(3)
    x, background = rng.normal(size=6), rng.normal(size=(4, 6))
    true = by_permutations(ask, x, background)
    wide, more = np.pad(x, (0, 10)), np.pad(background, ((0, 0), (0, 10)))  # ten numbers that do nothing, so that it samples
    errors = []
    for pairs in (4, 64, 1024):
        found = explain(lambda rows: ask(rows[:, :6]), wide, more, pairs=pairs)
        assert found.pairs == pairs and np.abs(found.phi[6:]).max() < 1e-12
        errors.append(np.abs(found.phi[:6] - true).max())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32))
def test_the_values_always_add_up(features, rows, pairs, seed):
    rng, ask = np.random.default_rng(seed), network(features, seed)
    x, background = rng.normal(size=features), rng.normal(size=(rows, features))
    found = explain(ask, x, background, pairs=pairs, seed=seed)
    assert found.phi.sum() == pytest.approx(found.value - found.base, abs=1e-12)
    assert found.value == pytest.approx(ask(x[None])[0])
    used = background[: len(background) if not found.pairs else min(pairs, rows)]
    assert found.base == pytest.approx(ask(used).mean())
    assert explain(ask, x, background, pairs=pairs, seed=seed).phi.tolist() == found.phi.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32))
def test_axioms_of_symmetry_dummy_and_additivity(features, seed):
    rng = np.random.default_rng(seed)
    x, background = rng.normal(size=features), rng.normal(size=(4, features))
    x[1], background[:, 1] = x[0], background[:, 0]
    one, other = network(features, seed), network(features, seed + 1)
    alike = lambda rows: one(rows[:, [1, 0, *range(2, features)]]) + one(rows)  # noqa: E731
    found = explain(alike, x, background, pairs=4096)
    assert found.pairs == 0 and found.phi[0] == pytest.approx(found.phi[1])
    blind = lambda rows: one(np.where(np.arange(features) == 0, 0.0, rows))  # noqa: E731
    assert explain(blind, x, background).phi[0] == pytest.approx(0, abs=1e-12)
    both = explain(lambda rows: one(rows) + other(rows), x, background).phi
    assert both == pytest.approx(explain(one, x, background).phi + explain(other, x, background).phi)


def test_wide_rows_are_asked_few_at_a_time():
    sizes = []

    def ask(rows):
        sizes.append(rows.size)
        return rows.sum(axis=1)

    x = np.random.default_rng(1).normal(size=20_000)
    found = shapley(ask, x, np.zeros((8, 20_000)), pairs=1, max_rows=65_536, seed=1)
    assert np.allclose(found.phi, x) and sum(sizes) == found.rows * 20_000
    assert max(sizes) <= 1 << 22  # 32 MiB


def test_it_asks_no_more_rows_than_it_may():
    asked = []

    def ask(rows):
        asked.append(len(rows))
        return rows.sum(axis=1)

    found = explain(ask, np.ones(100), np.zeros((32, 100)), pairs=4096, max_rows=5000)
    assert sum(asked) == found.rows <= 5000 and max(asked) <= 2048 and found.pairs == 24
    with pytest.raises(TooLarge, match="at least 201 rows"):
        explain(ask, np.ones(100), np.zeros((32, 100)), max_rows=200)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.floats(-1, 1),
    st.integers(1, 4),
)
def test_rounded_values_still_add_up_and_each_is_within_a_unit(phi, base, digits):
    unit = 10.0**-digits
    found = Attribution(np.array(phi), base + math.fsum(phi), base, 0, 0)
    whole, value, start = in_units(found, unit)
    assert whole.sum() == value - start
    assert np.abs(whole * unit - found.phi).max() <= unit * (1 + 1e-9) + (unit if len(phi) == 1 else 0)
    assert abs(value * unit - found.value) <= unit / 2 * (1 + 1e-9)
