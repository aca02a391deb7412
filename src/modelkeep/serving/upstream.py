"""What is said to another Open Inference Protocol v2 server, and what is believed of its answers: how in general, and REST.

An upstream is not trusted: its answer must name the request it is for, and every tensor must have the name, datatype, shape and
finite numbers that its signature promised. Nothing else of an answer is kept, least of all its headers.
Sources: Open Inference Protocol, "REST API"; Triton, "Binary Tensor Data Extension".
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, UnsetType
from numpy.typing import NDArray

from modelkeep.core.ports import Reply
from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, ModelkeepError, Unavailable
from modelkeep.serving.oip import DATATYPES, MAX_TENSORS, Tensor, dtype_of, tensor_array

HEADER_LENGTH = b"inference-header-content-length"
BINARY = "binary_tensor_data"
"""The extension of the protocol, as ``/v2`` lists it."""
_OF_THE_INPUT = (400, 413, 422)
"""Statuses by which an upstream says that the question was bad, and not that something is wrong with it."""
_SAID, _READ = 200, 64 << 10
_FLOATING = ("FP16", "FP32", "FP64")

Arrays = dict[str, NDArray[Any]]


class Question(NamedTuple):
    """A request as it is sent. ``headers``: those that depend on the body."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    method: bytes = b"POST"


class Described(NamedTuple):
    """An upstream's metadata of one model. ``binary``: it takes tensors as bytes."""

    platform: str
    signature: ModelSignature
    binary: bool = False


class Dialect(Protocol):
    """A way to talk to an upstream about one of its models."""

    def infer(self, feeds: Mapping[str, NDArray[Any]], request_id: str) -> Question:
        """The request for the outputs that were promised."""
        ...

    def answer(self, reply: Reply, rows: int | None, request_id: str) -> Arrays:
        """What was promised, checked. Raises Invalid (the upstream refuses the question), Unavailable (no answer to it)."""
        ...

    def ready(self) -> Question:
        """Whether the model is ready."""
        ...

    def check_ready(self, reply: Reply) -> None:
        """Raises Unavailable, Invalid: it is not."""
        ...

    def who(self) -> tuple[Question, Question]:
        """What the server is, and what the model is."""
        ...

    def described(self, server: Reply, model: Reply) -> Described:
        """The answers to both. Raises Invalid (they say too little), Unavailable (they are none)."""
        ...


class Rest:
    """``Dialect`` of REST. ``binary``: tensors go as bytes behind the JSON."""

    def __init__(self, model: str, version: str, signature: ModelSignature, *, binary: bool) -> None:
        """``model``, ``version``: what the upstream calls it, "" = its own choice."""
        self._path = f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"
        self._signature, self._binary = signature, binary

    def infer(self, feeds: Mapping[str, NDArray[Any]], request_id: str) -> Question:
        """``POST …/infer``."""
        found = ask(feeds, self._signature, request_id, binary=self._binary)
        return found._replace(path=f"{self._path}/infer")

    def answer(self, reply: Reply, rows: int | None, request_id: str) -> Arrays:
        """Raises Invalid, Unavailable."""
        return understand(reply, self._signature, rows, request_id)

    def ready(self) -> Question:
        """``GET …/ready``."""
        return Question(f"{self._path}/ready", method=b"GET")

    def check_ready(self, reply: Reply) -> None:
        """Raises Unavailable, Invalid."""
        check_status(reply)

    def who(self) -> tuple[Question, Question]:
        """``GET /v2`` and ``GET /v2/models/NAME``."""
        return Question("/v2", method=b"GET"), Question(self._path, method=b"GET")

    def described(self, server: Reply, model: Reply) -> Described:
        """Raises Invalid, Unavailable."""
        return describe(model)._replace(binary=speaks_binary(server))


# -- asking --


