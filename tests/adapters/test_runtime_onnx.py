"""onnxruntime from memory."""

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.errors import Invalid, NotTrusted


def model(*nodes, outputs=("y",), initializers=(), domains=()) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


SOFTMAX = model(helper.make_node("Softmax", ["x"], ["y"]))


def test_outputs_by_name():
    two = model(helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"]), outputs=("y", "z"))
    found = OnnxRuntime(two).run({"x": np.array([[1, -2]], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"y": [[-1, 2]], "z": [[1, 2]]}


@pytest.mark.parametrize(
    "data", [b"", b"junk", SOFTMAX[:-9], model(helper.make_node("Evil", ["x"], ["y"], domain="com.evil"), domains=["com.evil"])]
)
def test_what_is_no_model_is_not_trusted(data):
    with pytest.raises(NotTrusted, match="onnxruntime cannot load"):
        OnnxRuntime(data)


def test_external_data_is_never_read(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(np.ones(2, np.float32).tobytes())
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], np.ones(2, np.float32).tobytes(), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "8")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    data = model(helper.make_node("Add", ["x", "w"], ["y"]), initializers=[weights])
    monkeypatch.chdir(tmp_path)
    onnx.load_model_from_string(data)
    with pytest.raises(NotTrusted):
        OnnxRuntime(data)


@pytest.mark.parametrize(
    "feeds",
    [{}, {"z": np.zeros((1, 2), np.float32)}, {"x": np.zeros((1, 3), np.float32)}, {"x": np.zeros((1, 2), np.float64)}],
)
def test_inputs_that_the_model_does_not_take(feeds):
    with pytest.raises(Invalid):
        OnnxRuntime(SOFTMAX).run(feeds)


def test_threads_may_share_a_model():
    runtime, wrong = OnnxRuntime(SOFTMAX), []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            x = rng.normal(size=(3, 2)).astype(np.float32)
            e = np.exp(x - x.max(axis=1, keepdims=True))
            if not np.allclose(runtime.run({"x": x})["y"], e / e.sum(axis=1, keepdims=True), atol=1e-5):
                wrong.append(x)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
