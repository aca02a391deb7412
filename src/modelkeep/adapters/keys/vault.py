"""``vault:MOUNT/NAME``: an AES-256-GCM key of Vault's or OpenBao's Transit engine, through hvac.

Versions are Transit's own; what is wrapped is Transit's ciphertext, bound to its context by ``associated_data`` =
base64(SHA-512(context)). Transit knows one floor (``min_decryption_version``) and no single states, so versions are disabled
and trimmed oldest first. It has no waiting time either: a pending destruction is a marker, an unused key called
``NAME.destroy-<version>-<due, Unix seconds>``, and the version below the floor meanwhile.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import hvac
import msgspec
import requests
from hvac import exceptions as vault

from modelkeep.adapters.keys.vault_server import find_server, read_token
from modelkeep.adapters.keys.worker import Worker
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
from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

T = TypeVar("T")

THREADS = 4
"""Requests at once; more wait for their turn, within their own time limit."""

_URI = re.compile(r"vault:((?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)+)([A-Za-z0-9][A-Za-z0-9_-]{0,63})\Z")
_MARKER = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_-]{0,63})\.destroy-(?P<version>\d{1,9})-(?P<due>\d{1,11})\Z")
_CIPHERTEXT = re.compile(rb"vault:v([1-9]\d{0,8}):[A-Za-z0-9+/]{1,200}={0,2}\Z")
_KEY_TYPE = "aes256-gcm96"
_SECOND = 10**9
MAX_VERSIONS = 100_000


class _TransitKey(msgspec.Struct, frozen=True):
    """What Transit says of a key. ``keys``: Unix seconds of creation, by version, of those that are not archived."""

    type: str
    latest_version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSIONS)]
    min_decryption_version: int = 1
    min_encryption_version: int = 0
    min_available_version: int = 0
    derived: bool = False
    exportable: bool = False
    allow_plaintext_backup: bool = False
    keys: dict[str, int] = {}

    @property
    def floor(self) -> int:
        """The oldest version that may unwrap."""
        return max(1, self.min_decryption_version)

    @property
    def oldest(self) -> int:
        """The oldest version that is not destroyed."""
        return max(1, self.min_available_version)


class _Answer(msgspec.Struct, frozen=True):
    data: _TransitKey


@dataclass(frozen=True)
class VaultWrapper:
    """``Wrapper`` over one version of a Transit key."""

    keys: "VaultKeys"
    key_id: str
    version: int

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``context``: Transit's ciphertext. Raises Denied (not the primary), Unavailable."""
        if len(key) != KEY_SIZE:
            raise Invalid(f"a key to wrap has {KEY_SIZE} bytes, not {len(key)}")
        return self.keys.encrypt(self.version, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``wrap``. Raises NotTrusted (altered, other key, version or context), Denied (its state), Unavailable."""
        found = _CIPHERTEXT.match(wrapped)
        if found is None or int(found[1]) != self.version:
            raise NotTrusted(f"what should be wrapped under {self.key_id} is no ciphertext of that version: it was altered")
        return self.keys.decrypt(self.version, wrapped, context)


class VaultKeys:
    """``WrappingKeys`` in Transit. Safe for threads and forks; every call ends within ``timeout`` seconds."""

    def __init__(self, uri: str, *, timeout: float, clock: Clock) -> None:
        """Raises Invalid: malformed, no VAULT_ADDR, no token, or an address without TLS that is not this machine."""
        parts = _URI.match(uri)
        if parts is None:
            raise Invalid(
                "a Vault key is named vault:MOUNT/NAME, such as vault:transit/model-kek, with a name of A-Z a-z 0-9 _ -"
            )
        self.uri = uri
        self._mount, self._name = parts[1].rstrip("/"), parts[2]
        self._server = find_server()
        read_token()
        self._timeout, self._clock = timeout, clock
        self._worker = Worker(f"Vault at {self._server.address}", THREADS)
        self._client: tuple[int, Any] = (0, None)

    def __repr__(self) -> str:
        return f"VaultKeys({self.uri!r})"

    def create(self) -> VaultWrapper:
        """Make the key. Raises Conflict (it exists), Denied, Missing (no Transit engine at the mount), Unavailable."""
        try:
            self._read()
        except Missing:
            self._change(
                lambda transit: transit.create_key(
                    name=self._name, key_type=_KEY_TYPE, exportable=False, allow_plaintext_backup=False, mount_point=self._mount
                )
            )
            self._configure(min_encryption_version=1)
            return self.wrapper(1)
        raise Conflict(f"{self.uri} exists already: it was not touched")

    def versions(self) -> tuple[KeyInfo, ...]:
        """Every version, oldest first. Raises Missing, NotTrusted (not fit for wrapping), Denied, Unavailable."""
        found = self._read()
        return self._states(found, self._markers() if found.floor > 1 else {})

    def wrapper(self, version: int | None = None) -> VaultWrapper:
        """One version to wrap and unwrap with; None = the primary. Raises Missing, NotTrusted, Denied, Unavailable."""
        latest = self._read().latest_version
        number = latest if version is None else version
        if not 1 <= number <= latest:
            raise Missing(f"{self.uri} has no version {number}")
        return VaultWrapper(self, f"{self.uri}/{number}", number)

    def opens(self, key_id: str) -> VaultWrapper | None:
        """The version that ``key_id`` names, None when it is another key's. Raises Missing, Denied, Unavailable."""
        version = version_named(key_id, self.uri)
        return None if version is None else self.wrapper(version)

    def rotate(self) -> VaultWrapper:
        """Make a fresh primary; nothing can be wrapped under the former ones any more. Raises Missing, Denied, Unavailable."""
        self._read()
        self._change(lambda transit: transit.rotate_key(name=self._name, mount_point=self._mount))
        latest = self._read().latest_version
        self._configure(min_encryption_version=latest)
        return self.wrapper(latest)

    def disable(self, version: int) -> KeyInfo:
        """Raise the floor above ``version``. Raises Missing, Conflict (its state, or an older one is enabled), Unavailable."""
        info = self._after(version, DISABLE)
        if any(older.state == DECRYPT_ONLY for older in self.versions() if older.version < version):
            raise Conflict(f"Vault disables the oldest versions only: disable those before {info.key_id} first")
        found = self._read()
        if found.min_encryption_version <= version:  # Vault wants no floor for unwrapping above the one for wrapping
            self._configure(min_encryption_version=found.latest_version)
        self._configure(min_decryption_version=version + 1)
        return info

    def enable(self, version: int) -> KeyInfo:
        """Lower the floor to ``version``. Raises Missing, Conflict (its state, or a newer one is disabled), Unavailable."""
        info = self._after(version, ENABLE)
        if self._read().floor != version + 1:
            raise Conflict(f"Vault enables the newest disabled version only: enable those after {info.key_id} first")
        self._configure(min_decryption_version=version)
        return info

    def destroy(self, version: int, *, grace_days: int) -> KeyInfo:
        """Trim ``version``, now or once ``grace_days`` are over and this is called again.

        Raises Missing, Conflict (its state, not due yet, or an older one is left), Invalid, Denied, Unavailable.
        """
        event, due = destruction(self._at(version), self._clock.now_ns(), grace_days)
        info = self._after(version, event)
        if event == SCHEDULE:
            marker = f"{self._name}.destroy-{version}-{-(-due // _SECOND)}"
            self._change(lambda transit: transit.create_key(name=marker, key_type=_KEY_TYPE, mount_point=self._mount))
            return self._at(version)
        found = self._read()
        if found.oldest != version:
            raise Conflict(f"Vault destroys the oldest version only: destroy those before {info.key_id} first")
        if not found.min_encryption_version:
            self._configure(min_encryption_version=found.latest_version)
        self._change(lambda transit: transit.trim_key(name=self._name, min_version=version + 1, mount_point=self._mount))
        self._unmark(version)
        return info._replace(due=0)

    def cancel(self, version: int) -> KeyInfo:
        """Take a pending destruction back: it is disabled again. Raises Missing, Conflict (its state), Denied, Unavailable."""
        info = self._after(version, CANCEL)
        self._unmark(version)
        return info._replace(due=0)

    def encrypt(self, version: int, key: bytes, context: bytes) -> bytes:
        """Have Transit wrap ``key`` under its latest version, which must be ``version``. Raises Denied, Unavailable."""
        try:
            said = self._call(
                lambda transit: transit.encrypt_data(
                    name=self._name, plaintext=_base64(key), associated_data=_bound(context), mount_point=self._mount
                )
            )
        except vault.InvalidRequest:
            raise Unavailable(f"Vault does not wrap under {self.uri}: look at the key") from None
        wrapped = _field(said, "ciphertext").encode()
        found = _CIPHERTEXT.match(wrapped)
        if found is None:
            raise Unavailable(f"Vault at {self._server.address} answers something that is not a ciphertext")
        if int(found[1]) != version:
            raise Denied(f"{self.uri}/{version} is no longer the primary: it may not wrap anything new")
        return wrapped

    def decrypt(self, version: int, wrapped: bytes, context: bytes) -> bytes:
        """Have Transit undo ``encrypt``. Raises NotTrusted, Denied, Unavailable."""
        try:
            said = self._call(
                lambda transit: transit.decrypt_data(
                    name=self._name, ciphertext=wrapped.decode(), associated_data=_bound(context), mount_point=self._mount
                )
            )
        except vault.InvalidRequest:  # a version below the floor and a bad tag are both 400
            if version < self._read().floor:
                raise Denied(f"{self.uri}/{version} is disabled or destroyed: it may not unwrap anything") from None
            raise NotTrusted(
                f"what was wrapped under {self.uri}/{version} was altered, or is for another key or purpose"
            ) from None
        try:
            key = base64.b64decode(_field(said, "plaintext"), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_SIZE:
            raise NotTrusted(f"what was wrapped under {self.uri}/{version} is not a key of {KEY_SIZE} bytes")
        return key

    # -- the key as Transit sees it --

    def _read(self) -> "_TransitKey":
        try:
            said = self._call(lambda transit: transit.read_key(name=self._name, mount_point=self._mount))
        except vault.InvalidRequest:
            raise Unavailable(f"Vault refuses to say anything of {self.uri}: is a Transit engine at that mount?") from None
        try:
            key = msgspec.convert(said, _Answer).data
        except msgspec.ValidationError:
            raise Unavailable(f"Vault at {self._server.address} answers something that is not a key") from None
        if key.type != _KEY_TYPE or key.derived or key.exportable or key.allow_plaintext_backup:
            raise NotTrusted(
                f"{self.uri} is not fit for wrapping: it must be {_KEY_TYPE}, not derived, not exportable, with no plaintext "
                "backup; let modelkeep create another"
            )
        return key

    def _states(self, found: "_TransitKey", due: dict[int, int]) -> tuple[KeyInfo, ...]:
        states = []
        for version in range(1, found.latest_version + 1):
            pending = 0
            if version < found.oldest:
                state = DESTROYED
            elif version < found.floor:
                pending = due.get(version, 0)
                state = PENDING_DESTRUCTION if pending else DISABLED
            else:
                state = PRIMARY if version == found.latest_version else DECRYPT_ONLY
            states.append(KeyInfo(f"{self.uri}/{version}", version, state, _SECOND * found.keys.get(str(version), 0), pending))
        return tuple(states)

    def _at(self, version: int) -> KeyInfo:
        for info in self.versions():
            if info.version == version:
                return info
        raise Missing(f"{self.uri} has no version {version}")

    def _after(self, version: int, event: str) -> KeyInfo:
        info = self._at(version)
        return info._replace(state=next_wrapping_state(info.key_id, info.state, event))

    def _markers(self) -> dict[int, int]:
        """When versions are due to be destroyed, Unix nanoseconds."""
        return {int(found["version"]): int(found["due"]) * _SECOND for found in self._marks()}

    def _marks(self) -> "list[re.Match[str]]":
        try:
            said = self._call(lambda transit: transit.list_keys(mount_point=self._mount))
        except Missing:  # so Vault says that a list is empty
            return []
        names = said.get("data", {}).get("keys", []) if isinstance(said, dict) else []
        return [found for name in names if (found := _MARKER.match(name)) and found["name"] == self._name]

    def _unmark(self, version: int) -> None:
        for found in self._marks():
            if int(found["version"]) == version:
                self._delete(found[0])

    def _delete(self, name: str) -> None:
        self._change(
            lambda transit: transit.update_key_configuration(name=name, deletion_allowed=True, mount_point=self._mount)
        )
        self._change(lambda transit: transit.delete_key(name=name, mount_point=self._mount))

    def _configure(self, **settings: int) -> None:
        self._change(lambda transit: transit.update_key_configuration(name=self._name, mount_point=self._mount, **settings))

    # -- the wire --

    def _change(self, ask: Callable[[Any], object]) -> None:
        """One request that changes the key. Raises as ``_call``, and Conflict when Vault says that its state forbids it."""
        try:
            self._call(ask)
        except vault.InvalidRequest:
            raise Conflict(f"Vault refuses to change {self.uri}: its state forbids it, or it changed meanwhile") from None

    def _call(self, ask: Callable[[Any], T]) -> T:
        """One request. Raises Denied, Missing, Unavailable, and hvac's InvalidRequest for whoever asked to make sense of."""
        try:
            return self._worker.call(lambda: ask(self._transit()), self._timeout)
        except vault.InvalidRequest:
            raise
        except (vault.Forbidden, vault.Unauthorized):
            raise Denied(
                f"Vault refuses its token for {self.uri}: it is unknown or expired, or its policy forbids this"
            ) from None
        except vault.InvalidPath:
            raise Missing(f"Vault knows no {self.uri}: create it first, and is a Transit engine at that mount?") from None
        except vault.ParamValidationError:
            raise Invalid(f"the vault client refuses a request for {self.uri}: upgrade hvac") from None
        except vault.VaultError as cause:
            raise Unavailable(f"Vault at {self._server.address} fails: {type(cause).__name__}, or it is sealed") from None
        except requests.Timeout:
            raise Unavailable(f"Vault at {self._server.address} did not answer within {self._timeout:g} seconds") from None
        except requests.RequestException as cause:  # `from None`: its request carries the token
            raise Unavailable(f"Vault at {self._server.address} cannot be reached: {type(cause).__name__}") from None

    def _transit(self) -> Any:
        """A client of this process; a forked child gets its own. The token is read anew, for an agent may have renewed it."""
        pid, client = self._client
        if pid != os.getpid():
            session = requests.Session()
            session.trust_env = False  # no proxy and no netrc gets to see a key
            session.verify = self._server.ca
            client = hvac.Client(
                url=self._server.address,
                token="",
                session=session,
                timeout=self._timeout,
                verify=self._server.ca,
                namespace=self._server.namespace or None,
                allow_redirects=False,  # the token goes to this address and to no other
            )
            self._client = os.getpid(), client
        client.token = read_token()
        return client.secrets.transit


def _bound(context: bytes) -> str:
    return _base64(hashlib.sha512(context).digest())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _field(said: Any, name: str) -> str:
    value = said.get("data", {}).get(name) if isinstance(said, dict) else None
    if not isinstance(value, str):
        raise Unavailable(f"Vault answers without a {name}: is there a proxy before it?")
    return value
