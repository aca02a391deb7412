"""Who a file is sealed for, and who opens it, as people write them: X-Wing texts and files, key URIs, a passphrase.

A recipient is named by its id everywhere: ``xwing:`` and 32 hex digits, the key id of a provider such as
``vault:transit/models/3``, or ``passphrase``.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.keys.uri import is_key_uri, open_keys
from modelkeep.container.recipients import (
    MAX_STANZAS,
    KmsRecipient,
    KmsStanza,
    Opener,
    Passphrase,
    PassphraseStanza,
    Recipient,
    Stanza,
    XWingOpener,
    XWingRecipient,
    XWingStanza,
)
from modelkeep.core.ports import Wrapper, WrappingKeys
from modelkeep.crypto.xwing import recipient_id, recipient_of
from modelkeep.errors import Invalid, Missing, Unavailable

TYPED = "passphrase"
"""The id of a passphrase: a file has at most one."""

RECIPIENT_PREFIX, IDENTITY_PREFIX = "modelkeep-recipient-", "modelkeep-recovery-"
_MAX_KEY_FILE = 1 << 20

Ask = Callable[[], bytes]


def once(ask: Ask) -> Ask:
    """``ask``, but asked one time only, however many threads want to know."""
    lock = threading.Lock()
    said: list[bytes] = []

    def asked() -> bytes:
        with lock:
            if not said:
                said.append(ask())
            return said[0]

    return asked


class Party(NamedTuple):
    """Someone to seal for, and the id that the sealed file will name them by."""

    id: str
    recipient: Recipient


class ProviderOpener:
    """``Opener`` over every version of one provider's key. Safe for threads: the provider is asked by one at a time."""

    def __init__(self, keys: WrappingKeys) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._known: dict[str, Wrapper | None] = {}

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        """The data key; None when the stanza is for another key. Raises NotTrusted, Denied, Unavailable, Missing."""
        if not isinstance(stanza, KmsStanza):
            return None
        with self._lock:
            if stanza.key_id not in self._known:
                self._known[stanza.key_id] = self._keys.opens(stanza.key_id)
            wrapper = self._known[stanza.key_id]
        return None if wrapper is None else wrapper.unwrap(stanza.wrapped, context)


class Keychain:
    """Recipients and identities by name; safe for threads. Each file is read and each provider opened once.

    ``ring_passphrase``: gives the passphrase of the ``file:`` ring that a URI names; asked once a ring.
    """

    def __init__(self, ring_passphrase: Callable[[str], bytes] | None = None) -> None:
        self._ask = ring_passphrase
        self._lock = threading.RLock()
        self._keys: dict[str, WrappingKeys] = {}
        self._openers: dict[str, list[Opener]] = {}
        self._identities: dict[str, list[str]] = {}

    def recipients(self, texts: Iterable[str], *, passphrase: Ask | None = None) -> tuple[Party, ...]:
        """Everyone named by ``texts``, each once, and the passphrase last, when there is one.

        Raises Invalid (not a recipient, or more than a file can have), and what the provider raises.
        """
        found = {party.id: party for party in map(self._recipient, texts)}
        if passphrase is not None:
            found[TYPED] = Party(TYPED, Passphrase(passphrase()))
        if len(found) > MAX_STANZAS:
            raise Invalid(f"a sealed file has at most {MAX_STANZAS} recipients, and {len(found)} were named")
        return tuple(found.values())

    def openers(self, texts: Sequence[str]) -> list[Opener]:
        """The keys that ``texts`` name: files with X-Wing identities, and key URIs. What needs no provider comes first.

        Raises Missing, Invalid (no identity in the file), Unavailable.
        """
        by_need = sorted(texts, key=is_key_uri)
        return [opener for text in by_need for opener in self._openers_of(text)]

    def _openers_of(self, text: str) -> list[Opener]:
        with self._lock:
            if text not in self._openers:
                provider = is_key_uri(text)
                self._openers[text] = (
                    [ProviderOpener(self._open(text))]
                    if provider
                    else [XWingOpener(each) for each in self._identities_in(text)]
                )
            return self._openers[text]

    def _identities_in(self, path: str) -> list[str]:
        """Read once: a pipe gives what it has only once."""
        with self._lock:
            if path not in self._identities:
                self._identities[path] = identities_in(path)
            return self._identities[path]

    def party_of(self, id_: str, identities: Sequence[str], passphrase: Ask | None) -> Party | None:
        """The recipient called ``id_``, as far as those who open know it; of a provider's key, its primary version.

        The passphrase only when nothing else opens: then it has been proven to be the one of before.
        """
        if id_ == TYPED:
            return None if identities or passphrase is None else Party(TYPED, Passphrase(passphrase()))
        for text in identities:
            if is_key_uri(text):
                if self._open(text).opens(id_) is not None:
                    return self._recipient(text)
                continue
            for recipient in map(recipient_of, self._identities_in(text)):
                if xwing_id(recipient_id(recipient)) == id_:
                    return Party(id_, XWingRecipient(recipient))
        return None

    def _recipient(self, text: str) -> Party:
        if is_key_uri(text):
            wrapper = self._open(text).wrapper()
            return Party(wrapper.key_id, KmsRecipient(wrapper))
        if text.strip().startswith(IDENTITY_PREFIX):
            raise Invalid("a private identity was given as a recipient: give its public recipient (modelkeep keygen -y FILE)")
        if not text.strip().startswith(RECIPIENT_PREFIX):
            raise Invalid(
                f"{text[:80]!r} is not a recipient: expected {RECIPIENT_PREFIX}… or a key URI (pkcs11: vault: aws-kms: file:); "
                "a file of recipients is named with -R"
            )
        return Party(xwing_id(recipient_id(text)), XWingRecipient(text.strip()))

    def _open(self, uri: str) -> WrappingKeys:
        with self._lock:
            if uri not in self._keys:
                ask = self._ask
                self._keys[uri] = open_keys(uri, passphrase=None if ask is None else once(lambda: ask(uri)))
            return self._keys[uri]


