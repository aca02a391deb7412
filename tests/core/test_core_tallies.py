"""Counts of several processes, added up."""

from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.tallies import Series, merge, retired

NAMES = ("a", "b", "c")
KINDS = {"a": ("counter", "sum"), "b": ("gauge", "min"), "c": ("gauge", "max")}
tallies = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(["", "x", "y"]), st.integers(0, 99), min_size=1))
)


def series(table):
    return [
        Series(name, "words", *KINDS[name], {row: float(value) for row, value in rows.items()}) for name, rows in table.items()
    ]


def test_known_answers():
    one = [Series("n", "w", "counter", "sum", {"": 1}), Series("lag", "w", "gauge", "max", {'{sink="a"}': 3})]
    two = [Series("n", "w", "counter", "sum", {"": 4}), Series("lag", "w", "gauge", "max", {'{sink="b"}': 2})]
    assert merge([one, two]) == [
        Series("n", "w", "counter", "sum", {"": 5}),
        Series("lag", "w", "gauge", "max", {'{sink="a"}': 3, '{sink="b"}': 2}),
    ]
    assert merge([]) == [] and merge([one]) == one
    assert retired(one) == one[:1]


@given(tallies)
def test_every_row_is_what_its_kind_says(tables):
    found = {one.name: one.rows for one in merge(series(table) for table in tables)}
    pick = {"a": sum, "b": min, "c": max}
    expected = {
        name: {row: pick[name](table[name][row] for table in tables if row in table.get(name, {})) for row in rows}
        for name, rows in found.items()
    }
    assert found == expected
    assert set(found) == {name for table in tables for name in table}


@given(tallies, st.integers(0, 5))
def test_counts_never_go_back_when_a_process_ends(tables, gone):
    before = merge(series(table) for table in tables)
    rest = [series(table) for table in tables[gone:]]
    after = merge([retired(merge(series(table) for table in tables[:gone])), *rest])
    counters = lambda found: {one.name: one.rows for one in found if one.kind == "counter"}  # noqa: E731
    assert counters(before) == counters(after)
