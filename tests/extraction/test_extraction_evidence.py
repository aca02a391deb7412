from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.extraction import evidence


def test_equal_rows_have_equal_names():
    a = np.array([[0.0, 1.5], [-0.0, 1.5], [0.1, 1.5], [np.float32(0.1), 1.5]])
    names = evidence.fingerprints(a)
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert names[0] != names[2]
    assert (names > 0).all()


def test_known_p_values():
    reference = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert evidence.p_values(np.array([[5.0], [4.0], [2.5], [0.0]]), reference)[:, 0].tolist() == [0.2, 0.4, 0.6, 1.0]


@pytest.mark.parametrize("n", [99, 100, 150, 999])
def test_conformal_p_values_are_exact(n):
    """Over the n + 1 equally likely ranks of a row, P(p <= tau) is floor(tau (n + 1)) / (n + 1), and events agree."""
    reference = np.arange(1.0, n + 1.0)[None]
    every_rank = (np.arange(n + 1) + 0.5)[:, None]
    p = evidence.p_values(every_rank, reference)[:, 0]
    taus = evidence.usable_taus(n)
    limits = evidence.thresholds(reference, taus)
    for tau, limit in zip(taus, limits[0], strict=True):
        rate = Fraction(int((every_rank[:, 0] > limit).sum()), n + 1)
        assert rate == Fraction(int(np.floor(tau * (n + 1) + 1e-9)), n + 1) <= tau + 1e-12
        assert ((p <= tau + 1e-12) == (every_rank[:, 0] > limit)).all()


@given(st.lists(st.integers(0, 5), min_size=80, max_size=120), st.integers(0, 6))
def test_ties_only_make_events_rarer(values, probe):
    reference = np.sort(np.array(values, dtype=float))[None]
    taus = evidence.usable_taus(len(values))
    p = evidence.p_values(np.array([[float(probe)]]), reference)[0, 0]
    for tau, limit in zip(taus, evidence.thresholds(reference, taus)[0], strict=True):
        assert (probe > limit) == (p <= tau + 1e-12)


def test_reference_rows_are_judged_by_the_others():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 200))
    events = evidence.own_events(scores, (0.1, 0.03))
    assert events.shape == (2, 2, 200)
    assert (events.sum(axis=2) == [20, 6]).all()


def test_what_is_near_an_own_question_is_told_apart():
    scored = np.array(
        [[True, False, True, True], [True, True, False, True], [True, True, True, True]]
    )  # two scores, two levels
    nearest, steps = np.array([0.5, 1.5, 3.0]), np.array([1.0, 0.4])
    found = evidence.with_own(scored, nearest, steps, 2.0)
    assert found[:, 4:].astype(int).tolist() == [[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert (found[:, :4] == scored).all()
    assert (evidence.with_own(scored[1], 1.5, steps, 2.0) == found[1]).all()
    assert (evidence.with_own(scored, nearest, steps, 0.0) == found[:, :6]).all()


@pytest.mark.parametrize(("n", "expected"), [(80, (0.1, 0.03, 1 / 81)), (400, (0.1, 0.03, 0.01, 0.003)), (2000, evidence.TAUS)])
def test_usable_levels(n, expected):
    assert evidence.usable_taus(n) == pytest.approx(expected)
