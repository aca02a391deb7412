"""After a gateway is gone: finish its audit log, read it, and check it from the files alone."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from modelkeep.core.ports import Clock, LogFiles, StaticFiles
from modelkeep.crypto.notes import Checkpoint, NoteSigner, open_checkpoint
from modelkeep.errors import Missing, NotTrusted
from modelkeep.ledger.log import read_checkpoint
from modelkeep.ledger.tiles import CHECKPOINT, WIDTH, Growth, TileFiles, TrustedTiles, superseded, tiles_of
from modelkeep.ledger.verify import Progress, silent, verify_log
from modelkeep.serving.journal import (
    AuditEntry,
    JournalReader,
    JournalWriter,
    Record,
    Stamps,
    batches,
    decode_entry,
    journal_key,
    segment_of,
    segment_path,
    segments,
    split_frames,
)

TORN = "torn"
CLOSE = "close"


@dataclass(frozen=True)
class AuditReport:
    """What was checked: ``size`` entries under ``root``. ``closed``: the last one is a closing entry, so nothing follows.

    ``bodies``: encrypted bodies that are there and match; ``absent``: bodies that entries name and the journal, pruned, lacks.
    """

    origin: str
    size: int
    root: bytes
    closed: bool
    bodies: int
    absent: int
    note: bytes = field(default=b"", repr=False, compare=False)
    """The signed checkpoint, verbatim."""


def recover_audit(files: TileFiles, signer: NoteSigner, origin: str, clock: Clock) -> AuditReport:
    """Finish the log of a dead process: cut a torn frame off, say so in a closing entry, sign the final checkpoint.

    Does nothing to a log that is closed already, and may itself be cut off anywhere and be run again.
    Raises Conflict (a live process holds the log), Missing (no log here), NotTrusted (damage: nothing is changed), Unavailable.
    """
    with files.lock(wait=False):
        if not is_closed(files, signer.vkey, origin):
            _Recovery(files, signer, origin).finish(clock.now_ns())
    return verify_audit(files, signer.vkey, origin)


def restore_tiles(files: LogFiles, vkey: str, origin: str) -> None:
    """Make the tiles of a log anew from its journal, which must lead to its checkpoint: for a copy that has only these two.

    Raises NotTrusted (damage, or the journal is shorter than the checkpoint: nothing is written), Missing, Unavailable.
    """
    checkpoint = read_checkpoint(files, vkey, origin)
    entries = [entry for batch in batches(files, origin, 0) for entry in batch.entries][: checkpoint.size]
    growth, made = Growth(), dict[str, bytes]()
    growth.grow(entries, made.__setitem__)
    if growth.size != checkpoint.size or growth.root() != checkpoint.root:
        raise NotTrusted(f"the audit journal of {origin} does not hold what its checkpoint covers")
    for tile in tiles_of(checkpoint.size):
        files.write(tile.path, made[tile.path])


def is_closed(files: LogFiles, vkey: str, origin: str) -> bool:
    """Whether the log ends with its closing entry. Raises NotTrusted, Missing (a tile), Unavailable."""
    try:
        checkpoint = open_checkpoint(files.read(CHECKPOINT), vkey, origin)
    except Missing:
        return False
    return bool(checkpoint.size) and _last(TrustedTiles(files, checkpoint)).kind == CLOSE


def _last(tiles: TrustedTiles) -> AuditEntry:
    size = tiles.checkpoint.size
    return decode_entry(tiles.bundle((size - 1) // WIDTH)[-1], size - 1)


@dataclass
class _Recovery:
    """The journal is read through the tree up to the checkpoint, which it must agree with, and on to its own end."""

    files: TileFiles
    signer: NoteSigner
    origin: str
    growth: Growth = field(default_factory=Growth)
    stamps: Stamps = field(default_factory=Stamps)
    last: AuditEntry | None = None

    def finish(self, now: int) -> None:
        reader = JournalReader(self.files, journal_key(self.signer), self.origin)
        made: dict[str, bytes] = {}
        full = self.growth.grow(self._replay(reader), made.__setitem__)
        if self.last is None or self.last.kind != CLOSE:
            entry = self._close(reader, now)
            full += self.growth.grow([entry], made.__setitem__)
        self.files.write_all(made)
        final = Checkpoint(self.origin, self.growth.size, self.growth.root())
        self.files.write(CHECKPOINT, final.sign(self.signer))
        for path in superseded(self.files, full):
            self.files.delete(path)

    def _replay(self, reader: JournalReader) -> list[bytes]:
        """Take in what the checkpoint covers and return the entries behind it."""
        checkpoint = self._checkpoint()
        size = checkpoint.size if checkpoint else 0
        rest: list[bytes] = []
        for frame in reader.frames():
            entries = [entry for entry, _ in frame.records]
            for offset, record in enumerate(frame.records):
                self._see(record, frame.first + offset)
            covered = max(0, min(len(entries), size - frame.first))
            self.growth.grow(entries[:covered], _discard)
            rest += entries[covered:]
        self._agree(checkpoint, reader)
        return rest

    def _checkpoint(self) -> Checkpoint | None:
        try:
            note = self.files.read(CHECKPOINT)
        except Missing as cause:
            if not segments(self.files):
                raise Missing(f"there is no audit log {self.origin} here") from cause
            return None
        return open_checkpoint(note, self.signer.vkey, self.origin)

    def _see(self, record: Record, index: int) -> None:
        if self.last is not None and self.last.kind == CLOSE:
            raise NotTrusted(f"the audit journal of {self.origin} goes on after its closing entry")
        self.last = _checked(record, index)
        self.stamps.t = self.last.t

    def _agree(self, checkpoint: Checkpoint | None, reader: JournalReader) -> None:
        if checkpoint is None:
            if reader.index > 1:  # the checkpoint over the opening entry is written before anything else is taken
                raise NotTrusted(f"the audit log {self.origin} has {reader.index} records but no checkpoint: it was deleted")
        elif self.growth.size < checkpoint.size:
            raise NotTrusted(
                f"the audit journal of {self.origin} has {reader.index} records where its checkpoint covers {checkpoint.size}"
            )
        elif self.growth.root() != checkpoint.root:
            raise NotTrusted(f"the audit journal of {self.origin} does not hold what its checkpoint covers")

    def _close(self, reader: JournalReader, now: int) -> bytes:
        """Cut the torn rest off, keeping a copy first so that a second try still knows of it, and log the closing entry."""
        path = segment_path(reader.segment)
        if reader.torn:
            self.files.write(TORN, reader.torn)
            self.files.truncate(path, reader.end)
        index = self.growth.size
        entry = self.stamps.encode(AuditEntry(CLOSE, outcome=self._outcome()), b"", index, now)
        writer = JournalWriter(self.files, reader.key, self.origin)
        writer.resume(reader)
        try:
            writer.commit([(entry, b"")])
        finally:
            writer.close()
        return entry

    def _outcome(self) -> str:
        try:
            torn = self.files.read(TORN)
        except Missing:
            return "recovered"
        return f"recovered; cut off {len(torn)} bytes of a frame never acknowledged, sha256:{hashlib.sha256(torn).hexdigest()}"


def _discard(path: str, data: bytes) -> None:
    """Tiles that the checkpoint covers are there already; ``verify_audit`` checks them at the end."""


def _checked(record: Record, index: int) -> AuditEntry:
    entry = decode_entry(record[0], index)
    if entry.body != (hashlib.sha256(record[1]).hexdigest() if record[1] else ""):
        raise NotTrusted(f"the body of audit entry {index} is not the one that was logged")
    return entry


def read_bodies(files: LogFiles, vkey: str, origin: str, first: int = 0) -> Iterator[tuple[int, AuditEntry, bytes]]:
    """Every record from ``first`` on that the checkpoint covers and the journal still has: (index, entry, encrypted body), in
    order.

    Each entry is proven against the checkpoint and each body against its entry. Records that a live log has not put under a
    checkpoint yet are left out. Raises NotTrusted, Missing (no log here), Unavailable.
    """
    return _records(files, TrustedTiles(files, read_checkpoint(files, vkey, origin)), first)


def _records(files: LogFiles, tiles: TrustedTiles, first: int = 0) -> Iterator[tuple[int, AuditEntry, bytes]]:
    origin, size = tiles.checkpoint.origin, tiles.checkpoint.size
    bundle, at = -1, -1
    entries: list[bytes] = []
    numbers = segments(files)
    for number in numbers[segment_of(files, numbers, first) :]:
        frames, _ = split_frames(files.read(segment_path(number)), origin, number)
        for frame in frames:
            for index, record in enumerate(frame.records, frame.first):
                if index >= size:
                    return
                if index < first:
                    continue
                if index <= at:
                    raise NotTrusted(f"the audit journal of {origin} goes back from record {at} to {index}: reordered")
                at = index
                if index // WIDTH != bundle:
                    bundle = index // WIDTH
                    entries = tiles.bundle(bundle)
                if record[0] != entries[index % WIDTH]:
                    raise NotTrusted(f"record {index} of the audit journal is not the entry that was logged: altered or moved")
                yield index, _checked(record, index), record[1]


def verify_audit(
    files: StaticFiles, vkey: str, origin: str, kept: Iterable[Checkpoint] = (), progress: Progress = silent
) -> AuditReport:
    """The whole-log check with the verifier key alone: tiles, every entry's order and time, and the bodies that are there.

    ``kept``: checkpoints seen earlier (the releases log holds them), which the log must continue. Files that cannot be listed
    hold no bodies: all are absent. ``progress`` as in ``verify_log``.
    Raises NotTrusted with one line naming the first damage, Missing (no log here), Unavailable.
    """
    report = verify_log(files, vkey, origin, kept, progress)
    tiles = TrustedTiles(files, Checkpoint(origin, report.size, report.root))
    named, last = 0, AuditEntry("")
    for index, data in enumerate(tiles.entries(0, report.size)):
        entry = decode_entry(data, index)
        if entry.t < last.t:
            raise NotTrusted(f"audit entry {index} is older than the one before it")
        if last.kind == CLOSE:
            raise NotTrusted(f"the audit log {origin} goes on after its closing entry {index - 1}")
        named, last = named + bool(entry.body), entry
    bodies = sum(1 for _, _, body in _records(files, tiles) if body) if isinstance(files, LogFiles) else 0
    return AuditReport(origin, report.size, report.root, last.kind == CLOSE, bodies, named - bodies, report.note)