def ask(feeds: Mapping[str, NDArray[Any]], signature: ModelSignature, request_id: str, *, binary: bool) -> Question:
    """An inference request for the outputs of ``signature``. ``binary``: tensors as bytes behind the JSON."""
    inputs, raw = [], []
    for spec in signature.inputs:
        array = feeds[spec.name]
        head: dict[str, Any] = {"name": spec.name, "shape": list(array.shape), "datatype": spec.datatype}
        if binary:
            data = to_raw(array)
            head["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            head["data"] = array.ravel().tolist()
        inputs.append(head)
    outputs: list[dict[str, Any]] = [
        {"name": spec.name, "parameters": {"binary_data": True}} if binary else {"name": spec.name}
        for spec in signature.outputs
    ]
    text = msgspec.json.encode({"id": request_id, "inputs": inputs, "outputs": outputs})
    if not binary:
        return Question("", ((b"content-type", b"application/json"),), text)
    kinds = ((b"content-type", b"application/octet-stream"), (HEADER_LENGTH, b"%d" % len(text)))
    return Question("", kinds, b"".join((text, *raw)))


def to_raw(array: NDArray[Any]) -> bytes:
    """Row-major and little-endian; texts with their length, four bytes, before each."""
    if array.dtype != object:
        return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    items = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


# -- being answered --


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**31)]], Meta(max_length=8)]
    data: Raw | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    outputs: Annotated[list[_Output], Meta(max_length=MAX_TENSORS)]
    id: str | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def check_status(reply: Reply) -> None:
    """Raises Invalid (the upstream does not take the question), Unavailable (any other answer but 200)."""
    if reply.status == 200:
        return
    said = said_in(reply.body)
    if reply.status in _OF_THE_INPUT:
        raise Invalid(f"the model behind this gateway does not take the input{said}")
    if 300 <= reply.status < 400:
        raise Unavailable(f"it answers with a redirect ({reply.status}), and none is followed")
    if reply.status in (401, 403):
        raise Unavailable(f"it does not let this gateway in ({reply.status}): see its token")
    raise Unavailable(f"it answers with status {reply.status}{said}")


def understand(reply: Reply, signature: ModelSignature, rows: int | None, request_id: str) -> Arrays:
    """The outputs that ``signature`` promises, checked. ``rows``: of the question, None when the model takes no batches.

    Raises Invalid (the upstream refuses the question), Unavailable (its answer is not one to this question).
    """
    check_status(reply)
    text, raw = _split(reply)
    try:
        answer = _ANSWER.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Unavailable(f"its answer is not one of the protocol: {str(cause)[:_SAID]}") from None
    if answer.id != request_id:
        raise Unavailable("its answer is to another request: it does not carry this one's id")
    given: Arrays = {}
    promised = {spec.name: spec for spec in signature.outputs}
    at = 0
    for output in answer.outputs:
        size = (output.parameters or {}).get("binary_data_size")
        part = None
        if output.data is UNSET:
            if type(size) is not int or not 0 <= size <= len(raw) - at:
                raise Unavailable("its answer has a tensor without data")
            part, at = raw[at : at + size], at + size
        spec = promised.get(output.name)
        if spec is None:
            continue  # more than was asked for
        if spec.name in given:
            raise Unavailable(f"its answer has the output {spec.name!r} twice")
        given[spec.name] = _array(output, spec, rows, part)
    if at != len(raw):
        raise Unavailable("its answer has bytes that belong to no tensor")
    missing = [name for name in promised if name not in given]
    if missing:
        raise Unavailable(f"its answer lacks the output {missing[0]!r}")
    return given


def _split(reply: Reply) -> tuple[bytes, memoryview]:
    """The JSON of an answer, and what stands behind it. Raises Unavailable."""
    length = reply.headers.get(HEADER_LENGTH)
    if length is None:
        return reply.body, memoryview(b"")
    if not length.isdigit() or len(length) > 12 or int(length) > len(reply.body):
        raise Unavailable("its answer has a JSON part of no possible length")
    return reply.body[: int(length)], memoryview(reply.body)[int(length) :]


def _array(output: _Output, spec: TensorSpec, rows: int | None, raw: memoryview | None) -> NDArray[Any]:
    def values(shape: Sequence[int]) -> NDArray[Any]:
        if raw is not None:
            return from_raw(raw, spec.datatype, math.prod(shape))
        assert not isinstance(output.data, UnsetType)
        return tensor_array(Tensor(spec.name, spec.datatype, list(shape), output.data), spec.datatype)

    return checked_output(spec, output.datatype, output.shape, rows, values)


