"""Inner tensors of an ONNX graph: which there are, and how one is made an output without touching the file.

Source: onnx.proto of ONNX 1.23. Two ``graph`` fields of one model are merged by every protobuf parser, lists by appending
("Encoding", section "Last One Wins"), so an output is added by a few bytes behind the file.
"""

from typing import NamedTuple

from modelkeep.errors import Invalid
from modelkeep.formats.onnx import SCHEMA, parse_onnx
from modelkeep.formats.protobuf import Fields, Walker

AUTO = "auto"
LONGEST = 256
_GRAPH, _OUTPUT, _NAME = b"\x3a", b"\x62", b"\x0a"
"""Tags of ModelProto.graph (7), GraphProto.output (12) and ValueInfoProto.name (1)."""


class _Node(NamedTuple):
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def inner_tensor(data: bytes | bytearray | memoryview, name: str) -> str:
    """The tensor ``name`` of the main graph, or with ``auto`` what its last Gemm or MatMul is given, once that is made by
    another node. Raises Invalid (there is none, or the file is no ONNX model)."""
    nodes = _nodes(memoryview(data).cast("B"))
    made = {output for node in nodes for output in node.outputs if output}
    if name == AUTO:
        ends = (node.inputs[0] for node in reversed(nodes) if node.op_type in ("Gemm", "MatMul") and node.inputs)
        found = next((first for first in ends if first in made), None)
        if found is None:
            raise Invalid("the graph has no Gemm or MatMul behind another node: name an inner tensor, or leave out --embedding")
        return found
    if name not in made or len(name.encode()) > LONGEST:
        raise Invalid(f"no node of the graph makes a tensor called {name[:80]!r}: look at the model, or say 'auto'")
    return name


def with_output(data: bytes | bytearray | memoryview, name: str) -> bytes:
    """The model with the tensor ``name`` among its outputs; as it is when it is there already. Raises Invalid."""
    if any(spec.name == name for spec in parse_onnx(data).outputs):
        return bytes(data)
    output = _message(_OUTPUT, _message(_NAME, name.encode()))
    return b"".join((data, _message(_GRAPH, output)))


def _nodes(data: memoryview) -> list[_Node]:
    """The nodes of the main graph, in its order."""
    walker = Walker(data, SCHEMA, {"NodeProto": _node, "TensorProto": _nothing})
    graphs = walker.decode("ModelProto").get("graph")
    if not graphs:
        raise Invalid("the file is not an ONNX model: it has no graph")
    return [node for node in graphs[-1].get("node", ()) if node is not None]


def _node(node: Fields) -> _Node:
    return _Node(str(node.get("op_type", [""])[-1]), tuple(node.get("input", ())), tuple(node.get("output", ())))


def _nothing(_tensor: Fields) -> None:
    return None


def _message(tag: bytes, payload: bytes) -> bytes:
    size, length = len(payload), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return tag + bytes(length) + payload
