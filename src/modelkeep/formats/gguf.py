"""Read a GGUF file: its metadata and where each tensor lies. Every byte is accounted for; nothing of the tensors is copied.

Source: the GGUF specification of ggml (docs/gguf.md), versions 2 and 3, little-endian; block sizes from ``ggml-quants``.
"""

import math
import re
import struct

import msgspec
import numpy as np

from modelkeep.errors import Invalid, TooLarge

MAX_ENTRIES = 65_536
MAX_TENSORS = 65_536
MAX_TEXTS = 1_000_000
MAX_KEPT = 1 << 20
MAX_DEPTH = 2
MAX_NESTED = 4096
MAX_DIMS = 4

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_BOOL, _TEXT, _ARRAY = 7, 8, 9
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98),
    19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""Elements and bytes of a block, by ggml type."""
_KEY = re.compile(rb"[A-Za-z0-9_.\-/]{1,256}\Z")
_U64 = struct.Struct("<Q")


class GgufModel(msgspec.Struct):
    """``texts``: metadata strings by key, those that a reader may run as templates in full; ``tensors``: how many."""

    version: int
    texts: dict[str, str]
    keys: int
    tensors: int


def read_gguf(data: memoryview) -> GgufModel:
    """Read a whole file. Raises Invalid (malformed, cut off, gaps), TooLarge (more entries than are read)."""
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._texts = MAX_TEXTS
        self._kept = MAX_KEPT
        self._nested = MAX_NESTED

    def read(self) -> GgufModel:
        if self._take(4) != b"GGUF":
            raise Invalid("the file does not begin as GGUF")
        version, tensors, entries = self._int(4), self._int(8), self._int(8)
        if version not in (2, 3):
            raise Invalid(f"GGUF version {version} is not known, or the file is big-endian")
        if tensors > MAX_TENSORS or entries > MAX_ENTRIES:
            raise TooLarge(f"the GGUF file claims {tensors} tensors and {entries} entries, more than are read")
        found: dict[str, str | None] = {}
        alignment = 32
        for _ in range(entries):
            key, number, text = self._entry()
            if key in found:
                raise Invalid(f"the GGUF file has the key {key!r} twice")
            found[key] = text
            if key == "general.alignment":
                alignment = number
        if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise Invalid("the alignment of the GGUF file is no power of two")
        self._tensors(tensors, alignment)
        return GgufModel(version, {key: text for key, text in found.items() if text is not None}, len(found), tensors)

    def _take(self, size: int) -> bytes:
        return bytes(self._data[self._skip(size) : self._at])

    def _skip(self, size: int) -> int:
        at = self._at
        if size > len(self._data) - at:
            raise Invalid("the GGUF file is cut off, or claims more than it holds")
        self._at = at + size
        return at

    def _int(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _entry(self) -> tuple[str, int, str | None]:
        """Key, number (0 when it is none) and text (None when it is none)."""
        raw = self._take(min(self._int(8), 1 << 17))
        if not _KEY.match(raw):
            raise Invalid("a key of the GGUF file is not one that its specification allows")
        key, kind = raw.decode(), self._int(4)
        if kind == _TEXT:
            return key, 0, self._text(key)
        if kind == _ARRAY:
            self._array(0)
            return key, 0, None
        width = _WIDTHS.get(kind)
        if width is None:
            raise Invalid(f"the GGUF file has a value of an unknown type {kind}")
        value = self._int(width)
        if kind == _BOOL and value > 1:
            raise Invalid("the GGUF file has a truth value that is neither true nor false")
        return key, value, None

    def _text(self, key: str) -> str:
        size = self._int(8)
        self._kept -= size
        if self._kept < 0:
            raise TooLarge(f"the strings of the GGUF file, such as {key!r}, are longer than is read")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as cause:
            raise Invalid(f"the string {key!r} of the GGUF file is not UTF-8") from cause

    def _array(self, depth: int) -> None:
        kind, count = self._int(4), self._int(8)
        if kind == _ARRAY:
            self._nested -= count
            if depth >= MAX_DEPTH or self._nested < 0:
                raise TooLarge("the GGUF file nests arrays deeper than is read")
            for _ in range(count):
                self._array(depth + 1)
        elif kind == _TEXT:
            self._text_array(count)
        elif kind in _WIDTHS:
            self._skip(_WIDTHS[kind] * count)
        else:
            raise Invalid(f"the GGUF file has an array of an unknown type {kind}")

    def _text_array(self, count: int) -> None:
        self._texts -= count
        if self._texts < 0:
            raise TooLarge(f"the GGUF file has more than {MAX_TEXTS} strings")
        data, at, end, unpack = self._data, self._at, len(self._data) - 8, _U64.unpack_from
        for _ in range(count):
            if at > end:
                raise Invalid("the GGUF file is cut off, or claims more than it holds")
            at += 8 + unpack(data, at)[0]
        if at > len(data):
            raise Invalid("the GGUF file is cut off, or claims more than it holds")
        self._at = at

    def _tensors(self, count: int, alignment: int) -> None:
        names, places = set[bytes](), []
        for _ in range(count):
            name = self._take(min(self._int(8), 1 << 16))
            if name in names or not 0 < len(name) <= 128:
                raise Invalid("the GGUF file has two tensors of one name, or a tensor without")
            names.add(name)
            places.append(self._tensor())
        begin = -(-self._at // alignment) * alignment if count else self._at
        self._check_padding(self._at, min(begin, len(self._data)))
        places.sort()
        at = 0
        for offset, size in places:
            aligned = -(-at // alignment) * alignment
            if offset != aligned:
                raise Invalid("the tensors of the GGUF file overlap, or bytes lie between them")
            self._check_padding(begin + at, begin + aligned)
            at = offset + size
        if begin + at > len(self._data) or len(self._data) - begin - at >= max(alignment, 1):
            raise Invalid("the GGUF file does not end where its last tensor does: it was cut off, or bytes follow")
        self._check_padding(begin + at, len(self._data))

    def _tensor(self) -> tuple[int, int]:
        """Offset and size of a tensor's bytes."""
        rank = self._int(4)
        if rank > MAX_DIMS:
            raise Invalid("a tensor of the GGUF file has more dimensions than its specification allows")
        shape = [self._int(8) for _ in range(rank)]
        block = _BLOCKS.get(self._int(4))
        offset = self._int(8)
        if block is None:
            raise Invalid("a tensor of the GGUF file is of an unknown type")
        elements = math.prod(shape)
        if elements >= 1 << 62 or (shape[0] if shape else 1) % block[0]:
            raise Invalid("a tensor of the GGUF file has a shape that its type cannot have")
        return offset, elements // block[0] * block[1]

    def _check_padding(self, begin: int, end: int) -> None:
        if end > begin and np.any(np.frombuffer(self._data[begin : min(end, begin + (1 << 17))], np.uint8)):
            raise Invalid("the padding of the GGUF file is not zero: something is hidden in it")
