from itertools import product

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from modelkeep.extraction import evalues, foreseen
from modelkeep.extraction import reading as t
from modelkeep.extraction.perturb import Cells, Marker

CELLS = Cells(np.zeros(8, np.float32), np.eye(8, dtype=np.float32), np.zeros(8, np.float32), 0.95)


def _model(x):
    top = 1.0 / (1.0 + np.exp(-2.0 * np.sin(2.0 * x[:, 0]) * x[:, 1] - 2.0 * x[:, 2] * x[:, 3]))
    return np.stack([1.0 - top, top], axis=1)


@pytest.fixture(scope="module")
def theft():
    """1,200 questions to a model that trees fit badly, the copy that boosted trees made of the marked answers, and probes."""
    rng = np.random.default_rng(7)
    x, probes = rng.normal(size=(1200, 8)), rng.normal(size=(600, 8))
    copy = GradientBoostingRegressor(max_depth=6, min_samples_leaf=10, random_state=0)
    copy.fit(x, Marker(bytes(32), CELLS).apply(x, _model(x))[:, 1])

    def suspect(rows):
        top = np.clip(copy.predict(rows), 0.0, 1.0)
        return np.stack([1.0 - top, top], axis=1)

    return x, probes, suspect


def test_boosted_trees_learn_what_depends_on_two_columns():
    rng = np.random.default_rng(1)
    x, new = rng.normal(size=(3000, 5)), rng.normal(size=(500, 5))
    told, truth = (np.where(rows[:, 1] > 0, rows[:, 3], -rows[:, 3]) for rows in (x, new))
    guess = foreseen.boosted(x, told, new)
    assert np.mean((guess - truth) ** 2) < 0.1 * truth.var()


def test_one_tree_cuts_where_the_squared_error_falls_most():
    """Against the definition: every column, every cut, of a level with one node."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, 6, size=(60, 3)).astype(float)
    left = rng.normal(size=60) + 1.5 * (x[:, 2] > 3)
    left -= left.mean()
    leaf, _ = foreseen._grow(x.T.astype(np.int64), x.T.astype(np.int64), np.array([6, 6, 6]), left, 5)
    gains = {
        (column, cut): sum(side.sum() ** 2 / len(side) for side in (left[x[:, column] <= cut], left[x[:, column] > cut]))
        for column, cut in product(range(3), range(5))
        if 5 <= (x[:, column] > cut).sum() <= 55
    }
    column, cut = max(gains, key=gains.get)
    assert np.array_equal(leaf >> (foreseen.DEPTH - 1), (x[:, column] > cut).astype(int))
    assert np.bincount(leaf)[np.unique(leaf)].min() >= 5


def test_rows_of_one_value_and_of_many_columns_are_learnt_from():
    assert foreseen.boosted(np.ones((4, 2)), np.array([0.1, 0.2, 0.3, 0.2]), np.ones((3, 2))) == pytest.approx(0.2)
    wide = np.random.default_rng(2).normal(size=(400, 2 * foreseen.COLUMNS))
    for column in (0, 1):  # each tree sees every other column
        guess = foreseen.boosted(wide, np.sign(wide[:, column]), wide)
        assert np.mean(np.sign(guess) == np.sign(wide[:, column])) > 0.95


def test_what_is_read_of_an_answer_depends_on_no_later_question(theft):
    """A martingale bets before it sees: the account may choose what it asks, and when it stops, by what it was answered."""
    x, probes, suspect = theft
    whole, error = foreseen.surprises((x, _model(x), suspect(x)), (probes, _model(probes)))
    other = np.concatenate([x[:700], np.random.default_rng(4).uniform(-3, 3, size=(100, 8))])
    part, part_error = foreseen.surprises((other, _model(other), suspect(other)), (probes, _model(probes)))
    assert np.array_equal(whole[:700], part[:700]) and np.array_equal(error[:700], part_error[:700])
    assert not whole[: foreseen.PART].any() and (whole[foreseen.PART :] != 0).mean() > 0.9


def test_a_copy_that_errs_by_more_than_the_mark_is_named_by_what_was_not_foreseen(theft):
    """With the account's log, where all that is read beside it names nobody."""
    x, probes, suspect = theft
    reading = t.Reading(t.hear(suspect, _model, probes), 0.05)
    p, statistics = reading.weigh(bytes(32), CELLS, t.hear(suspect, _model, x))
    before = max(value for name, value in statistics.items() if name.startswith("fine-") and name != "fine-unforeseen")
    assert statistics["fine-unforeseen"] > before + 5.0
    assert p < 10.0 ** (3.0 - statistics["fine-unforeseen"])


def test_keys_that_did_not_serve_get_p_values_that_are_uniform_or_larger(theft):
    x, probes, suspect = theft
    reading = t.Reading(t.hear(suspect, _model, probes), 0.05, (-np.inf, np.inf))
    asked, rng = t.hear(suspect, _model, x[:500]), np.random.default_rng(6)
    read = [reading.weigh(rng.bytes(32), CELLS, asked) for _ in range(250)]
    p, e = np.array([p for p, _ in read]), np.array([10.0 ** statistics["fine-unforeseen"] for _, statistics in read])
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / 250)
        assert (1 / e <= level).mean() <= level + 3 * np.sqrt(level / 250)
    assert p.min() > 1e-4


def test_an_account_that_is_not_in_doubt_is_not_read_again(theft):
    """Nor does that lower its p-value: what was left out counts as nothing."""
    x, probes, suspect = theft
    told, asked = t.hear(suspect, _model, probes), t.hear(suspect, _model, x)
    p, statistics = t.Reading(told, 0.05).weigh(bytes([1]) * 32, CELLS, asked)
    assert "fine-unforeseen" not in statistics
    more, again = t.Reading(told, 0.05, (-np.inf, np.inf)).weigh(bytes([1]) * 32, CELLS, asked)
    assert "fine-unforeseen" in again and more <= p
    alone, _ = t.Reading(told, 0.05).weigh(bytes([1]) * 32, CELLS, None)
    assert alone <= 1.0 and "fine-unforeseen" not in t.Reading(told, 0.05).weigh(bytes(32), CELLS, None)[1]


def test_reports_of_before_still_hold(theft):
    """Where nothing is foreseen, p of two classes is at most a twentieth larger than by the readings of before."""
    x, probes, suspect = theft
    reading = t.Reading(t.hear(suspect, _model, probes), 0.05, (np.inf, np.inf))
    p, statistics = reading.weigh(bytes(32), CELLS, t.hear(suspect, _model, x))
    fine, smooth = ([np.log(10) * statistics[f"{kind}-{name}"] for name in t.TRANSFORMS] for kind in ("fine", "smooth"))
    assert p <= 1.05 * np.exp(-evalues.either(fine, smooth)) < 0.5


def test_answers_of_two_classes_carry_the_fine_symbol_nearly_always(tumour, digits):
    """The smooth one names no copy of two classes, and many classes need it."""
    assert (tumour.profile.fine, digits.profile.fine) == (0.95, 0.35)
