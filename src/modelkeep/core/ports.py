"""The ports: what modelkeep needs from the world, said once, with the errors it may answer.

Adapters implement them, one outside system per file; ``tests/ports`` runs one conformance suite per port on every adapter.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from modelkeep.core.values import Digest, Opinion


class Clock(Protocol):
    """Time. ``now_ns`` may go backwards (it is the wall clock); ``monotonic`` never does."""

    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never decreases."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Entropy(Protocol):
    """Randomness fit for keys. (crypto/ and container/ draw their own.)"""

    def token(self, size: int) -> bytes:
        """``size`` fresh random bytes."""
        ...


class Blobs(Protocol):
    """Immutable bytes named by their SHA-256. Raises Unavailable when the store fails or is full."""

    @property
    def read_ahead(self) -> int:
        """Bytes that a reader does well to ask for at once, because each answer takes long; 0 = as few as it likes."""
        ...

    def put(self, chunks: Iterable[bytes | bytearray | memoryview]) -> Digest:
        """Store a stream durably and return its digest; nothing is visible until all of it is. Idempotent."""
        ...

    def size(self, digest: Digest) -> int:
        """Length in bytes. Raises Missing."""
        ...

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``, *not* checked against the digest (the container is).
        Raises Missing, NotTrusted (shorter than asked for)."""
        ...

    def read_into(self, digest: Digest, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises Missing, NotTrusted (shorter than asked for)."""
        ...

    def delete(self, digest: Digest) -> None:
        """Remove it; silent when it is not there."""
        ...

    def all(self) -> Iterator[Digest]:
        """Every stored digest, in any order."""
        ...


class Record(NamedTuple):
    """One versioned document. ``body`` is None for a deletion seen through ``since``; ``revision`` is global and rises."""

    kind: str
    key: str
    body: bytes | None
    revision: int


class Change(NamedTuple):
    """One write. ``body`` None deletes. ``expected``: revision the record must have now, 0 = must not exist, None = any."""

    kind: str
    key: str
    body: bytes | None
    expected: int | None = None


class Records(Protocol):
    """Small versioned documents with atomic compare-and-set. Raises Unavailable when the store fails or is full."""

    def get(self, kind: str, key: str) -> Record:
        """The current record. Raises Missing."""
        ...

    def scan(self, kind: str, prefix: str = "") -> list[Record]:
        """Current records of a kind whose key begins with ``prefix``, ordered by key."""
        ...

    def commit(self, changes: Sequence[Change]) -> int:
        """Apply all or none, durably, and return the new global revision. Raises Conflict (an expectation fails)."""
        ...

    def revision(self) -> int:
        """The latest global revision; 0 when nothing was ever committed."""
        ...

    def since(self, revision: int) -> list[Record]:
        """Records (deletions too) changed after ``revision``, oldest change first."""
        ...

    def prune(self, kinds: Collection[str]) -> None:
        """Drop what is left of deleted records of ``kinds``, so that kinds that come and go do not fill the store; ``since``
        tells nothing of them any more. Cheap, and overwrites nothing. Raises Unavailable."""
        ...

    def expunge(self, kinds: Collection[str]) -> None:
        """Remove what is left of deleted records of ``kinds``, their keys too, and overwrite what the store still holds of
        deleted rows, as far as it can. ``since`` tells nothing of them any more. Raises Unavailable: run it again."""
        ...

    def close(self) -> None:
        """Let go of the store; idempotent."""
        ...


class Journal(Protocol):
    """An append-only file. After a failed ``append`` or ``sync`` it is poisoned: every later call raises Unavailable."""

    def append(self, data: bytes) -> None:
        """Add bytes at the end (buffered by the operating system until ``sync``). Raises Unavailable."""
        ...

    def sync(self) -> None:
        """Return once everything appended is on stable storage *and* the file is still the one at its path.
        Raises Unavailable (also when the file was deleted or replaced)."""
        ...

    def check(self) -> None:
        """See that the file is still the one at its path, as it was written. Raises Unavailable, and then it is poisoned."""
        ...

    def size(self) -> int:
        """Bytes in the file."""
        ...

    def close(self) -> None:
        """Release the file; idempotent."""
        ...


class StaticFiles(Protocol):
    """A log's files as whoever may read them finds them, such as on a web server, by relative path: ``tile/0/x001/067``.

    They are not believed: every reader checks them against a signed checkpoint. They cannot be listed.
    """

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Unavailable, Denied (not for this reader), Invalid (a path that leaves the log)."""
        ...


@runtime_checkable
class LogFiles(StaticFiles, Protocol):
    """``StaticFiles`` in a folder, which can be listed, written and held."""

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically and durably (temporary name, fsync, rename, fsync of the folder). Raises Unavailable."""
        ...

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """The same for several files, by path, which costs little more than one. Raises Unavailable, and then each of them is
        either the old one or the new one."""
        ...

    def paths(self, prefix: str = "") -> list[str]:
        """Relative paths of the files below ``prefix``, sorted."""
        ...

    def journal(self, path: str) -> Journal:
        """Open (or make) an append-only file. Raises Unavailable."""
        ...

    def truncate(self, path: str, size: int) -> None:
        """Cut a file to ``size`` bytes, durably. Raises Missing, Unavailable."""
        ...

    def lock(self, *, wait: bool) -> AbstractContextManager[None]:
        """Hold this folder against every other process. Raises Conflict when it is held and ``wait`` is false."""
        ...


class Cold(Protocol):
    """A place for state that is not needed at the moment, in numbered slots, for the life of this process."""

    def put(self, slot: int, data: bytes) -> None:
        """Keep ``data`` in ``slot``, in place of what was there; every slot's data has the same size. Raises Unavailable."""
        ...

    def get(self, slot: int) -> bytes:
        """What ``slot`` was given last. Raises NotTrusted (altered), Unavailable."""
        ...


class Reply(NamedTuple):
    """An answer of another server as it came. ``headers``: by lower-case name."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Link(Protocol):
    """A way to one server that runs models. For one event loop; cancelling a request ends it there and then."""

    async def request(self, method: bytes, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> Reply:
        """Ask once. A request of which a byte was sent is never sent again. Raises Unavailable (also: too large an answer)."""
        ...

    def close(self) -> None:
        """Let go of every connection; idempotent."""
        ...


class Room(Protocol):
    """The space that a log needs, with a reserve so that its end can be written when there is no other left."""

    def prepare(self) -> None:
        """Take the reserve. Raises Unavailable (there is no room for it, or the disk is read-only)."""
        ...

    def check(self) -> None:
        """Raise Unavailable when nothing more should be written: as little is left as the reserve has, or read-only."""
        ...

    def release(self) -> None:
        """Give the reserve back to the disk, for the last things that must be written. Never raises; idempotent."""
        ...


class SinkBatch(NamedTuple):
    """Consecutive audit records of one log, on their way to a sink.

    ``entries``: as logged, the first of index ``first``; ``data``: the bytes of the journal that hold them, whole frames with
    the encrypted bodies, which stand in ``segment`` at byte ``offset``.
    """

    origin: str
    first: int
    entries: tuple[bytes, ...]
    segment: int
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """Index behind the last record."""
        return self.first + len(self.entries)


class SinkPlace(NamedTuple):
    """How far a sink that mirrors the journal has come: ``size`` bytes of ``segment``."""

    segment: int
    size: int


class Sink(Protocol):
    """A second place for audit records, beside the journal. Called by one thread at a time; every call ends in bounded time.

    After any error the caller calls ``resume`` before it goes on, so an adapter may drop what it holds open.
    """

    @property
    def name(self) -> str:
        """What operators call it, such as ``disk:/mnt/second``. Holds no secret."""
        ...

    def resume(self, origin: str) -> SinkPlace | None:
        """Make ready for records of ``origin``. A mirror says how much it has of the journal; others return None, and are
        given what they have not accepted yet. Raises Unavailable."""
        ...

    def accept(self, batch: SinkBatch) -> None:
        """Return once the sink has accepted all of ``batch``, by its own word. Giving it again is harmless. Raises Unavailable:
        some of it may have arrived, none of it counts."""
        ...

    def checkpoint(self, origin: str, note: bytes) -> None:
        """Pass on the log's latest signed checkpoint. Raises Unavailable."""
        ...

    def probe(self) -> None:
        """Raise Unavailable if the sink would not accept a batch now, as far as that can be seen without one."""
        ...

    def close(self) -> None:
        """Release what is open; idempotent. Never raises."""
        ...


class Wrapper(Protocol):
    """A key-encryption key that lives in a provider (file ring, HSM, cloud)."""

    @property
    def key_id(self) -> str:
        """Stable name with version, such as ``file:model-kek/1``; stored beside what it wraps."""
        ...

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``context``. Raises Unavailable, Denied (the key's state forbids it)."""
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``wrap``. Raises NotTrusted (altered, other key or other context), Denied, Unavailable."""
        ...


class KeyInfo(NamedTuple):
    """One version of a wrapping key, without its secret.

    ``state``: one of pending, primary, decrypt-only, disabled, pending-destruction, destroyed, compromised.
    ``created`` and ``due``: Unix nanoseconds; ``due`` is when a pending destruction happens, 0 = none.
    """

    key_id: str
    version: int
    state: str
    created: int
    due: int


class WrappingKeys(Protocol):
    """One named wrapping key of a provider, in versions that never share a number. Only the version that wrapped opens.

    Every method may raise Unavailable (unreachable, or no answer in time) and Denied (the provider refuses the caller).
    """

    @property
    def uri(self) -> str:
        """Where the key lives, such as ``vault:transit/model-kek``. Holds no secret."""
        ...

    def create(self) -> Wrapper:
        """Make the key with version 1 as its primary. Raises Conflict (it exists)."""
        ...

    def versions(self) -> tuple[KeyInfo, ...]:
        """Every version that ever was, oldest first. Raises Missing (not created)."""
        ...

    def wrapper(self, version: int | None = None) -> Wrapper:
        """One version to wrap and unwrap with; None = the primary. Raises Missing, Denied (there is no primary)."""
        ...

    def opens(self, key_id: str) -> Wrapper | None:
        """The version that ``key_id`` names; None when it is another key's. Raises Missing (a version that never was)."""
        ...

    def rotate(self) -> Wrapper:
        """Make a fresh primary; the former one becomes decrypt-only. Raises Missing."""
        ...

    def disable(self, version: int) -> KeyInfo:
        """Stop a decrypt-only version from unwrapping, until it is enabled. Raises Missing, Conflict (its state)."""
        ...

    def enable(self, version: int) -> KeyInfo:
        """Undo ``disable``. Raises Missing, Conflict (its state)."""
        ...

    def destroy(self, version: int, *, grace_days: int) -> KeyInfo:
        """Destroy a disabled or compromised version for good, after ``grace_days``: until then it is pending-destruction.

        0 = at once, also when it is pending, or after the provider's own minimum. Called again when it is due, it is destroyed
        if the provider did not do so by itself. Raises Missing, Conflict (its state, or not due yet), Invalid (more days than
        the provider can wait).
        """
        ...

    def cancel(self, version: int) -> KeyInfo:
        """Take a pending destruction back: the version is disabled again. Raises Missing, Conflict (its state)."""
        ...


class Want(NamedTuple):
    """What is asked of one limit: ``rate`` units a second with at most ``burst`` at once.

    ``name``: whose limit it is, such as ``account/sub_1``. ``need``: units without which nothing is of use, at most ``burst``;
    ``want``: units asked for, at least ``need``.
    """

    name: str
    rate: float
    burst: float
    need: float
    want: float


class Given(NamedTuple):
    """The answer to a ``Want``: ``units`` granted, 0 or at least what was needed; ``room``: units that the limit has left.

    ``wait``: seconds until what was needed can be granted, 0 when it was. ``lost``: refused only because the store forgot what
    had been granted before, until no window that began before then is open any more.
    """

    units: float
    room: float
    wait: float
    lost: bool = False


class Grants(NamedTuple):
    """Answers in the order of the wants. ``until``: monotonic second at which what was granted ends. ``epoch``: changes when
    the store has lost what it knew; then nothing that was granted before counts any more."""

    until: float
    epoch: str
    given: tuple[Given, ...]


class Allowances(Protocol):
    """Limits that several processes share, counted at one place: each takes leases of a few units and spends them by itself.

    What is granted is debited at that moment, by the clock of the place, whether it is used or not: so in any ``t`` seconds no
    more than ``burst + rate * t`` units are granted of one limit, over all processes. Called by one thread at a time; every
    call ends in bounded time.
    """

    def grant(self, wants: Sequence[Want]) -> Grants:
        """Lease units of several limits, each by itself, in one exchange. Raises Unavailable; what the place may have granted
        then is lost until it has recovered by itself."""
        ...

    def give_back(self, epoch: str, units: Sequence[tuple[Want, float]]) -> None:
        """Return what was granted under ``epoch`` and not used. Raises Unavailable: it recovers by itself."""
        ...

    def close(self) -> None:
        """Let go of the place; idempotent. Never raises."""
        ...


class ChangedFile(NamedTuple):
    """A file of a working tree that is not as the commit has it, or that the commit does not have (``tracked`` is false).

    ``mode``: as git writes it (100644, 100755, 120000), 160000 for a repository in it, 000000 when the file is gone.
    ``digest``: hex SHA-256 of the file or of where a link leads, zeros when it is gone; of a repository, its commit.
    """

    mode: str
    digest: str
    tracked: bool


class CodeState(NamedTuple):
    """What a working tree holds. ``commit``: hex, "" outside version control; ``raw``: the commit object itself, with its
    signature; ``changes``: by path from the top; ``repository``: URL of where it came from, as configured, "" = nowhere.
    """

    repository: str
    commit: str
    raw: bytes
    changes: Mapping[str, ChangedFile]


class Checkout(Protocol):
    """The code that a training run runs."""

    def state(self, apart: Sequence[str] = ()) -> CodeState:
        """The state of now. ``apart``: files and folders that are no code when the commit does not have them.

        Raises Invalid (no commit yet), NotTrusted (forged), Unavailable.
        """
        ...


class SecondOpinions(Protocol):
    """Scanners of others that are at hand. They are asked about the formats that they know, and never believed to be right."""

    def tools(self, format_id: str) -> tuple[tuple[str, str], ...]:
        """Name and version of each that would be asked about a file of this format now, in the order in which they are."""
        ...

    def opinions(self, data: memoryview, format_id: str) -> tuple[Opinion, ...]:
        """What each of ``tools`` says of a file, in the same order. Nothing is raised: one that fails says so in its opinion.

        The bytes are not written to any disk, and whoever reads them can send them nowhere.
        """
        ...


class KeySource(Protocol):
    """Where the public keys of one token issuer are published."""

    def fetch(self) -> bytes:
        """The issuer's JWK set as it is now, JSON, of bounded size and in bounded time.

        Raises Unavailable (no answer, or none that is a key set), NotTrusted (what answers is another issuer).
        """
        ...
