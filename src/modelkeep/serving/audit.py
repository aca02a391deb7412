"""The audit log of one serving process: no answer without a record.

``submit`` hands a record over and returns; the writer thread commits everything that waits in one frame and one fdatasync
(group commit without a timer: at once when idle, a batch while a sync runs) and only then calls back. The publisher thread puts
what is durable into tiles and under a signed checkpoint, at most every second. The watchdog thread gives up on records that a
hung disk holds. Everything fails closed: after a failed write or sync nothing is taken any more; while a disk is all but full,
or too few of the required sinks accept, nothing is taken for now. An idle log looks after its file, its disk and its sinks.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelkeep.core.ports import Clock, Room, SinkBatch
from modelkeep.crypto.notes import Checkpoint, NoteSigner
from modelkeep.errors import Conflict, Invalid, ModelkeepError, TooLarge, Unavailable
from modelkeep.ledger.tiles import CHECKPOINT, MAX_ENTRY, Growth, TileFiles, superseded
from modelkeep.serving.journal import FOLDER, AuditEntry, JournalWriter, Record, Stamps, journal_key
from modelkeep.serving.recovery import CLOSE, AuditReport, read_bodies, recover_audit, verify_audit
from modelkeep.serving.sinks import Sinks, SinkState

__all__ = [
    "AuditEntry",
    "AuditLimits",
    "AuditLog",
    "AuditReport",
    "Backing",
    "Deliver",
    "Done",
    "deliver_here",
    "read_bodies",
    "recover_audit",
    "verify_audit",
]

Done = Callable[[int | ModelkeepError], None]
"""Told the index of a record once it is durable, or why it may not be. Must not raise."""

Deliver = Callable[[list[tuple[Done, int | ModelkeepError]]], None]
"""Takes the results of one commit to where they belong, such as one ``loop.call_soon_threadsafe``. Must not raise or block."""

BREAK_GLASS = "break-glass"
"""Kind of the entries that say when answers begin and end to leave without required sinks."""

_SLOW = "the audit log does not keep up with its disk: try again shortly"
_LOOK_SECONDS = 0.002
"""A busy log looks at the room on its disk this often."""
_TRIES, _TRY_SECONDS = 10, 0.05
"""How often, and after which pauses, a folder is tried that another process looks into."""
_REST_SECONDS, _RESTS, _SLICE = 0.0005, 128, 64
"""The publisher rests after every slice of entries, but at most ``_RESTS`` times, while others want the interpreter."""
_Waiting = tuple[AuditEntry, bytes, Done, float]


def _unheard(_result: int | ModelkeepError) -> None:
    """For entries that nobody waits for."""


def deliver_here(results: list[tuple[Done, int | ModelkeepError]]) -> None:
    """Call back on the writer's own thread."""
    for done, result in results:
        done(result)


@dataclass(frozen=True)
class AuditLimits:
    """``records`` and ``size`` (bytes of bodies) may wait; a record may wait ``hang`` seconds; a checkpoint follows within
    ``publish`` seconds, and if none did within ``behind`` seconds, nothing more is taken."""

    records: int = 8192
    size: int = 64 << 20
    hang: float = 1.0
    publish: float = 1.0
    behind: float = 10.0


class Backing(NamedTuple):
    """``sinks``: where records go besides the journal; ``room``: of the disk under it."""

    sinks: Sinks | None = None
    room: Room | None = None


