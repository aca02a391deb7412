"""Open Inference Protocol v2, REST JSON: bytes to frozen values and back, strictly.

Source: Open Inference Protocol, "REST API", https://github.com/kserve/open-inference-protocol. Stricter than it must be:
a key that stands twice, an unknown key, a number that is not finite and nesting deeper than a tensor's rank are refused,
because two readers of one body must never understand two different things.
"""

import json
import math
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, UnsetType
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature, ReleaseRef, TensorSpec
from modelkeep.errors import Invalid

MAX_RANK = 8
MAX_TENSORS = 64

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Parameters = dict[Annotated[str, Meta(max_length=256)], Annotated[str, Meta(max_length=4096)] | int | float | bool]
Parameters = Mapping[str, str | int | float | bool]
"""What clients say besides: of a request, an input or an output. What is not known here changes nothing."""


class InputTensor(Protocol):
    """One input of a request, in whatever form it came: its data is not understood before ``values``."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def finite(self) -> bool:
        """Whether FP32 and FP64 data can hold nothing but finite numbers in this form."""
        ...

    def values(self, datatype: str) -> NDArray[Any]:
        """The data as a flat array of ``datatype``, row-major; of BYTES an array of bytes objects. Raises Invalid."""
        ...


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of a request. ``data``: the JSON array as it came, flat or nested, not yet understood."""

    name: _Name
    datatype: Annotated[str, Meta(max_length=8)]
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**31)]], Meta(max_length=MAX_RANK)]
    data: Raw
    parameters: _Parameters | UnsetType = UNSET
    finite: ClassVar[bool] = True  # JSON has no other numbers, and ``tensor_array`` refuses what does not fit

    def values(self, datatype: str) -> NDArray[Any]:
        """The data as a flat array of ``datatype``. Raises Invalid."""
        return tensor_array(self, datatype)


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output that the client asks for by name."""

    name: _Name
    parameters: _Parameters | UnsetType = UNSET


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An inference request but for its inputs. ``outputs`` unset or empty: every output that is served.

    ``model_name``: some clients say it again in the body; it must be the model that was addressed.
    """

    id: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET
    model_name: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET
    outputs: Annotated[list[Wanted], Meta(max_length=MAX_TENSORS)] | UnsetType = UNSET
    parameters: _Parameters | UnsetType = UNSET

    def output_names(self) -> tuple[str, ...]:
        """The outputs asked for by name; empty: all."""
        return tuple(wanted.name for wanted in self.outputs) if self.outputs else ()

    def check_model(self, name: str) -> None:
        """Raise Invalid if the body names another model than ``name``."""
        if self.model_name is not UNSET and self.model_name != name:
            raise Invalid(f"the body names the model {self.model_name[:64]!r}, but {name} was addressed")