def checked_output(
    spec: TensorSpec, datatype: str, given: Sequence[int], rows: int | None, values: Callable[[Sequence[int]], NDArray[Any]]
) -> NDArray[Any]:
    """One output, held to ``spec``. ``given``: its shape as it was said; ``values``: makes the flat array for a shape.

    Raises Unavailable.
    """
    if datatype != spec.datatype:
        raise Unavailable(f"its answer has {spec.name!r} as {datatype[:20]!r}, its signature has {spec.datatype}")
    shape = tuple(given)
    if len(spec.shape) == 1 and len(shape) == 2 and shape[1] == 1:  # so MLServer writes what has one dimension
        shape = shape[:1]
    wanted = spec.shape if rows is None or spec.shape[:1] != (-1,) else (rows, *spec.shape[1:])
    if len(shape) != len(wanted) or any(size < 0 or want not in (-1, size) for size, want in zip(shape, wanted, strict=True)):
        raise Unavailable(f"its answer has {spec.name!r} in the shape {list(shape)}, not {list(wanted)}")
    try:
        flat = values(shape)
        array = flat.reshape(shape) if flat.size == math.prod(shape) else None  # nothing can have too large a shape, too
    except (Invalid, ValueError, struct.error):
        raise Unavailable(f"its answer has {spec.name!r} with data that is not {spec.datatype}") from None
    if array is None:
        raise Unavailable(f"its answer has {spec.name!r} with {flat.size} values for the shape {list(shape)}")
    if spec.datatype in _FLOATING and not np.isfinite(flat).all():
        raise Unavailable(f"its answer has {spec.name!r} with numbers that are not finite")
    return array


def from_raw(raw: memoryview, datatype: str, count: int) -> NDArray[Any]:
    """``count`` elements of ``datatype`` in a row, little-endian. Raises ValueError, struct.error."""
    dtype = dtype_of(datatype)
    if datatype != "BYTES":
        if len(raw) != count * dtype.itemsize:
            raise ValueError(datatype)
        if datatype == "BOOL" and any(byte > 1 for byte in bytes(raw)):
            raise ValueError(datatype)
        return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)  # copied, so that it is aligned
    items, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        if size > len(raw) - at - 4:
            raise ValueError(datatype)
        items.append(bytes(raw[at + 4 : at + 4 + size]))
        at += 4 + size
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def said_in(body: bytes) -> str:
    """What an error says, in at most 200 printable characters, with a colon before it; "" when it says nothing."""
    text = body[:4096].decode("utf-8", "replace")
    try:
        found = json.loads(body) if len(body) <= _READ else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        text = next((found[key] for key in ("error", "detail", "message") if isinstance(found.get(key), str)), "")
    return after_colon(text)


def after_colon(text: str) -> str:
    """At most 200 printable characters of ``text`` behind a colon; "" when there are none."""
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_SAID]
    return f": {plain}" if plain else ""


# -- what it says of itself --


class End(msgspec.Struct):
    """One tensor in the metadata of a model."""

    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    name: str
    platform: str | None = ""
    versions: list[Any] | None = None
    inputs: list[End] | None = None
    outputs: list[End] | None = None


class _Server(msgspec.Struct):
    extensions: list[str] | None = None


def describe(reply: Reply) -> Described:
    """The metadata in an answer to ``GET /v2/models/NAME``. Raises Invalid (it says too little), Unavailable (no answer)."""
    _check_found(reply)
    try:
        found = msgspec.json.decode(reply.body, type=_Metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Unavailable(f"its metadata are not those of the protocol: {str(cause)[:_SAID]}") from None
    return described_as(found.platform or "", found.inputs or [], found.outputs or [])


def described_as(platform: str, inputs: Sequence[End], outputs: Sequence[End]) -> Described:
    """Raises Invalid: it says too little, or names a datatype that cannot be served."""
    if not inputs or not outputs:
        raise Invalid("the upstream does not say what the model takes and gives: list inputs and outputs in its settings there")
    plain = "".join(char for char in platform[:100] if char.isprintable())
    return Described(plain, ModelSignature(_ends(inputs), _ends(outputs)))


def speaks_binary(reply: Reply) -> bool:
    """Whether the answer to ``GET /v2`` lists the binary tensor extension. Raises Unavailable (no answer)."""
    _check_found(reply)
    try:
        found = msgspec.json.decode(reply.body, type=_Server)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("it does not speak the Open Inference Protocol v2 at this address") from None
    return BINARY in (found.extensions or ())


def _check_found(reply: Reply) -> None:
    try:
        check_status(reply)
    except ModelkeepError as cause:
        raise Unavailable(str(cause)) from None


def _ends(ends: Sequence[End]) -> tuple[TensorSpec, ...]:
    for end in ends:
        if end.datatype not in DATATYPES:
            raise Invalid(f"the upstream's tensor {end.name[:60]!r} has datatype {end.datatype[:20]!r}, which cannot be served")
    return tuple(TensorSpec(end.name, end.datatype, tuple(end.shape)) for end in ends)
