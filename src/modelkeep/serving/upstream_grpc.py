"""What is said to an upstream over gRPC, and what is believed of its answers: messages to values and back.

A reply's ``status`` is the gRPC status code, its header ``grpc-message`` what was said about it. Tensors go raw; they may come
raw or typed. Source: Open Inference Protocol, "GRPC API" (open_inference_grpc.proto): its field numbers are in the tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.ports import Reply
from modelkeep.core.values import ModelSignature
from modelkeep.errors import Invalid, Unavailable
from modelkeep.serving.oip import MAX_TENSORS, dtype_of
from modelkeep.serving.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    fields,
    read_message,
    read_text,
    read_varints,
    write_bytes,
    write_text,
    write_varints,
)
from modelkeep.serving.upstream import (
    Arrays,
    Described,
    End,
    Question,
    after_colon,
    checked_output,
    described_as,
    from_raw,
    to_raw,
)

_SERVICE = "/inference.GRPCInferenceService/"
OK, INVALID_ARGUMENT, PERMISSION_DENIED, OUT_OF_RANGE, UNAUTHENTICATED = 0, 3, 7, 11, 16
_MANY = 256
_ANSWER = {
    1: Field("model_name", BYTES),
    2: Field("model_version", BYTES),
    3: Field("id", BYTES),
    4: Field("parameters", BYTES, _MANY),
    5: Field("outputs", BYTES, MAX_TENSORS),
    6: Field("raw_output_contents", BYTES, MAX_TENSORS),
}
_OUTPUT = {
    1: Field("name", BYTES),
    2: Field("datatype", BYTES),
    3: Field("shape", BYTES),
    4: Field("parameters", BYTES, _MANY),
    5: Field("contents", BYTES),
}
_MODEL = {
    1: Field("name", BYTES),
    2: Field("versions", BYTES, _MANY),
    3: Field("platform", BYTES),
    4: Field("inputs", BYTES, MAX_TENSORS),
    5: Field("outputs", BYTES, MAX_TENSORS),
    6: Field("parameters", BYTES, _MANY),
}
_TENSOR = {
    1: Field("name", BYTES),
    2: Field("datatype", BYTES),
    3: Field("shape", BYTES),
    4: Field("parameters", BYTES, _MANY),
}
_SERVER = {1: Field("name", BYTES), 2: Field("version", BYTES), 3: Field("extensions", BYTES, _MANY)}
_READY = {1: Field("ready", VARINT)}

# datatype → number in InferTensorContents, and the wire type of one element
_CONTENTS = {
    "BOOL": (1, VARINT),
    **dict.fromkeys(("INT8", "INT16", "INT32"), (2, VARINT)),
    "INT64": (3, VARINT),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), (4, VARINT)),
    "UINT64": (5, VARINT),
    "FP32": (6, FIXED32),
    "FP64": (7, FIXED64),
    "BYTES": (8, BYTES),
}


class Grpc:
    """``Dialect`` of gRPC."""

    def __init__(self, model: str, version: str, signature: ModelSignature) -> None:
        """``model``, ``version``: what the upstream calls it, "" = its own choice."""
        self._named = write_text(1, model) + write_text(2, version)
        self._signature = signature
        self._wanted = b"".join(write_bytes(6, write_text(1, spec.name)) for spec in signature.outputs)

    def infer(self, feeds: Mapping[str, NDArray[Any]], request_id: str) -> Question:
        """``ModelInfer``."""
        inputs = [
            write_bytes(5, write_text(1, spec.name) + write_text(2, spec.datatype) + _shape(feeds[spec.name].shape))
            for spec in self._signature.inputs
        ]
        raw = [write_bytes(7, to_raw(feeds[spec.name])) for spec in self._signature.inputs]
        return Question(
            f"{_SERVICE}ModelInfer", body=b"".join((self._named, write_text(3, request_id), *inputs, self._wanted, *raw))
        )

    def answer(self, reply: Reply, rows: int | None, request_id: str) -> Arrays:
        """What was promised, checked. Raises Invalid, Unavailable."""
        check_code(reply)
        try:
            return self._read(reply.body, rows, request_id)
        except Invalid as cause:
            raise Unavailable(f"its answer is not one of the protocol{after_colon(str(cause))}") from None

    def ready(self) -> Question:
        """``ModelReady``."""
        return Question(f"{_SERVICE}ModelReady", body=self._named)

    def check_ready(self, reply: Reply) -> None:
        """Raises Unavailable, Invalid."""
        check_code(reply)
        if read_message(memoryview(reply.body), _READY, "its answer").get("ready") != [1]:
            raise Unavailable("it says that the model is not ready")

    def who(self) -> tuple[Question, Question]:
        """``ServerMetadata`` and ``ModelMetadata``."""
        return Question(f"{_SERVICE}ServerMetadata"), Question(f"{_SERVICE}ModelMetadata", body=self._named)

    def described(self, server: Reply, model: Reply) -> Described:
        """Raises Invalid, Unavailable."""
        for reply in (server, model):
            try:
                check_code(reply)
            except Invalid as cause:
                raise Unavailable(str(cause)) from None
        try:
            read_message(memoryview(server.body), _SERVER, "its metadata")
            found = read_message(memoryview(model.body), _MODEL, "its metadata")
            ends = [[_end(part) for part in found.get(side, ())] for side in ("inputs", "outputs")]
            platform = read_text(found, "platform", 1000)
        except Invalid as cause:
            raise Unavailable(f"its metadata are not those of the protocol{after_colon(str(cause))}") from None
        return described_as(platform, *ends)._replace(binary=True)

    def _read(self, body: bytes, rows: int | None, request_id: str) -> Arrays:
        """Raises Invalid (no message of the protocol), Unavailable."""
        found = read_message(memoryview(body), _ANSWER, "its answer")
        if read_text(found, "id", 256) != request_id:
            raise Unavailable("its answer is to another request: it does not carry this one's id")
        outputs = [read_message(part, _OUTPUT, "an output") for part in found.get("outputs", ())]
        raw = found.get("raw_output_contents", [])
        if raw and len(raw) != len(outputs):
            raise Unavailable("its answer has bytes that belong to no tensor")
        promised = {spec.name: spec for spec in self._signature.outputs}
        given: Arrays = {}
        for at, said in enumerate(outputs):
            spec = promised.get(read_text(said, "name", 256))
            if spec is None:
                continue  # more than was asked for
            if spec.name in given:
                raise Unavailable(f"its answer has the output {spec.name!r} twice")
            values = _values(spec.datatype, raw[at] if raw else None, said)
            given[spec.name] = checked_output(spec, read_text(said, "datatype", 20), _sizes(said), rows, values)
        missing = [name for name in promised if name not in given]
        if missing:
            raise Unavailable(f"its answer lacks the output {missing[0]!r}")
        return given


def check_code(reply: Reply) -> None:
    """Raises Invalid (the upstream does not take the question), Unavailable (any other status but OK)."""
    if reply.status == OK:
        return
    said = after_colon(unquote(reply.headers.get(b"grpc-message", b"")[:1000].decode("ascii", "replace"), errors="replace"))
    if reply.status in (INVALID_ARGUMENT, OUT_OF_RANGE):
        raise Invalid(f"the model behind this gateway does not take the input{said}")
    if reply.status in (PERMISSION_DENIED, UNAUTHENTICATED):
        raise Unavailable(f"it does not let this gateway in (gRPC status {reply.status}): see its token")
    raise Unavailable(f"it answers with gRPC status {reply.status}{said}")


def _values(datatype: str, raw: memoryview | None, said: Mapping[str, list[Any]]) -> Any:
    def values(shape: Sequence[int]) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=object))
        if raw is not None:
            return from_raw(raw, datatype, count)
        return _typed(datatype, said.get("contents", [memoryview(b"")])[0], count)

    return values


def _typed(datatype: str, contents: memoryview, count: int) -> NDArray[Any]:
    """The array in an ``InferTensorContents``. Raises Invalid, ValueError."""
    if datatype not in _CONTENTS:
        raise ValueError(datatype)
    number, wire = _CONTENTS[datatype]
    parts: list[Any] = []
    for got, how, value in fields(contents):
        if got != number or how not in (wire, BYTES) or len(parts) > count:
            raise ValueError(datatype)
        parts.append(value)
    dtype = dtype_of(datatype)
    if wire == BYTES:
        texts = np.empty(len(parts), dtype=object)
        texts[:] = [bytes(part) for part in parts]
        return texts
    if wire != VARINT:
        return np.frombuffer(b"".join(parts), dtype.newbyteorder("<")).astype(dtype)
    arrays = [np.array([part], np.uint64) if isinstance(part, int) else read_varints(part) for part in parts]
    numbers: NDArray[Any] = np.concatenate(arrays) if arrays else np.empty(0, np.uint64)
    wide = numbers if dtype.kind in "ub" else numbers.view(np.int64)
    cast = wide.astype(dtype)
    if (cast.astype(wide.dtype) != wide).any():
        raise ValueError(datatype)
    return cast


def _end(part: memoryview) -> End:
    said = read_message(part, _TENSOR, "a tensor")
    return End(read_text(said, "name", 256), read_text(said, "datatype", 20), _sizes(said))


def _sizes(said: Mapping[str, list[Any]]) -> list[int]:
    """A shape. Raises Invalid, Unavailable."""
    sizes = [int(size) for size in read_varints(said["shape"][0]).view(np.int64)] if "shape" in said else []
    if len(sizes) > 8 or any(not -1 <= size <= 2**31 for size in sizes):
        raise Unavailable("its answer has a shape that no tensor has")
    return sizes


def _shape(shape: Sequence[int]) -> bytes:
    return write_bytes(3, write_varints(np.array(shape, np.int64).view(np.uint64)))
