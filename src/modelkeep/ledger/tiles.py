"""Tiles: how a log lies in static files. Source: C2SP tlog-tiles.

Level 0 tiles hold leaf hashes, level L tiles the roots of full level L-1 tiles; an entry bundle holds the entries of one
level 0 tile. A tile is 256 wide; the rightmost ones of a tree may be partial and say their width in the path.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from modelkeep.core.ports import LogFiles, StaticFiles
from modelkeep.crypto.merkle import HASH_SIZE, leaf_hash, range_root, root_of
from modelkeep.crypto.notes import Checkpoint
from modelkeep.errors import Invalid, Missing, NotTrusted, TooLarge

HEIGHT = 8
WIDTH = 1 << HEIGHT
MAX_ENTRY = 0xFFFF
CHECKPOINT = "checkpoint"
CACHED_TILES = 256
_PATH = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*)([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?\Z")


class TileFiles(LogFiles, Protocol):
    """``LogFiles`` of a log that is being written: partial tiles are deleted once the full tile is there."""

    def delete(self, path: str) -> None:
        """Remove a file; silent when it is not there. Raises Unavailable."""
        ...


@dataclass(frozen=True)
class Tile:
    """Which tile: ``level`` -1 is the entry bundle beside level 0; ``width`` < 256 is a partial tile."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """The relative path, such as ``tile/0/x001/x234/067`` or ``tile/entries/000.p/17``."""
        level = "entries" if self.level < 0 else str(self.level)
        number = f"{self.index % 1000:03d}"
        rest = self.index // 1000
        while rest:
            number = f"x{rest % 1000:03d}/{number}"
            rest //= 1000
        return f"tile/{level}/{number}" + (f".p/{self.width}" if self.width < WIDTH else "")

    @classmethod
    def parse(cls, path: str) -> "Tile":
        """Undo ``path``: exactly one spelling for each tile. Raises Invalid."""
        match = _PATH.match(path)
        if not match:
            raise Invalid(f"{path[:120]!r} is not the path of a tile")
        level, upper, last, width = match.groups()
        index = int(upper.replace("x", "").replace("/", "") + last)
        tile = cls(-1 if level == "entries" else int(level), index, int(width) if width else WIDTH)
        if tile.path != path or tile.level > 63:
            raise Invalid(f"{path[:120]!r} is not the path of a tile")
        return tile


def tiles_of(size: int) -> Iterator[Tile]:
    """Every tile and bundle of a tree of ``size`` entries: bundles first, then levels upwards, left to right."""
    level = -1
    count = size
    while count:
        full, rest = divmod(count, WIDTH)
        yield from (Tile(level, index) for index in range(full))
        if rest:
            yield Tile(level, full, rest)
        if level >= 0:
            count = full
        level += 1


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries, each behind its big-endian 16-bit length. Raises TooLarge."""
    for entry in entries:
        check_entry(entry)
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def check_entry(entry: bytes) -> None:
    """Raises TooLarge for an entry that no bundle can hold."""
    if len(entry) > MAX_ENTRY:
        raise TooLarge(f"a log entry has at most {MAX_ENTRY} bytes, this one has {len(entry)}")


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """Exactly ``width`` entries. Raises NotTrusted: truncated, or with bytes behind the last."""
    entries: list[bytes] = []
    at = 0
    while len(entries) < width:
        length = int.from_bytes(data[at : at + 2], "big")
        if at + 2 + length > len(data):
            raise NotTrusted(f"it ends inside entry {len(entries)} of {width}: truncated")
        entries.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    if at != len(data):
        raise NotTrusted(f"it holds {len(data) - at} bytes behind its {width} entries: altered")
    return entries


def decode_hashes(data: bytes, width: int) -> list[bytes]:
    """Exactly ``width`` hashes. Raises NotTrusted."""
    if len(data) != width * HASH_SIZE:
        raise NotTrusted(f"it has {len(data)} bytes where {width * HASH_SIZE} must be: truncated or altered")
    return [data[i : i + HASH_SIZE] for i in range(0, len(data), HASH_SIZE)]


def read_tile(files: StaticFiles, tile: Tile) -> list[bytes]:
    """The hashes (or entries) of ``tile``, from the partial tile or the full one that replaced it.

    Raises NotTrusted (both are missing, or malformed), Unavailable.
    """
    decode = decode_bundle if tile.level < 0 else decode_hashes
    for found in (tile, Tile(tile.level, tile.index)):
        try:
            return decode(files.read(found.path), found.width)[: tile.width]
        except Missing:
            continue
        except NotTrusted as cause:
            raise NotTrusted(f"{found.path} is damaged: {cause}") from cause
    raise NotTrusted(f"the log is missing {tile.path}, which its checkpoint covers")


