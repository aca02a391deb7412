"""Inner tensors: which one is meant, and that adding it as an output changes nothing else about the model."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.errors import Invalid
from modelkeep.formats.onnx import parse_onnx
from modelkeep.formats.onnx_inner import inner_tensor, with_output

RNG = np.random.default_rng(3)
FIRST, LAST = RNG.normal(size=(4, 7)).astype(np.float32), RNG.normal(size=(7, 3)).astype(np.float32)


def network(last: str = "MatMul", name: str = "seen") -> bytes:
    """x → MatMul → Relu (``name``) → ``last`` → Softmax."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["raw"]),
        helper.make_node("Relu", ["raw"], [name]),
        helper.make_node(last, [name, "last"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(FIRST, "first"), numpy_helper.from_array(LAST, "last")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("last", ["MatMul", "Gemm"])
def test_auto_is_what_the_last_product_is_given(last):
    assert inner_tensor(network(last), "auto") == "seen"


@pytest.mark.parametrize("name", ["raw", "seen", "logits"])
def test_a_tensor_that_a_node_makes_may_be_named(name):
    assert inner_tensor(network(), name) == name


@pytest.mark.parametrize("name", ["x", "first", "nothing", "", "p\n"])
def test_a_name_that_no_node_makes_is_refused(name):
    with pytest.raises(Invalid, match="no node of the graph makes"):
        inner_tensor(network(), name)


def test_a_product_of_the_input_alone_has_no_inner_layer():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 7])],
        [numpy_helper.from_array(FIRST, "w")],
    )
    with pytest.raises(Invalid, match="no Gemm or MatMul behind another node"):
        inner_tensor(helper.make_model(graph).SerializeToString(), "auto")


@pytest.mark.parametrize("data", [b"", b"junk", b"\x08\x07"])
def test_what_is_no_model_has_no_layers(data):
    with pytest.raises(Invalid):
        inner_tensor(data, "auto")


@pytest.mark.parametrize("length", [1, 200, 256])
def test_the_output_is_added_behind_the_file_and_the_answers_are_the_same(length):
    name = "h" * length
    data = network(name=name)
    more = with_output(memoryview(data), name)
    assert more.startswith(data) and len(more) < len(data) + length + 16
    onnx.load_model_from_string(more)
    rows = RNG.normal(size=(5, 4)).astype(np.float32)
    plain, found = OnnxRuntime(data).run({"x": rows}), OnnxRuntime(more).run({"x": rows})
    assert found.keys() == {"p", name}
    assert found["p"].tobytes() == plain["p"].tobytes()
    np.testing.assert_allclose(found[name], np.maximum(rows @ FIRST, 0), rtol=1e-5)


def test_what_is_an_output_already_is_added_no_second_time():
    data = network()
    assert with_output(data, "p") == data
    assert parse_onnx(data).outputs[0].name == "p"
