"""``pkcs11:token=T;object=NAME``: AES-256 keys that are made in a token and never leave it.

A version is the secret key object ``NAME/<version>``; wrapping is AES-256-GCM in the token, with a random nonce and
``SHA-512(context)`` as associated data: ``nonce(12) ‖ ciphertext(32) ‖ tag(16)``. The token itself enforces the states:
``CKA_ENCRYPT`` only on the primary, ``CKA_DECRYPT`` on what may unwrap. Beside each key lies a data object of the same label
(its record) with the times and a known ciphertext; it outlives the key, so that a number is never used again.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as p11

from modelkeep.adapters.keys.pkcs11_token import LOST, module, parse_uri
from modelkeep.core.keystates import (
    CANCEL,
    DECRYPT_ONLY,
    DESTROYED,
    DISABLE,
    DISABLED,
    ENABLE,
    PENDING_DESTRUCTION,
    PRIMARY,
    SCHEDULE,
    destruction,
    next_wrapping_state,
    version_named,
)
from modelkeep.core.ports import Clock, KeyInfo
from modelkeep.core.values import to_json
from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Conflict, Denied, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

T = TypeVar("T")
Key = Any
"""A key object of python-pkcs11, which adds encrypt and decrypt to it by what the key may do."""

NONCE_SIZE, TAG_SIZE = 12, 16
WRAPPED_SIZE = NONCE_SIZE + KEY_SIZE + TAG_SIZE

_APPLICATION = "modelkeep"
_CHECK = b"modelkeep/pkcs11/check/1"
_USE = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
_TEMPLATE = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.PRIVATE: True,
    Attribute.MODIFIABLE: True,
}


class _Record(msgspec.Struct, frozen=True):
    """What the token cannot say of a key. ``check``: zeros wrapped under it; ``edition``: of two records the later counts."""

    version: int
    created: int
    due: int = 0
    check: bytes = b""
    edition: int = 0


@dataclass(frozen=True)
class Pkcs11Wrapper:
    """``Wrapper`` over one version in a token."""

    keys: "Pkcs11Keys"
    key_id: str
    version: int

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``context``: 60 bytes. Raises Denied (not the primary), Unavailable, Invalid."""
        if len(key) != KEY_SIZE:
            raise Invalid(f"a key to wrap has {KEY_SIZE} bytes, not {len(key)}")
        return self.keys.encrypt(self.version, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``wrap``. Raises NotTrusted (altered, other key or context), Denied (its state), Unavailable."""
        if len(wrapped) != WRAPPED_SIZE:
            raise NotTrusted(f"a key wrapped in a token has {WRAPPED_SIZE} bytes, not {len(wrapped)}")
        return self.keys.decrypt(self.version, wrapped, context)


class Pkcs11Keys:
    """``WrappingKeys`` in a token. Safe for threads and forks; every call ends within ``timeout`` seconds."""

    def __init__(self, uri: str, *, timeout: float, clock: Clock) -> None:
        """Raises Invalid (malformed, or a PIN in the URI). The token is not touched yet."""
        self.uri = uri
        self._uri = parse_uri(uri)
        self._module = module(self._uri.module)
        self._timeout, self._clock = timeout, clock
        self._handles: dict[int, tuple[pkcs11.Session, Key]] = {}

    def __repr__(self) -> str:
        return f"Pkcs11Keys({self._uri.text!r})"

    def create(self) -> Pkcs11Wrapper:
        """Generate version 1 in the token. Raises Conflict (it exists), Denied, Unavailable."""
        return self._wrapper(self._call(self._create))

    def versions(self) -> tuple[KeyInfo, ...]:
        """Every version, oldest first. Raises Missing, Denied, Unavailable."""
        return self._call(self._states)

    def wrapper(self, version: int | None = None) -> Pkcs11Wrapper:
        """One version to wrap and unwrap with; None = the primary. Raises Missing, Denied (no primary), Unavailable."""
        states = self.versions()
        if version is not None:
            return self._wrapper(self._at(states, version).version)
        for info in states:
            if info.state == PRIMARY:
                return self._wrapper(info.version)
        raise Denied(f"{self._uri.text} has no primary version: rotate it")

    def opens(self, key_id: str) -> Pkcs11Wrapper | None:
        """The version that ``key_id`` names, None when it is another key's. Raises Missing, Denied, Unavailable."""
        version = version_named(key_id, self._uri.text)
        return None if version is None else self.wrapper(version)

    def rotate(self) -> Pkcs11Wrapper:
        """Generate a fresh primary; the former one loses ``CKA_ENCRYPT``. Raises Missing, Denied, Unavailable."""
        return self._wrapper(self._call(lambda session: self._generate(session, self._states(session))))

    def disable(self, version: int) -> KeyInfo:
        """Take ``CKA_DECRYPT`` from a decrypt-only version. Raises Missing, Conflict (its state), Unavailable."""
        return self._call(lambda session: self._event(session, version, DISABLE))

    def enable(self, version: int) -> KeyInfo:
        """Undo ``disable``. Raises Missing, Conflict (its state), Unavailable."""
        return self._call(lambda session: self._event(session, version, ENABLE))

    def cancel(self, version: int) -> KeyInfo:
        """Take a pending destruction back: it is disabled again. Raises Missing, Conflict (its state), Unavailable."""
        return self._call(lambda session: self._event(session, version, CANCEL))

    def destroy(self, version: int, *, grace_days: int) -> KeyInfo:
        """Destroy a disabled version's object, now or once ``grace_days`` are over and this is called again.

        Raises Missing, Conflict (its state, or not due yet), Invalid, Unavailable.
        """
        now = self._clock.now_ns()

        def work(session: "pkcs11.Session") -> KeyInfo:
            event, due = destruction(self._at(self._states(session), version), now, grace_days)
            return self._event(session, version, event, due)

        return self._call(work)

    def encrypt(self, version: int, key: bytes, context: bytes) -> bytes:
        """AES-256-GCM in the token. Raises Denied, Unavailable."""
        nonce, aad = os.urandom(NONCE_SIZE), hashlib.sha512(context).digest()

        def work(session: "pkcs11.Session") -> bytes:
            handle = self._handle(session, version)
            if not hasattr(handle, "encrypt"):  # as in decrypt
                raise self._forbidden(session, version, "wrap anything new")
            try:
                return _encrypt(handle, nonce, key, aad)
            except LOST:
                raise
            except p11.PKCS11Error as cause:
                if not handle[Attribute.ENCRYPT]:
                    raise self._forbidden(session, version, "wrap anything new") from None
                raise Unavailable(f"the token could not wrap under {self._id(version)}: {type(cause).__name__}") from None

        return self._call(work)

    def decrypt(self, version: int, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``encrypt``. Raises NotTrusted, Denied, Unavailable."""
        aad = hashlib.sha512(context).digest()

        def work(session: "pkcs11.Session") -> bytes:
            handle = self._handle(session, version)
            if not hasattr(handle, "decrypt"):  # python-pkcs11 gives the method only to what may decrypt when it is looked up
                raise self._forbidden(session, version, "unwrap anything")
            try:
                return _decrypt(handle, wrapped, aad)
            except LOST:
                raise
            except p11.PKCS11Error:
                raise self._refusal(session, version, handle) from None

        return self._call(work)

    def _call(self, work: "Callable[[pkcs11.Session], T]") -> T:
        return self._module.call(self._uri, work, self._timeout)

    def _id(self, version: int) -> str:
        return f"{self._uri.text}/{version}"

    def _label(self, version: int) -> str:
        return f"{self._uri.name}/{version}"

    def _wrapper(self, version: int) -> Pkcs11Wrapper:
        return Pkcs11Wrapper(self, self._id(version), version)

    def _at(self, states: tuple[KeyInfo, ...], version: int) -> KeyInfo:
        for info in states:
            if info.version == version:
                return info
        raise Missing(f"{self._uri.text} has no version {version}")

    # -- what runs on the module's thread --

    def _states(self, session: "pkcs11.Session") -> tuple[KeyInfo, ...]:
        records, states, primary = self._records(session), [], True
        if not records:
            raise p11.NoSuchKey(self._uri.text)
        for version in sorted(records, reverse=True):
            keys, record, due = self._objects(session, version), records[version], 0
            if not keys:
                state = DESTROYED
            elif not keys[0][Attribute.DECRYPT]:
                state, due = (PENDING_DESTRUCTION if record.due else DISABLED), record.due
            elif primary and keys[0][Attribute.ENCRYPT]:
                state, primary = PRIMARY, False
            else:
                state = DECRYPT_ONLY
            states.append(KeyInfo(self._id(version), version, state, record.created, due))
        return tuple(reversed(states))

    def _create(self, session: "pkcs11.Session") -> int:
        if self._records(session):
            raise Conflict(f"{self._uri.text} exists already: it was not touched")
        return self._generate(session, ())

    def _generate(self, session: "pkcs11.Session", states: tuple[KeyInfo, ...]) -> int:
        """Reserve the next number, make its key, and only then take the right to encrypt from the others."""
        version = max((info.version for info in states), default=0) + 1
        record = _Record(version, self._clock.now_ns())
        self._put(session, record)
        key = session.generate_key(
            KeyType.AES, 8 * KEY_SIZE, label=self._label(version), store=True, capabilities=_USE, template=_TEMPLATE
        )
        try:
            self._handle(session, version)  # refuses what the token made, if it may leave it
        except NotTrusted:
            key.destroy()
            raise
        check = os.urandom(NONCE_SIZE)
        self._put(session, msgspec.structs.replace(record, check=_encrypt(key, check, bytes(KEY_SIZE), _CHECK)))
        for info in states:
            for former in self._objects(session, info.version):
                if former[Attribute.ENCRYPT]:
                    former[Attribute.ENCRYPT] = False
        return version

    def _event(self, session: "pkcs11.Session", version: int, event: str, due: int = 0) -> KeyInfo:
        info = self._at(self._states(session), version)
        state = next_wrapping_state(info.key_id, info.state, event)
        record = self._records(session)[version]
        if event in (SCHEDULE, CANCEL):
            self._put(session, msgspec.structs.replace(record, due=due))
        for key in self._objects(session, version):
            if state == DESTROYED:
                self._handles.pop(version, None)
                key.destroy()
            elif event in (DISABLE, ENABLE):
                key[Attribute.DECRYPT] = event == ENABLE
        return info._replace(state=state, due=due)

    def _handle(self, session: "pkcs11.Session", version: int) -> Key:
        """The key object. Raises NotTrusted: it may leave the token, or another object has its name."""
        cached = self._handles.get(version)
        if cached is not None and cached[0] is session:
            return cached[1]
        found = self._objects(session, version)
        if not found and version in self._records(session):
            raise Denied(f"{self._id(version)} is destroyed: it may not wrap or unwrap anything")
        if not found:
            raise p11.NoSuchKey(self._id(version))
        key = found[0]
        if len(found) > 1:
            raise NotTrusted(
                f"the token holds {len(found)} keys called {self._id(version)}: remove the one that is not modelkeep's"
            )
        if key.key_type != KeyType.AES or key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
            raise NotTrusted(f"{self._id(version)} is not an AES key that stays in its token: rotate away from it")
        if hasattr(key, "decrypt"):  # what is disabled is looked up again, since it may be enabled by then
            self._handles[version] = session, key
        return key

    def _objects(self, session: "pkcs11.Session", version: int) -> list[Key]:
        return list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: self._label(version)}))

    def _records(self, session: "pkcs11.Session") -> dict[int, _Record]:
        """The latest record of every version."""
        found: dict[int, _Record] = {}
        for thing in session.get_objects({Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: _APPLICATION}):
            if thing[Attribute.LABEL].rpartition("/")[0] == self._uri.name:
                record = _parse(thing[Attribute.VALUE], self._uri.text)
                if record.edition >= found.get(record.version, record).edition:
                    found[record.version] = record
        return found

    def _put(self, session: "pkcs11.Session", record: _Record) -> None:
        """Write a record: the new one first, then away with the former, for a token's data objects cannot be changed."""
        label = self._label(record.version)
        kind = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: _APPLICATION, Attribute.LABEL: label}
        former = list(session.get_objects(kind))
        edition = 1 + max((_parse(thing[Attribute.VALUE], label).edition for thing in former), default=0)
        value = to_json(msgspec.structs.replace(record, edition=edition))
        session.create_object({**kind, Attribute.VALUE: value, Attribute.TOKEN: True, Attribute.PRIVATE: True})
        for thing in former:
            thing.destroy()

    def _refusal(self, session: "pkcs11.Session", version: int, key: Key) -> ModelkeepError:
        """Why the token did not unwrap: tokens say "general error" for a bad tag and for a broken disk alike."""
        if not key[Attribute.DECRYPT]:
            return self._forbidden(session, version, "unwrap anything")
        record = self._records(session).get(version)
        try:
            if record is not None and record.check and _decrypt(key, record.check, _CHECK) == bytes(KEY_SIZE):
                return NotTrusted(f"what was wrapped under {self._id(version)} was altered, or is for another key or purpose")
        except LOST:
            raise
        except p11.PKCS11Error:
            pass
        return Unavailable(f"the token cannot unwrap under {self._id(version)}, not even what it must: look at the token")

    def _forbidden(self, session: "pkcs11.Session", version: int, use: str) -> Denied:
        return Denied(f"{self._id(version)} is {self._at(self._states(session), version).state}: it may not {use}")


def _encrypt(key: Key, nonce: bytes, plain: bytes, aad: bytes) -> bytes:
    return nonce + bytes(key.encrypt(plain, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, aad, 8 * TAG_SIZE)))


def _decrypt(key: Key, wrapped: bytes, aad: bytes) -> bytes:
    params = GCMParams(wrapped[:NONCE_SIZE], aad, 8 * TAG_SIZE)
    return bytes(key.decrypt(wrapped[NONCE_SIZE:], mechanism=Mechanism.AES_GCM, mechanism_param=params))


def _parse(data: bytes, what: str) -> _Record:
    try:
        return msgspec.json.decode(data, type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise NotTrusted(f"a record of {what} in the token is malformed: another program wrote it") from cause
