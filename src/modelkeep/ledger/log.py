"""A log as its writer and its readers see it: append under a lock, and read nothing that is not proven.

Crash safety of ``append``: tiles and bundles are written first, each atomically and durably; the checkpoint, which alone makes
them part of the log, last. Cut off before that, the log is the old one, and the next append overwrites the leftovers.
"""

from collections.abc import Callable, Sequence

from modelkeep.core.ports import LogFiles, StaticFiles
from modelkeep.crypto.merkle import EMPTY_ROOT, consistency_path, inclusion_path
from modelkeep.crypto.notes import Checkpoint, NoteSigner, open_checkpoint
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger.proofs import Continuation, Proof
from modelkeep.ledger.tiles import CHECKPOINT, Growth, Tile, TileFiles, TrustedTiles, check_entry, superseded


def read_note(files: StaticFiles, origin: str) -> bytes:
    """The signed note of a log's checkpoint, not checked. Raises Missing (no log here), NotTrusted, Unavailable."""
    try:
        return files.read(CHECKPOINT)
    except Missing as cause:
        if isinstance(files, LogFiles) and files.paths("tile/"):
            raise NotTrusted(f"the log {origin} has tiles but no checkpoint: it was deleted") from cause
        raise Missing(f"there is no log {origin} here") from cause


def read_checkpoint(files: StaticFiles, vkey: str, origin: str) -> Checkpoint:
    """The checkpoint of a log, its signature checked. Raises Missing (no log here), NotTrusted, Unavailable."""
    return open_checkpoint(read_note(files, origin), vkey, origin)


def check_continues(tiles: TrustedTiles, kept: Checkpoint) -> None:
    """Check that the log under ``tiles`` begins with all that ``kept`` covers.

    Raises NotTrusted: another log, rolled back to fewer entries, or rewritten.
    """
    now = tiles.checkpoint
    if kept.origin != now.origin:
        raise NotTrusted(f"the kept checkpoint is of the log {kept.origin!r}, not of {now.origin!r}")
    if now.size < kept.size:
        raise NotTrusted(f"the log {now.origin} was rolled back: it has {now.size} entries and once had {kept.size}")
    if (now.root if now.size == kept.size else tiles.root_at(kept.size)) != kept.root:
        raise NotTrusted(
            f"the log {now.origin} was rewritten: its first {kept.size} entries are not those of a kept checkpoint"
        )


class ReleasesLog:
    """The one writer of a log (several processes may take turns). Nothing is cached between appends but the last checkpoint."""

    def __init__(self, files: TileFiles, signer: NoteSigner, origin: str) -> None:
        """``signer``'s name must be ``origin``. Raises Invalid."""
        if signer.name != origin:
            raise Invalid(f"the key {signer.name!r} cannot sign the log {origin!r}: a log's key is named by its origin")
        self._files = files
        self._signer = signer
        self._origin = origin
        self._last: Checkpoint | None = None

    @property
    def last(self) -> Checkpoint | None:
        """The newest checkpoint that this object wrote or built upon; None before the first."""
        return self._last

    def create(self) -> Checkpoint:
        """Start the log with a checkpoint over nothing. Raises Conflict if there is one already, Unavailable."""
        with self._files.lock(wait=True):
            if self._files.paths("tile/") or self._files.paths(CHECKPOINT):
                raise Conflict(f"there is a log here already; {self._origin} was not started again")
            return self._publish(Growth())

    def append(self, entries: Sequence[bytes], *, check: Callable[[int], object] = lambda _size: None) -> range:
        """Log ``entries`` in this order, durably and under a new checkpoint; returns their indexes.

        ``check``: told how many entries stand before them, while nobody else can append; what it raises, this raises, and
        nothing is logged. Raises TooLarge (nothing is logged), Missing (no log: ``create`` it), NotTrusted (the log on disk is
        damaged, or older than what this object has seen), Unavailable (nothing is logged, or all of it: read the log to know).
        """
        for entry in entries:
            check_entry(entry)
        with self._files.lock(wait=True):
            growth = Growth.of(self._verified())
            start = growth.size
            check(start)
            if entries:
                made: dict[str, bytes] = {}
                full = growth.grow(entries, made.__setitem__)
                self._files.write_all(made)
                self._publish(growth)
                self._tidy(full)
            return range(start, growth.size)

    def _verified(self) -> TrustedTiles:
        checkpoint = read_checkpoint(self._files, self._signer.vkey, self._origin)
        tiles = TrustedTiles(self._files, checkpoint)
        if self._last is not None:
            check_continues(tiles, self._last)
        self._last = checkpoint
        return tiles

    def _publish(self, growth: Growth) -> Checkpoint:
        checkpoint = Checkpoint(self._origin, growth.size, growth.root())
        self._files.write(CHECKPOINT, checkpoint.sign(self._signer))
        self._last = checkpoint
        return checkpoint

    def _tidy(self, full: Sequence[Tile]) -> None:
        for path in superseded(self._files, full):
            self._files.delete(path)


