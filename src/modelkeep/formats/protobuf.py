"""Read protobuf messages by a table, bounded in depth, fields and memory; what the table lacks is reported, not skipped.

Source: the protocol buffers "Encoding" page. Payloads are slices of the caller's buffer; long arrays are counted, never stored.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from modelkeep.errors import Invalid, TooLarge

MAX_DEPTH = 48
MAX_FIELDS = 500_000
MAX_VALUES = 1 << 16
MAX_TEXT = 32 << 20
"""Bytes that all strings of a model take in memory; its tensors are no strings."""
MAX_REPORTS = 64
FEW = 64

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RUN = 2048

Fields = dict[str, list[Any]]
"""Values of a decoded message by field name. A counted field has the count; one of at most 64 ints has those ints after it."""


class Field(NamedTuple):
    """One row of the table.

    ``kind``: int, float, double (scalars), text, blob (payloads), count:… (arrays, only counted), or the name of a message;
    ``many``: it may occur more than once.
    """

    name: str
    kind: str
    many: bool = False


Schema = Mapping[str, Mapping[int, Field]]
Handler = Callable[[Fields], Any]


class Walker:
    """One walk over one buffer. ``unknown`` and ``doubled`` gather what was not understood; memory stays bounded."""

    def __init__(self, data: memoryview, schema: Schema, handlers: Mapping[str, Handler]) -> None:
        self._data = data
        self._schema = schema
        self._handlers = handlers
        self._left = MAX_FIELDS
        self._text_left = MAX_TEXT
        self.unknown: dict[str, None] = {}
        self.doubled: dict[str, None] = {}

    def decode(self, message: str) -> Any:
        """Decode the whole buffer as one ``message``. Raises Invalid (malformed), TooLarge (too deep or too many fields)."""
        return self._message(message, 0, len(self._data), 0)

    def _message(self, message: str, at: int, end: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise TooLarge(f"the model nests messages deeper than {MAX_DEPTH} levels")
        table, values = self._schema[message], Fields()
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise TooLarge(f"the model has more than {MAX_FIELDS} fields")
            start = at
            tag, at = self._varint(at, end)
            field = table.get(tag >> 3)
            if field is None or not _fits(field.kind, tag & 7):
                self._report(self.unknown, f"{message} field {tag >> 3}")
                at = self._skip(tag, at, end)
            elif field.kind.startswith("count:"):
                at = self._count(field, tag, start, at, end, values)
            else:
                at = self._value(message, field, tag, at, end, depth, values)
        handler = self._handlers.get(message)
        return values if handler is None else handler(values)

    def _value(self, message: str, field: Field, tag: int, at: int, end: int, depth: int, values: Fields) -> int:
        held = values.setdefault(field.name, [])
        if held and not field.many:
            self._report(self.doubled, f"{message}.{field.name}")
        if len(held) >= MAX_VALUES and field.kind != "blob":
            raise TooLarge(f"the model repeats {message}.{field.name} more than {MAX_VALUES} times")
        if field.kind == "int" and tag & 7 == _VARINT:
            value, at = self._varint(at, end)
            held.append(_signed(value))
            return at
        if tag & 7 in (_FIXED32, _FIXED64):
            stop = self._skip(tag, at, end)
            held.append(float(np.frombuffer(self._data[at:stop], "<f4" if tag & 7 == _FIXED32 else "<f8")[0]))
            return stop
        start, at = self._payload(at, end)
        if field.kind == "int":
            held.extend(self._packed_ints(start, at))
        elif field.kind == "text":
            held.append(self._text(start, at))
        elif field.kind == "blob":
            held.append(self._data[start:at])
        else:
            kept = self._message(field.kind, start, at, depth + 1)
            if kept is not None:
                held.append(kept)
        return at

    def _text(self, at: int, end: int) -> str:
        self._text_left -= end - at
        if self._text_left < 0:
            raise TooLarge(f"the strings of the model are longer than {MAX_TEXT} bytes")
        try:
            text = str(self._data[at:end], "utf-8")
        except UnicodeDecodeError as cause:
            raise Invalid("the model is malformed: a string in it is not UTF-8") from cause
        if not text.isascii():
            self._text_left -= 3 * (end - at)
        return text

    def _count(self, field: Field, tag: int, start: int, at: int, end: int, values: Fields) -> int:
        """Count array elements; runs of unpacked ones go by at the speed of a compiled pattern."""
        held = values.setdefault(field.name, [0])
        wire = tag & 7
        if field.kind == "count:payload":
            count, at = self._payload_run(tag, start, end)
            held[0] += count
            return at
        if wire == _BYTES:
            begin, at = self._payload(at, end)
            held[0] += _packed_count(field.kind, self._data[begin:at])
            if field.kind == "count:int" and held[0] <= FEW:
                held.extend(self._packed_ints(begin, at))
            return at
        if tag < 0x80:
            run = _run_pattern(tag).match(self._data, start, end)
            if run is not None:
                held[0] += _run_count(wire, self._data[start : run.end()])
                if wire == _VARINT and held[0] <= FEW:
                    held.extend(self._run_ints(start, run.end()))
                return run.end()
        held[0] += 1
        return self._skip(tag, at, end)

    def _payload_run(self, tag: int, at: int, end: int) -> tuple[int, int]:
        """Pass over consecutive payloads with the same tag; short ones (a tree ensemble has millions) in a tight loop."""
        data, count = self._data, 0
        while tag < 0x80 and at + 1 < end and data[at] == tag and data[at + 1] < 0x80:
            at += 2 + data[at + 1]
            count += 1
        if count == 0:
            return 1, self._payload(self._varint(at, end)[1], end)[1]
        if at > end:
            raise Invalid("the model is cut off or malformed: a field is longer than what holds it")
        self._left -= count // 16
        return count, at

    def _packed_ints(self, at: int, end: int) -> list[int]:
        values: list[int] = []
        while at < end and len(values) <= MAX_VALUES:
            value, at = self._varint(at, end)
            values.append(_signed(value))
        if at < end:
            raise TooLarge(f"the model has a list of more than {MAX_VALUES} numbers where a short one belongs")
        return values

    def _run_ints(self, at: int, end: int) -> list[int]:
        values: list[int] = []
        while at < end:
            value, at = self._varint(at + 1, end)
            values.append(_signed(value))
        return values

    def _payload(self, at: int, end: int) -> tuple[int, int]:
        length, at = self._varint(at, end)
        if length > end - at:
            raise Invalid("the model is cut off or malformed: a field is longer than what holds it")
        return at, at + length

    def _skip(self, tag: int, at: int, end: int) -> int:
        wire = tag & 7
        if wire == _VARINT:
            return self._varint(at, end)[1]
        if wire == _BYTES:
            return self._payload(at, end)[1]
        if wire not in (_FIXED32, _FIXED64):
            raise Invalid("the model is malformed: it has a field of an unknown wire type")
        at += 4 if wire == _FIXED32 else 8
        if at > end:
            raise Invalid("the model is cut off or malformed: a field is longer than what holds it")
        return at

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data, value, shift = self._data, 0, 0
        while at < end and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & ((1 << 64) - 1), at
            shift += 7
        raise Invalid("the model is cut off or malformed: a number does not end")

    @staticmethod
    def _report(into: dict[str, None], what: str) -> None:
        if len(into) < MAX_REPORTS:
            into[what] = None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fits(kind: str, wire: int) -> bool:
    wanted = _WIRES.get(kind)
    return wire == _BYTES if wanted is None else wire in wanted


_WIRES = {
    "int": (_VARINT, _BYTES),
    "float": (_FIXED32,),
    "double": (_FIXED64,),
    "count:int": (_VARINT, _BYTES),
    "count:float": (_FIXED32, _BYTES),
    "count:double": (_FIXED64, _BYTES),
    "count:payload": (_BYTES,),
}


def _packed_count(kind: str, raw: memoryview) -> int:
    if kind == "count:int":
        return _ends(raw)
    width = 4 if kind == "count:float" else 8
    if len(raw) % width:
        raise Invalid("the model is malformed: an array does not hold whole numbers of its elements")
    return len(raw) // width


@cache
def _run_pattern(tag: int) -> re.Pattern[bytes]:
    """Up to 2,048 consecutive unpacked elements of the one-byte ``tag``; possessive, so that it never backtracks."""
    body = {_VARINT: rb"[\x80-\xff]{0,9}+[\x00-\x7f]", _FIXED32: rb"[\x00-\xff]{4}", _FIXED64: rb"[\x00-\xff]{8}"}[tag & 7]
    return re.compile(rb"(?:%b%b){1,%d}+" % (re.escape(bytes([tag])), body, _RUN))


def _run_count(wire: int, raw: memoryview) -> int:
    if wire == _VARINT:
        return _ends(raw) // 2  # each element has one tag byte and one last byte below 0x80
    return len(raw) // (5 if wire == _FIXED32 else 9)


def _ends(raw: memoryview) -> int:
    """How many varints end in ``raw``."""
    return int(np.count_nonzero(np.frombuffer(raw, dtype=np.uint8) < 0x80)) if len(raw) else 0
