"""The weight matrices of an ONNX graph: read without running it, and written back in place.

A weight is a floating-point initializer of the main graph that a Gemm, MatMul or Conv multiplies its other input by. It is
shown as a matrix (out, in), however the file stores it, so that the same network looks the same whoever exported it. Source:
onnx.proto of ONNX 1.23; operators Gemm, MatMul, Conv.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.formats.onnx import SCHEMA
from modelkeep.formats.protobuf import Field, Fields, Schema, Walker

Floats = NDArray[np.float64]

_DTYPES = {1: "<f4", 10: "<f2", 11: "<f8"}
_INLINE = {1: "float_data", 11: "double_data"}
_TENSOR = {**SCHEMA["TensorProto"], 4: Field("float_data", "blob"), 10: Field("double_data", "blob")}
_SCHEMA: Schema = {**SCHEMA, "TensorProto": _TENSOR}


class Weight(NamedTuple):
    """One weight. ``matrix``: (out, in), a copy; ``kernel``: spatial extents, () unless it is of a convolution; ``given``: the
    tensor that it is multiplied with; ``groups``: of a convolution."""

    name: str
    matrix: Floats
    kernel: tuple[int, ...]
    given: str
    groups: int = 1


class _Tensor(NamedTuple):
    name: str
    dims: tuple[int, ...]
    values: NDArray[np.floating]
    """A view into the bytes that were parsed."""


class _Node(NamedTuple):
    op_type: str
    inputs: tuple[str, ...]
    flags: Mapping[str, int]


def weights_of(data: bytes | bytearray | memoryview) -> tuple[Weight, ...]:
    """The weights of a model in the order of its nodes, each once. Raises Invalid (malformed), TooLarge."""
    return tuple(_weight(node, tensor, at) for node, tensor, at in _used(bytearray(data)))


def with_weights(data: bytes | bytearray | memoryview, matrices: Sequence[Floats]) -> bytes:
    """The file with other numbers in its weights, byte for byte the same elsewhere.

    ``matrices``: (out, in) each, as ``weights_of`` gives them. Raises Invalid (a number is beyond the range of its type).
    """
    fresh = bytearray(data)
    for (node, tensor, at), matrix in zip(_used(fresh), matrices, strict=True):
        with np.errstate(over="ignore"):
            stored = (matrix.T if _turned(node, tensor, at) else matrix).reshape(tensor.dims).astype(tensor.values.dtype)
        if not np.isfinite(stored).all():
            raise Invalid(f"the weight {tensor.name[:80]!r} cannot hold the numbers that it would be given")
        tensor.values[:] = stored.ravel()
    return bytes(fresh)


def _used(data: bytearray) -> list[tuple[_Node, _Tensor, int]]:
    """Each node that multiplies by a weight, with that tensor and at which input it stands."""
    walker = Walker(memoryview(data), _SCHEMA, {"TensorProto": _tensor, "NodeProto": _node, "AttributeProto": _flag})
    graphs = walker.decode("ModelProto").get("graph")
    if not graphs:
        raise Invalid("the file is not an ONNX model: it has no graph")
    tensors = {tensor.name: tensor for tensor in graphs[-1].get("initializer", ())}
    found, seen = [], set[str]()
    for node in graphs[-1].get("node", ()):
        for at in (1, 0) if node.op_type == "MatMul" else (1,):
            tensor = tensors.get(node.inputs[at]) if len(node.inputs) > at else None
            if tensor is not None and tensor.name not in seen and _fits(node, tensor):
                seen.add(tensor.name)
                found.append((node, tensor, at))
    return found


def _fits(node: _Node, tensor: _Tensor) -> bool:
    rank = len(tensor.dims)
    return rank == 2 if node.op_type in ("Gemm", "MatMul") else node.op_type == "Conv" and rank >= 3


def _weight(node: _Node, tensor: _Tensor, at: int) -> Weight:
    matrix = tensor.values.astype(np.float64).reshape(tensor.dims[0], -1)
    turned = matrix.T if _turned(node, tensor, at) else matrix
    return Weight(tensor.name, np.ascontiguousarray(turned), tensor.dims[2:], node.inputs[1 - at], node.flags.get("group", 1))


def _turned(node: _Node, tensor: _Tensor, at: int) -> bool:
    """Whether the file has the matrix as (in, out)."""
    return len(tensor.dims) == 2 and at == 1 and not node.flags.get("transB", 0)


def _tensor(tensor: Fields) -> _Tensor | None:
    code, dims = int(tensor.get("data_type", [0])[-1]), tuple(tensor.get("dims", ()))
    dtype = _DTYPES.get(code)
    stored = tensor.get("raw_data") or tensor.get(_INLINE.get(code, ""))
    if dtype is None or not stored or len(stored[-1]) != math.prod(dims) * np.dtype(dtype).itemsize or 0 in dims:
        return None
    return _Tensor(str(tensor.get("name", [""])[-1]), dims, np.frombuffer(stored[-1], dtype=dtype))


def _flag(attribute: Fields) -> tuple[str, int]:
    return str(attribute.get("name", [""])[-1]), int(attribute.get("i", [0])[-1])


def _node(node: Fields) -> _Node:
    flags = dict(node.get("attribute", ()))
    return _Node(str(node.get("op_type", [""])[-1]), tuple(node.get("input", ())), flags)
