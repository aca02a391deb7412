"""The messages of ``inference.GRPCInferenceService``: bytes to frozen values and back, strictly.

Source: Open Inference Protocol, "GRPC API" (open_inference_grpc.proto of the KServe project, 2023), whose field numbers are in
the tables below. A tensor comes typed (``contents``) or raw (``raw_input_contents``, one for each input, in their order), never
both in one request; the answer is written in the form of its request, and raw where an output is FP16, which has no typed form.
"""

import math
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any, ClassVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature, ReleaseRef, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.serving.oip import (
    EXTENSIONS,
    MAX_RANK,
    MAX_TENSORS,
    SERVER_NAME,
    InputTensor,
    Outputs,
    Question,
    Reply,
    Request,
    Wanted,
    as_array,
    dtype_of,
    refuse_parameters,
)
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
    write_flag,
    write_text,
    write_varints,
)
from modelkeep.serving.raw import RawTensor, hold, to_raw

MAX_PARAMETERS = 64
_NAME, _VALUE, _DATATYPE = 256, 4096, 8
_LARGEST = 2**31
_DOUBLE = Struct("<d")

_REQUEST = {
    1: Field("model_name", BYTES),
    2: Field("model_version", BYTES),
    3: Field("id", BYTES),
    4: Field("parameters", BYTES, MAX_PARAMETERS),
    5: Field("inputs", BYTES, MAX_TENSORS),
    6: Field("outputs", BYTES, MAX_TENSORS),
    7: Field("raw_input_contents", BYTES, MAX_TENSORS),
}
_INPUT = {
    1: Field("name", BYTES),
    2: Field("datatype", BYTES),
    3: Field("shape", BYTES),
    4: Field("parameters", BYTES, MAX_PARAMETERS),
    5: Field("contents", BYTES),
}
_OUTPUT = {1: Field("name", BYTES), 2: Field("parameters", BYTES, MAX_PARAMETERS)}
_ENTRY = {1: Field("key", BYTES), 2: Field("value", BYTES)}
_PARAMETER = {
    1: Field("bool_param", VARINT),
    2: Field("int64_param", VARINT),
    3: Field("string_param", BYTES),
    4: Field("double_param", FIXED64),
    5: Field("uint64_param", VARINT),
}
_NAMED = {1: Field("name", BYTES), 2: Field("version", BYTES)}

# datatype → (number in InferTensorContents, its name there, wire type of one element)
_CONTENTS: dict[str, tuple[int, str, int]] = {
    "BOOL": (1, "bool_contents", VARINT),
    "INT8": (2, "int_contents", VARINT),
    "INT16": (2, "int_contents", VARINT),
    "INT32": (2, "int_contents", VARINT),
    "INT64": (3, "int64_contents", VARINT),
    "UINT8": (4, "uint_contents", VARINT),
    "UINT16": (4, "uint_contents", VARINT),
    "UINT32": (4, "uint_contents", VARINT),
    "UINT64": (5, "uint64_contents", VARINT),
    "FP32": (6, "fp32_contents", FIXED32),
    "FP64": (7, "fp64_contents", FIXED64),
    "BYTES": (8, "bytes_contents", BYTES),
}


class TypedTensor(msgspec.Struct, frozen=True):
    """One input whose data came typed. ``contents``: its ``InferTensorContents``, not yet understood."""

    name: str
    datatype: str
    shape: Sequence[int]
    contents: memoryview
    finite: ClassVar[bool] = False

    def values(self, datatype: str) -> NDArray[Any]:
        """The data as a flat array of ``datatype``. Raises Invalid."""
        if datatype not in _CONTENTS:
            raise Invalid(f"input {self.name!r}: {datatype} has no typed contents, send it raw")
        number, title, wire = _CONTENTS[datatype]
        count = math.prod(self.shape)
        parts: list[Any] = []
        for got, how, value in fields(self.contents):
            if got != number or how not in (wire, BYTES):
                raise Invalid(f"input {self.name!r}: the contents of {datatype} belong into {title}, and nowhere else")
            parts.append(value)
            if len(parts) > max(count, 1):
                raise Invalid(f"input {self.name!r} has more values than its shape {list(self.shape)} needs")
        if wire == BYTES:
            return np.array([bytes(part) for part in parts] or [], dtype=object)
        if wire == VARINT:
            return _integers(self.name, datatype, parts)
        return _floats(self.name, datatype, parts)


