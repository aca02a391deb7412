"""Copies, near copies, leaks and columns that say too much: against slow definitions, and on rows dealt at random."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.tables import Table
from modelkeep.training import duplicates as found


def text(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


rows_of = st.lists(
    st.tuples(st.sampled_from([0.0, -0.0, 1.0, np.nan, 2.5]), st.sampled_from(["a", "b", None]), st.integers(0, 2)),
    min_size=1,
    max_size=25,
)


def table_of(rows):
    return Table(
        {
            "x": np.array([one for one, _, _ in rows]),
            "t": text([one for _, one, _ in rows]),
            "y": np.array([one for _, _, one in rows]),
        }
    )


def plain(row):
    return tuple("missing" if one is None or one != one else one for one in row)


@given(rows_of)
def test_copies_and_contradictions_are_those_of_the_slow_definition(rows):
    table = table_of(rows)
    seen = [plain(row) for row in rows]
    assert found.copies(found.row_keys(table, ["x", "t", "y"])).tolist() == [seen.index(row) for row in seen]
    torn = [any(a[:2] == b[:2] and a[2] != b[2] for b in seen) for a in seen]
    assert found.contradictory(found.row_keys(table, ["x", "t"]), table.columns["y"]).tolist() == torn


def test_whole_numbers_equal_floats_and_columns_do_not_change_places():
    whole, floats = (
        Table({"a": np.array([1, 2]), "b": np.array([2, 1])}),
        Table({"a": np.array([1.0, 2.0]), "b": np.array([2.0, 1.0])}),
    )
    assert (found.row_keys(whole, "ab") == found.row_keys(floats, "ab")).all()
    assert len(set(found.row_keys(whole, "ab").tolist())) == 2


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_near_pairs_are_those_of_the_slow_definition(seed, width):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(60, width))
    points[30:40] = points[:10] + rng.normal(size=(10, width)) * 0.002
    blocks = np.zeros(60, dtype=np.uint64)
    slow = [
        [one, two] for one, two in itertools.combinations(range(60), 2) if np.linalg.norm(points[one] - points[two]) <= 0.02
    ]
    assert sorted(map(list, found.near_pairs(points, blocks, 0.02).tolist())) == slow


def people(rows, seed):
    rng = np.random.default_rng(seed)
    columns = {f"c{at}": rng.normal(size=rows) for at in range(6)}
    return Table(columns | {"city": text(rng.choice(["Ulm", "Graz", "Bern"], rows)), "steps": rng.integers(0, 9, rows)})


def test_rows_with_a_little_noise_are_found_and_others_are_not():
    table, rng = people(1500, 1), np.random.default_rng(0)
    columns = {name: column.copy() for name, column in table.columns.items()}
    for name, column in columns.items():
        column[1000:1050] = column[:50]
        if name.startswith("c") and name != "city":
            column[1000:1050] += rng.normal(size=50) * 0.002
    pairs = found.near_duplicates(Table(columns), list(columns))
    assert pairs.tolist() == [[at, 1000 + at] for at in range(50)]
    assert len(found.near_duplicates(table, list(columns))) == 0


def test_pictures_are_near_whatever_their_brightness():
    rng = np.random.default_rng(2)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(200, 28, 28)), axis=1), axis=2)
    smooth -= smooth.min(axis=(1, 2), keepdims=True)
    pictures = np.uint8(200 * smooth / smooth.max(axis=(1, 2), keepdims=True))
    pictures[150:160] = np.uint8(np.clip(pictures[:10] * 0.8 + 20 + rng.normal(size=(10, 28, 28)), 0, 255))
    pairs = found.near_duplicates(Table({"x": pictures}), ["x"]).tolist()
    assert [[at, 150 + at] for at in range(10)] == [pair for pair in pairs if pair[1] in range(150, 160)]
    assert len(pairs) < 20


def test_a_leak_is_told_from_rows_that_are_alike_by_nature():
    rng = np.random.default_rng(4)
    clerks = Table(
        {"age": rng.integers(20, 60, 3000), "city": text(rng.choice(list("abcdefgh"), 3000)), "n": rng.integers(0, 9, 3000)}
    )
    train, test = clerks.rows(np.arange(2000)), clerks.rows(np.arange(2000, 3000))
    fair = found.leak(train, test, list(clerks.columns))
    assert fair.p > 0.01
    assert fair.exact.mean() == pytest.approx(fair.expected, rel=0.15)
    leaking = people(1000, 5)
    held = found.leak(leaking, leaking.rows(np.arange(990, 1000)), list(leaking.columns))
    assert held.exact.all()
    assert held.p < 1e-4


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_are_dealt_at_random_are_no_leak(seed):
    rng = np.random.default_rng(seed)
    stack = Table({"x": text([str(one) for one in rng.integers(0, 4000, 3000)])})
    deal = rng.permutation(3000)
    assert found.leak(stack.rows(deal[:2400]), stack.rows(deal[2400:]), ["x"]).p > 1e-3


def test_columns_that_number_the_rows_are_told_from_measurements():
    rng = np.random.default_rng(6)
    assert found.identifying(np.arange(100))
    assert found.identifying(rng.permutation(100).astype(np.float64))
    assert found.identifying(text([f"k{at}" for at in range(100)]))
    assert not found.identifying(rng.normal(size=100))
    assert not found.identifying(np.r_[np.arange(99), 5])
    assert not found.identifying(np.arange(10))
    assert not found.identifying(text([f"remark number {at}" for at in range(100)]))
    salaries = np.unique(rng.integers(10_000, 900_000, 100))[rng.permutation(90)]
    assert len(np.unique(salaries)) == 90
    assert not found.identifying(salaries, "salary")
    assert found.identifying(salaries, "customerId")
    assert found.identifying(np.sort(salaries), "salary")
    assert found.identifying(10**9 + salaries, "number")


def test_columns_that_say_the_same_and_columns_that_tell_the_label():
    rng = np.random.default_rng(7)
    label = rng.integers(0, 3, 2000)
    table = Table(
        {
            "leak": text([["no", "yes", "perhaps"][one] for one in label]),
            "code": label + 10,
            "weak": label + rng.normal(size=2000) * 2,
            "noise": rng.normal(size=2000),
            "id": np.arange(2000),
            "still": np.zeros(2000),
        }
    )
    assert found.same_columns(table, list(table.columns)) == [("leak", "code")]
    scores = {one.column: one.score for one in found.telling(table, list(table.columns), label)}
    assert scores["leak"] == scores["code"] == 1.0
    assert 0.1 < scores["weak"] < 0.6
    assert max(scores["noise"], scores["id"], scores["still"]) < 0.05


def test_a_label_that_is_a_number_is_told_by_its_rank():
    rng = np.random.default_rng(8)
    label = rng.lognormal(size=1000)
    table = Table({"same": label * 3, "noise": rng.normal(size=1000)})
    scores = {one.column: one.score for one in found.telling(table, ["same", "noise"], label)}
    assert scores["same"] > 0.99
    assert scores["noise"] < 0.1
