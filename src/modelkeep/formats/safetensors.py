"""safetensors, read as strictly as the reference implementation, and written.

A file is ``u64 little-endian header length ‖ JSON header ‖ tensor bytes``. Source: the safetensors README, and
``Metadata::validate`` of its Rust crate: tensors cover the buffer exactly, with no gap and no overlap; sizes follow from dtype
and shape; a header has at most 100,000,000 bytes. Stricter here: no key occurs twice (the README forbids it).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid, TooLarge

MAX_HEADER = 100_000_000
MAX_RANK = 64

BITS: dict[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element of every dtype."""

_NUMPY = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4", "F32": "<f4",
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _NUMPY.items()}


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor: bytes ``[begin, end)`` of the buffer that follows the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


_Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One tensor, as the header has it."""

    dtype: str
    shape: tuple[_Whole, ...]
    data_offsets: tuple[_Whole, _Whole]


_ENCODE = msgspec.json.Encoder().encode
_DECODE_TABLE = msgspec.json.Decoder(dict[str, _Fields]).decode
_DECODE_METADATA = msgspec.json.Decoder(dict[str, str]).decode
_METADATA = re.compile(rb'\{"__metadata__":(\{(?:"[^"\\]*+":"[^"\\]*+",?)*+\})(?:,(?=")|(?=\}\Z))')


def head_length(prefix: bytes | memoryview, size: int) -> int:
    """Bytes of the length field and header together, from the first 8 bytes of a file of ``size`` bytes. Raises Invalid."""
    if len(prefix) < 8:
        raise Invalid(f"a safetensors file has at least 8 bytes, and this one has {size}")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER:
        raise TooLarge(f"the safetensors header has {length} bytes, and at most {MAX_HEADER} are read")
    if 8 + length > size:
        raise Invalid(f"the safetensors header has {length} bytes, and the file only {size}: it was cut off")
    return 8 + length


def parse_head(head: bytes, size: int) -> list[Tensor]:
    """The tensors, in the order of their bytes, of a file of ``size`` bytes that begins with ``head`` (length and header).

    Tensors without elements that share a place are ordered by name. Raises Invalid.
    """
    if head_length(head, size) != len(head):
        raise Invalid("the safetensors header does not have the length that it states")
    tensors = [_tensor(name, fields) for name, fields in _parse_table(head[8:]).items()]
    tensors.sort(key=attrgetter("begin", "end", "name"))
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            raise Invalid(f"safetensors tensor {tensor.name[:80]!r} begins at {tensor.begin}, not at {at}: a gap or an overlap")
        at = tensor.end
    if len(head) + at != size:
        raise Invalid(f"the safetensors file has {size} bytes, and its header accounts for {len(head) + at}")
    return tensors


def load(data: bytes | bytearray | memoryview) -> dict[str, NDArray[Any]]:
    """The arrays of a whole file: views into ``data``, in the order of their bytes. Raises Invalid."""
    view = memoryview(data).cast("B")
    length = head_length(view[:8], view.nbytes)
    arrays = {}
    for tensor in parse_head(bytes(view[:length]), view.nbytes):
        arrays[tensor.name] = as_array(tensor.dtype, tensor.shape, view[length + tensor.begin : length + tensor.end])
    return arrays


def as_array(dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> NDArray[Any]:
    """The bytes of one tensor as an array, not copied. Raises Invalid (a dtype that numpy lacks, or a wrong size)."""
    if dtype not in _NUMPY:
        raise Invalid(f"numpy has no dtype for safetensors {dtype[:20]!r}")
    try:
        return np.frombuffer(data, dtype=_NUMPY[dtype]).reshape(shape)
    except ValueError as cause:
        raise Invalid(f"{memoryview(data).nbytes} bytes are not a {dtype} tensor of shape {tuple(shape)}") from cause


def dump(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of ``arrays`` ordered by name; equal arrays give equal bytes. Raises Invalid (a dtype it lacks)."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    parts, at = [], 0
    for name in sorted(arrays):
        array = arrays[name]
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None or name == "__metadata__":
            raise Invalid(f"safetensors cannot hold array {name[:80]!r} of dtype {array.dtype}")
        raw = np.ascontiguousarray(array, dtype=_NUMPY[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def _parse_table(raw: bytes) -> dict[str, _Fields]:
    """The tensors that a header names. One that is written as libraries write it takes the short way."""
    found = _parse_compact(raw.rstrip(b" "))
    if found is not None:
        return found
    table = _parse_json(raw)
    _check_metadata(table.pop("__metadata__", {}))
    _check_text(*table)
    try:
        return msgspec.convert(table, dict[str, _Fields])
    except msgspec.ValidationError as cause:
        raise Invalid(f"the safetensors header has a malformed tensor ({cause})") from cause


def _parse_compact(text: bytes) -> dict[str, _Fields] | None:
    """The tensors of a header that says exactly what it decodes to, byte for byte; None for any other, valid or not.

    Being the encoding of a table, such a header has no key twice, no fraction and no odd text: nothing is left to check.
    """
    metadata = _METADATA.match(text)
    try:
        if metadata is not None:
            if _ENCODE(_DECODE_METADATA(metadata[1])) != metadata[1]:
                return None
            text = b"{" + text[metadata.end() :]
        table = _DECODE_TABLE(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return table if _ENCODE(table) == text and "__metadata__" not in table else None


def _parse_json(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise Invalid("the safetensors header does not begin with {")
    try:
        text = raw.decode()
        table = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_no_number)
    except (ValueError, RecursionError) as cause:
        raise Invalid("the safetensors header is not valid JSON") from cause
    return dict(table)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Invalid("the safetensors header has the same key twice")
    return table


def _no_number(text: str) -> NoReturn:
    raise Invalid(f"the safetensors header has the number {text[:40]!r}: only whole numbers are allowed")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Invalid("the safetensors __metadata__ is not a table of strings")
    _check_text(*metadata, *metadata.values())


def _check_text(*texts: str) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as cause:
        raise Invalid("the safetensors header has a string that is not Unicode text") from cause


def _tensor(name: str, fields: _Fields) -> Tensor:
    bits, (begin, end) = BITS.get(fields.dtype), fields.data_offsets
    if bits is None:
        raise Invalid(f"safetensors tensor {name[:80]!r} has an unknown dtype {fields.dtype[:20]!r}")
    bits = math.prod(fields.shape[: MAX_RANK + 1], start=bits)
    if len(fields.shape) > MAX_RANK or bits >= 1 << 66 or bits % 8 or end - begin != bits // 8:
        raise Invalid(f"safetensors tensor {name[:80]!r}: dtype and shape do not give the size of its bytes")
    return Tensor(name, fields.dtype, fields.shape, begin, end)
