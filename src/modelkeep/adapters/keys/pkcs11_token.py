"""PKCS #11 tokens: URIs (RFC 7512), the PIN, one session per token, and what a module's errors mean.

A module is entered by one thread only (``C_Initialize`` is told so), with a deadline, and initialized anew in a forked child
and when a token was lost. The PIN is read from its source at each login and kept nowhere.
"""

import hmac
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

import pkcs11
from pkcs11 import exceptions as p11

from modelkeep.adapters.keys.worker import Worker
from modelkeep.errors import Denied, Invalid, Missing, Unavailable

T = TypeVar("T")

_PATH, _QUERY = ("token", "serial", "object", "type"), ("module-path", "pin-source")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")

PIN_REFUSED = (
    p11.PinIncorrect,
    p11.PinInvalid,
    p11.PinLenRange,
    p11.PinLocked,
    p11.PinExpired,
    p11.UserPinNotInitialized,
)
LOST = (
    p11.ObjectHandleInvalid,
    p11.KeyHandleInvalid,
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.UserNotLoggedIn,
    p11.TokenNotPresent,
    p11.DeviceRemoved,
    p11.DeviceError,
    p11.SlotIDInvalid,
    p11.NoSuchKey,
)
"""What is worth one new login: the token, the session or the object is gone. (A token that was pulled looks empty to some.)"""


class TokenUri(NamedTuple):
    """A parsed ``pkcs11:`` URI. ``token`` or ``serial`` may be empty, not both; ``name``: the object's name without version."""

    token: str
    serial: str
    name: str
    module: str
    pin_file: str

    @property
    def text(self) -> str:
        """The URI without its query: what key ids begin with."""
        parts = [f"{key}={quote(value, safe='')}" for key, value in (("token", self.token), ("serial", self.serial)) if value]
        return "pkcs11:" + ";".join([*parts, f"object={quote(self.name, safe='')}"])


def parse_uri(uri: str) -> TokenUri:
    """Parse ``pkcs11:token=T;object=NAME?module-path=…&pin-source=file:…``. Source: RFC 7512.

    Raises Invalid; the message never repeats a value, which could be a PIN.
    """
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    if "pin-value" in uri.lower():
        raise Invalid("a PIN does not belong in a URI, where others can read it: use pin-source=file:PATH, or PKCS11_PIN_FILE")
    found = _attributes(path, ";", _PATH) | _attributes(query, "&", _QUERY)
    if not (found.get("token") or found.get("serial")) or not _NAME.match(found.get("object", "")):
        raise Invalid(
            "a pkcs11: URI names a token and an object: pkcs11:token=LABEL;object=NAME, with a name of A-Z a-z 0-9 . _ -"
        )
    pin = found.get("pin-source", "")
    module = found.get("module-path") or os.environ.get("PKCS11_MODULE_PATH", "")
    if not module:
        raise Invalid("no PKCS #11 module: say module-path=/path/to/module.so in the URI, or set PKCS11_MODULE_PATH")
    if pin.startswith("|"):
        raise Invalid("pin-source runs no commands here: name a file")
    return TokenUri(found.get("token", ""), found.get("serial", ""), found["object"], module, _file(pin))


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        key, equals, value = part.partition("=")
        if key not in known or key in found or not equals:
            raise Invalid(
                f"a pkcs11: URI has, before and after its '?', only {', '.join(_PATH)} and {', '.join(_QUERY)}, once each"
            )
        found[key] = unquote(value)
    return found


def _file(source: str) -> str:
    path = source.removeprefix("file:")
    return path[2:] if path.startswith("///") else path


def read_pin(uri: TokenUri) -> str:
    """The PIN, from ``pin-source``, PKCS11_PIN_FILE or PKCS11_PIN, in this order. Raises Invalid (none), Unavailable."""
    source = uri.pin_file or os.environ.get("PKCS11_PIN_FILE", "")
    if not source:
        pin = os.environ.get("PKCS11_PIN", "")
        if not pin:
            raise Invalid("no PIN for the token: say pin-source=file:PATH in the URI, or set PKCS11_PIN_FILE or PKCS11_PIN")
        return pin
    try:
        pin = Path(source).read_text("utf-8").rstrip("\r\n")
    except OSError as cause:
        raise Unavailable(f"cannot read the token's PIN from {source}: {cause.strerror}") from cause
    except UnicodeDecodeError:  # `from None`: the cause quotes what it could not decode
        raise Invalid(f"the PIN in {source} is not UTF-8") from None
    if not pin:
        raise Invalid(f"the PIN file {source} is empty")
    return pin


