"""The mark and the trace of models that answer with one number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

from modelkeep.errors import Invalid
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.perturb import Cells, Marker
from modelkeep.extraction.probes import draw_probes
from modelkeep.extraction.profile import Profile, with_error
from modelkeep.extraction.regression import (
    LARGEST,
    NumberMarker,
    NumberReading,
    hear_numbers,
    one_number,
    own_error,
    trace_numbers,
)
from modelkeep.extraction.trace import AccountTrail

CELLS = Cells(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), np.zeros(3, np.float32), 0.35)
SIZE = 6.0


def keys(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(32) for _ in range(count)]


class House:
    """A victim, its profile, and rows that clients hold."""

    def __init__(self):
        rng = np.random.default_rng(3)
        x = rng.normal(size=(1900, 5)).astype(np.float32).astype(np.float64)
        y = 300 + 60 * (np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]) + 40 * rng.normal(size=len(x))
        self._model = HistGradientBoostingRegressor(max_iter=60, random_state=0).fit(x[:900], y[:900])
        self.unseen = x[1200:]
        profile = fit_profile(x[900:1200], None, seed=1, numbers=lambda rows: self.predict(rows)[:, None])
        self.profile = with_error(profile, own_error(self.predict(x[900:1200]), y[900:1200]))
        self.probes = draw_probes(self.profile, 500, 1)

    def predict(self, x):
        return self._model.predict(x)


@pytest.fixture(scope="module")
def house():
    return House()


@given(
    size=st.floats(1e-6, 1e6),
    times=st.lists(st.floats(-3000.0, 3000.0), min_size=1, max_size=20),
    key=st.binary(min_size=32, max_size=32),
)
def test_no_answer_moves_by_more_than_the_size_and_each_moves(size, times, key):
    answers = np.array(times) * size
    x = np.random.default_rng(len(times)).normal(size=(len(answers), 3))
    marker = NumberMarker(key, CELLS, size)
    marked = marker.apply(x, answers)
    moved = np.abs(marked - answers)
    assert (moved <= size).all() and (moved > 0.7 * size).all()
    assert np.array_equal(marked, np.round(marked, marker.decimals)), "rounded, so that nothing of the clean answer is left"
    assert np.array_equal(marked, NumberMarker(key, CELLS, size).apply(x, answers))
    assert np.array_equal(marked[::-1], marker.apply(x[::-1], answers[::-1])), "whatever is asked beside it"


def test_the_mean_over_keys_is_the_answer_rounded():
    x, answers = np.random.default_rng(1).normal(size=(40, 3)), np.linspace(-50.0, 50.0, 40)
    marked = np.array([NumberMarker(key, CELLS, 1.0).apply(x, answers) for key in keys(600)])
    low, high = marked.min(axis=0), marked.max(axis=0)
    assert np.allclose(0.5 * (low + high), np.round(answers, 1)), "as far up as down"
    assert np.abs((marked - answers).mean(axis=0)).max() < 0.2


def test_a_question_has_its_own_sign_in_a_third_and_else_that_of_its_cell():
    x = np.random.default_rng(2).normal(size=(3000, 3))
    marker = NumberMarker(bytes(32), CELLS, 1.0)
    up = marker.apply(x, np.zeros(len(x))) > 0
    symbols, placed = marker.fine(x)
    cell = marker.cells_of(x)
    assert 0.32 < placed.mean() < 0.38
    assert np.array_equal(up[placed], symbols[placed] == 1) and np.array_equal(up[~placed], marker.smooth(cell)[~placed] == 1)


def test_its_signs_are_not_those_of_an_answer_with_classes():
    x, key = np.random.default_rng(2).normal(size=(3000, 3)), bytes(32)
    same = NumberMarker(key, CELLS, 1.0).fine(x)[0] == Marker(key, CELLS).fine(x, 2)[0]
    assert 0.46 < same.mean() < 0.54


def test_an_answer_that_could_not_carry_it_is_left_alone():
    marker = NumberMarker(bytes(32), CELLS, 1.0)
    large = LARGEST * 10.0**-marker.decimals
    answers = np.array([large, -1e300, np.inf, -np.inf, 0.5 * large])
    marked = marker.apply(np.zeros((5, 3)), answers)
    assert np.array_equal(marked[:4], answers[:4]) and marked[4] != answers[4]
    assert np.isnan(marker.apply(np.zeros((1, 3)), np.array([np.nan]))[0])


@pytest.mark.parametrize(
    ("key", "cells", "size"),
    [
        (bytes(31), CELLS, 1.0),
        (bytes(32), CELLS, 0.0),
        (bytes(32), CELLS, -1.0),
        (bytes(32), CELLS, np.nan),
        (bytes(32), CELLS, np.inf),
        (bytes(32), Cells(CELLS.mean, CELLS.slope, CELLS.offset), 1.0),
    ],
)
def test_a_marker_refuses(key, cells, size):
    with pytest.raises(Invalid):
        NumberMarker(key, cells, size)


def test_own_error():
    assert own_error(np.array([1.0, 2.0]), np.array([4.0, 6.0])) == pytest.approx(np.sqrt(12.5))
    for answers, truth in (
        (np.zeros(2), np.zeros(3)),
        (np.zeros(0), np.zeros(0)),
        (np.zeros(1), np.array([1e200])),
        (np.zeros(1), np.array([1e-120])),
    ):
        with pytest.raises(Invalid):
            own_error(answers, truth)


def test_a_copy_is_traced_to_its_account_and_to_no_other_in_any_unit(house):
    """Extremely randomised trees hold every answer that they got; in another unit, less of it is left."""
    every, x = keys(20), house.unseen
    marked = NumberMarker(every[4], house.profile, SIZE).apply(x, house.predict(x))
    copy = ExtraTreesRegressor(20, random_state=1).fit(x, marked)
    rng = np.random.default_rng(9)
    trails = [AccountTrail(f"u{i}", key, x if i == 4 else x[rng.integers(len(x), size=150)]) for i, key in enumerate(every)]
    for suspect, most in ((copy.predict, 1e-9), (lambda rows: 5.0 - 0.01 * copy.predict(rows), 1e-3)):
        probes = hear_numbers(suspect, house.predict, house.probes)
        found = trace_numbers(suspect, house.predict, trails, house.profile, probes=probes, size=SIZE)
        assert found[0].subject == "u4"
        assert found[0].p_bonferroni < most and found[1].p_bonferroni > 0.05
        assert found[0].p_bonferroni == 20 * found[0].p_value


def test_the_smooth_sign_shows_on_probes_that_nobody_asked(house):
    """Of a copy as good as can be: the model's own answers with the mark of each cell."""
    key = keys(1, 8)[0]
    marker = NumberMarker(key, house.profile, SIZE)

    def suspect(x):
        return house.predict(x) + 0.5 * SIZE * (2.0 * marker.smooth(marker.cells_of(x)) - 1.0)

    reading = NumberReading(hear_numbers(suspect, house.predict, house.probes), SIZE)
    assert reading.weigh(key, house.profile, None)[0] < 1e-6
    assert min(reading.weigh(other, house.profile, None)[0] for other in keys(50, 9)) > 1e-3


