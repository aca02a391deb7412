"""What inputs usually look like: what is learnt, what is unusual, and that ordinary rows are let through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.formats.safetensors import dump, load
from modelkeep.serving.ranges import LEAST_SEEN, RangeCheck, Ranges, learn_ranges
from modelkeep.serving.validate import Checked, InputPlan, RangePolicy, usual

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def reference(n=200):
    """Columns: wide, narrow, constant, a code of three values, one standardised indicator, a rare code that is no set."""
    rng = np.random.default_rng(0)
    rare = np.repeat([0.0, 1.0], [n - 1, 1])
    codes = rng.integers(1, 4, n), rng.integers(0, 2, n)
    columns = [rng.uniform(0, 100, n), rng.uniform(0, 10, n), np.full(n, 7.0), *codes, rare]
    rows = np.stack(columns, axis=1).astype(np.float64)
    rows[:2, 0] = 0, 100
    rows[:, 4] = (rows[:, 4] - 0.3) / 0.7
    return rows


def test_what_is_learnt():
    found = learn_ranges(reference())
    assert (found.low[0], found.high[0], found.width[0]) == (0, 100, 100)
    assert found.columns.tolist() == [3, 4]
    assert found.members[0].tolist() == [1, 2, 3] + [3] * 13
    middle = np.median([100, np.ptp(reference()[:, 1]), 2, 1 / 0.7, 1])
    assert found.width[2] == found.width[3] == middle  # a constant is as wide as the middle column
    assert learn_ranges(np.zeros((3, 2))).width.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize(
    ("column", "value", "unusual"),
    [
        (0, 0.0, False),
        (0, -0.0, False),
        (0, 199.9, False),
        (0, 200.5, True),
        (0, -99.9, False),
        (0, -100.5, True),
        (0, 3e38, True),
        (2, 7.5, False),
        (2, 700.0, True),
        (3, 2.0, False),
        (3, 2.5, True),
        (3, 0.0, True),
        (3, 4.0, True),
        (4, np.float64(np.float32(0.7 / 0.7)), False),
        (4, np.float64(np.nextafter(np.float32(-0.3 / 0.7), np.float32(1))), False),
        (4, 0.5, True),
        (5, 1.5, False),
    ],
)
def test_known_answers(dtype, column, value, unusual):
    check = RangeCheck(learn_ranges(reference()), 1.0, dtype)
    row = np.array([[50, 5, 7, 1, 1, 0]], dtype)
    assert check.outside(row) is None
    row[0, column] = value
    assert check.outside(row) == (column if unusual else None)
    assert check.outside(np.repeat(row, 3, axis=0)) == (column if unusual else None)
    assert check.outside(np.concatenate([np.array([[50, 5, 7, 1, 1, 0]], dtype), row])) == (column if unusual else None)


def test_a_value_that_few_rows_have_makes_no_set():
    column = np.repeat([0.0, 1.0, 2.0], [50, 50, LEAST_SEEN - 1])
    assert learn_ranges(np.stack([column, np.arange(len(column), dtype=float)], axis=1)).columns.tolist() == []
    assert learn_ranges(np.append(column, 2.0)[:, None]).columns.tolist() == [0]


@given(arrays(np.float64, (12, 3), elements=st.floats(-1e300, 1e300)), st.floats(0, 10), st.sampled_from([F32, F64]))
def test_no_reference_row_is_unusual(rows, tolerance, dtype):
    if dtype == F32:
        rows = np.clip(rows, -3e38, 3e38)
    check = RangeCheck(learn_ranges(np.repeat(rows, 5, axis=0)), tolerance, dtype)
    assert check.outside(rows.astype(dtype)) is None
    assert all(check.outside(rows[i : i + 1].astype(dtype)) is None for i in range(len(rows)))


def test_they_are_stored_beside_a_profile_and_older_files_have_none():
    found = learn_ranges(reference())
    again = Ranges.from_arrays(load(dump(found.to_arrays())))
    assert all((getattr(again, name) == getattr(found, name)).all() for name in ("low", "high", "width", "columns", "members"))
    assert Ranges.from_arrays({"counts": np.zeros(5)}) is None
    for change in (
        {"ranges.version": np.array([2])},
        {"ranges.low": found.low[1:]},
        {"ranges.low": found.high + 1},
        {"ranges.columns": np.array([3, 99])},
        {"ranges.members": found.members[:, :3]},
    ):
        with pytest.raises(Invalid):
            Ranges.from_arrays(found.to_arrays() | change)
    with pytest.raises(Invalid, match="lack an array"):
        Ranges.from_arrays({"ranges.version": np.array([1])})


def plan_and_checked(rows):
    """A model of two inputs: the first takes four numbers, the second one; texts stand between them."""
    specs = (TensorSpec("a", "FP32", (-1, 2, 2)), TensorSpec("t", "BYTES", (-1, 1)), TensorSpec("b", "INT64", (-1,)))
    rows = np.atleast_2d(rows)
    feeds = {
        "a": rows[:, :4].astype(np.float32).reshape(-1, 2, 2),
        "t": np.full((len(rows), 1), "x", dtype=object),
        "b": rows[:, 4].astype(np.int64),
    }
    return InputPlan(ModelSignature(specs, ())), Checked(feeds, len(rows))


RANGES = learn_ranges(np.random.default_rng(1).uniform(0, 10, (100, 5)))


def judge(found, values):
    plan, checked = plan_and_checked(values)
    return found.check(checked, plan.matrix(checked))


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        ("nothing", "an input is outside of what this model's reference data cover"),
        ("feature", "value 3 of input 'a' is outside of what this model's reference data cover"),
        ("bounds", "value 3 of input 'a' is outside of what this model's reference data cover, -"),
    ],
)
def test_a_refusal_tells_as_much_as_the_owner_allows(tell, said):
    plan, _ = plan_and_checked([5, 5, 5, 500, 5])
    refusing = usual(RANGES, plan, RangePolicy(action="refuse", tell=tell))
    with pytest.raises(Invalid) as refused:
        judge(refusing, [5, 5, 5, 500, 5])
    assert str(refused.value).startswith(said)
    assert any(digit in str(refused.value) for digit in "456789") == (tell == "bounds")
    assert judge(refusing, [5, 5, 5, 5, 5])
    with pytest.raises(Invalid) as refused:
        judge(refusing, [[5, 5, 5, 5, 5], [5, 5, 5, 5, -80]])
    assert ("input 'b'" in str(refused.value)) == (tell != "nothing")


def test_a_policy_may_only_record_or_not_look():
    plan, _ = plan_and_checked([5, 5, 5, 500, 5])
    assert judge(usual(RANGES, plan, RangePolicy(action="record")), [5, 5, 5, 500, 5]) is False
    assert judge(usual(RANGES, plan, RangePolicy(action="record")), [5, 5, 5, 5, 5]) is True
    assert usual(RANGES, plan, RangePolicy(action="off")) is None
    assert usual(None, plan, RangePolicy(action="refuse")) is None


def test_rows_are_spread_over_the_inputs_as_they_were_gathered():
    plan, checked = plan_and_checked([1, 2, 3, 4, 5])
    rows = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1e30]])
    feeds = plan.spread(rows, checked)
    assert feeds["a"].dtype == np.float32 and feeds["a"].tolist() == [[[1, 2], [3, 4]], [[6, 7], [8, 9]]]
    assert feeds["t"].tolist() == [["x"], ["x"]] and feeds["b"].tolist() == [5, 2**63 - 1024]
    assert (plan.matrix(Checked(plan.spread(rows[:1], checked), 1)) == rows[:1]).all()


def test_a_row_is_as_wide_as_the_evidence_needs_it_where_the_signature_leaves_it_open():
    """A row of another width used to break the evidence, and with it the model for everybody."""
    from modelkeep.serving.oip import decode_request

    plan = InputPlan(ModelSignature((TensorSpec("x", "FP32", (-1, -1)),), ()), features=3)
    ask = lambda row: decode_request(  # noqa: E731
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"data":%s}]}' % (len(row), str(row).encode())
    )
    assert plan.check(ask([1, 2, 3])).rows == 1
    with pytest.raises(Invalid, match="a row has 2 numbers, and this release was calibrated on rows of 3"):
        plan.check(ask([1, 2]))