class AuditLog:
    """One process's audit log, from its opening to its closing entry; the next process starts another."""

    def __init__(
        self,
        files: TileFiles,
        signer: NoteSigner,
        origin: str,
        clock: Clock,
        *,
        deliver: Deliver = deliver_here,
        limits: AuditLimits | None = None,
        opening: str = "",
        backing: Backing = Backing(),  # noqa: B008 - a tuple
    ) -> None:
        """Start a log in an empty folder and hold the folder. ``opening``: outcome of the opening entry, which is entry 0.

        ``backing`` is this log's from here on.

        Raises Conflict (held by another process, or there is a log already), Invalid (``signer``'s name is not ``origin``),
        Unavailable.
        """
        if signer.name != origin:
            raise Invalid(f"the key {signer.name!r} cannot sign the log {origin!r}: a log's key is named by its origin")
        self.origin = origin
        self.vkey = signer.vkey
        self._files = files
        self._signer = signer
        self._clock = clock
        self._monotonic = clock.monotonic
        self._deliver = deliver
        self._limits = limits or AuditLimits()
        self._stamps = Stamps()
        self._journal = JournalWriter(files, journal_key(signer), origin)
        self._growth = Growth()
        self._sinks, self._room = backing
        self._held = contextlib.ExitStack()
        self._prepare()
        self._begin(opening)

    def _prepare(self) -> None:
        """What the threads share; all of it is read and written under ``_lock``."""
        self._lock = threading.Lock()
        self._published = threading.Condition(self._lock)
        self._refusal = ""  # why nothing more is taken, for good
        self._failed = self._stopping = self._stopped = False
        self._stuck = self._lagging = False  # why nothing is taken for now
        self._full = self._short = ""  # and why, in words: the disk, the sinks
        self._looking: float | None = None  # since when the writer looks after the disk
        self._looked = self._monotonic()
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._inflight: list[_Waiting] = []
        self._durable: list[bytes] = []  # entries that the publisher has not taken yet
        self._unsigned_since: float | None = None  # when the oldest durable entry without a checkpoint became durable
        self._covered = 0
        self._note = b""
        self._idle = False  # the writer sleeps on _wake, and whoever clears this releases it
        self._wake = threading.Lock()
        self._wake.acquire()
        self._urgent = threading.Event()
        self._halt = threading.Event()

    def _begin(self, opening: str) -> None:
        self._hold()
        try:
            if self._files.paths(FOLDER) or self._files.paths("tile/") or self._files.paths(CHECKPOINT):
                raise Conflict(f"there is an audit log in this folder already; {self.origin} was not started in it")
            if self._room is not None:
                self._room.prepare()
            self._journal.begin()
            if self._sinks is not None:
                self._sinks.begin(self.origin, self._files)
            self._record(AuditEntry("open", outcome=opening))
            self._publish()
        except ModelkeepError:
            self._release()
            raise
        loops = {"writer": self._write_loop, "publisher": self._publish_loop, "watchdog": self._watch_loop}
        self._threads = [threading.Thread(target=run, name=f"audit-{name}", daemon=True) for name, run in loops.items()]
        for thread in self._threads:
            thread.start()

    def _hold(self) -> None:
        """Hold the folder. Another process that starts looks into every folder for a moment, also into one just made."""
        for _ in range(_TRIES):
            try:
                self._held.enter_context(self._files.lock(wait=False))
            except Conflict:
                self._halt.wait(_TRY_SECONDS)
            else:
                return
        self._held.enter_context(self._files.lock(wait=False))

    @property
    def size(self) -> int:
        """Durable entries so far."""
        return self._journal.index

    @property
    def refusal(self) -> str:
        """Why ``submit`` would refuse at this moment, for health checks; empty when it would not."""
        with self._lock:
            return self._refusal or self._full or (_SLOW if self._stuck or self._lagging else "") or self._sinks_refuse()

    def _sinks_refuse(self) -> str:
        """Look at the sinks now; the lock is held."""
        if self._sinks is not None:
            self._short = self._sinks.refusal()
        return self._short

    def sinks(self) -> list[SinkState]:
        """How each sink stands."""
        return self._sinks.states() if self._sinks is not None else []

    @property
    def waiving(self) -> str:
        """Why answers leave without required sinks at this moment; empty when they do not."""
        return self._sinks.waiving if self._sinks is not None else ""

    @property
    def failure(self) -> str:
        """Why this log takes nothing more for good; empty unless it has failed. Only a new process begins another."""
        with self._lock:
            return self._refusal if self._failed else ""

    @property
    def note(self) -> bytes:
        """The latest signed checkpoint: at most ``publish`` seconds old while entries come in."""
        return self._note

    def submit(self, entry: AuditEntry, body: bytes, done: Done) -> None:
        """Hand one record over, to be committed at once. Raises as ``enqueue``."""
        self.enqueue(entry, body, done)
        self.wake()

    def enqueue(self, entry: AuditEntry, body: bytes, done: Done) -> None:
        """Hand one record over, to be committed with ``wake``, or by itself within a quarter of ``hang``.

        ``done`` is called exactly once, through ``deliver``; ``entry`` is the log's from here on. Raises Unavailable at once,
        and then ``done`` is never called: the log has failed or stopped, too much waits, or a record has waited too long.
        """
        now = self._monotonic()
        with self._lock:
            oldest = self._inflight or self._waiting
            if (
                self._refusal
                or self._stuck
                or self._lagging
                or self._full
                or (self._short and self._sinks_refuse())
                or len(self._waiting) >= self._limits.records
                or self._waiting_bytes > self._limits.size
                or (oldest and now - oldest[0][3] > self._limits.hang)
            ):
                raise Unavailable(self._refusal or self._full or self._short or _SLOW)
            self._waiting.append((entry, body, done, now))
            self._waiting_bytes += len(body)

    def wake(self) -> None:
        """Have what waits committed; a busy writer goes on by itself. Once for all records of one turn of a loop is enough."""
        with self._lock:
            wake, self._idle = self._idle, False
        if wake:
            self._wake.release()

    def _take(self) -> list[_Waiting]:
        """Everything that waits, as soon as anything does; nothing once the log stops."""
        while True:
            with self._lock:
                if self._waiting:
                    self._inflight, self._waiting, self._waiting_bytes = self._waiting, [], 0
                    return self._inflight
                if self._stopping or self._failed:
                    return []
                self._idle = True
            if not self._wake.acquire(timeout=self._limits.hang / 4):
                with self._lock:
                    woken, self._idle = not self._idle, False
                if woken:
                    self._wake.acquire()
                else:
                    self._look()

    def _look(self) -> None:
        """See that the journal is there and its disk has room. Raises Unavailable when the journal is not."""
        self._looking = self._looked = self._monotonic()
        self._journal.check()
        self._full = self._no_room()
        self._looking = None

    def _no_room(self) -> str:
        try:
            if self._room is not None:
                self._room.check()
        except Unavailable as cause:
            if self._durable:
                self._urgent.set()
            return str(cause)
        return ""

    def _write_loop(self) -> None:
        with self._failing_closed():
            while batch := self._take():
                self._commit(batch)

    def _commit(self, batch: list[_Waiting]) -> None:
        records: list[Record] = []
        results: list[tuple[Done, int | ModelkeepError]] = []
        index, now = self._journal.index, self._clock.now_ns()
        for entry, body, done, _ in self._prefaced(batch):
            data = self._stamps.encode(entry, body, index, now)
            if len(data) > MAX_ENTRY:
                results.append((done, TooLarge(f"an audit entry has at most {MAX_ENTRY} bytes, this one has {len(data)}")))
                continue
            records.append((data, body))
            results.append((done, index))
            index += 1
        if records:
            short = self._store(records)
            if short is not None:
                results = [(done, short if isinstance(result, int) else result) for done, result in results]
        with self._lock:
            abandoned, self._inflight, self._stuck = self._inflight is not batch, [], False
            self._keep([data for data, _ in records])
        if not abandoned:
            self._deliver(results)

    def _prefaced(self, batch: list[_Waiting]) -> list[_Waiting]:
        """The batch, behind an entry that says so when answers begin or end to leave without required sinks."""
        said = self._sinks.glass() if self._sinks is not None else ""
        return [(AuditEntry(BREAK_GLASS, outcome=said), b"", _unheard, 0.0), *batch] if said else batch

    def _store(self, records: list[Record]) -> Unavailable | None:
        """Make records durable in the journal, and in the sinks where they must be; the error if they are not there.

        Raises Unavailable: the journal failed.
        """
        if self._room is not None and self._monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = self._monotonic()
            self._full = self._no_room()
        sinks = self._sinks
        if sinks is None:
            self._journal.commit(records)
        elif sinks.require:
            self._journal.commit(records, sinks.offer)
            try:
                sinks.wait(self._journal.index)
            except Unavailable as short:
                self._short = str(short)
                return short
        else:
            written: list[SinkBatch] = []
            self._journal.commit(records, written.append)
            sinks.offer(written[0])
        return None

    def _keep(self, entries: Sequence[bytes]) -> None:
        """Hand durable entries to the publisher; the lock is held."""
        if self._unsigned_since is None and entries:
            self._unsigned_since = self._monotonic()
        self._durable.extend(entries)

    def _record(self, entry: AuditEntry) -> None:
        """Log an entry of the log's own while no writer thread runs. Raises Unavailable."""
        data = self._stamps.encode(entry, b"", self._journal.index, self._clock.now_ns())
        self._store([(data, b"")])
        with self._lock:
            self._keep([data])

    def _publish_loop(self) -> None:
        with self._failing_closed():
            while not self._halt.is_set():
                self._urgent.wait(self._limits.publish)
                self._urgent.clear()
                self._make_room()
                self._publish()

    def _make_room(self) -> None:
        """On a full disk, give the reserve back for the tiles of what is durable; nothing is taken until it is held again."""
        if self._room is not None and self._durable:
            self._full = self._full or self._no_room()
            if self._full:
                self._room.release()

    def _publish(self) -> None:
        """Tiles first, the checkpoint that makes them part of the log last. Raises Unavailable."""
        with self._lock:
            entries, self._durable = self._durable, []
        if not entries:
            return
        made: dict[str, bytes] = {}
        full = self._growth.grow(self._unhurried(entries), made.__setitem__)
        self._files.write_all(made)
        note = Checkpoint(self.origin, self._growth.size, self._growth.root()).sign(self._signer)
        self._files.write(CHECKPOINT, note)
        with self._lock:
            self._note, self._covered = note, self._growth.size
            self._unsigned_since = self._monotonic() if self._durable else None
            self._published.notify_all()
        if self._sinks is not None:
            self._sinks.offer_note(note)
        for path in superseded(self._files, full):
            self._files.delete(path)

    def _unhurried(self, entries: Sequence[bytes]) -> Iterator[bytes]:
        """The entries, with rests: records on their way need the interpreter several times each, and hashing holds it."""
        step = max(_SLICE, len(entries) // _RESTS)
        for begin in range(0, len(entries), step):
            if begin:
                self._halt.wait(_REST_SECONDS)
            yield from entries[begin : begin + step]

    def publish(self) -> bytes:
        """Put everything that is durable now under a checkpoint without waiting for the second to pass, and return it.

        Raises Unavailable: the log has failed, or the disk does not keep up.
        """
        deadline = self._monotonic() + self._limits.behind
        with self._lock:
            goal = self._journal.index
            while self._covered < goal:
                if self._refusal or self._monotonic() > deadline:
                    raise Unavailable(self._refusal or _SLOW)
                self._urgent.set()
                self._published.wait(0.05)
            return self._note

    def _watch_loop(self) -> None:
        with self._failing_closed():
            while not self._halt.wait(self._limits.hang / 4):
                self._give_up_on_stuck()

    def _give_up_on_stuck(self) -> None:
        """Answer for records that wait too long. They may still become durable: recorded, and not answered."""
        now, looking = self._monotonic(), self._looking
        with self._lock:
            since = self._unsigned_since
            self._lagging = since is not None and now - since > self._limits.behind
            self._sinks_refuse()
            if looking is not None and looking == self._looking and now - looking > self._limits.hang / 2:
                self._full = "the disk under the audit log does not answer"
            oldest = self._inflight or self._waiting
            if not oldest or now - oldest[0][3] <= self._limits.hang:
                return
            given_up, self._stuck = self._inflight + self._waiting, bool(self._inflight) or self._stuck
            self._inflight, self._waiting, self._waiting_bytes = [], [], 0
        self._deliver([(done, Unavailable(_SLOW)) for _, _, done, _ in given_up])

    @contextlib.contextmanager
    def _failing_closed(self) -> Iterator[None]:
        """However a thread ends, but by ``stop``, the log takes nothing after it."""
        why = "one of its threads died on an unexpected error"
        try:
            yield
            why = ""
        except ModelkeepError as cause:
            why = str(cause)
        finally:
            if why:
                self._fail(why)

    def _fail(self, why: str) -> None:
        with self._lock:
            self._failed = True
            self._refusal = f"the audit log {self.origin} has failed and takes nothing more: {why}"
            stuck, self._inflight, self._waiting, self._waiting_bytes = self._inflight + self._waiting, [], [], 0
            wake, self._idle = self._idle, False
            self._published.notify_all()
        if wake:
            self._wake.release()
        self._deliver([(done, Unavailable(self._refusal)) for _, _, done, _ in stuck])

    def stop(self) -> bytes:
        """Take nothing more, commit what waits, log the closing entry and return the final checkpoint. Idempotent.

        Raises Unavailable if the log has failed or the disk hangs; ``recover_audit`` then finishes it in another process.
        """
        with self._lock:
            if self._stopped:
                return self._note
            self._stopping = True
            self._refusal = self._refusal or f"the audit log {self.origin} is stopping"
            wake, self._idle = self._idle, False
        if wake:
            self._wake.release()
        self._join()
        self._stopped = True
        try:
            if self._failed:
                raise Unavailable(self._refusal)
            if self._room is not None:
                self._room.release()
            self._record(AuditEntry(CLOSE, outcome="stopped"))
            self._publish()
        finally:
            self._release()
        return self._note

    def _release(self) -> None:
        if self._room is not None and not self._failed:  # else whoever recovers the log gives it back, and needs it
            self._room.release()
        if self._sinks is not None:
            self._sinks.close(self._limits.hang)
        self._journal.close()
        self._held.close()

    def _join(self) -> None:
        """Wait for the threads, the writer first. One that hangs keeps its files and the folder. Raises Unavailable."""
        for thread in self._threads:
            thread.join(self._limits.behind)
            if thread.is_alive():
                raise Unavailable(f"the disk under the audit log {self.origin} hangs: it could not be closed")
            self._halt.set()
            self._urgent.set()
