"""The header of a numpy array file, as numpy writes it and no other way.

Source: ``numpy.lib.format``: ``\\x93NUMPY ‖ version ‖ header length ‖ header``, the header being the repr of a dict with three
keys. It is read with ``ast.literal_eval``, which calls nothing, and must be the very text that numpy writes for its values.
"""

import ast
from typing import Any

import msgspec

from modelkeep.errors import Invalid, TooLarge

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000


class NpyHeader(msgspec.Struct, frozen=True):
    """``descr``: type code, or a list of fields; ``begin``: where the bytes of the array begin."""

    descr: Any
    shape: tuple[int, ...]
    begin: int


def read_npy(prefix: memoryview | bytes) -> NpyHeader:
    """The header at the begin of a file. Raises Invalid, TooLarge (longer than numpy itself reads)."""
    raw = bytes(prefix[: MAX_HEADER + 12])
    if raw[:6] != MAGIC or len(raw) < 12 or raw[6] not in (1, 2, 3) or raw[7] != 0:
        raise Invalid("the array file does not begin with a header of a known version")
    width = 2 if raw[6] == 1 else 4
    length = int.from_bytes(raw[8 : 8 + width], "little")
    if length > MAX_HEADER:
        raise TooLarge(f"the header of the array has {length} bytes, and at most {MAX_HEADER} are read")
    begin = 8 + width + length
    if len(raw) < begin:
        raise Invalid("the array file is cut off in its header")
    text = _text(raw[8 + width : begin], raw[6])
    try:
        found = ast.literal_eval(text)
        header = (found["descr"], found["fortran_order"], found["shape"])
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, KeyError) as cause:
        raise Invalid("the header of the array is not one that numpy reads") from cause
    return NpyHeader(header[0], _shape(header, text), begin)


def _text(raw: bytes, version: int) -> str:
    try:
        text = raw.decode("utf-8" if version == 3 else "latin-1")
    except UnicodeDecodeError as cause:
        raise Invalid("the header of the array is not text") from cause
    if not text.endswith("\n"):
        raise Invalid("the header of the array does not end with a newline")
    return text[:-1].rstrip(" ")


def _shape(header: tuple[Any, Any, Any], text: str) -> tuple[int, ...]:
    descr, fortran, shape = header
    whole = isinstance(shape, tuple) and len(shape) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in shape)
    if not whole or type(fortran) is not bool:
        raise Invalid("the header of the array has a shape that is none")
    if text != f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}":
        raise Invalid("the header of the array is not written as numpy writes it: readers could disagree about it")
    return tuple(shape)
