"""Several files as one source (kind FILES): a model with its external data, such as ONNX weights beside the graph.

``source = head ‖ first file ‖ second file ‖ …``; ``head = "KEEPFLS\\n" ‖ u32 count ‖ u16 length ‖ name ‖ u64 size ‖ …``. The
model comes first and the rest in the order of their names, so that the same files give the same source, and so the same digest.
"""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from modelkeep.container.reader import Reader, read_bytes
from modelkeep.errors import Invalid

MAGIC = b"KEEPFLS\n"
MAX_FILES = 16_384
MAX_NAME = 1024
MAX_PARTS = 32
_MAX_PART = 255
_FIXED = len(MAGIC) + 4


class FilePart(NamedTuple):
    """One file of a source of several: its plain relative name, its size, and where it begins in the source, in bytes."""

    name: str
    size: int
    offset: int


class FilesReader:
    """A ``Reader`` over ``(name, reader)`` pairs as one source. The first is the model; the rest are put in order.

    Raises Invalid: no file, too many, or names that are not plain, relative and different.
    """

    def __init__(self, files: Sequence[tuple[str, Reader]]) -> None:
        ordered = [*files[:1], *sorted(files[1:], key=lambda file: _key(file[0]))]
        self.head = encode_files([(name, reader.size) for name, reader in ordered])
        self._readers: list[Reader] = [reader for _, reader in ordered]
        self._parts = parse_files(self.head)
        self._starts = [part.offset for part in self._parts]
        self.size = self._parts[-1].offset + self._parts[-1].size

    def read_into(self, offset: int, into: memoryview) -> None:
        if offset < len(self.head):
            part = self.head[offset : offset + into.nbytes]
            into[: len(part)] = part
            into, offset = into[len(part) :], offset + len(part)
        number = max(0, bisect_right(self._starts, offset) - 1)
        while into.nbytes:
            at = offset - self._starts[number]
            # The last file is asked for everything that is left, so that a read past the end fails there, as it does anywhere.
            last = number == len(self._parts) - 1
            size = into.nbytes if last else min(into.nbytes, self._parts[number].size - at)
            if size:
                self._readers[number].read_into(at, into[:size])
            into, offset, number = into[size:], offset + size, number + 1


def encode_files(files: Sequence[tuple[str, int]]) -> bytes:
    """The head for ``(name, size)`` pairs. Raises Invalid (see ``parse_files``)."""
    parts = [MAGIC, struct.pack(">I", len(files))]
    for name, size in files:
        raw = _key(name)
        parts.append(struct.pack(">H", len(raw[: MAX_NAME + 1])) + raw + struct.pack(">Q", size))
    head = b"".join(parts)
    parse_files(head)
    return head


def parse_files(head: bytes) -> tuple[FilePart, ...]:
    """The files that a head lists.

    Raises Invalid: cut, too many, bytes left over, names that are not plain and relative, twice the same, a name that is also
    another's folder, or names after the first that are not in ascending order of their UTF-8 bytes.
    """
    if head[: len(MAGIC)] != MAGIC or len(head) < _FIXED:
        raise Invalid("this is not a list of files: it does not begin as one")
    (count,) = struct.unpack_from(">I", head, len(MAGIC))
    if not 1 <= count <= MAX_FILES:
        raise Invalid(f"a source of several files has 1 to {MAX_FILES} files, not {count}")
    rows, at = [], _FIXED
    for _ in range(count):
        length = int.from_bytes(head[at : at + 2])
        end = at + 2 + length + 8
        if end > len(head):
            raise Invalid("the list of files is cut off")
        rows.append((head[at + 2 : at + 2 + length], int.from_bytes(head[end - 8 : end])))
        at = end
    if at != len(head):
        raise Invalid("the list of files goes on after its last file")
    names = _names([raw for raw, _ in rows])
    offset, files = len(head), []
    for name, (_, size) in zip(names, rows, strict=True):
        files.append(FilePart(name, size, offset))
        offset += size
    return tuple(files)


def read_list(source: Reader) -> bytes:
    """The head of a source that is a list of files and the files. Raises Invalid (it is not), NotTrusted (it is cut off)."""
    fixed = read_bytes(source, 0, min(_FIXED, source.size))
    if fixed[: len(MAGIC)] != MAGIC or len(fixed) < _FIXED:
        raise Invalid("this is not a list of files: it does not begin as one")
    at = _FIXED
    for _ in range(min(int.from_bytes(fixed[-4:]), MAX_FILES + 1)):
        at += 2 + int.from_bytes(read_bytes(source, at, 2)) + 8
    return read_bytes(source, 0, at)


def _names(raw: Sequence[bytes]) -> list[str]:
    """The names, checked one by one and against each other."""
    names = [_checked(one) for one in raw]
    if any(one >= other for one, other in pairwise(raw[1:])):
        raise Invalid("the files after the first are not in the order of their names, or two have the same name")
    known = set(names)
    if len(known) != len(names):
        raise Invalid(f"two files have the name {names[0][:80]!r}")
    for name in names:
        parts = name.split("/")
        if any("/".join(parts[:depth]) in known for depth in range(1, len(parts))):
            raise Invalid(f"the name {name[:80]!r} makes a folder of another file")
    return names


def _checked(raw: bytes) -> str:
    """A plain relative POSIX path: it can name nothing outside the folder that it is put into."""
    try:
        name = raw.decode()
    except UnicodeDecodeError as cause:
        raise Invalid("a file's name is not UTF-8") from cause
    if not 1 <= len(raw) <= MAX_NAME:
        raise Invalid(f"a file's name has 1 to {MAX_NAME} bytes, not {len(raw)}")
    if "\\" in name or any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        raise Invalid(f"the file name {name[:80]!r} has a backslash or a control character")
    parts = raw.split(b"/")
    if len(parts) > MAX_PARTS:
        raise Invalid(f"the file name {name[:80]!r} is more than {MAX_PARTS} folders deep")
    for part in parts:
        if part in (b"", b".", b"..") or len(part) > _MAX_PART:
            raise Invalid(f"the file name {name[:80]!r} is not plain and relative: it must not be absolute, nor hold . or ..")
    return name


def _key(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as cause:
        raise Invalid(f"the file name {name[:80]!a} is not Unicode text") from cause
