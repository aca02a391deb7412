"""Read the structure of an HDF5 file as h5py writes it by default, and name whatever else it uses.

Source: the HDF5 File Format Specification, version 3.0: superblock 0 and 1, object headers 1, symbol-table groups, compact
links, contiguous, compact and chunked datasets, attributes, the global heap. Newer structures are reported, not followed.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from modelkeep.errors import Invalid, TooLarge

MAX_OBJECTS = 20_000
MAX_MESSAGES = 100_000
MAX_TEXT = 4 << 20
MAX_RANK = 32

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = (1 << 64) - 1
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_SKIPPED = {0, 2, 4, 5, 10, 12, 13, 14, 18, 19, 21, 22}
_U64 = struct.Struct("<Q")


class Oddity(NamedTuple):
    """Something that is not followed. ``kind``: external (leads out of the file) or feature; ``where``: path of the object."""

    kind: Literal["external", "feature", "size"]
    where: str
    why: str


class _Type(NamedTuple):
    """A datatype: its class, the bytes of an element, and whether it is text of any length, which lies in the global heap."""

    kind: int
    size: int
    heap: bool


@dataclass
class Hdf5:
    """``texts``: string attributes by (path of the object, name); ``datasets``: how many; ``odd``: what is not understood."""

    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    datasets: int = 0
    odd: dict[Oddity, None] = field(default_factory=dict)


def read_hdf5(data: memoryview) -> Hdf5:
    """Walk a whole file from its root. Raises Invalid (malformed, cut off), TooLarge (more objects than are read)."""
    try:
        return _Reader(data).read()
    except IndexError as cause:
        raise Invalid("the HDF5 file is cut off within a part") from cause


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._found = Hdf5()
        self._messages = MAX_MESSAGES
        self._text = MAX_TEXT
        self._seen: set[int] = set()
        self._todo: list[tuple[str, int]] = []

    def read(self) -> Hdf5:
        self._todo.append(("", self._superblock()))
        while self._todo:
            path, at = self._todo.pop()
            if at in self._seen:
                self._odd("feature", path, "the object has two names")
                continue
            self._seen.add(at)
            if len(self._seen) > MAX_OBJECTS:
                raise TooLarge(f"the HDF5 file has more than {MAX_OBJECTS} objects")
            self._object(path, at)
        return self._found

    # -- bytes

    def _span(self, at: int, size: int) -> memoryview:
        if at < 0 or size < 0 or at + size > len(self._data):
            raise Invalid("the HDF5 file is cut off, or points outside of itself")
        return self._data[at : at + size]

    def _int(self, at: int, width: int) -> int:
        return int.from_bytes(self._span(at, width), "little")

    def _odd(self, kind: Literal["external", "feature", "size"], where: str, why: str) -> None:
        if len(self._found.odd) < 64:
            self._found.odd[Oddity(kind, where or "/", why)] = None

    def _spend(self, count: int = 1) -> None:
        self._messages -= count
        if self._messages < 0:
            raise TooLarge(f"the HDF5 file has more than {MAX_MESSAGES} parts")

    # -- structure

    def _superblock(self) -> int:
        """Address of the root's object header."""
        head = bytes(self._span(0, 24))
        if head[:8] != SIGNATURE:
            raise Invalid("the file does not begin as HDF5")
        if head[8] not in (0, 1) or any(head[9:13]) or head[13:15] != b"\x08\x08" or head[15]:
            raise Invalid(f"HDF5 superblock {head[8]} is not understood: save the file with h5py's default libver")
        at = 24 if head[8] == 0 else 28
        base, free, end, driver = struct.unpack("<4Q", self._span(at, 32))
        if base or free != _NOWHERE or driver != _NOWHERE:
            raise Invalid("the HDF5 file has a user block, free-space data or a driver of its own, which are not understood")
        if end != len(self._data):
            raise Invalid("the HDF5 file does not end where it says: it was cut off, or bytes follow")
        return self._int(at + 32 + 8, 8)

    def _object(self, path: str, at: int) -> None:
        head = self._span(at, 16)
        if head[0] != 1:
            self._odd("feature", path, "an object header of a newer kind")
            return
        count, size = self._int(at + 2, 2), self._int(at + 8, 4)
        parts: dict[int, list[tuple[int, int]]] = {}
        blocks, left = [(at + 16, size)], count
        while blocks and left:
            begin, length = blocks.pop(0)
            left = self._block(path, begin, length, left, parts, blocks)
        if left:
            raise Invalid("an object of the HDF5 file has fewer parts than it says")
        self._judge(path, parts)

    def _block(
        self, path: str, at: int, length: int, left: int, parts: dict[int, list[tuple[int, int]]], blocks: list[tuple[int, int]]
    ) -> int:
        """Messages of one block of a header; how many are left for the others."""
        end = at + len(self._span(at, length))
        while left and at + 8 <= end:
            self._spend()
            kind, size, flags = self._int(at, 2), self._int(at + 2, 2), self._data[at + 4]
            at, left = at + 8, left - 1
            if at + size > end:
                raise Invalid("a part of the HDF5 file is longer than what holds it")
            if flags & 2:
                self._odd("feature", path, "a part that is shared between objects")
            elif kind == 16:
                blocks.append((self._int(at, 8), self._int(at + 8, 8)))
            else:
                parts.setdefault(kind, []).append((at, size))
            at += size
        return left

    def _judge(self, path: str, parts: dict[int, list[tuple[int, int]]]) -> None:
        single: dict[int, Callable[[str, int, int], None]] = {
            17: self._symbols,
            6: self._link,
            12: self._attribute,
            2: self._links,
        }
        for kind, places in parts.items():
            if kind == 7:
                self._odd("external", path, "the data of a dataset lies in another file")
            elif kind not in _SKIPPED and kind not in (1, 3, 6, 8, 11, 17):
                self._odd("feature", path, f"a part of kind {kind} that is not understood")
            if kind in (1, 3, 8, 11, 17) and len(places) > 1:
                self._odd("feature", path, "a part that occurs twice")
            step = single.get(kind)
            for at, size in places if step else ():
                self._spend()
                step(path, at, size) if step else None
        if 8 in parts or 1 in parts:
            self._dataset(path, parts)
        for at, _ in parts.get(21, ()):
            if not all(self._data[i] == 0xFF for i in range(at + 2 + 2 * (self._data[at + 1] & 1), at + 18)):
                self._odd("feature", path, "attributes in a fractal heap")

    # -- groups

    def _symbols(self, path: str, at: int, _size: int) -> None:
        tree, heap = self._int(at, 8), self._int(at + 8, 8)
        if bytes(self._span(heap, 4)) != b"HEAP" or self._data[heap + 4]:
            raise Invalid("a group of the HDF5 file has no heap of names")
        names = self._span(self._int(heap + 24, 8), self._int(heap + 8, 8))
        for leaf in self._leaves(tree, 0, 8):
            if bytes(self._span(leaf, 4)) != b"SNOD":
                raise Invalid("a group of the HDF5 file has no symbols where they belong")
            for index in range(self._int(leaf + 6, 2)):
                self._symbol(path, names, leaf + 8 + 40 * index)

    def _symbol(self, path: str, names: memoryview, at: int) -> None:
        self._spend()
        offset, target, cached = struct.unpack("<QQI", self._span(at, 20))
        name = bytes(names[offset : offset + 256]).split(b"\0")[0]
        if cached == 2 or target == _NOWHERE:
            self._odd("external", path, "a symbolic link")
        elif cached not in (0, 1):
            self._odd("feature", path, "a link of an unknown kind")
        else:
            self._child(path, name, target)

    def _child(self, path: str, name: bytes, target: int) -> None:
        try:
            text = name.decode()
        except UnicodeDecodeError as cause:
            raise Invalid("a name in the HDF5 file is not text") from cause
        full = f"{path}/{text}"
        if len(full) > 512:
            raise TooLarge("the HDF5 file nests groups deeper than is read")
        self._todo.append((full, target))

    def _leaves(self, root: int, kind: int, key: int) -> list[int]:
        """Children of the lowest nodes of a version 1 B-tree; ``key``: bytes of a key."""
        if root == _NOWHERE:
            return []
        found, todo, seen = [], [root], set[int]()
        while todo:
            at = todo.pop()
            self._spend()
            head = self._span(at, 24)
            if bytes(head[:4]) != b"TREE" or head[4] != kind or at in seen:
                raise Invalid("a tree of the HDF5 file is malformed")
            seen.add(at)
            count = self._int(at + 6, 2)
            self._spend(count)
            children = [self._int(at + 24 + key + index * (key + 8), 8) for index in range(count)]
            if head[5]:
                todo += children
            else:
                found += children
        return found

    def _link(self, path: str, at: int, size: int) -> None:
        """A link message, version 1: only hard links are followed."""
        end, flags = at + size, self._data[at + 1] if size > 1 else 0
        start = at + 2
        kind = self._data[start] if flags & 8 and start < end else 0
        start += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        length = self._int(start, width)
        name = bytes(self._span(start + width, min(length, 256)))
        place = start + width + length
        if self._data[at] != 1 or flags & 0xE0 or length > 256 or place + (8 if kind == 0 else 0) > end:
            raise Invalid("a link of the HDF5 file is malformed")
        if kind:
            self._odd("external", path, "a link that is not a plain one: soft, external or user-defined")
        else:
            self._child(path, name, self._int(place, 8))

    def _links(self, path: str, at: int, size: int) -> None:
        start = at + 2 + 8 * (self._data[at + 1] & 1)
        if start + 8 > at + size or self._int(start, 8) != _NOWHERE:
            self._odd("feature", path, "links in a fractal heap")

    # -- datasets and attributes

    def _dataset(self, path: str, parts: dict[int, list[tuple[int, int]]]) -> None:
        self._found.datasets += 1
        if not all(kind in parts for kind in (1, 3, 8)):
            self._odd("feature", path, "a dataset that lacks its type, shape or layout")
            return
        shape, kind = self._shape(*parts[1][0]), self._type(path, *parts[3][0])
        at, size = parts[8][0]
        if size < 2 or self._data[at] != 3:
            self._odd("feature", path, "a layout of another version")
            return
        needed = math.prod(shape) * (kind.size if kind else 0)
        for place, length in parts.get(11, ()):
            self._filters(path, place, length)
        self._layout(path, at, size, needed, filtered=11 in parts)

    def _layout(self, path: str, at: int, size: int, needed: int, *, filtered: bool) -> None:
        kind = self._data[at + 1]
        if kind == 0:
            stored = self._int(at + 2, 2)
            if stored != needed or stored + 4 > size:
                self._odd("size", path, "a dataset does not have as many bytes as its shape needs")
        elif kind == 1:
            begin, stored = self._int(at + 2, 8), self._int(at + 10, 8)
            if needed and (begin == _NOWHERE or stored != needed or begin + stored > len(self._data)):
                self._odd("size", path, "a dataset does not have as many bytes as its shape needs")
        elif kind == 2:
            self._chunks(path, at, needed, filtered)
        else:
            self._odd("feature", path, "a layout that is not understood")

    def _chunks(self, path: str, at: int, needed: int, filtered: bool) -> None:
        rank, tree = self._data[at + 2], self._int(at + 3, 8)
        if not 2 <= rank <= MAX_RANK + 1:
            raise Invalid("a dataset of the HDF5 file has no rank that is read")
        extent = math.prod(self._int(at + 11 + 4 * index, 4) for index in range(rank))
        key = 8 + 8 * rank
        count = 0
        for child, stored in self._chunk_places(tree, key):
            count += 1
            if child + stored > len(self._data) or (not filtered and stored != extent):
                self._odd("size", path, "a chunk does not have its bytes")
        if extent * max(count, 1) > (64 << 20) + 16 * len(self._data) or needed > max(extent, 1) * max(count, 1):
            self._odd("size", path, "a dataset claims more than the file backs")

    def _chunk_places(self, tree: int, key: int) -> list[tuple[int, int]]:
        """Address and stored bytes of each chunk: the size is in the key before it."""
        if tree == _NOWHERE:
            return []
        found, todo, seen = [], [tree], set[int]()
        while todo:
            at = todo.pop()
            head = self._span(at, 24)
            if bytes(head[:4]) != b"TREE" or head[4] != 1 or at in seen:
                raise Invalid("a tree of the HDF5 file is malformed")
            seen.add(at)
            count = self._int(at + 6, 2)
            self._spend(count + 1)
            places = [at + 24 + index * (key + 8) for index in range(count)]
            pairs = [(self._int(place + key, 8), self._int(place, 4)) for place in places]
            if head[5]:
                todo += [child for child, _ in pairs]
            else:
                found += pairs
        return found

    def _filters(self, path: str, at: int, size: int) -> None:
        version, count = self._data[at], self._data[at + 1]
        if version != 1:
            self._odd("feature", path, "filters of another version")
            return
        start, end = at + 8, at + size
        for _ in range(count):
            if start + 8 > end:
                raise Invalid("the filters of the HDF5 file are malformed")
            name, length, _, values = struct.unpack("<4H", self._span(start, 8))
            if name not in _FILTERS:
                self._odd("feature", path, f"filter {name}, which may be a plug-in")
            start += 8 + length + 4 * (values + values % 2)

    def _shape(self, at: int, size: int) -> tuple[int, ...]:
        version, rank = self._data[at], self._data[at + 1]
        start = at + (8 if version == 1 else 4)
        null = version == 2 and self._data[at + 3] == 2
        if version not in (1, 2) or rank > MAX_RANK or start + 8 * rank > at + size:
            raise Invalid("a shape in the HDF5 file is malformed")
        return (0,) if null else struct.unpack(f"<{rank}Q", self._span(start, 8 * rank))

    def _type(self, path: str, at: int, size: int, depth: int = 0) -> _Type | None:
        """A number, a text or a truth value; None, and an oddity, for any other."""
        if size < 8:
            raise Invalid("a type in the HDF5 file is malformed")
        kind, version, bits, width = self._data[at] & 15, self._data[at] >> 4, self._data[at + 1], self._int(at + 4, 4)
        if version not in (1, 2, 3) or depth > 2:
            self._odd("feature", path, "a type of another version")
            return None
        if kind in (0, 1, 3):
            return _Type(kind, width, heap=False)
        if kind == 8:
            return _Type(kind, width, heap=False)
        if kind == 9 and bits & 15 == 1 and width == 16:
            return _Type(kind, width, heap=True)
        self._odd("feature", path, f"a type of class {kind}: references, compounds and their like are not understood")
        return None

    def _attribute(self, path: str, at: int, size: int) -> None:
        version, end = self._data[at], at + size
        if version not in (1, 2, 3) or size < 8 or (version > 1 and self._data[at + 1]):
            self._odd("feature", path, "an attribute of another kind")
            return
        lengths = struct.unpack("<3H", self._span(at + 2, 6))
        start = at + (9 if version == 3 else 8)
        places = []
        for length in lengths:
            places.append((start, length))
            start += -(-length // 8) * 8 if version == 1 else length
        if start > end:
            raise Invalid("an attribute of the HDF5 file is malformed")
        name = bytes(self._span(places[0][0], min(lengths[0], 256))).split(b"\0")[0].decode("utf-8", "replace")
        kind, shape = self._type(path, *places[1]), self._shape(*places[2])
        count = math.prod(shape)
        if kind is None:
            return
        if count * kind.size > end - start:
            raise Invalid("an attribute of the HDF5 file is longer than what holds it")
        if kind.kind in (3, 9):
            self._texts(path, name, kind, start, count)

    def _texts(self, path: str, name: str, kind: _Type, at: int, count: int) -> None:
        self._spend(count)
        parts = []
        for index in range(count):
            place = at + index * kind.size
            raw = self._heap_text(place) if kind.heap else bytes(self._span(place, kind.size)).rstrip(b"\0")
            self._text -= len(raw)
            if self._text < 0:
                raise TooLarge("the texts of the HDF5 file are longer than is read")
            parts.append(raw.decode("utf-8", "replace"))
        if (path, name) in self._found.texts:
            self._odd("feature", path, "two attributes of one name")
        self._found.texts[path, name] = "\n".join(parts)

    def _heap_text(self, at: int) -> bytes:
        length, heap, wanted = struct.unpack("<IQI", self._span(at, 16))
        if not length:
            return b""
        if bytes(self._span(heap, 4)) != b"GCOL":
            raise Invalid("a text of the HDF5 file is not in its heap")
        place, end = heap + 16, heap + len(self._span(heap, self._int(heap + 8, 8)))
        while place + 16 <= end:
            self._spend()
            index, size = self._int(place, 2), self._int(place + 8, 8)
            if not index:
                break
            if index == wanted:
                if length > size:
                    break
                return bytes(self._span(place + 16, length))
            place += 16 + -(-size // 8) * 8
        raise Invalid("a text of the HDF5 file is not in its heap")
