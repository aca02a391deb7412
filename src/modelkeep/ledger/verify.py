"""The whole-log check, from the static files alone: what an auditor runs on a copy."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from modelkeep.core.ports import StaticFiles
from modelkeep.crypto.notes import Checkpoint, open_checkpoint
from modelkeep.errors import NotTrusted
from modelkeep.ledger.log import check_continues, read_note
from modelkeep.ledger.tiles import WIDTH, Tile, TrustedTiles

Progress = Callable[[str, int, int], object]
"""Told what is being done, how far it is, and how far it goes."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class LogReport:
    """What was checked: the log ``origin`` has ``size`` entries under ``root`` and all of its files agree."""

    origin: str
    size: int
    root: bytes
    note: bytes = field(default=b"", repr=False, compare=False)
    """The signed checkpoint, verbatim."""


def reading_order(size: int) -> Iterator[str]:
    """Paths of a log of ``size`` entries about as ``verify_log`` reads them, for a reader that fetches ahead."""
    for index in range(-(-size // WIDTH)):
        width = min(WIDTH, size - index * WIDTH)
        yield from (Tile(0, index, width).path, Tile(-1, index, width).path)


def verify_log(
    files: StaticFiles, vkey: str, origin: str, kept: Iterable[Checkpoint] = (), progress: Progress = silent
) -> LogReport:
    """Check signature, every tile, every entry, and that the log continues every ``kept`` checkpoint.

    ``progress`` counts entry bundles. Raises NotTrusted with one line naming the first damage: missing tile, altered, reordered
    or truncated entries, bad signature, rollback or rewrite. Raises Missing (no log here), Unavailable.
    """
    note = read_note(files, origin)
    checkpoint = open_checkpoint(note, vkey, origin)
    tiles = TrustedTiles(files, checkpoint)
    if checkpoint.root != tiles.root_at(checkpoint.size):
        raise NotTrusted(f"the checkpoint of {origin} says {checkpoint.size} entries but its root is of another tree")
    bundles = -(-checkpoint.size // WIDTH)
    for index in range(bundles):  # a bundle needs its tile, and that the tiles above it: every tile is above some bundle
        tiles.bundle(index)
        progress(origin, index + 1, bundles)
    for earlier in kept:
        check_continues(tiles, earlier)
    return LogReport(origin, checkpoint.size, checkpoint.root, note)