def _integers(name: str, datatype: str, parts: list[Any]) -> NDArray[Any]:
    """Numbers of ``datatype`` from packed arrays and single numbers."""
    arrays = [np.array([part], np.uint64) if isinstance(part, int) else read_varints(part) for part in parts]
    numbers = arrays[0] if len(arrays) == 1 else np.concatenate(arrays) if arrays else np.empty(0, np.uint64)
    dtype = dtype_of(datatype)
    if datatype == "BOOL":
        least, most = 0, 1
    else:
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    signed: NDArray[Any] = numbers.view(np.int64) if least < 0 else numbers
    if signed.size and (int(signed.min()) < least or int(signed.max()) > most):
        raise Invalid(f"input {name!r}: a number does not fit {datatype}")
    return signed.astype(dtype)


def _floats(name: str, datatype: str, parts: list[Any]) -> NDArray[Any]:
    dtype = dtype_of(datatype)
    for part in parts:
        if len(part) % dtype.itemsize:
            raise Invalid(f"input {name!r}: the data is cut off within a number of {datatype}")
    if len(parts) != 1:
        parts = [b"".join(parts)]
    array = np.frombuffer(parts[0], dtype.newbyteorder("<"))
    return (array if array.flags.aligned else array.copy()).astype(dtype, copy=False)


class GrpcRequest(Request, frozen=True, kw_only=True):
    """A ``ModelInferRequest``. ``raw``: its inputs came raw."""

    inputs: list[InputTensor]
    raw: bool


def read_names(body: bytes) -> tuple[str, str]:
    """``model_name`` and ``model_version`` of a ``ModelInferRequest``, of which no more is read. Raises Invalid."""
    found = read_message(memoryview(body), _REQUEST, "the request")
    return read_text(found, "model_name", _NAME), read_text(found, "model_version", _NAME)


def read_named(body: bytes) -> tuple[str, str]:
    """Name and version of a ``ModelReadyRequest`` or a ``ModelMetadataRequest``. Raises Invalid."""
    found = read_message(memoryview(body), _NAMED, "the request")
    return read_text(found, "name", _NAME), read_text(found, "version", _NAME)


def read_nothing(body: bytes) -> None:
    """A request without fields. Raises Invalid if it has any."""
    read_message(memoryview(body), {}, "the request")


def decode_grpc_request(body: bytes) -> GrpcRequest:
    """Parse a ``ModelInferRequest``. Tensor data stays as it came until ``values``. Raises Invalid."""
    found = read_message(memoryview(body), _REQUEST, "the request")
    said = [read_message(part, _INPUT, "an input") for part in found.get("inputs", ())]
    if not said:
        raise Invalid("the request has no inputs")
    raw = found.get("raw_input_contents", [])
    if raw and len(raw) != len(said):
        raise Invalid(f"raw_input_contents has {len(raw)} tensors for {len(said)} inputs")
    inputs = [_input(part, raw[at] if raw else None, len(body)) for at, part in enumerate(said)]
    outputs = [_wanted(read_message(part, _OUTPUT, "an output")) for part in found.get("outputs", ())]
    name = read_text(found, "id", _NAME)
    return GrpcRequest(
        inputs=inputs,
        raw=bool(raw),
        id=name or UNSET,
        model_name=read_text(found, "model_name", _NAME),
        outputs=outputs,
        parameters=_parameters(found),
    )


def _input(said: dict[str, list[Any]], raw: memoryview | None, size: int) -> InputTensor:
    name, datatype = read_text(said, "name", _NAME), read_text(said, "datatype", _DATATYPE)
    if not name:
        raise Invalid("an input has no name")
    shape = [int(size) for size in read_varints(said["shape"][0])] if "shape" in said else []
    if len(shape) > MAX_RANK or any(size > _LARGEST for size in shape):
        raise Invalid(f"input {name!r} has a shape that no tensor has")
    _parameters(said)
    contents = said.get("contents")
    if raw is None:
        return TypedTensor(name, datatype, shape, memoryview(hold(contents[0], size) if contents else b""))
    if contents:
        raise Invalid(f"input {name!r} has contents beside raw_input_contents: send one of them")
    return RawTensor(name, datatype, shape, hold(raw, size))


def _wanted(said: dict[str, list[Any]]) -> Wanted:
    name = read_text(said, "name", _NAME)
    if not name:
        raise Invalid("an output has no name")
    _parameters(said)
    return Wanted(name)


