import numpy as np
import pytest

from modelkeep.extraction import null, synthetic


def _pool(n=240, seed=0):
    rng = np.random.default_rng(seed)
    return null.Pool(rng.normal(size=(n, 5)), rng.integers(3, size=n), rng.exponential(size=n))


def test_accounts_are_distributions_as_wide_as_promised():
    weights = null.accounts(_pool(), np.random.default_rng(1))
    assert len(weights) > 1000
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert (1 / (weights**2).sum(axis=1) >= null.smallest_account(240)).all()


def test_the_bound_holds_every_family_and_each_handling():
    pool, rng = _pool(), np.random.default_rng(2)
    weights = null.accounts(pool, rng)
    plain = (rng.random((240, 4)) < 0.05).astype(float)
    handled = {name: (rng.random((240, 4)) < 0.1).astype(float) for name in null.SHARES}
    rates = null.score_rates(weights, plain, handled)
    kappa = null.bound(rates, np.tile(1 / (weights**2).sum(axis=1), 1 + len(null.SHARES)))
    assert (rates.max(axis=0) < kappa).all()
    assert (kappa < 1).all()


def test_step_rates_agree_with_simulation():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(60, 3))
    gaps = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    weights = rng.dirichlet(np.ones(60))[None]
    exact = null.step_rates(weights, gaps, 0.05, np.array([0.25]))[0, 0]
    hits, rounds = 0, 4000
    for _ in range(rounds):
        past, now = rng.choice(60, null.OWN, p=weights[0]), rng.choice(60, p=weights[0])
        hits += bool(((gaps[now, past] > 0.05) & (gaps[now, past] < 0.25)).any())
    share = null.SHARES["what-if"]
    assert abs(share + (1 - share) * hits / rounds - exact) < 0.03


def test_rates_beside_own_questions_agree_with_simulation():
    rng = np.random.default_rng(9)
    points, odd = rng.normal(size=(60, 3)), rng.random((60, 1)) < 0.5
    gaps = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    weights = rng.dirichlet(np.ones(60))[None]
    handled = {"what-if": np.ones((60, 1)), "mistyped": np.zeros((60, 1))}
    found = null.beside_rates(weights, gaps, (0.05, 0.25), odd.astype(float), handled)[:, 0]
    hits, rounds = 0, 4000
    for _ in range(rounds):
        past, now = rng.choice(60, null.OWN, p=weights[0]), rng.choice(60, p=weights[0])
        hits += bool(odd[now, 0] and ((gaps[now, past] > 0.05) & (gaps[now, past] < 0.25)).any())
    for rate, name, extra in zip(found, handled, (null.SHARES["what-if"], 0.0), strict=True):
        assert abs(extra + (1 - null.SHARES[name]) * hits / rounds - rate) < 0.03


def test_a_small_pool_makes_the_null_wider():
    rng = np.random.default_rng(4)
    bounds = []
    for n in (100, 2000):
        pool = _pool(n)
        weights = null.accounts(pool, rng)
        rates = weights @ (np.arange(n) % 20 == 0).astype(float)[:, None]
        bounds.append(null.bound(rates, 1 / (weights**2).sum(axis=1))[0])
    assert bounds[0] > bounds[1] > 0.05


def test_handlings_keep_shape_and_touch_what_they_say():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(300, 8))
    columns = synthetic.study_columns(rows, rows.std(axis=0))
    assert np.abs(synthetic.jittered(rows, columns, 0.02, rng) - rows).max() < 0.02 * 6 * 1.2
    assert np.abs(synthetic.rounded(rows, columns) - rows).max() <= 0.051 * rows.std(axis=0).max()
    assert ((synthetic.defaulted(rows, rng) != rows).sum(axis=1) <= 2).all()
    assert ((synthetic.mistyped(rows, rng) != rows).sum(axis=1) <= 1).all()
    assert 0.5 < (synthetic.what_if(rows, rng) != rows).sum(axis=1).mean() < 3


def test_snapped_rows_hold_only_values_that_were_seen():
    rng = np.random.default_rng(6)
    rows = np.column_stack([rng.integers(3, size=200), rng.normal(size=200)]).astype(float)
    columns = synthetic.study_columns(rows, rows.std(axis=0))
    snapped = columns.snap(rng.normal(size=(50, 2)) * 3)
    assert set(snapped[:, 0]) <= {0.0, 1.0, 2.0}
    assert len(set(snapped[:, 1])) == 50


def test_whole_numbers_are_snapped_to_whole_numbers():
    rng = np.random.default_rng(7)
    rows = np.column_stack([rng.integers(10_000, size=400), rng.normal(size=400)]).astype(float)
    columns = synthetic.study_columns(rows, rows.std(axis=0))
    assert columns.whole.tolist() == [True, False]
    snapped = columns.snap(np.array([[17.4, 0.25], [-3.6, 9.0]]))
    assert snapped.tolist() == [[17.0, 0.25], [-4.0, 9.0]]


def test_a_copula_keeps_columns_and_rank_correlations_and_nothing_else():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(3000, 1))
    rows = np.concatenate([x, np.exp(x + 0.5 * rng.normal(size=x.shape)), rng.integers(4, size=x.shape), np.abs(x)], axis=1)
    made = synthetic.copula(rows, 3000, rng)
    for j in range(4):
        assert set(made[:, j]) <= set(rows[:, j])
        assert np.quantile(made[:, j], [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(rows[:, j], [0.1, 0.5, 0.9]), abs=0.1)
    ranks = [np.argsort(np.argsort(table[:, :2], axis=0), axis=0) for table in (rows, made)]
    assert np.corrcoef(ranks[1].T)[0, 1] == pytest.approx(np.corrcoef(ranks[0].T)[0, 1], abs=0.05)
    # the last column is the absolute value of the first: no rank correlation tells
    assert np.abs(np.abs(made[:, 0]) - made[:, 3]).mean() > 0.5


def test_bisections_close_in_on_the_border():
    rng = np.random.default_rng(9)
    rows = rng.uniform(-1, 1, size=(500, 3))
    made = synthetic.bisected(rows, 400, lambda x: (x[:, 0] > 0.3).astype(np.int64), rng).reshape(10, 40, 3)
    gaps = np.abs(made[:, :, 0] - 0.3).max(axis=1)
    assert all(gaps[i] <= 2.0 / 2 ** (i + 1) for i in range(10))
    assert (np.abs(made[0, :, 0]) < 1).all() and len(np.unique(made.reshape(-1, 3), axis=0)) == 400


@pytest.mark.parametrize("tops", [None, lambda x: np.zeros(len(x), dtype=np.int64)], ids=["no classes", "one class"])
def test_without_a_border_rows_are_between_two_others(tops):
    rows = np.random.default_rng(1).normal(size=(50, 3))
    made = synthetic.bisected(rows, 200, tops, np.random.default_rng(2))
    assert (made >= rows.min(axis=0)).all() and (made <= rows.max(axis=0)).all() and len(made)
