"""Small ONNX models for tests, made with the onnx package (which modelkeep itself never imports)."""

import functools

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@functools.cache
def sklearn_model(zipmap: bool = False) -> bytes:
    """A real classifier, as skl2onnx exports it."""
    x, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    return to_onnx(model, x[:1].astype(np.float32), options=None if zipmap else {"zipmap": False}).SerializeToString()


def graph(nodes: list[NodeProto] | None = None, initializers: list[TensorProto] | None = None, **more: object) -> GraphProto:
    """y = Identity(x), and whatever is added."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    return helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), *(nodes or [])], "g", [x], [y], initializers or [], **more
    )


def model(*args: object, **more: object) -> ModelProto:
    return helper.make_model(graph(*args, **more), ir_version=10)


def nested(depth: int) -> ModelProto:
    """``depth`` If operators, each in a branch of the one before it."""
    inner = graph()
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=graph())
        inner = graph([node])
    return helper.make_model(inner, ir_version=10)


def constant_shape(shape: list[int], *, raw: bool, as_node: bool) -> ModelProto:
    """ConstantOfShape fed by a constant: a memory bomb when ``shape`` is large."""
    if raw:
        tensor = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    else:
        tensor = helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape)
    bomb = helper.make_node("ConstantOfShape", ["shape"], ["boom"])
    if as_node:
        return model([helper.make_node("Constant", [], ["shape"], value=tensor), bomb])
    return model([bomb], [tensor])


__all__ = ["AttributeProto", "constant_shape", "graph", "model", "nested", "sklearn_model"]