def _parameters(said: dict[str, list[Any]]) -> dict[str, Any]:
    """Check the parameters of a request, an input or an output. Raises Invalid."""
    given: dict[str, Any] = {}
    for part in said.get("parameters", ()):
        entry = read_message(part, _ENTRY, "a parameter")
        key = read_text(entry, "key", _NAME)
        if key in given:
            raise Invalid(f"the parameter {key[:60]!r} is given twice")
        given[key] = _parameter(key, read_message(entry.get("value", [memoryview(b"")])[0], _PARAMETER, "a parameter"))
    if given:
        refuse_parameters(given)
    return given


def _parameter(key: str, choice: dict[str, list[Any]]) -> str | int | float | bool:
    if len(choice) != 1:
        raise Invalid(f"the parameter {key[:60]!r} has {len(choice)} values")
    (kind, (value,)) = next(iter(choice.items()))
    if kind == "string_param":
        return read_text(choice, kind, _VALUE)
    if kind == "double_param":
        return float(_DOUBLE.unpack(value)[0])
    if kind == "bool_param":
        return bool(value)
    return int(value) - (1 << 64) if kind == "int64_param" and value >> 63 else int(value)


class GrpcForm(msgspec.Struct, frozen=True):
    """``Form`` of ``ModelInfer``."""

    def read(self, body: bytes) -> Question:
        """Parse a request. Raises Invalid."""
        return decode_grpc_request(body)

    def write(self, ref: ReleaseRef, request: Question, outputs: Outputs) -> Reply:
        """A ``ModelInferResponse``."""
        raw = (isinstance(request, GrpcRequest) and request.raw) or any(spec.datatype == "FP16" for spec, _ in outputs)
        return Reply(encode_grpc_response(ref, request.id, outputs, raw=raw), 0)


GRPC = GrpcForm()


def encode_grpc_response(ref: ReleaseRef, request_id: str | UnsetType, outputs: Outputs, *, raw: bool) -> bytes:
    """The message of an answer: each output under its spec's name and datatype."""
    parts = [write_text(1, ref.name), write_text(2, str(ref.version)), write_text(3, request_id or "")]
    for spec, values in outputs:
        contents = b"" if raw else write_bytes(5, _typed(as_array(values), spec.datatype))
        parts.append(write_bytes(5, _tensor(spec.name, spec.datatype, values.shape) + contents))
    if raw:
        parts += [write_bytes(6, to_raw(as_array(values), spec.datatype)) for spec, values in outputs]
    return b"".join(parts)


def _tensor(name: str, datatype: str, shape: Iterable[int]) -> bytes:
    sizes = np.array(tuple(shape), np.int64).view(np.uint64)
    return write_text(1, name) + write_text(2, datatype) + write_bytes(3, write_varints(sizes))


def _typed(array: NDArray[Any], datatype: str) -> bytes:
    """The ``InferTensorContents`` of an output."""
    number, _, wire = _CONTENTS[datatype]
    if wire == BYTES:
        texts = (item if isinstance(item, bytes) else str(item).encode() for item in array.ravel())
        return b"".join(write_bytes(number, text) for text in texts)
    if wire == VARINT:
        wide = np.uint64 if datatype.startswith("U") else np.int64
        return write_bytes(number, write_varints(array.ravel().astype(wide).view(np.uint64)))
    return write_bytes(number, to_raw(array, datatype))


# -- what else is asked --


def encode_flag(flag: bool) -> bytes:
    """A ``ServerLiveResponse``, ``ServerReadyResponse`` or ``ModelReadyResponse``."""
    return write_flag(1, flag)


def encode_server(version: str) -> bytes:
    """A ``ServerMetadataResponse``."""
    extensions = [write_text(3, name) for name in EXTENSIONS]
    return b"".join((write_text(1, SERVER_NAME), write_text(2, version), *extensions))


def encode_model(name: str, versions: Iterable[int], signature: ModelSignature, platform: str) -> bytes:
    """A ``ModelMetadataResponse``."""

    def tensors(number: int, specs: Iterable[TensorSpec]) -> list[bytes]:
        return [write_bytes(number, _tensor(spec.name, spec.datatype, spec.shape)) for spec in specs]

    said = [write_text(1, name), *(write_text(2, str(version)) for version in versions), write_text(3, platform)]
    return b"".join((*said, *tensors(4, signature.inputs), *tensors(5, signature.outputs)))
