"""Models that are made to withstand the attacks, and not what the attacks are for."""

import io

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelkeep.app.labelled import labelled_npz
from modelkeep.app.robustness import Asked, evaluate

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
GRID = 8.0


def rows(seed=0):
    """Points of a grid in the square, labelled by the side of a diagonal: (n, 2), (n,)."""
    x = np.round(np.random.default_rng(seed).uniform(size=(300, 2)) * GRID) / GRID
    x = x[np.abs(x.sum(axis=1) - 1) > 0.05]
    return x, (x.sum(axis=1) > 1).astype(np.int64)


def npz(x, y):
    made = io.BytesIO()
    np.savez(made, x=x.astype(np.float32), y=y)
    return labelled_npz(made.getvalue(), "points.npz")


def classifier(before, constants, kind=TensorProto.FLOAT, *, after="p0", cut=1.0):
    """A model of two features, steep at x0 + x1 = ``cut``. ``before``: nodes; ``after``: of them, what is told."""
    weights = {"w": np.array([[-9, 9], [-9, 9]], np.float32), "b": np.array([9 * cut, -9 * cut], np.float32)}
    read = "y" if any("y" in one.output for one in before) else "x"
    nodes = [helper.make_node("Gemm", [read, "w", "b"], ["z"]), helper.make_node("Softmax", ["z"], ["p0"], axis=1)]
    early = [one for one in before if "p" not in one.output]
    late = [one for one in before if "p" in one.output]
    given = helper.make_tensor_value_info("x", kind, ["n", 2])
    told = helper.make_tensor_value_info(after, TensorProto.FLOAT, ["n", 2])
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in {**weights, **constants}.items()]
    graph = helper.make_graph([*early, *nodes, *late], "made", [given], [told], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def silent():
    """A model that answers with no number wherever an input is off the grid."""
    nodes = [
        helper.make_node("Mul", ["x", "grid"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["nearest"]),
        helper.make_node("Sub", ["scaled", "nearest"], ["off"]),
        helper.make_node("Abs", ["off"], ["far"]),
        helper.make_node("ReduceSum", ["far", "axis"], ["sum"], keepdims=1),
        helper.make_node("Sub", ["little", "sum"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["none"]),
        helper.make_node("Add", ["p0", "none"], ["p"]),
    ]
    constants = {"grid": np.float32(GRID), "axis": np.array([1]), "little": np.float32(1e-3), "zero": np.float32(0)}
    return classifier(nodes, constants, after="p")


@pytest.mark.parametrize("attacks", [("square",), ("apgd", "square")])
def test_an_answer_that_is_no_number_withstands_nothing(attacks):
    asked = Asked(attacks=attacks, epsilon=0.2, steps=5, queries=20, curve=False)
    found = evaluate("silent", silent(), npz(*rows()), asked)
    assert (found.clean.value, found.robust.value) == (1.0, 0.0)


def test_smoothing_counts_an_answer_that_is_no_number_as_one_of_its_own():
    asked = Asked(attacks=("square",), epsilon=0.2, queries=2, rows=5, curve=False, smoothing=0.1, draws=50)
    found = evaluate("silent", silent(), npz(*rows()), asked)
    assert [one.accuracy.value for one in found.certified] == [0.0] * len(found.certified) and found.certified


def test_a_model_that_always_gives_one_class_is_not_praised_for_it():
    x, y = rows()
    asked = Asked(attacks=("square",), epsilon=0.2, queries=2, curve=False)
    found = evaluate("one", classifier([], {}, cut=-9.0), npz(x, np.ones_like(y)), asked)
    assert found.robust.value == 1.0 and "one-class" in [one.name for one in found.alarms]


def test_what_fools_the_module_and_not_the_file_rings():
    """The file takes half numbers, to which the module's are rounded before it sees them."""
    step = 2.0**-10
    x = np.column_stack([1.0 + np.arange(60) % 4 * step, 1.0 + np.arange(60) // 4 * step])
    cut = 2.0 + 9.3 * step
    halves = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    model = classifier(halves, {}, TensorProto.FLOAT16, cut=cut)
    asked = Asked(attacks=("apgd",), epsilon=0.45 * step, steps=10, curve=False, low=0.5, high=1.5)
    found = evaluate("half", model, npz(x, (x.sum(axis=1) > cut).astype(np.int64)), asked)
    assert "module-falls-alone" in [one.name for one in found.alarms] and found.robust.value == 1.0


def test_what_looks_at_some_of_the_rows_looks_at_rows_of_every_part_of_the_file():
    """Rows come sorted by class, and the model always answers with that of the first."""
    x, y = rows()
    order = np.argsort(y, kind="stable")
    asked = Asked(attacks=("square",), epsilon=0.2, queries=2, curve=False, smoothing=0.1, draws=50)
    found = evaluate("first", classifier([], {}, cut=9.0), npz(x[order], y[order]), asked)
    assert 0.3 < found.clean.value < 0.7
    assert 0.3 < found.certified[0].accuracy.value < 0.7
