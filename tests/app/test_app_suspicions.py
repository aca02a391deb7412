"""Planted and mislabelled rows, from the table to the finding; and why nothing was looked for, where it was not."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from modelkeep.app.datachecks import DataSet, check_data
from modelkeep.app.suspicions import suspicions
from modelkeep.core.tables import Table
from modelkeep.core.values import digest_of
from modelkeep.training.findings import Asked

ROWS = 400


def groups(wrong=(), rows=ROWS, **more):
    """Two classes that lie apart; the labels of ``wrong`` rows are turned."""
    rng = np.random.default_rng(5)
    y = np.arange(rows) % 2
    x = rng.normal(size=(rows, 3)) + 4.0 * y[:, None]
    y[list(wrong)] = 1 - y[list(wrong)]
    return Table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": y} | more)


def looked_at(table, **asked):
    asked = Asked("label", **asked)
    pytest.importorskip("sklearn.ensemble")  # it must be there before its threads can be limited
    with threadpool_limits(1):
        return suspicions(check_data(DataSet("t", digest_of(b""), table), asked), asked)


def told(check):
    return [(str(one.level), one.rows) for one in check.found.findings if one.check == "poison"]


def test_labels_that_were_turned_are_found_and_stand_in_the_quarantine():
    wrong = [3, 50, 51, 120, 200, 303, 360, 399]
    origin = np.where(np.isin(np.arange(ROWS), wrong) | (np.arange(ROWS) < 10), "visitor", "house").astype(object)
    check = looked_at(groups(wrong, origin=origin), origin="origin")
    suspected = np.flatnonzero(check.found.suspects["its label seems to be wrong"])
    assert len(set(suspected.tolist()) & set(wrong)) >= 4
    assert len(set(suspected.tolist()) - set(wrong)) <= 2
    assert told(check) == [("warning", len(suspected)), ("warning", 0)]
    assert "source visitor" in " ".join(one.said for one in check.found.findings)
    assert len(check.scores["mislabelled"]) == ROWS


def test_of_clean_rows_next_to_nothing_is_suspected():
    assert sum(rows for _, rows in told(looked_at(groups()))) <= 4


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (groups(rows=60), "100 to 100,000 rows"),
        (groups(label=np.random.default_rng(0).normal(size=ROWS)), "400 different values"),
        (groups(label=np.zeros(ROWS, dtype=np.int64)), "1 different values"),
        (groups(label=np.r_[np.zeros(ROWS - 3, dtype=np.int64), np.ones(3, dtype=np.int64)]), "a class has 3 rows"),
        (Table({"x": np.full((ROWS, 2), np.nan), "label": np.arange(ROWS) % 2}), "rows of 'x' have gaps or infinite values"),
        (Table({"id": np.arange(ROWS), "label": np.arange(ROWS) % 2}), "no column but the label"),
    ],
)
def test_where_nothing_can_be_looked_for_it_says_why(table, why):
    check = looked_at(table)
    assert told(check) == [("note", 0)]
    assert why in check.found.findings[-1].said


def test_pictures_are_learnt_from_by_a_network_and_small_ones_are_not():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    pictures = rng.integers(0, 60, (120, 8, 8, 3), dtype=np.uint8)
    pictures[y == 1, 2:6] += 120
    check = looked_at(Table({"x": pictures, "label": y}))
    assert {"pull", "contradiction"} <= set(check.scores)
    assert not [one for one in told(check) if one[0] == "error"]
    small = looked_at(Table({"x": pictures[:, :6, :6, 0], "label": y}))
    assert "pull" not in small.scores
    assert "isolation" in small.scores
