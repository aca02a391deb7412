import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelkeep.extraction.ladder import TABLE, Rung, respond, respond_one, rung_of


@pytest.mark.parametrize(
    ("evidence", "spent", "alarmed", "rung"),
    [
        (0.5, 0.0, False, Rung.MARK),
        (29.0, 0.79, False, Rung.MARK),
        (30.0, 0.0, False, Rung.COARSE),
        (0.0, 0.8, False, Rung.COARSE),
        (200.0, 0.0, False, Rung.QUANTISED),
        (0.0, 50.0, False, Rung.QUANTISED),
        (0.0, 0.0, True, Rung.ALARM),
    ],
)
def test_known_rungs(evidence, spent, alarmed, rung):
    assert rung_of(evidence, spent, alarmed=alarmed) is rung


def test_known_answers():
    p = np.array([[0.12344, 0.87656], [0.5, 0.5]])
    assert respond(Rung.MARK, p).tolist() == [[0.1234, 0.8766], [0.5, 0.5]]
    assert respond(Rung.COARSE, p).tolist() == [[0.12, 0.88], [0.5, 0.5]]
    assert respond(Rung.QUANTISED, p).tolist() == [[0.0, 1.0], [0.5, 0.5]]
    assert respond(Rung.ALARM, p).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_a_tie_made_by_rounding_is_broken_for_the_true_top():
    p = np.array([[0.49999, 0.50001]])
    assert respond(Rung.MARK, p).tolist() == [[0.5, 0.5001]]
    assert respond(Rung.QUANTISED, p).argmax(axis=1).tolist() == [1]


@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 12)), elements=st.floats(0, 1)),
    st.sampled_from(list(Rung)),
    st.integers(1, 6),
)
def test_top_1_never_changes(raw, rung, decimals):
    total = raw.sum(axis=1, keepdims=True)
    probs = np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / raw.shape[1])
    found = respond(rung, probs, decimals)
    assert (found.argmax(axis=1) == probs.argmax(axis=1)).all()
    assert [respond_one(rung, row, decimals) for row in probs.tolist()] == found.tolist()


def test_every_rung_has_a_row_and_the_rows_tighten():
    steps = [TABLE[rung] for rung in Rung]
    assert [s.odds for s in steps] == sorted(s.odds for s in steps)
    assert [s.rate for s in steps] == sorted((s.rate for s in steps), reverse=True)
