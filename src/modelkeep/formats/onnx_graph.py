"""The main graph of an ONNX model with its attributes and constants: read without the onnx package and without running it.

Source: onnx.proto of ONNX 1.23. What this cannot read whole (external data, subgraphs, texts in tensors) is left out of the
graph and noted, so that whoever computes with it refuses the node that needs it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.formats.onnx import SCHEMA
from modelkeep.formats.protobuf import Field, Fields, Schema, Walker

Attribute = int | float | bytes | tuple[int, ...] | tuple[float, ...] | NDArray[Any] | None
"""None: of a kind that is not read, such as a subgraph."""

_DTYPES = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8",
}  # fmt: skip
_FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data"}
_TENSOR = {
    **SCHEMA["TensorProto"],
    4: Field("float_data", "blob"),
    5: Field("int32_data", "int", True),
    7: Field("int64_data", "int", True),
    10: Field("double_data", "blob"),
    11: Field("uint64_data", "int", True),
}
_ATTRIBUTE = {**SCHEMA["AttributeProto"], 7: Field("floats", "float", True), 8: Field("ints", "int", True)}
_SCHEMA: Schema = {**SCHEMA, "TensorProto": _TENSOR, "AttributeProto": _ATTRIBUTE}
_KINDS = {1: ("f", float), 2: ("i", int), 3: ("s", bytes)}


class Node(NamedTuple):
    """One operation. ``domain``: "" for the standard operators; an input that is left out is ""."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


class Graph(NamedTuple):
    """``nodes``: in the order of the file, which is one in which they can be computed; ``constants``: initializers and the
    values of Constant nodes, None for one that is not read; ``inputs``, ``outputs``: names."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any] | None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def graph_of(data: bytes | bytearray | memoryview) -> Graph:
    """The main graph. Raises Invalid (malformed, or with fields that onnx.proto does not have), TooLarge."""
    handlers = {"TensorProto": _tensor, "NodeProto": _node, "AttributeProto": _attribute}
    walker = Walker(memoryview(data).cast("B"), _SCHEMA, handlers)
    graphs = walker.decode("ModelProto").get("graph")
    if not graphs:
        raise Invalid("the file is not an ONNX model: it has no graph")
    if walker.unknown:
        raise Invalid(f"the model has parts that are not read: {', '.join(walker.unknown)[:200]}")
    graph = graphs[-1]
    constants = dict(graph.get("initializer", ()))
    nodes = []
    for node in graph.get("node", ()):
        if (node.op_type, node.domain) == ("Constant", "") and node.outputs:
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    names = [_last(one, "name", "") for one in graph.get("input", ())]
    return Graph(
        tuple(nodes),
        constants,
        tuple(name for name in names if name not in constants),
        tuple(_last(one, "name", "") for one in graph.get("output", ())),
    )


def _constant(node: Node) -> NDArray[Any] | None:
    held = next(iter(node.attributes.values()), None)
    if isinstance(held, bytes) or held is None:
        return None
    kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.asarray(held, dtype=kind.get(next(iter(node.attributes))))


def _tensor(tensor: Fields) -> tuple[str, NDArray[Any] | None]:
    """Its name, and its values where the bytes are there and are numbers."""
    code, dims = int(_last(tensor, "data_type", 0)), tuple(tensor.get("dims", ()))
    name, dtype, count = str(_last(tensor, "name", "")), _DTYPES.get(code), math.prod(dims)
    if dtype is None or tensor.get("external_data") or min(dims, default=0) < 0:
        return name, None
    raw = _last(tensor, "raw_data", None)
    if raw is None:
        held = tensor.get(_FIELDS.get(code, "int32_data"), [])
        if code == 10:  # the bits of a half, one in a number
            raw = np.asarray(held, "<u2").tobytes()
        elif code in (1, 11):
            raw = held[-1] if held else b""
        else:
            raw = np.asarray(held, np.int64).astype(dtype).tobytes()
    if len(raw) != count * np.dtype(dtype).itemsize:
        raise Invalid(f"the tensor {name[:80]!r} of shape {list(dims)[:8]} does not have the bytes that its shape needs")
    return name, np.frombuffer(raw, dtype=dtype).reshape(dims)


def _attribute(attribute: Fields) -> tuple[str, Attribute]:
    name, kind = str(_last(attribute, "name", "")), int(_last(attribute, "type", 0))
    if kind in _KINDS:
        field, made = _KINDS[kind]
        return name, made(_last(attribute, field, made()))
    if kind == 4 and attribute.get("t"):
        return name, attribute["t"][-1][1]
    if kind in (6, 7):
        return name, tuple(attribute.get("floats" if kind == 6 else "ints", ()))
    return name, None


def _node(node: Fields) -> Node:
    domain = str(_last(node, "domain", ""))
    return Node(
        str(_last(node, "op_type", "")),
        "" if domain == "ai.onnx" else domain,
        tuple(node.get("input", ())),
        tuple(node.get("output", ())),
        dict(node.get("attribute", ())),
    )


def _last(fields: Fields, name: str, default: Any) -> Any:
    held = fields.get(name)
    return held[-1] if held else default