class InferRequest(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An inference request whose inputs are all JSON."""

    inputs: Annotated[list[Tensor], Meta(min_length=1, max_length=MAX_TENSORS)]


class Question(Protocol):
    """An inference request in whatever form it came."""

    @property
    def id(self) -> str | UnsetType: ...
    @property
    def inputs(self) -> Sequence[InputTensor]: ...
    @property
    def outputs(self) -> Sequence[Wanted] | UnsetType: ...
    @property
    def parameters(self) -> Parameters | UnsetType: ...
    def output_names(self) -> tuple[str, ...]: ...
    def check_model(self, name: str) -> None: ...


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer as it leaves. ``json_size``: so many bytes of ``body`` are JSON and the rest is raw; -1: all of it is JSON."""

    body: bytes
    json_size: int = -1


class Row(msgspec.Struct, frozen=True, gc=False):
    """An output of one row of numbers, which need not become an array to be written as JSON."""

    numbers: list[float]

    @property
    def shape(self) -> tuple[int, int]:
        """As an array of it has: (1, numbers)."""
        return 1, len(self.numbers)

    def array(self) -> NDArray[np.float64]:
        """The same as an array, shape (1, numbers)."""
        return np.array((self.numbers,))


Values = NDArray[Any] | Row
Outputs = Sequence[tuple[TensorSpec, Values]]


def as_array(values: Values) -> NDArray[Any]:
    """An output as an array."""
    return values.array() if isinstance(values, Row) else values


class Form(Protocol):
    """A way to write requests and their answers down. ``rest`` has JSON with and without binary tensors, ``grpc`` protobuf."""

    def read(self, body: bytes) -> Question:
        """Parse a request, strictly. Raises Invalid."""
        ...

    def write(self, ref: ReleaseRef, request: Question, outputs: Outputs) -> Reply:
        """The answer to ``request``: each output under its spec's name and datatype. Raises Invalid."""
        ...


_REQUEST = msgspec.json.Decoder(InferRequest)
_FLOATS = msgspec.json.Decoder(list[float])
_INTS = msgspec.json.Decoder(list[int])
_BOOLS = msgspec.json.Decoder(list[bool])
_TEXTS = msgspec.json.Decoder(list[str])

# datatype → (decoder of a flat JSON array, array typecode that checks the range of integers, numpy dtype)
_CODING: dict[str, tuple[msgspec.json.Decoder[Any], str, np.dtype[Any]]] = {
    "FP32": (_FLOATS, "f", np.dtype(np.float32)),
    "FP64": (_FLOATS, "d", np.dtype(np.float64)),
    "INT64": (_INTS, "q", np.dtype(np.int64)),
    "INT32": (_INTS, "i", np.dtype(np.int32)),
    "INT16": (_INTS, "h", np.dtype(np.int16)),
    "INT8": (_INTS, "b", np.dtype(np.int8)),
    "UINT64": (_INTS, "Q", np.dtype(np.uint64)),
    "UINT32": (_INTS, "I", np.dtype(np.uint32)),
    "UINT16": (_INTS, "H", np.dtype(np.uint16)),
    "UINT8": (_INTS, "B", np.dtype(np.uint8)),
    "FP16": (_FLOATS, "", np.dtype(np.float16)),
    "BOOL": (_BOOLS, "", np.dtype(np.bool_)),
    "BYTES": (_TEXTS, "", np.dtype(np.object_)),
}

DATATYPES = frozenset(_CODING)
"""The Open Inference Protocol datatypes that are read and written."""


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of an Open Inference Protocol datatype (BYTES is object). Raises Invalid."""
    try:
        return _CODING[datatype][2]
    except KeyError:
        raise Invalid(f"datatype {datatype[:20]!r} is not one of {', '.join(sorted(DATATYPES))}") from None


BINARY_SIZE = "binary_data_size"
"""The parameter of a tensor that follows the JSON in its raw form: its size in bytes."""
R = TypeVar("R", bound=Request)


def decode_request(body: bytes) -> InferRequest:
    """Parse the body of ``POST …/infer``. Tensor data stays JSON until ``values``. Raises Invalid."""
    request = decode_strictly(_REQUEST, body)
    if body.count(b":") != colons(request, request.inputs) or b"\\" in body:
        refuse_twice(body)
    return request


def decode_strictly(decoder: msgspec.json.Decoder[R], body: bytes) -> R:
    """Parse ``body``. Raises Invalid, with what is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as cause:
        if b'"shared_memory_region"' in body:  # such an input has no data, which would be the complaint
            raise Invalid(_NOT_OFFERED["shared_memory_region"]) from None
        raise Invalid(f"the body is not an inference request: {cause}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Invalid(f"the body is not JSON: {cause}") from None
    except RecursionError:
        raise Invalid("the body is not an inference request: arrays or objects are nested too deep") from None


_NOT_OFFERED = {
    "shared_memory_region": "shared memory is not offered here: send the data in the request, and get it in the answer",
    "classification": "classification by the server is not offered here: ask for the output itself",
    BINARY_SIZE: "binary_data_size needs the header inference-header-content-length, which tells where the JSON ends",
}


def refuse_parameters(given: Parameters, known: tuple[str, ...] = ()) -> None:
    """Refuse parameters that ask for what is not done here, unless ``known``, and a flag that is no bool. Raises Invalid."""
    for name, why in _NOT_OFFERED.items():
        if name in given and name not in known:
            raise Invalid(why)
    for name in ("binary_data", "binary_data_output"):
        if not isinstance(given.get(name, False), bool):
            raise Invalid(f"the parameter {name} is neither true nor false")


def colons(request: Request, inputs: Iterable[Tensor], known: tuple[str, ...] = ()) -> int:
    """How many colons a body with these keys, each once, has outside its strings; every parameter is looked at on the way.

    Every key brings one colon, so a body with more has a key twice or a colon in a string; only then is it read again slowly.
    Missing such a body is impossible: without a backslash in it no colon can be written but as itself. ``known``: parameters of
    inputs that are understood. Raises Invalid (a parameter that asks for what is not done here).
    """
    count = 1
    if request.id is not UNSET:
        count += 1
    if request.model_name is not UNSET:
        count += 1
    if request.parameters is not UNSET:
        count += _said(request.parameters)
    if request.outputs is not UNSET:
        count += 1 + len(request.outputs)
        for wanted in request.outputs:
            if wanted.parameters is not UNSET:
                count += _said(wanted.parameters)
    for tensor in inputs:
        count += 4
        if tensor.parameters is not UNSET:
            count += _said(tensor.parameters, known)
    return count


def _said(given: Parameters, known: tuple[str, ...] = ()) -> int:
    refuse_parameters(given, known)
    return 1 + len(given)


def refuse_twice(body: bytes) -> None:
    """Raise Invalid if any object in the JSON ``body`` has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise Invalid(f"the body has the key {twice[:60]!r} twice in one object")
        return found

    try:
        json.loads(body, object_pairs_hook=unique)
    except RecursionError:
        raise Invalid("the body is not an inference request: arrays or objects are nested too deep") from None
    except ValueError as cause:
        raise Invalid(f"the body is not JSON: {cause}") from None


_LONG = 1 << 16
"""Bytes of data above which values are counted before they are read: as an object, a number is up to 16 times as large."""


def tensor_array(tensor: Tensor, datatype: str) -> NDArray[Any]:
    """The tensor's data as a flat array of ``datatype``, row-major.

    Numbers too large for FP16 become infinite (``validate`` refuses those); others out of range are refused. Raises Invalid.
    """
    decoder, code, dtype = _CODING[datatype]
    data = bytes(tensor.data)
    if len(data) > _LONG and datatype != "BYTES" and data.count(b",") >= max(1, math.prod(tensor.shape)):
        raise Invalid(f"input {tensor.name!r} has more values than its shape {tensor.shape} has places")
    values = _flat(tensor, decoder, data) if data[1:2] in _MAY_NEST else _decode(tensor, decoder, data)
    if code:
        try:
            if code in "fd":  # in half the time of an array; "=" is what refuses numbers beyond FP32
                return np.frombuffer(struct.pack(f"={len(values)}{code}", *values), dtype)
            return np.frombuffer(array(code, values), dtype=dtype) if values else np.empty(0, dtype)
        except OverflowError:
            raise Invalid(f"input {tensor.name!r}: a number does not fit {datatype}") from None
    if datatype == "BYTES":
        return np.array([value.encode() for value in values] or [], dtype=object)
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64 if datatype == "FP16" else dtype).astype(dtype)


def _decode(tensor: Tensor, decoder: msgspec.json.Decoder[Any], data: bytes | memoryview) -> list[Any]:
    try:
        values: list[Any] = decoder.decode(data)
    except msgspec.ValidationError as cause:
        raise Invalid(f"input {tensor.name!r}, data: {cause}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Invalid(f"input {tensor.name!r}, data is not JSON: {cause}") from None
    except RecursionError:
        raise Invalid(f"input {tensor.name!r}: data is nested too deep") from None
    return values


_MAY_NEST = (b"[", b" ", b"\t", b"\r", b"\n")
_ELEMENT = {id(_FLOATS): float, id(_INTS): int, id(_BOOLS): bool, id(_TEXTS): str}


def _flat(tensor: Tensor, decoder: msgspec.json.Decoder[Any], data: bytes) -> list[Any]:
    """Values of data that may be nested: flat, or nested exactly as ``shape`` says."""
    depth = 0
    for byte in data[: 64 * MAX_RANK]:
        if byte == 0x5B:
            depth += 1
        elif byte not in b" \t\r\n":
            break
    if depth <= 1:
        return _decode(tensor, decoder, data)
    if depth != len(tensor.shape):
        raise Invalid(f"input {tensor.name!r}: data is nested {depth} deep, but its shape has {len(tensor.shape)} dimensions")
    kind: Any = _ELEMENT[id(decoder)]
    for _ in range(depth):
        kind = list[kind]
    level = [_decode(tensor, msgspec.json.Decoder(kind), data)]
    for size in tensor.shape:
        if any(len(part) != size for part in level):
            raise Invalid(f"input {tensor.name!r}: nested data does not have the shape {tensor.shape}")
        level = [value for part in level for value in part]
    return level


class _OutTensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class _RawOutTensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int]


class _Response(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: Sequence[_OutTensor | _RawOutTensor]
    id: str | UnsetType = UNSET


_ENCODER = msgspec.json.Encoder()


def _plain(values: Values) -> list[Any]:
    if isinstance(values, Row):
        return values.numbers
    if values.dtype == object:
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in values.ravel()]
    flat: list[Any] = values.ravel().tolist()
    return flat


def encode_response(
    ref: ReleaseRef, request_id: str | UnsetType, outputs: Outputs, sizes: Mapping[str, int] | None = None
) -> bytes:
    """The body of an answer: each output under its spec's name and datatype, row-major, numbers in their shortest form.

    ``sizes``: of outputs that follow in their raw form, by name, bytes. Numbers are finite: what runs the model sees to that.
    """
    tensors: Sequence[_OutTensor | _RawOutTensor]
    if sizes is None:
        tensors = [_OutTensor(spec.name, spec.datatype, values.shape, _plain(values)) for spec, values in outputs]
    else:
        tensors = [_out(spec, values, sizes.get(spec.name)) for spec, values in outputs]
    return _ENCODER.encode(_Response(ref.name, str(ref.version), tensors, request_id))


def _out(spec: TensorSpec, values: Values, size: int | None) -> _OutTensor | _RawOutTensor:
    if size is None:
        return _OutTensor(spec.name, spec.datatype, values.shape, _plain(values))
    return _RawOutTensor(spec.name, spec.datatype, values.shape, {BINARY_SIZE: size})


SERVER_NAME = "modelkeep"
EXTENSIONS = ("binary_tensor_data",)
"""What is offered beyond the protocol's core, under Triton's names for it."""


class _Meta(msgspec.Struct, frozen=True):
    name: str
    versions: list[str]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


ONNX = "onnx_onnxruntime"
"""Platform of the models that run in this process."""


def model_metadata(name: str, versions: Iterable[int], signature: ModelSignature, platform: str = ONNX) -> bytes:
    """The body of ``GET /v2/models/{name}``."""
    meta = _Meta(name, [str(v) for v in versions], platform, signature.inputs, signature.outputs)
    return _ENCODER.encode(meta)


def server_metadata(version: str) -> bytes:
    """The body of ``GET /v2``."""
    return _ENCODER.encode({"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS})
