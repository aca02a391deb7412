"""``file:PATH``: a key ring of its own in one sealed file, for work without a keep, an HSM or a cloud.

The file is a ``.keep`` sealed for one passphrase (Argon2id), mode 0600, replaced as a whole. Its key ids carry the ring's
random name and not its path, so it may be moved: ``file:ring-<16 hex digits>/<version>``. Every use looks whether the file
changed, so what another process disables is disabled here.
"""

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelkeep.adapters.files import NewFile, clear_stand_ins
from modelkeep.adapters.keys.file import read_private
from modelkeep.container.file import pack_bytes, unpack_bytes
from modelkeep.container.recipients import Passphrase
from modelkeep.core.hidden import holds_secrets, never_pickled
from modelkeep.core.keystates import (
    CANCEL,
    DECRYPT_ONLY,
    DESTROYED,
    DISABLE,
    DISABLED,
    ENABLE,
    MAY_UNWRAP,
    PENDING_DESTRUCTION,
    PRIMARY,
    SUPERSEDE,
    destruction,
    next_wrapping_state,
    version_named,
)
from modelkeep.core.ports import Clock, KeyInfo
from modelkeep.core.values import to_json
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.wrap import KEY_SIZE, unwrap_key, wrap_key
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

PURPOSE = "keys/ring"
POLL_SECONDS = 0.02


@holds_secrets("version", "state")
class _Version(msgspec.Struct, frozen=True):
    """One version: ``key`` is the secret, empty once destroyed."""

    version: int
    state: str
    created: int
    key: bytes
    due: int = 0


@holds_secrets("name", "versions")
class _Ring(msgspec.Struct, frozen=True):
    """The plain content of the file. ``name``: ``ring-`` and 16 random hex digits."""

    name: str
    versions: tuple[_Version, ...]
    format: int = 1

    def at(self, version: int) -> _Version:
        for found in self.versions:
            if found.version == version:
                return found
        raise Missing(f"the key ring {self.name} has no version {version}")

    def info(self, version: int) -> KeyInfo:
        found = self.at(version)
        return KeyInfo(f"file:{self.name}/{version}", version, found.state, found.created, found.due)

    def with_state(self, version: int, state: str, due: int = 0) -> "_Ring":
        found = self.at(version)
        key = b"" if state == DESTROYED else found.key
        changed = msgspec.structs.replace(found, state=state, key=key, due=due if state == PENDING_DESTRUCTION else 0)
        return msgspec.structs.replace(self, versions=tuple(changed if v.version == version else v for v in self.versions))

    def rotated(self, now_ns: int) -> "_Ring":
        ring = self
        for found in self.versions:
            if found.state == PRIMARY:
                ring = ring.with_state(found.version, next_wrapping_state(self.name, PRIMARY, SUPERSEDE))
        fresh = _Version(len(self.versions) + 1, PRIMARY, now_ns, secrets.token_bytes(KEY_SIZE))
        return msgspec.structs.replace(ring, versions=(*ring.versions, fresh))


@dataclass(frozen=True)
class RingFileWrapper:
    """``Wrapper`` over one version of a ring file."""

    ring: "RingFile"
    key_id: str
    version: int

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``context``: 112 bytes. Raises Denied unless this is the primary, Unavailable."""
        return wrap_key(self.ring.secret(self.version, (PRIMARY,), "wrap anything new"), key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``wrap``. Raises NotTrusted (altered, other key or context), Denied (its state), Unavailable."""
        return unwrap_key(self.ring.secret(self.version, MAY_UNWRAP, "unwrap anything"), wrapped, context)


