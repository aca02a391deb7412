"""Schemas of data sets: batches add up to the whole, rows of the same source follow, and what is wrong is named."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.tables import Table
from modelkeep.errors import Invalid
from modelkeep.training import schema as schemas
from modelkeep.training.summaries import Kind, bucket_of, merge, middle_of, summarise


def text(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


def people(rows, seed, **changed):
    rng = np.random.default_rng(seed)
    columns = {
        "id": np.arange(seed * 10**6, seed * 10**6 + rows),
        "age": rng.integers(18, 91, rows),
        "income": np.round(rng.lognormal(10, 1, rows), 2),
        "married": rng.random(rows) < 0.5,
        "job": text(rng.choice(["nurse", "clerk", "cook", None], rows, p=[0.5, 0.3, 0.1, 0.1])),
        "grade": rng.integers(1, 6, rows),
        "score": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
        "face": rng.integers(0, 255, (rows, 4, 4), dtype=np.uint8),
    }
    return Table(columns | changed)


PINNED = schemas.infer(people(2000, 1))


def violations(**changed):
    return {(one.column, one.kind) for one in schemas.check(PINNED, people(500, 2, **changed))}


def altered(name, row, value):
    column = people(500, 2).columns[name].astype(np.float64 if isinstance(value, float) else people(5, 2).columns[name].dtype)
    column[row] = value
    return {name: column}


@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("rows", [1, 30, 1500])
def test_rows_of_the_same_source_follow_the_schema(seed, rows):
    assert schemas.check(PINNED, people(rows, seed)) == ()


def test_a_schema_is_what_is_there():
    found = {one.name: one for one in PINNED.columns}
    assert [one.kind for one in PINNED.columns] == [
        "integer",
        "integer",
        "number",
        "boolean",
        "text",
        "integer",
        "number",
        "tensor",
    ]
    assert found["id"].unique
    assert found["face"].unique
    assert not found["age"].unique
    assert (found["age"].low, found["age"].high) == (18, 90)
    assert set(found["job"].values) == {"nurse", "clerk", "cook"}
    assert set(found["grade"].values) == set("12345")
    assert 150 < found["job"].missing < 250
    assert (found["face"].shape, found["face"].dtype) == ((4, 4), "uint8")


@pytest.mark.parametrize(
    ("name", "row", "value", "kind"),
    [
        ("age", 3, 999, "range"),
        ("age", 3, np.nan, "missing"),
        ("income", 3, -1e9, "range"),
        ("income", 3, math.inf, "range"),
        ("job", 3, "pirate", "category"),
        ("grade", 3, 9, "range"),
    ],
)
def test_one_row_that_breaks_the_schema_is_named(name, row, value, kind):
    changed = altered(name, row, value)
    assert (name, kind) in violations(**changed)
    rows = schemas.offending(PINNED, people(500, 2, **changed))
    assert [np.flatnonzero(found).tolist() for reason, found in rows.items() if f"column {name}" in reason] == [[row]]


def test_a_code_between_the_known_ones_is_told_and_so_are_other_columns():
    evens = schemas.infer(Table({"code": np.tile([2, 4, 6, 8], 100)}))
    assert [one.kind for one in schemas.check(evens, Table({"code": np.array([2, 4, 5])}))] == ["category"]
    kinds = [(one.column, one.kind) for one in schemas.check(evens, Table({"other": np.arange(5)}))]
    assert kinds == [("code", "columns"), ("other", "columns")]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"age": text(["young"] * 500)}, ("age", "type")),
        ({"age": np.linspace(18, 90, 500)}, ("age", "type")),
        ({"id": np.zeros(500, dtype=np.int64)}, ("id", "unique")),
        ({"face": np.zeros((500, 4, 5), dtype=np.uint8)}, ("face", "shape")),
        ({"face": np.zeros((500, 4, 4))}, ("face", "shape")),
        ({"income": np.full(500, 20_000.0)}, ("income", "drift")),
        ({"married": np.zeros(500, dtype=bool)}, ("married", "drift")),
        ({"score": np.full(500, np.nan)}, ("score", "missing")),
        ({"job": text([None] * 500)}, ("job", "missing")),
    ],
)
def test_a_column_that_is_another_is_named(changed, expected):
    assert expected in violations(**changed)


def test_a_number_may_be_whole_for_once():
    assert ("income", "type") not in violations(income=np.round(people(500, 2).columns["income"]))


def test_many_new_extremes_are_told_though_each_could_be_chance():
    rng = np.random.default_rng(0)
    pinned = schemas.infer(Table({"x": rng.random(3000)}))
    one, many = (Table({"x": np.concatenate([rng.random(500), np.full(count, 1.05)])}) for count in (1, 8))
    assert schemas.check(pinned, one) == ()
    assert [violation.kind for violation in schemas.check(pinned, many)] == ["range"]


def test_the_chance_of_new_extremes_is_that_of_shuffled_cards():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(20_000):
        hits += bool((np.argsort(rng.random(30))[-2:] >= 20).all())
    assert schemas._all_extreme(2, 10, 20) == pytest.approx(10 / 30 * 9 / 29)
    assert hits / 20_000 == pytest.approx(10 / 30 * 9 / 29, abs=0.01)


def test_a_schema_outlives_its_file():
    assert schemas.decode(schemas.encode(PINNED)) == PINNED
    assert schemas.digest(schemas.decode(schemas.encode(PINNED))) == schemas.digest(PINNED)
    assert schemas.digest(schemas.infer(people(2000, 3))) != schemas.digest(PINNED)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b'{"rows":1}', b'{"rows":1,"columns":[],"version":2}', b'{"rows":1,"columns":[],"x":1}']
)
def test_what_is_no_schema_is_refused(data):
    with pytest.raises(Invalid):
        schemas.decode(data)


def test_few_rows_pin_types_alone():
    few = schemas.infer(people(10, 1))
    assert {violation.kind for violation in schemas.check(few, people(500, 2, age=text(["x"] * 500)))} == {"type"}
    assert schemas.check(few, people(500, 2)) == ()


# -- summaries --


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.integers(-50, 50).map(float)
words = st.none() | st.sampled_from(["a", "b", "c", ""]) | st.text(max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(numbers, words), min_size=2, max_size=40), st.data())
def test_batches_add_up_to_the_whole(rows, data):
    table = Table({"x": np.array([one for one, _ in rows]), "t": text([one for _, one in rows])})
    cut = data.draw(st.integers(1, len(rows) - 1))
    whole = summarise(table)
    parts = merge(summarise(table.rows(np.arange(cut))), summarise(table.rows(np.arange(cut, len(rows)))))
    for name in whole:
        same = ("kind", "rows", "missing", "infinite", "low", "high", "buckets", "shape", "dtype", "values")
        assert [getattr(parts[name], one) for one in same] == [getattr(whole[name], one) for one in same]
        keys = [one.keys for one in (parts[name], whole[name])]
        assert (keys[0] is None) == (keys[1] is None)
        assert keys[0] is None or (keys[0] == keys[1]).all()


def test_batches_of_other_types_or_columns_do_not_add_up():
    words_, whole = summarise(Table({"x": text(["a"])})), summarise(Table({"x": np.array([1])}))
    with pytest.raises(Invalid, match="in one batch and"):
        merge(words_, whole)
    with pytest.raises(Invalid, match="different columns"):
        merge(whole, summarise(Table({"y": np.array([1])})))
    nothing = summarise(Table({"x": text([None])}))
    assert merge(nothing, whole)["x"].kind is Kind.INTEGER


@given(st.floats(-1e30, 1e30))
def test_a_bucket_is_no_wider_than_two_percent_and_keeps_the_order(value):
    at = int(bucket_of(np.array([value]))[0])
    assert middle_of(at) == pytest.approx(value, rel=0.0101, abs=1e-9)
    assert int(bucket_of(np.array([middle_of(at)]))[0]) == at
    larger = value + 0.05 * abs(value) + 1e-6
    assert int(bucket_of(np.array([larger]))[0]) > at
