"""The whole-log check, from the static files alone: what an auditor runs on a copy."""

from collections.abc import Iterable
from dataclasses import dataclass

from modelkeep.core.ports import LogFiles
from modelkeep.crypto.notes import Checkpoint
from modelkeep.errors import NotTrusted
from modelkeep.ledger.log import check_continues, read_checkpoint
from modelkeep.ledger.tiles import TrustedTiles, tiles_of


@dataclass(frozen=True)
class LogReport:
    """What was checked: the log ``origin`` has ``size`` entries under ``root`` and all of its files agree."""

    origin: str
    size: int
    root: bytes


def verify_log(files: LogFiles, vkey: str, origin: str, kept: Iterable[Checkpoint] = ()) -> LogReport:
    """Check signature, every tile, every entry, and that the log continues every ``kept`` checkpoint.

    Raises NotTrusted with one line naming the first damage: missing tile, altered, reordered or truncated entries, bad
    signature, rollback or rewrite. Raises Missing (no log here), Unavailable.
    """
    checkpoint = read_checkpoint(files, vkey, origin)
    tiles = TrustedTiles(files, checkpoint)
    if checkpoint.root != tiles.root_at(checkpoint.size):
        raise NotTrusted(f"the checkpoint of {origin} says {checkpoint.size} entries but its root is of another tree")
    for tile in tiles_of(checkpoint.size):
        if tile.level < 0:
            tiles.bundle(tile.index)
        else:
            tiles.hashes(tile.level, tile.index)
    for earlier in kept:
        check_continues(tiles, earlier)
    return LogReport(origin, checkpoint.size, checkpoint.root)
