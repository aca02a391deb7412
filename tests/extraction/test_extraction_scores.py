"""What a suspect gives, read as class probabilities: copies that are regressions, logits, or not normalised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelkeep.errors import Invalid, Unavailable
from modelkeep.extraction.scores import Patient, read_as_probabilities


def read(table):
    table = np.asarray(table, dtype=np.float64)
    return read_as_probabilities(lambda rows: table[: len(rows)], np.zeros((len(table), 2)))(np.zeros((len(table), 2)))


def test_probabilities_stay_as_they_are_to_the_bit():
    table = np.random.default_rng(1).dirichlet(np.ones(4), size=100).round(4)
    assert (read(table) == table).all()


def test_regressions_are_cut_and_normalised_and_logits_are_not_taken_for_them():
    assert read([[0.7, 0.28], [1.02, -0.02]]) == pytest.approx(np.array([[0.714286, 0.285714], [1.0, 0.0]]), abs=1e-6)
    assert read([[-0.1, -0.9]]) == pytest.approx(np.array([[0.689974, 0.310026]]), abs=1e-6)
    assert read([[0.0, 5e-324], [2.0, 6.0]]) == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))


@given(arrays(np.float64, (5, 3), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_whatever_is_finite_becomes_probabilities_with_the_same_top(table):
    found = read(table)
    assert found.min() >= 0.0
    assert found.sum(axis=1) == pytest.approx(1.0, abs=2e-3)
    highest = found == found.max(axis=1, keepdims=True)
    assert highest[np.arange(5), table.argmax(axis=1)].all()


@pytest.mark.parametrize("given", [[[0.5]], [[np.nan, 1.0]], [0.5, 0.5]])
def test_what_is_no_table_of_classes_is_refused(given):
    with pytest.raises(Invalid, match="two or more classes"):
        read_as_probabilities(lambda _rows: np.array(given), np.zeros((1, 2)))


def test_rows_that_a_suspect_refuses_are_nan_and_all_others_are_asked_again():
    rows = np.arange(40.0)[:, None]
    table = np.concatenate([rows / 50, 1 - rows / 50], axis=1)

    def refusing(some):
        if 13.0 in some:
            raise Invalid("never heard of it")
        if 20.0 in some:
            return np.ones((len(some), 5))
        return np.concatenate([some / 50, 1 - some / 50], axis=1)

    patient = Patient(refusing)
    with pytest.raises(Invalid, match="never heard"):
        patient(rows)  # nothing was answered yet: it may be no model at all
    patient(rows[:5])
    found = patient(rows)
    refused = np.isnan(found).all(axis=1)
    assert np.flatnonzero(refused).tolist() == [13, 20] and np.array_equal(found[~refused], table[~refused])
    asked = read_as_probabilities(Patient(refusing), rows[:5], silent=True)
    assert np.flatnonzero(np.isnan(asked(rows)).any(axis=1)).tolist() == [13, 20]


def test_a_suspect_that_is_gone_is_not_taken_for_one_that_refuses():
    there = [True]

    def ask(some):
        if not there[0]:
            raise Unavailable("it is gone")
        return np.full((len(some), 2), 0.5)

    patient = Patient(ask)
    patient(np.zeros((3, 1)))
    there[0] = False
    with pytest.raises(Unavailable):
        patient(np.ones((3, 1)))