@dataclass(frozen=True)
class TrustedTiles:
    """The tree under one checkpoint, read tile by tile; nothing leaves that does not hash up to the checkpoint's root.

    The rightmost tiles of all levels together give the root, so they are checked at once, in ``edge``. Every other tile is full
    and its root stands in the tile above it.
    """

    files: StaticFiles
    checkpoint: Checkpoint
    _cache: OrderedDict[tuple[int, int], list[bytes]] = field(default_factory=OrderedDict, repr=False, compare=False)

    def edge(self) -> list[list[bytes]]:
        """The hashes of the partial tile of each level, lowest level first. Raises NotTrusted, Unavailable."""
        size, found = self.checkpoint.size, []
        level = 0
        while size >> (HEIGHT * level):
            index, width = divmod(size >> (HEIGHT * level), WIDTH)
            tile = Tile(level, index, width)
            found.append(read_tile(self.files, tile) if width else [])
            level += 1
        if edge_root(found, size) != self.checkpoint.root:
            raise NotTrusted(f"the newest tiles of {self.checkpoint.origin} do not lead to the root in its checkpoint: altered")
        for level, hashes in enumerate(found):
            self._keep((level, size >> (HEIGHT * (level + 1))), hashes)
        return found

    def hashes(self, level: int, index: int) -> list[bytes]:
        """The hashes of one tile, checked up to the root. Raises NotTrusted, Unavailable."""
        known = self._cache.pop((level, index), None)
        if known is not None:
            self._cache[level, index] = known  # the newest again; in two steps that other threads cannot trip over
            return known
        width = min(WIDTH, (self.checkpoint.size >> (HEIGHT * level)) - index * WIDTH)
        if width < WIDTH:
            return self.edge()[level]
        tile = Tile(level, index)
        hashes = read_tile(self.files, tile)
        if root_of(hashes) != self.hashes(level + 1, index // WIDTH)[index % WIDTH]:
            raise NotTrusted(f"{tile.path} does not lead to the root in the checkpoint: it was altered")
        self._keep((level, index), hashes)
        return hashes

    def _keep(self, key: tuple[int, int], hashes: list[bytes]) -> None:
        self._cache[key] = hashes
        while len(self._cache) > CACHED_TILES:
            self._cache.popitem(last=False)

    def node(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree (``merkle.NodeAt``). Raises NotTrusted, Unavailable."""
        tile_level, height = divmod(level, HEIGHT)
        first = index << height
        hashes = self.hashes(tile_level, first // WIDTH)
        return root_of(hashes[first % WIDTH : first % WIDTH + (1 << height)])

    def root_at(self, size: int) -> bytes:
        """The root that this tree had at ``size`` entries. Raises NotTrusted, Unavailable."""
        return range_root(0, size, self.node)

    def bundle(self, index: int) -> list[bytes]:
        """The entries of one bundle, each checked against its leaf. Raises NotTrusted, Unavailable."""
        leaves = self.hashes(0, index)
        entries = read_tile(self.files, Tile(-1, index, len(leaves)))
        for offset, (entry, leaf) in enumerate(zip(entries, leaves, strict=True)):
            if leaf_hash(entry) != leaf:
                raise NotTrusted(f"entry {index * WIDTH + offset} is not what was logged: it was altered or moved")
        return entries

    def entries(self, start: int, end: int) -> Iterator[bytes]:
        """Entries ``start`` to ``end`` (exclusive), each checked. Raises Invalid (out of range), NotTrusted, Unavailable."""
        if not 0 <= start <= end <= self.checkpoint.size:
            raise Invalid(f"entries {start} to {end} are not in a log of {self.checkpoint.size} entries")
        for index in range(start // WIDTH, -(-end // WIDTH)):
            first = index * WIDTH
            yield from self.bundle(index)[max(start - first, 0) : end - first]


def edge_root(edge: Sequence[Sequence[bytes]], size: int) -> bytes:
    """The root of a tree of ``size`` entries from its partial tiles, lowest level first."""

    def node(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, HEIGHT)
        first = (index << height) % WIDTH
        return root_of(edge[tile_level][first : first + (1 << height)])

    return range_root(0, size, node)


@dataclass
class Growth:
    """The right edge of a growing tree in memory, and the files that each growth step must write.

    ``grow`` calls ``write(path, data)`` for tiles and bundles, never for the checkpoint; the caller writes that last, and may
    then delete what ``superseded`` lists. After an error of ``write`` this object is of no more use.
    """

    size: int = 0
    edge: list[list[bytes]] = field(default_factory=list)
    bundle: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, tiles: TrustedTiles) -> "Growth":
        """Continue the tree under ``tiles``. Raises NotTrusted, Unavailable."""
        size = tiles.checkpoint.size
        edge = [list(hashes) for hashes in tiles.edge()]
        return cls(size, edge, tiles.bundle(size // WIDTH) if size % WIDTH else [])

    def grow(self, entries: Iterable[bytes], write: Callable[[str, bytes], None]) -> list[Tile]:
        """Take ``entries`` in and write what changed. Returns the tiles that became full. Raises what ``write`` raises."""
        full: list[Tile] = []
        touched: set[int] = set()
        before = self.size
        for entry in entries:
            self.bundle.append(entry)
            self._push(0, leaf_hash(entry), full, write, touched)
            self.size += 1
        if self.bundle and self.size > before:
            write(Tile(-1, self.size // WIDTH, len(self.bundle)).path, encode_bundle(self.bundle))
        for level in sorted(touched):
            if self.edge[level]:
                tile = Tile(level, self.size >> (HEIGHT * (level + 1)), len(self.edge[level]))
                write(tile.path, b"".join(self.edge[level]))
        return full

    def _push(self, level: int, node: bytes, full: list[Tile], write: Callable[[str, bytes], None], touched: set[int]) -> None:
        if level == len(self.edge):
            self.edge.append([])
        hashes = self.edge[level]
        hashes.append(node)
        touched.add(level)
        if len(hashes) < WIDTH:
            return
        index = self.size >> (HEIGHT * (level + 1))
        if level == 0:
            write(Tile(-1, index).path, encode_bundle(self.bundle))
            full.append(Tile(-1, index))
            self.bundle = []
        write(Tile(level, index).path, b"".join(hashes))
        full.append(Tile(level, index))
        self.edge[level] = []
        self._push(level + 1, root_of(hashes), full, write, touched)

    def root(self) -> bytes:
        """The root over everything taken in."""
        return edge_root(self.edge, self.size)


def superseded(files: LogFiles, full: Sequence[Tile]) -> list[str]:
    """Paths of the partial tiles that the tiles ``full`` replaced. Raises Unavailable."""
    return [path for tile in full for path in files.paths(tile.path + ".p/")]