@never_pickled
class RingFile:
    """``WrappingKeys`` in one sealed file. Safe for threads and processes; its representation shows the path only."""

    def __init__(
        self,
        uri: str,
        passphrase: Callable[[], bytes] | None,
        *,
        timeout: float,
        clock: Clock,
        params: Argon2Params | None = None,
    ) -> None:
        """``uri``: ``file:PATH``; ``timeout``: seconds to wait for another process that holds the ring. Raises Invalid."""
        path = uri.removeprefix("file:")
        if path.startswith("//") or "\0" in path or not path:
            raise Invalid("a key ring is named file:PATH, with no host and no slashes doubled before the path")
        if passphrase is None:
            raise Invalid(f"the key ring {path} needs a passphrase: give --passphrase-file, or run on a terminal")
        self.uri = uri
        self._path, self._ask = Path(path), passphrase
        self._timeout, self._clock, self._params = timeout, clock, params
        self._word: bytes | None = None
        self._seen: tuple[tuple[int, ...], _Ring] | None = None
        self._guard = threading.RLock()  # of what was read; uses of a key take no other
        self._changing, self._locked = threading.RLock(), False

    def __repr__(self) -> str:
        return f"RingFile({str(self._path)!r})"

    def create(self) -> RingFileWrapper:
        """Make the file with version 1 as primary. Raises Conflict (a file is there), Missing (no folder), Unavailable."""
        with self._hold():
            if self._path.is_symlink() or self._path.exists():
                raise Conflict(f"{self._path} exists already: it was not touched")
            self._write(_Ring(f"ring-{secrets.token_hex(8)}", ()).rotated(self._clock.now_ns()), replace=False)
        return self.wrapper()

    def versions(self) -> tuple[KeyInfo, ...]:
        """Every version, oldest first. Raises Missing, NotTrusted (wrong passphrase, altered, open to others), Unavailable."""
        ring = self._read()
        return tuple(ring.info(found.version) for found in ring.versions)

    def wrapper(self, version: int | None = None) -> RingFileWrapper:
        """One version to wrap and unwrap with; None = the primary. Raises Missing, NotTrusted, Unavailable."""
        ring = self._read()
        found = ring.at(version) if version is not None else next(v for v in ring.versions if v.state == PRIMARY)
        return RingFileWrapper(self, f"file:{ring.name}/{found.version}", found.version)

    def opens(self, key_id: str) -> RingFileWrapper | None:
        """The version that ``key_id`` names, None when it is another ring's. Raises Missing, NotTrusted, Unavailable."""
        version = version_named(key_id, f"file:{self._read().name}")
        return None if version is None else self.wrapper(version)

    def rotate(self) -> RingFileWrapper:
        """Make a fresh primary; the former one becomes decrypt-only. Raises Missing, NotTrusted, Unavailable."""
        with self._hold():
            self._write(self._read().rotated(self._clock.now_ns()), replace=True)
        return self.wrapper()

    def disable(self, version: int) -> KeyInfo:
        """Stop a decrypt-only version from unwrapping. Raises Missing, Conflict (its state), Unavailable."""
        return self._event(version, DISABLE)

    def enable(self, version: int) -> KeyInfo:
        """Undo ``disable``. Raises Missing, Conflict (its state), Unavailable."""
        return self._event(version, ENABLE)

    def cancel(self, version: int) -> KeyInfo:
        """Take a pending destruction back: it is disabled again. Raises Missing, Conflict (its state), Unavailable."""
        return self._event(version, CANCEL)

    def destroy(self, version: int, *, grace_days: int) -> KeyInfo:
        """Drop a disabled version's secret, now or once ``grace_days`` are over and this is called again.

        Raises Missing, Conflict (its state, or not due yet), Invalid, Unavailable.
        """
        with self._hold():
            event, due = destruction(self._read().info(version), self._clock.now_ns(), grace_days)
            return self._event(version, event, due)

    def secret(self, version: int, states: tuple[str, ...], use: str) -> bytes:
        """The key of ``version``, when it stands in one of ``states``. Raises Denied, Unavailable (the file is gone)."""
        try:
            found = self._read().at(version)
        except Missing as cause:
            raise Unavailable(f"the key ring {self._path} is gone, or another one is in its place: put it back") from cause
        if found.state not in states:
            raise Denied(f"version {version} of the key ring {self._path} is {found.state}: it may not {use}")
        return found.key

    def _event(self, version: int, event: str, due: int = 0) -> KeyInfo:
        with self._hold():
            ring = self._read()
            key_id, _, state, _, _ = ring.info(version)
            changed = ring.with_state(version, next_wrapping_state(key_id, state, event), due)
            self._write(changed, replace=True)
            return changed.info(version)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Hold the ring against other threads and processes, by a lock file beside it."""
        with self._changing:
            if self._locked:
                yield
                return
            try:
                lock = self._path.with_name(f".{self._path.name}.lock")
                handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError as cause:
                raise Missing(f"there is no folder {self._path.parent} for a key ring") from cause
            except OSError as cause:
                raise Unavailable(f"cannot lock the key ring {self._path}: {cause.strerror}") from cause
            try:
                self._wait_for(handle)
                self._locked = True
                yield
            finally:
                self._locked = False
                os.close(handle)

    def _wait_for(self, handle: int) -> None:
        until = self._clock.monotonic() + self._timeout
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._clock.monotonic() >= until:
                    raise Unavailable(f"another process holds the key ring {self._path} for over {self._timeout:g} s") from None
            self._clock.sleep(POLL_SECONDS)

    def _read(self) -> _Ring:
        with self._guard:
            stamp = self._stamp()
            if self._seen is not None and self._seen[0] == stamp:
                return self._seen[1]
            sealed = read_private(self._path, "key ring")
            ring = _parse(unpack_bytes(sealed, [Passphrase(self._passphrase())], purpose=PURPOSE), self._path)
            if self._seen is not None and self._seen[1].name != ring.name:
                raise Unavailable(f"another key ring was put in the place of {self._path}: put the former one back")
            self._seen = stamp, ring
            return ring

    def _write(self, ring: _Ring, *, replace: bool) -> None:
        with suppress(OSError):  # what cannot be removed is as little use to whoever lacks the passphrase as the ring itself
            clear_stand_ins(self._path)
        sealed = pack_bytes(to_json(ring), [Passphrase(self._passphrase(), self._params)], purpose=PURPOSE)
        with NewFile(self._path) as file:
            file.write([sealed])
            file.publish(replace=replace)
        with self._guard:
            self._seen = self._stamp(), ring

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self._path.lstat()
        except FileNotFoundError as cause:
            raise Missing(f"there is no key ring at {self._path}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot look at the key ring {self._path}: {cause.strerror}") from cause
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _passphrase(self) -> bytes:
        if self._word is None:
            word = self._ask()
            if not word:
                raise Invalid(f"the passphrase of the key ring {self._path} is empty")
            self._word = word
        return self._word


def _parse(data: bytes, path: Path) -> _Ring:
    try:
        ring = msgspec.json.decode(data, type=_Ring)
    except (msgspec.DecodeError, UnicodeDecodeError):  # `from None`: the cause could quote a secret
        raise NotTrusted(f"the content of the key ring {path} is malformed") from None
    known = {PRIMARY, DECRYPT_ONLY, DISABLED, PENDING_DESTRUCTION, DESTROYED}
    if ring.format != 1 or [v.version for v in ring.versions] != list(range(1, len(ring.versions) + 1)):
        raise NotTrusted(f"the key ring {path} has format {ring.format}: this modelkeep knows format 1")
    if sum(v.state == PRIMARY for v in ring.versions) != 1 or any(v.state not in known for v in ring.versions):
        raise NotTrusted(f"the key ring {path} has no single primary, or an unknown state: upgrade modelkeep")
    return ring