class Module:
    """One loaded PKCS #11 module of this process: its thread, and a session for each token that was logged into."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._worker = Worker(f"the PKCS #11 module {path}")
        self._sessions: dict[tuple[str, str], pkcs11.Session] = {}
        self._pid = 0
        self._salt = os.urandom(16)
        self._refused: dict[tuple[str, str], bytes] = {}

    def call(self, uri: TokenUri, work: Callable[[pkcs11.Session], T], timeout: float) -> T:
        """``work`` with a session of the token, on the module's thread; once more with a new login if the token was lost.

        Raises Denied (the token refuses the PIN), Unavailable, and what ``work`` raises of our own errors.
        """
        return self._worker.call(lambda: self._work(uri, work), timeout)

    def _work(self, uri: TokenUri, work: Callable[[pkcs11.Session], T]) -> T:
        try:
            try:
                return work(self._session(uri))
            except LOST:
                self.reset()
                return work(self._session(uri))
        except p11.NoSuchKey:
            raise Missing(f"there is no {uri.text}: create it first") from None
        except PIN_REFUSED as cause:
            raise Denied(f"the token of {uri.text} refuses the PIN ({type(cause).__name__}): it was tried once") from None
        except p11.PKCS11Error as cause:
            raise Unavailable(f"the token of {uri.text} fails: {type(cause).__name__} {str(cause)[:80]}".rstrip()) from None

    def reset(self) -> None:
        """Forget every session and initialize the module anew. Call it on the module's thread only."""
        self._sessions.clear()
        pkcs11.lib(self.path).reinitialize()

    def _session(self, uri: TokenUri) -> "pkcs11.Session":
        if self._pid != os.getpid():
            if self._pid:
                self.reset()
            self._pid = os.getpid()
        found = self._sessions.get((uri.token, uri.serial))
        if found is None:
            found = self._sessions[uri.token, uri.serial] = self._login(uri)
        return found

    def _login(self, uri: TokenUri) -> "pkcs11.Session":
        tokens = self._tokens(uri)
        if not tokens:
            self.reset()  # some modules look for tokens only when they are initialized
            tokens = self._tokens(uri)
        if len(tokens) != 1:
            why = "there is no such token" if not tokens else "there are several: name its serial"
            raise Unavailable(f"cannot log into the token of {uri.text}: {why}")
        pin = read_pin(uri)
        mark = hmac.digest(self._salt, pin.encode(), "sha256")
        if hmac.compare_digest(self._refused.get((uri.token, uri.serial), b""), mark):
            raise Denied(
                f"the token of {uri.text} refused this PIN before: it is not tried again, for tokens lock; mend it first"
            )
        try:
            return tokens[0].open(rw=True, user_pin=pin)
        except p11.UserAlreadyLoggedIn:  # by another session of this process: PKCS #11 logs in applications, not sessions
            return tokens[0].open(rw=True)
        except PIN_REFUSED:
            self._refused[uri.token, uri.serial] = mark
            raise

    def _tokens(self, uri: TokenUri) -> "list[pkcs11.Token]":
        present = [slot.get_token() for slot in pkcs11.lib(self.path).get_slots(token_present=True)]
        return [
            token
            for token in present
            if (not uri.token or token.label == uri.token) and (not uri.serial or _serial(token) == uri.serial)
        ]


def _serial(token: "pkcs11.Token") -> str:
    return token.serial.decode("ascii", "replace").strip()


_modules: dict[str, Module] = {}
_loading = threading.Lock()


def module(path: str) -> Module:
    """The module at ``path``, one for the whole process. Loads nothing yet."""
    with _loading:
        return _modules.setdefault(path, Module(path))
