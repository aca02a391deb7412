"""Read an ONNX model without the onnx package and without running it.

Source: onnx.proto of ONNX 1.23 (IR version 14). The walk
answers with everything that a scanner must judge, or raises.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.protobuf import Field, Fields, Schema, Walker

MAX_RANK = 64
MAX_ELEMENTS = 1 << 28
MAX_EXTERNAL = 1 << 15
"""Files of external data that are noted: more than a sealed container can hold, so that none is left out unnoticed."""

DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL", 10: "FP16",
    11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
"""Open Inference Protocol datatypes by TensorProto.DataType."""

_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8, 18: 8,
    19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_ALLOCATORS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "RandomNormal": -1, "RandomUniform": -1}
"""Operators whose output size a small constant decides, with the input that holds it."""

_F = Field
SCHEMA: Schema = {
    "ModelProto": {
        1: _F("ir_version", "int"), 2: _F("producer_name", "text"), 3: _F("producer_version", "text"), 4: _F("domain", "text"),
        5: _F("model_version", "int"), 6: _F("doc_string", "text"), 7: _F("graph", "GraphProto"),
        8: _F("opset_import", "OperatorSetIdProto", True), 14: _F("metadata_props", "StringStringEntryProto", True),
        20: _F("training_info", "count:payload"), 25: _F("functions", "FunctionProto", True),
    },
    "OperatorSetIdProto": {1: _F("domain", "text"), 2: _F("version", "int")},
    "StringStringEntryProto": {1: _F("key", "text"), 2: _F("value", "text")},
    "FunctionProto": {
        1: _F("name", "text"), 4: _F("input", "count:payload"), 5: _F("output", "count:payload"),
        6: _F("attribute", "count:payload"), 7: _F("node", "NodeProto", True), 8: _F("doc_string", "text"),
        9: _F("opset_import", "OperatorSetIdProto", True), 10: _F("domain", "text"),
        11: _F("attribute_proto", "AttributeProto", True), 12: _F("value_info", "ValueInfoProto", True),
        13: _F("overload", "text"), 14: _F("metadata_props", "StringStringEntryProto", True),
    },
    "GraphProto": {
        1: _F("node", "NodeProto", True), 2: _F("name", "text"), 5: _F("initializer", "TensorProto", True),
        10: _F("doc_string", "text"), 11: _F("input", "ValueInfoProto", True), 12: _F("output", "ValueInfoProto", True),
        13: _F("value_info", "ValueInfoProto", True), 14: _F("quantization_annotation", "TensorAnnotation", True),
        15: _F("sparse_initializer", "SparseTensorProto", True), 16: _F("metadata_props", "StringStringEntryProto", True),
    },
    "TensorAnnotation": {1: _F("tensor_name", "text"), 2: _F("quant_parameter_tensor_names", "StringStringEntryProto", True)},
    "NodeProto": {
        1: _F("input", "text", True), 2: _F("output", "text", True), 3: _F("name", "text"), 4: _F("op_type", "text"),
        5: _F("attribute", "AttributeProto", True), 6: _F("doc_string", "text"), 7: _F("domain", "text"),
        8: _F("overload", "text"), 9: _F("metadata_props", "StringStringEntryProto", True),
    },
    "AttributeProto": {
        1: _F("name", "text"), 2: _F("f", "float"), 3: _F("i", "int"), 4: _F("s", "blob"), 5: _F("t", "TensorProto"),
        6: _F("g", "GraphProto"), 7: _F("floats", "count:float"), 8: _F("ints", "count:int"), 9: _F("strings", "count:payload"),
        10: _F("tensors", "TensorProto", True), 11: _F("graphs", "GraphProto", True), 13: _F("doc_string", "text"),
        14: _F("tp", "TypeProto"), 15: _F("type_protos", "TypeProto", True), 20: _F("type", "int"),
        21: _F("ref_attr_name", "text"), 22: _F("sparse_tensor", "SparseTensorProto"),
        23: _F("sparse_tensors", "SparseTensorProto", True),
    },
    "ValueInfoProto": {
        1: _F("name", "text"), 2: _F("type", "TypeProto"), 3: _F("doc_string", "text"),
        4: _F("metadata_props", "StringStringEntryProto", True),
    },
    "TypeProto": {
        1: _F("tensor_type", "TypeProto.Tensor"), 4: _F("sequence_type", "count:payload"), 5: _F("map_type", "count:payload"),
        6: _F("denotation", "text"), 7: _F("opaque_type", "count:payload"), 8: _F("sparse_tensor_type", "count:payload"),
        9: _F("optional_type", "count:payload"),
    },
    "TypeProto.Tensor": {1: _F("elem_type", "int"), 2: _F("shape", "TensorShapeProto")},
    "TensorShapeProto": {1: _F("dim", "Dimension", True)},
    "Dimension": {1: _F("dim_value", "int"), 2: _F("dim_param", "text"), 3: _F("denotation", "text")},
    "TensorProto": {
        1: _F("dims", "int", True), 2: _F("data_type", "int"), 4: _F("float_data", "count:float"),
        5: _F("int32_data", "count:int"), 6: _F("string_data", "count:payload"), 7: _F("int64_data", "count:int"),
        8: _F("name", "text"), 9: _F("raw_data", "blob"),
        10: _F("double_data", "count:double"), 11: _F("uint64_data", "count:int"), 12: _F("doc_string", "text"),
        13: _F("external_data", "StringStringEntryProto", True), 14: _F("data_location", "int"),
        16: _F("metadata_props", "StringStringEntryProto", True),
    },
    "SparseTensorProto": {1: _F("values", "TensorProto"), 2: _F("indices", "TensorProto"), 3: _F("dims", "count:int")},
}  # fmt: skip


class Operator(msgspec.Struct, frozen=True, order=True):
    """An operator that the model uses; ``domain`` is empty for the standard one."""

    domain: str
    op_type: str


@dataclass
class OnnxModel:
    """What an ONNX file says about itself.

    ``operators`` includes those of subgraphs and local functions. ``external``: file locations that tensors point to;
    ``functions``: local functions; ``oversized``: tensors and nodes that claim more memory than the file backs; ``sparse``,
    ``training``: parts that nobody serves; ``unknown`` and ``doubled``: fields that onnx.proto lacks, or that occur twice where
    one belongs; ``untyped``: inputs and outputs that are not tensors. An output of unknown rank has shape (-1,).
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    operators: tuple[Operator, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    untyped: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    oversized: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    sparse: bool = False
    training: bool = False
    unknown: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    def signature(self) -> ModelSignature:
        """What the model takes and gives. Raises Invalid when an input or output is not a tensor that can be served."""
        if self.untyped:
            raise Invalid(
                f"{self.untyped[0]} is not a tensor of a known type: export the model with tensor inputs and outputs "
                "(skl2onnx: options={'zipmap': False})"
            )
        return ModelSignature(self.inputs, self.outputs)


def parse_onnx(data: bytes | bytearray | memoryview) -> OnnxModel:
    """Walk a whole model file. Raises Invalid (malformed, cut, or without a graph), TooLarge (nested or repeated too much)."""
    return _Reader(memoryview(data).cast("B")).read()


def looks_like_onnx(prefix: bytes | bytearray | memoryview) -> bool:
    """Whether a file with this prefix may be an ONNX model: it begins with an IR version and goes on with fields of a model."""
    view = memoryview(prefix)[:16].cast("B")
    if len(view) < 4 or view[0] != 0x08 or not 1 <= view[1] <= 64:
        return False
    known = SCHEMA["ModelProto"].get(view[2] >> 3)
    return known is not None and view[2] & 7 == (0 if known.kind == "int" else 2)


class _Tensor(msgspec.Struct, frozen=True):
    """A tensor constant: its name and, when it is a handful of int64, its values."""

    name: str
    small: tuple[int, ...]


class _Node(msgspec.Struct, frozen=True):
    """A node whose output size a constant decides, or that is such a constant."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    value: tuple[int, ...]


class _Reader:
    """Gathers an ``OnnxModel`` while the walker hands in one finished message after the other, innermost first."""

    def __init__(self, data: memoryview) -> None:
        handlers = {
            "NodeProto": self._node,
            "GraphProto": self._graph,
            "TensorProto": self._tensor,
            "SparseTensorProto": self._sparse,
            "AttributeProto": self._attribute,
            "FunctionProto": self._function,
        }
        self._walker = Walker(data, SCHEMA, handlers)
        self._model = OnnxModel()
        self._operators: set[Operator] = set()
        self._external: dict[str, None] = {}
        self._oversized: dict[str, None] = {}
        self._functions: list[str] = []

    def read(self) -> OnnxModel:
        top = self._walker.decode("ModelProto")
        if not top.get("graph"):
            raise Invalid("the file is not an ONNX model: it has no graph")
        model, (inputs, outputs, initializers) = self._model, top["graph"][-1]
        model.ir_version = _last(top, "ir_version", 0)
        model.producer = f"{_last(top, 'producer_name', '')} {_last(top, 'producer_version', '')}".strip()
        model.opsets = {_domain(_last(o, "domain", "")): _last(o, "version", 0) for o in top.get("opset_import", ())}
        model.metadata = {_last(e, "key", ""): _last(e, "value", "") for e in top.get("metadata_props", ())}
        model.training = "training_info" in top
        model.operators = tuple(sorted(self._operators))
        untyped: list[str] = []
        model.inputs = tuple(_specs((i for i in inputs if _last(i, "name", "") not in initializers), "input", untyped))
        model.outputs = tuple(_specs(outputs, "output", untyped))
        model.untyped, model.external, model.functions = tuple(untyped), tuple(self._external), tuple(self._functions)
        model.oversized, model.unknown = tuple(self._oversized), tuple(self._walker.unknown)
        model.doubled = tuple(self._walker.doubled)
        return model

    def _node(self, node: Fields) -> _Node | None:
        operator = Operator(_domain(_last(node, "domain", "")), _last(node, "op_type", ""))
        if len(self._operators) >= 10_000:
            raise TooLarge("the model uses more than 10,000 different operators")
        self._operators.add(operator)
        values = [value for attribute in node.get("attribute", ()) for value in attribute]
        if operator.domain or operator.op_type not in ("Constant", *_ALLOCATORS):
            return None
        return _Node(operator.op_type, tuple(node.get("input", ())), tuple(node.get("output", ())), tuple(values))

    def _graph(self, graph: Fields) -> tuple[list[Fields], list[Fields], frozenset[str]]:
        constants = {tensor.name: tensor.small for tensor in graph.get("initializer", ())}
        nodes = graph.get("node", ())
        constants |= {node.outputs[0]: node.value for node in nodes if node.op_type == "Constant" and node.outputs}
        for node in nodes:
            at = _ALLOCATORS.get(node.op_type)
            shape = (
                node.value
                if at == -1
                else constants.get(node.inputs[at], ())
                if at is not None and at < len(node.inputs)
                else ()
            )
            if math.prod(abs(extent) for extent in shape) > MAX_ELEMENTS:
                self._note(self._oversized, f"operator {node.op_type} asks for a tensor of shape {list(shape)}")
        return graph.get("input", []), graph.get("output", []), frozenset(constants)

    def _tensor(self, tensor: Fields) -> _Tensor:
        name, dims, code = _last(tensor, "name", ""), tensor.get("dims", []), _last(tensor, "data_type", 0)
        if tensor.get("external_data") or _last(tensor, "data_location", 0):
            places = [_last(e, "value", "") for e in tensor.get("external_data", ()) if _last(e, "key", "") == "location"]
            self._note(self._external, places[0] if places else "(no location)", MAX_EXTERNAL)
        elif len(dims) > MAX_RANK or min(dims, default=0) < 0 or not _backed(tensor, math.prod(dims), code):
            self._note(
                self._oversized, f"tensor {name[:80]!r} of shape {dims[:8]} does not have the bytes that its shape needs"
            )
        return _Tensor(name, _small(tensor) if code == 7 else ())

    def _sparse(self, _sparse: Fields) -> None:
        self._model.sparse = True

    def _attribute(self, attribute: Fields) -> tuple[int, ...]:
        """The small integers in an attribute: of a tensor, or a list (``Constant`` and the random operators use both)."""
        tensors = attribute.get("t", ())
        return tensors[-1].small if tensors else tuple(attribute.get("ints", (0,))[1:])

    def _function(self, function: Fields) -> None:
        if len(self._functions) < 64:
            self._functions.append(f"{_last(function, 'domain', '')}:{_last(function, 'name', '')}"[:160])

    @staticmethod
    def _note(into: dict[str, None], what: str, limit: int = 64) -> None:
        if len(into) < limit:
            into[what] = None


def _last(fields: Fields, name: str, default: Any) -> Any:
    """Protobuf: the last of a repeated singular field counts."""
    held = fields.get(name)
    return held[-1] if held else default


def _domain(text: str) -> str:
    return "" if text == "ai.onnx" else text


def _backed(tensor: Fields, count: int, code: int) -> bool:
    """Whether exactly the elements that the shape needs are in the file, in one field."""
    raw = tensor.get("raw_data")
    typed = [(name, tensor[name][0]) for name in _TYPED if tensor.get(name, [0])[0]]
    if code == _STRING:
        return raw is None and typed == ([("string_data", count)] if count else [])
    bits = _BITS.get(code)
    if bits is None:
        return False
    if raw is not None:
        return not typed and len(raw[-1]) == (count * bits + 7) // 8
    if count == 0:
        return not typed
    slots = 2 * count if code in (14, 15) else (count * bits + 7) // 8 if bits < 8 else count
    return typed == [(_STORED.get(code, "int32_data"), slots)]


_STRING = 8
_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_STORED = {
    1: "float_data", 14: "float_data", 7: "int64_data", 11: "double_data", 15: "double_data",
    12: "uint64_data", 13: "uint64_data",
}  # fmt: skip


def _small(tensor: Fields) -> tuple[int, ...]:
    """The values of an int64 tensor of at most 64 elements; empty for a larger one."""
    raw = tensor.get("raw_data")
    if raw is not None:
        return tuple(np.frombuffer(raw[-1], dtype="<i8").tolist()) if len(raw[-1]) <= 512 and len(raw[-1]) % 8 == 0 else ()
    return tuple(tensor.get("int64_data", (0,))[1:])


def _specs(values: Iterable[Fields], what: str, untyped: list[str]) -> Iterable[TensorSpec]:
    for value in values:
        name = _last(value, "name", "")
        tensors = _last(value, "type", {}).get("tensor_type", ())
        datatype = DATATYPES.get(_last(tensors[-1], "elem_type", 0)) if tensors else None
        shape = _shape(tensors[-1]) if tensors else None
        if datatype is None or (shape is None and what == "input"):
            untyped.append(f"{what} {name[:80]!r}")
        else:
            yield TensorSpec(name, datatype, (-1,) if shape is None else shape)


def _shape(tensor_type: Fields) -> tuple[int, ...] | None:
    """-1 for an extent that is open; None when even the rank is."""
    shape = _last(tensor_type, "shape", None)
    if shape is None:
        return None
    return tuple(_last(dim, "dim_value", -1) if not dim.get("dim_param") else -1 for dim in shape.get("dim", ()))
