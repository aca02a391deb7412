"""ONNX models that give back what they are asked, one input and one output of each datatype."""

from onnx import TensorProto, helper

ELEM = {
    "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "FP16": TensorProto.FLOAT16, "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
}  # fmt: skip


def identity(datatypes: list[str]) -> bytes:
    """A model that gives each input back: ``x_<datatype>`` as ``y_<datatype>``, shape (rows, 2)."""
    nodes = [helper.make_node("Identity", [f"x_{one}"], [f"y_{one}"]) for one in datatypes]
    ends = [[helper.make_tensor_value_info(f"{end}_{one}", ELEM[one], ["n", 2]) for one in datatypes] for end in "xy"]
    graph = helper.make_graph(nodes, "same", *ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
