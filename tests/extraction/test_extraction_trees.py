import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from modelkeep.extraction.trees import DEPTH, Trees, fit_trees


def test_a_leaf_is_numbered_by_the_answers_of_its_levels():
    """Known answer by hand: one tree asks x0 > 1, x1 > 2, x0 > 3 and then three questions that are always no."""
    columns = np.array([[0, 1, 0, 0, 0, 0]])
    limits = np.array([[1.0, 2.0, 3.0, 9.0, 9.0, 9.0]])
    leaves = np.arange(1 << DEPTH, dtype=np.float64)[None]
    rows = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0], [4.0, 5.0], [1.0, 2.0]])
    assert Trees(columns, limits, leaves).suspicion(rows).tolist() == [0.0, 1.0, 2.0, 7.0, 0.0]


def pairs(rng, count):
    """Columns that are the same alone and differ in what goes with what; the third says nothing."""
    real = rng.normal(size=(count, 3))
    real[:, 1] = real[:, 0] + 0.3 * rng.normal(size=count)
    return real, np.stack([real[:, 0], rng.permutation(real[:, 1]), rng.normal(size=count)], axis=1)


def test_it_sees_what_goes_together_about_as_well_as_a_library_does():
    rng = np.random.default_rng(3)
    real, fake = pairs(rng, 3000)
    found = fit_trees(real, fake, np.random.default_rng(1))
    peer = HistGradientBoostingClassifier(random_state=0).fit(np.concatenate([real, fake]), np.repeat([0, 1], 3000))
    rows, truth = np.concatenate(pairs(rng, 3000)), np.repeat([0, 1], 3000)
    ours = roc_auc_score(truth, found.suspicion(rows))
    theirs = roc_auc_score(truth, peer.predict_proba(rows)[:, 1])
    assert ours > 0.8 and ours > theirs - 0.02


def test_it_is_deterministic_and_a_batch_is_judged_row_by_row():
    rng = np.random.default_rng(4)
    real, fake = pairs(rng, 300)
    one, again = (fit_trees(real, fake, np.random.default_rng(1), 20) for _ in range(2))
    assert (one.leaves == again.leaves).all() and (one.columns == again.columns).all() and (one.limits == again.limits).all()
    assert np.allclose(one.suspicion(fake), [one.suspicion(row[None])[0] for row in fake], atol=1e-12)


@pytest.mark.parametrize("width", [1, 5])
def test_columns_that_never_vary_ask_nothing(width):
    found = fit_trees(np.ones((50, width)), np.ones((70, width)), np.random.default_rng(0), 5)
    assert np.isfinite(found.suspicion(np.ones((3, width)))).all() and len(set(found.suspicion(np.ones((3, width))))) == 1