def test_p_values_of_an_independent_model_are_uniform_or_larger(house):
    """Over many keys, for a model that learnt from clean answers to the very questions that the account asked."""
    x = house.unseen[:200]
    honest = ExtraTreesRegressor(20, random_state=1).fit(x, house.predict(x))
    probes = hear_numbers(honest.predict, house.predict, house.probes)
    reading, asked = NumberReading(probes, SIZE), hear_numbers(honest.predict, house.predict, x[:100] + 0.1)
    p = np.array([reading.weigh(key, house.profile, asked)[0] for key in keys(400, seed=5)])
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 2 * np.sqrt(level / len(p))
    assert p.min() > 1e-3


def test_answers_that_are_not_one_number_are_refused(house):
    for found in (np.zeros((3, 2)), np.zeros(2), np.full(3, np.nan), np.zeros((3, 1, 1))):
        with pytest.raises(Invalid, match="one finite number a row"):
            one_number(found, 3)
    heard = hear_numbers(house.predict, house.predict, house.probes)
    with pytest.raises(Invalid, match="twice"):
        trails = [AccountTrail("u", bytes(32), house.unseen[:3])] * 2
        trace_numbers(house.predict, house.predict, trails, house.profile, probes=heard, size=SIZE)


def test_the_error_stands_in_the_profile_and_nowhere_else(house, digits):
    arrays = house.profile.to_arrays()
    assert arrays["counts"][0] == 7 and Profile.from_arrays(arrays).error == house.profile.error > 0.0
    plain = with_error(house.profile, 0.0).to_arrays()
    assert plain["counts"][0] == 6 and Profile.from_arrays(plain).error == 0.0
    for scalars in (arrays["scalars"][:4], np.append(arrays["scalars"][:4], -1.0), np.append(arrays["scalars"][:4], 0.0)):
        with pytest.raises(Invalid, match="publish the model again"):
            Profile.from_arrays({**arrays, "scalars": scalars})
    with pytest.raises(Invalid, match="one number"):
        with_error(digits.profile, 1.0)
    with pytest.raises(Invalid, match="one number"):
        with_error(house.profile, -1.0)