def recipients_in(path: str) -> list[str]:
    """The recipients in a file, one a line; blank lines and # comments do not count.

    Such a file comes from other people: it may name keys, and not what this machine loads or reads to reach them.
    Raises Missing, Invalid, Unavailable. Quotes no line: the file may have been meant as something else, a passphrase say.
    """
    found = _lines(path, "recipient")
    for text in found:
        if not is_key_uri(text) and not text.startswith((RECIPIENT_PREFIX, IDENTITY_PREFIX)):
            raise Invalid(f"{path} is not a file of recipients: each line is {RECIPIENT_PREFIX}… or a key URI")
        if is_key_uri(text) and "?" in text:
            raise Invalid(
                f"{path} names a key with a '?' part, which says what to load and read here: give that URI with -r, or leave "
                "the part out and set PKCS11_MODULE_PATH and PKCS11_PIN_FILE"
            )
    return found


def identities_in(path: str) -> list[str]:
    """The X-Wing identities in a file, as ``keygen`` writes them. Raises Missing, Invalid, Unavailable. Quotes no line."""
    found = _lines(path, "identity")
    for text in found:
        if text.startswith(RECIPIENT_PREFIX):
            raise Invalid(f"{path} holds a public recipient, which opens nothing: name the file with the identity")
        if not text.startswith(IDENTITY_PREFIX):
            raise Invalid(f"{path} is not a file of identities, as modelkeep keygen writes: it holds something else")
        try:
            recipient_of(text)
        except Invalid as cause:
            raise Invalid(f"{path}: {cause}") from None
    return found


def recipients_of(path: str) -> list[str]:
    """The public recipients of the identities in a file. Raises Missing, Invalid, Unavailable."""
    return [recipient_of(each) for each in identities_in(path)]


def stanza_id(stanza: Stanza) -> str:
    """The id of the recipient that a stanza is for."""
    if isinstance(stanza, KmsStanza):
        return stanza.key_id
    return xwing_id(stanza.recipient_id) if isinstance(stanza, XWingStanza) else TYPED


def xwing_id(raw: bytes) -> str:
    """How an X-Wing recipient is named: by the first 16 bytes of its public key's SHA-256."""
    return f"xwing:{raw.hex()}"


def has_passphrase(stanzas: Iterable[Stanza]) -> bool:
    """Whether a passphrase opens the file."""
    return any(isinstance(stanza, PassphraseStanza) for stanza in stanzas)


def _lines(path: str, what: str) -> list[str]:
    raw = _read(path)
    if len(raw) > _MAX_KEY_FILE:
        raise Invalid(f"{path} is too large to be a file of recipients or identities")
    try:
        lines = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError:  # `from None`: the cause could quote a secret
        raise Invalid(f"{path} holds no {what}: it is not text") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise Invalid(f"{path} holds no {what}: expected one a line")
    return found


def _read(path: str) -> bytes:
    """A small file, or what comes out of a pipe: ``-i <(pass show alice)`` is how careful people do it."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(_MAX_KEY_FILE + 1)
    except FileNotFoundError as cause:
        raise Missing(f"there is no file {path}") from cause
    except IsADirectoryError as cause:
        raise Invalid(f"{path} is a folder, and no file with a recipient or identity") from cause
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
