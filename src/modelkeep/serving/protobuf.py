"""Protocol buffers on the wire, as far as gRPC inference needs them: messages by a table, arrays without a loop.

Source: the protocol buffers "Encoding" page. Read more strictly than a protobuf library does: an unknown field, a field that
may stand once and stands twice, and a number that does not fit are refused, because two readers of one message must never
understand two different things. Payloads are slices of the caller's buffer; nothing is built before it is counted.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_LONGEST = 10  # bytes of a varint of 64 bits


class Field(NamedTuple):
    """One row of a message's table. ``most``: how often it may stand."""

    name: str
    wire: int
    most: int = 1


Value = Any
Table = Mapping[int, Field]


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at ``at``, and where the next byte is. Raises Invalid (cut off, or of more than 64 bits)."""
    value = shift = 0
    for end in range(at, min(len(data), at + _LONGEST)):
        byte = data[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, end + 1
        shift += 7
    raise Invalid("the message is not protobuf: a number is cut off or too long")


def fields(data: memoryview) -> Iterable[tuple[int, int, Value]]:
    """Every field as number, wire type, value (an int, or a slice). Raises Invalid."""
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at) if data[at] >= 0x80 else (data[at], at + 1)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = varint(data, at)
        elif wire in _SIZES:
            size = _SIZES[wire]
        else:
            raise Invalid(f"the message is not protobuf: field {number} has wire type {wire}")
        if size > end - at or not number:
            raise Invalid("the message is not protobuf: a field is cut off or has no number")
        yield number, wire, data[at : at + size]
        at += size


def read_message(data: memoryview, table: Table, what: str) -> dict[str, list[Value]]:
    """The fields of one message by name, each with its values in their order. Raises Invalid."""
    found: dict[str, list[Value]] = {}
    for number, wire, value in fields(data):
        row = table.get(number)
        if row is None:
            raise Invalid(f"{what} has a field {number}, which is not known here")
        if wire != row.wire:
            raise Invalid(f"{what}: {row.name} is not written as it must be (wire type {wire})")
        values = found.setdefault(row.name, [])
        if len(values) >= row.most:
            raise Invalid(f"{what} has more than {row.most} of {row.name}")
        values.append(value)
    return found


def read_text(found: Mapping[str, list[Value]], name: str, most: int) -> str:
    """The text ``name``, "" when it is not there. Raises Invalid (not UTF-8, or more than ``most`` bytes)."""
    values = found.get(name)
    if not values:
        return ""
    if len(values[0]) > most:
        raise Invalid(f"{name} is longer than {most} bytes")
    try:
        return str(values[0], "utf-8")
    except UnicodeDecodeError:
        raise Invalid(f"{name} is not UTF-8") from None


def read_varints(data: memoryview) -> NDArray[np.uint64]:
    """The numbers of a packed array of varints. Raises Invalid."""
    octets = np.frombuffer(data, np.uint8)
    last = octets < 0x80
    if not last.any() or not last[-1]:
        if not len(octets):
            return np.empty(0, np.uint64)
        raise Invalid("the message is not protobuf: a number is cut off or too long")
    if last.all():
        return octets.astype(np.uint64)
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > _LONGEST or (octets[ends[sizes == _LONGEST]] > 1).any():
        raise Invalid("the message is not protobuf: a number is cut off or too long")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(sizes.max())):
        here = np.flatnonzero(sizes > place)
        values[here] |= (octets[starts[here] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
    return values


def write_varints(values: NDArray[np.uint64]) -> bytes:
    """A packed array of varints."""
    if not values.size or values.max() < 0x80:
        return values.astype(np.uint8).tobytes()
    shifts = np.arange(_LONGEST, dtype=np.uint64) * np.uint64(7)
    left = values[:, None] >> shifts  # column i: what is left once i groups of seven bits are written
    there = left > 0
    there[:, 0] = True
    septets = (left & np.uint64(0x7F)).astype(np.uint8)
    septets[:, :-1] |= there[:, 1:].astype(np.uint8) << 7
    return septets[there].tobytes()


def write_varint(value: int) -> bytes:
    """One varint. ``value``: below 2**64 and not negative."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_bytes(number: int, data: bytes) -> bytes:
    """A field of bytes, text, a message or a packed array."""
    return b"".join((write_varint(number << 3 | BYTES), write_varint(len(data)), data))


def write_text(number: int, text: str) -> bytes:
    """A text; nothing when it is empty, as proto3 has it."""
    return write_bytes(number, text.encode()) if text else b""


def write_flag(number: int, flag: bool) -> bytes:
    """A bool; nothing when it is false, as proto3 has it."""
    return write_varint(number << 3 | VARINT) + b"\x01" if flag else b""
