"""The graph of an ONNX file as the onnx package reads it."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelkeep.errors import Invalid
from modelkeep.formats.onnx_graph import graph_of


def model(nodes, initializers):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "uint16", "uint64", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_every_kind(dtype, raw):
    values = np.array([[0, 1, 2], [3, 100, 1]]).astype(dtype)
    tensor = (
        numpy_helper.from_array(values, "w")
        if raw
        else helper.make_tensor("w", helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, values.ravel().tolist())
    )
    held = graph_of(model([helper.make_node("Identity", ["x"], ["y"])], [tensor]).SerializeToString()).constants["w"]
    assert held.dtype == values.dtype and np.array_equal(held, values)


def test_nodes_with_attributes_of_every_kind():
    node = helper.make_node(
        "Scaler", ["x", "", "w"], ["y"], domain="ai.onnx.ml",
        i=-3, f=0.5, s=b"L1", ints=[4, -5], floats=[0.25, -1.5, 3.0], t=numpy_helper.from_array(np.eye(2)),
    )  # fmt: skip
    constant = helper.make_node("Constant", [], ["w"], value_floats=[1.0, 2.5])
    graph = graph_of(model([constant, node], []).SerializeToString())
    (found,) = graph.nodes
    assert found[:4] == ("Scaler", "ai.onnx.ml", ("x", "", "w"), ("y",))
    said = dict(found.attributes)
    assert np.array_equal(said.pop("t"), np.eye(2))
    assert said == {"i": -3, "f": 0.5, "s": b"L1", "ints": (4, -5), "floats": (0.25, -1.5, 3.0)}
    assert graph.constants["w"].tolist() == [1.0, 2.5] and graph.inputs == ("x",) and graph.outputs == ("y",)


def test_a_tensor_without_its_bytes_is_refused():
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], np.ones(4, np.float32).tobytes(), raw=True)
    tensor.dims[0] = 3
    with pytest.raises(Invalid, match="does not have the bytes"):
        graph_of(model([helper.make_node("Identity", ["x"], ["y"])], [tensor]).SerializeToString())


def test_what_is_not_read_is_noted_by_none():
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [helper.make_empty_tensor_value_info("z")])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    words = helper.make_tensor("words", TensorProto.STRING, [1], [b"one"])
    graph = graph_of(model(nodes, [words]).SerializeToString())
    assert graph.nodes[0].attributes["then_branch"] is None and graph.constants["words"] is None
