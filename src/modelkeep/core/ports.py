"""The ports: what modelkeep needs from the world, said once, with the errors it may answer.

Adapters implement them, one outside system per file; ``tests/ports`` runs one conformance suite per port on every adapter.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from modelkeep.core.values import Digest


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

    def size(self) -> int:
        """Bytes in the file."""
        ...

    def close(self) -> None:
        """Release the file; idempotent."""
        ...


class LogFiles(Protocol):
    """A folder of a log's files, by relative path such as ``tile/0/x001/067``."""

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Unavailable."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically and durably (temporary name, fsync, rename, fsync of the folder). Raises Unavailable."""
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
