"""The null where an account's own questions lie nearest to each other: narrow mixes, and the densest places of the data."""

import math

import numpy as np
import pytest

from modelkeep.extraction import null
from modelkeep.extraction.features import fit_embedding
from modelkeep.extraction.paces import fit_paces
from modelkeep.extraction.places import Places

TAUS = (0.1, 0.03, 0.01)


def _people(count, rng):
    """One in ten belongs to a crowd of people much alike, which is neither a class nor a subpopulation of its own."""
    rows = rng.normal(size=(count, 8))
    alike = rng.random(count) < 0.1
    rows[alike] = 0.8 + 0.12 * rng.normal(size=(alike.sum(), 8))
    return rows


@pytest.mark.parametrize("seed", range(2))
def test_an_account_among_people_much_alike_is_within_the_null(seed):
    rng = np.random.default_rng(seed)
    rows, fresh = _people(900, rng), _people(2000, rng)
    embedding = fit_embedding(rows, None, rng)
    weights = null.accounts(null.Pool(rows, np.zeros(900, dtype=np.int64), np.zeros(900)), rng)
    versions, events = {"plain": rows, "what-if": rows}, {"plain": np.zeros((900, 3)), "what-if": np.zeros((900, 3))}
    near, limits, _, kappa = fit_paces(embedding, versions, events, weights, TAUS, rng)
    points = Places(embedding).of(fresh)
    gaps = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    narrowest = null.dense_corners(gaps, math.ceil(null.smallest_account(900) / 900 * 2000), 50)
    rates, bet_on = null.step_rates(narrowest, gaps, near, limits), kappa[:3] < 0.75  # see eprocess.make_bets
    assert bet_on.any()
    assert (rates <= kappa[:3])[:, bet_on].all()


def test_corners_are_the_places_with_the_nearest_neighbours():
    points = np.concatenate([np.linspace(0.0, 1.0, 20), np.linspace(10.0, 100.0, 40)])
    weights = null.dense_corners(np.abs(points[:, None] - points[None]), 10, 5)
    assert weights.shape == (5, 60)
    assert weights[:, :20].sum(axis=1) == pytest.approx(1.0)
    assert 1.0 / (weights**2).sum(axis=1) == pytest.approx(10.0)
