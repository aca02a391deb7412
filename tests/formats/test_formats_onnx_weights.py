"""Weights of ONNX graphs, read as matrices (out, in) whoever wrote the file, and written back in place."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelkeep.errors import Invalid
from modelkeep.formats.onnx_weights import weights_of, with_weights

RNG = np.random.default_rng(1)
FIRST, SECOND, THIRD = (RNG.normal(size=shape).astype(np.float32) for shape in ((6, 4), (5, 6), (3, 5)))
KERNELS = RNG.normal(size=(2, 1, 2, 2)).astype(np.float32)


def inline(array, name):
    """A tensor as ``helper.make_tensor`` stores one: in float_data, not in raw bytes."""
    return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel().tolist())


def model(nodes, tensors, shape, dtype=TensorProto.FLOAT):
    x, y = (helper.make_tensor_value_info(name, dtype, dims) for name, dims in (("x", shape), ("y", None)))
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def dense():
    """The three ways in which exporters write a dense layer."""
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "b"], ["i"]),
        helper.make_node("MatMul", ["i", "c"], ["j"]),
        helper.make_node("Add", ["j", "d"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(FIRST, "a"),
        inline(SECOND.T.copy(), "b"),
        numpy_helper.from_array(THIRD.T.copy(), "c"),
        numpy_helper.from_array(np.ones((1, 3), np.float32), "d"),
    ]
    return model(nodes, tensors, [None, 4])


def answer(data, rows):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": rows})[0]


def test_each_is_out_by_in_in_the_order_of_the_nodes(dense):
    found = weights_of(dense)
    assert [(one.name, one.given, one.kernel) for one in found] == [("a", "x", ()), ("b", "h", ()), ("c", "i", ())]
    for one, wanted in zip(found, (FIRST, SECOND, THIRD), strict=True):
        assert np.array_equal(one.matrix, wanted.astype(np.float64))


def test_the_same_matrices_give_the_same_file(dense):
    assert with_weights(dense, [one.matrix for one in weights_of(dense)]) == dense


def test_what_is_written_is_what_the_runtime_multiplies_with(dense):
    fresh = [RNG.normal(size=one.matrix.shape) for one in weights_of(dense)]
    made, rows = with_weights(dense, fresh), RNG.normal(size=(7, 4)).astype(np.float32)
    wanted = rows @ fresh[0].T @ fresh[1].T @ fresh[2].T + 1.0
    assert len(made) == len(dense)
    assert np.allclose(answer(made, rows), wanted, atol=1e-4)


def test_kernels_of_a_convolution_are_rows(dense):
    data = model([helper.make_node("Conv", ["x", "k"], ["y"])], [numpy_helper.from_array(KERNELS, "k")], [None, 1, 5, 5])
    (found,) = weights_of(data)
    assert (found.kernel, found.groups) == ((2, 2), 1)
    assert np.array_equal(found.matrix, KERNELS.reshape(2, 4).astype(np.float64))
    rows = RNG.normal(size=(2, 1, 5, 5)).astype(np.float32)
    assert np.allclose(answer(with_weights(data, [found.matrix * 2]), rows), 2 * answer(data, rows), atol=1e-5)


def test_what_is_no_floating_weight_of_a_layer_is_none():
    tensors = [numpy_helper.from_array(np.ones((4, 4), np.int8), "q"), numpy_helper.from_array(FIRST, "unused")]
    assert weights_of(model([helper.make_node("MatMulInteger", ["x", "q"], ["y"])], tensors, [None, 4], TensorProto.INT8)) == ()


def test_a_tensor_that_two_layers_share_is_one():
    square = RNG.normal(size=(4, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    assert len(weights_of(model(nodes, [numpy_helper.from_array(square, "w")], [None, 4]))) == 1


def test_numbers_beyond_the_type_and_what_is_no_model_are_refused(dense):
    half = numpy_helper.from_array(FIRST.astype(np.float16), "a")
    data = model([helper.make_node("Gemm", ["x", "a"], ["y"], transB=1)], [half], [None, 4], TensorProto.FLOAT16)
    with pytest.raises(Invalid, match="cannot hold"):
        with_weights(data, [FIRST.astype(np.float64) * 1e6])
    for broken in (b"", dense[:-9]):
        with pytest.raises(Invalid):
            weights_of(broken)
