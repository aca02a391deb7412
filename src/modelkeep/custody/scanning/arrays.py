"""What array files may hold: numbers and texts of plain types, exactly as many bytes as their shapes need. No objects."""

import math
from typing import Any

from modelkeep.custody.scanning.archives import open_archive
from modelkeep.custody.scanning.rules import Report
from modelkeep.custody.scanning.symbols import MAX_FIELDS, UnlikeAny, make_dtype
from modelkeep.errors import Invalid
from modelkeep.formats.npy import MAX_HEADER, read_npy

MAX_NESTED = 8


def scan_npy(data: memoryview, report: Report) -> None:
    """Judge one array file. Raises Invalid, TooLarge."""
    _judge(data[: MAX_HEADER + 12], len(data), "array", report)


def scan_npz(data: memoryview, report: Report) -> None:
    """Judge an archive of array files. Raises Invalid, TooLarge."""
    archive = open_archive(data, report)
    for member in archive.members:
        if not member.name.endswith(".npy"):
            report.add("zip-member", member.name, "the archive of arrays has a member that is no array")
        head = archive.unpack(member, MAX_HEADER + 12)
        if head is not None:
            _judge(head, member.size, member.name, report)


def _judge(head: memoryview | bytes, size: int, where: str, report: Report) -> None:
    try:
        header = read_npy(head)
        width = _width(header.descr, 0)
    except UnlikeAny as cause:
        report.add(cause.rule, where, str(cause))
        return
    except Invalid as cause:
        report.add("malformed", where, str(cause))
        return
    needed = header.begin + width * math.prod(header.shape)
    if needed > size:
        report.add("size", where, f"the array needs {needed} bytes, and the file has {size}")
    elif needed < size:
        report.add("trailing-data", where, f"{size - needed} bytes follow the end of the array")


def _width(descr: Any, depth: int) -> int:
    """Bytes of one element. Raises UnlikeAny: it holds objects, or is of a form that is not understood."""
    if isinstance(descr, str):
        if "O" in descr:
            raise UnlikeAny("the array holds Python objects, and reading those runs a pickle", "object-array")
        try:
            return make_dtype((descr.split("[")[0],)).size
        except UnlikeAny as cause:
            raise UnlikeAny("the array is of a type that is not understood", "malformed") from cause
    if isinstance(descr, tuple) and len(descr) == 2 and isinstance(descr[1], tuple):
        return _width(descr[0], depth + 1) * math.prod(n for n in descr[1] if type(n) is int and n >= 0)
    if not isinstance(descr, list) or len(descr) > MAX_FIELDS or depth > MAX_NESTED:
        raise UnlikeAny("the array is of a type that is not understood", "malformed")
    total = 0
    for field in descr:
        if not isinstance(field, tuple) or len(field) not in (2, 3) or not isinstance(field[0], str):
            raise UnlikeAny("the array has a field that is not understood", "malformed")
        total += _width(field[1] if len(field) == 2 else (field[1], field[2]), depth + 1)
    return total