class LogView:
    """A reader of a log that trusts its key, and remembers what it has seen.

    One thread may ``refresh`` while others read: checkpoint and note change together, and each call works on one pair.
    """

    def __init__(self, files: StaticFiles, vkey: str, origin: str, known: Checkpoint | None = None) -> None:
        """``known``: a checkpoint kept from earlier, which the log must continue. Nothing is read yet."""
        self._files = files
        self._vkey = vkey
        self._origin = origin
        self._known = known
        self._state = TrustedTiles(files, Checkpoint(origin, 0, EMPTY_ROOT)), b""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the last ``refresh``; of an empty log before the first."""
        return self._state[0].checkpoint

    @property
    def note(self) -> bytes:
        """The signed note of ``checkpoint``; empty before the first ``refresh``."""
        return self._state[1]

    def refresh(self) -> Checkpoint:
        """Take in the newest checkpoint, once its signature holds and it continues the last one seen.

        Raises NotTrusted (and keeps the old state), Missing, Unavailable.
        """
        note = read_note(self._files, self._origin)
        if note == self.note:
            return self.checkpoint
        checkpoint = open_checkpoint(note, self._vkey, self._origin)
        tiles = TrustedTiles(self._files, checkpoint)
        tiles.edge()
        if self._known is not None:
            check_continues(tiles, self._known)
        self._state, self._known = (tiles, note), checkpoint
        return checkpoint

    def entries(self, start: int, end: int) -> list[bytes]:
        """Entries ``start`` to ``end`` (exclusive), each proven against ``checkpoint``.

        Raises Invalid (out of range), NotTrusted, Unavailable.
        """
        return list(self._state[0].entries(start, end))

    def inclusion(self, index: int, under: bytes = b"") -> Proof:
        """The proof that entry ``index`` is under ``checkpoint``, with the entry itself.

        ``under``: the signed note of an earlier checkpoint to prove it under instead. Raises Invalid (no such entry),
        NotTrusted (this log does not continue it), Unavailable.
        """
        tiles, note = self._state
        size = tiles.checkpoint.size
        if under:
            earlier = open_checkpoint(under, self._vkey, self._origin)
            check_continues(tiles, earlier)
            size, note = earlier.size, under
        (entry,) = tiles.entries(index, index + 1)
        return Proof(index, entry, tuple(inclusion_path(index, size, tiles.node)), note)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the first ``old`` of the first ``new`` entries never changed, for ``merkle.check_consistency``.

        Raises Invalid (unless 0 < old ≤ new ≤ the checkpoint's size), NotTrusted, Unavailable.
        """
        tiles, _ = self._state
        if new > tiles.checkpoint.size:
            raise Invalid(f"the log {self._origin} has {tiles.checkpoint.size} entries, not {new}")
        return consistency_path(old, new, tiles.node)

    def continuation(self, old: int) -> Continuation:
        """The proof that ``checkpoint`` continues the log's first ``old`` entries; from none, there is nothing to prove.

        Raises Invalid (it has fewer entries), NotTrusted, Unavailable.
        """
        tiles, note = self._state
        size = tiles.checkpoint.size
        if not 0 <= old <= size:
            raise Invalid(f"the log {self._origin} has {size} entries, not {old}")
        return Continuation(old, tuple(consistency_path(old, size, tiles.node)) if old else (), note)

    def root_at(self, size: int) -> bytes:
        """The root that the log had at ``size`` entries. Raises Invalid, NotTrusted, Unavailable."""
        tiles, _ = self._state
        if not 0 <= size <= tiles.checkpoint.size:
            raise Invalid(f"the log {self._origin} has {tiles.checkpoint.size} entries, not {size}")
        return tiles.root_at(size)
