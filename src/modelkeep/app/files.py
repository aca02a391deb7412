"""Seal, open and inspect any file with no keep at all, the way people use age. docs/sealed-files.md tells it to them.

The same functions serve the command line and Python (``modelkeep.seal_file`` and so on). A file is written whole or not at all,
mode 0600, and never over another one unless that is asked for.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from modelkeep.adapters.files import NewFile
from modelkeep.adapters.folders import sync_folder
from modelkeep.adapters.tails import SealedReader, journal_of
from modelkeep.app.filekeys import Ask, Keychain, Party, has_passphrase, recipients_of, stanza_id, xwing_id
from modelkeep.app.fileoriginals import check_apart, check_removable, check_target, compare, joined, remove, sources
from modelkeep.container.file import KeepFile, pack_file, split_file
from modelkeep.container.layout import END_MAGIC, MIN_BODY, Kind
from modelkeep.container.open import SealedFile, open_sealed
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.container.recipients import (
    KmsRecipient,
    Opener,
    Passphrase,
    Recipient,
    RecipientBlock,
    Stanza,
    parse_recipients,
    unlock,
)
from modelkeep.core.hidden import holds_secrets
from modelkeep.crypto.xwing import generate_identity, recipient_id, recipient_of
from modelkeep.errors import Conflict, Denied, Invalid, Missing, ModelkeepError, NotTrusted, Refused, Unavailable

PURPOSE = "file"
"""What stand-alone files are sealed for; models exported by a keep are sealed for ``model``, and open here too."""

SUFFIX = ".keep"
_PURPOSES = (PURPOSE, "model")

Watch = Callable[[int], object]
"""Called with the number of bytes that were just done."""


class FileSealed(Struct, frozen=True):
    """A file that was sealed. Sizes in bytes; ``files``: what it holds when that is several; ``removed``: the originals are."""

    file: str
    sealed: str
    size: int
    sealed_size: int
    model_digest: str
    recipients: tuple[str, ...]
    files: tuple[str, ...] = ()
    removed: bool = False


class FileOpened(Struct, frozen=True):
    """A sealed file that was opened to ``out``: a file, or a folder with ``files``. ``size``: bytes of plaintext."""

    file: str
    out: str
    size: int
    files: tuple[str, ...] = ()


class KeyMade(Struct, frozen=True):
    """A new identity: the id and the text of its public recipient, and the file it was written to."""

    file: str
    id: str
    recipient: str


class DataKey:
    """``Opener`` for whoever holds the data key already."""

    def __init__(self, dek: bytes) -> None:
        self._dek = dek

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:  # noqa: ARG002  # the protocol's
        """The data key, whatever the stanza."""
        return self._dek


class Noticing:
    """A recipient that notices the data key, so that what was sealed can be read back."""

    def __init__(self, inner: Recipient) -> None:
        self._inner = inner
        self.dek = b""

    def stanza(self, dek: bytes, context: bytes) -> Stanza:
        self.dek = dek
        return self._inner.stanza(dek, context)


class Watched:
    """A ``Reader`` that tells how much was read."""

    def __init__(self, inner: Reader, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch
        self.size = inner.size

    def read_into(self, offset: int, into: memoryview) -> None:
        self._inner.read_into(offset, into)
        self._watch(into.nbytes)


def fresh_key() -> str:
    """A fresh X-Wing identity as it stands in a file: two lines of comments, with id and recipient, and the secret."""
    identity = generate_identity()
    recipient = recipient_of(identity)
    return (
        f"# modelkeep identity {xwing_id(recipient_id(recipient))}: whoever reads this file opens what is sealed for it\n"
        f"# recipient: {recipient}\n{identity}\n"
    )


def make_key(out: str) -> KeyMade:
    """Write a fresh X-Wing identity to the new file ``out`` (0600). Raises Conflict (it exists), Missing, Unavailable."""
    with NewFile(out) as new:
        new.write([fresh_key().encode()])
        new.publish()
    (recipient,) = recipients_of(out)
    return KeyMade(out, xwing_id(recipient_id(recipient)), recipient)


def seal_file(
    path: str,
    recipients: Sequence[str] = (),
    *,
    passphrase: bytes | Ask | None = None,
    out: str = "",
    force: bool = False,
    remove_plaintext: bool = False,
    keychain: Keychain | None = None,
    watch: Watch = lambda _: None,
) -> FileSealed:
    """Seal the file at ``path`` for ``recipients``, a passphrase, or both, to ``out`` (``path`` and ``.keep`` when empty).

    recipients: X-Wing recipients and key URIs. An ONNX model takes the data files that it names along. ``force``: replace
    ``out``. ``remove_plaintext``: unlink the originals once the sealed file was read back and compared with them.
    Raises Invalid (no recipient, or more than 64; not a regular file; sealed already; nothing that can be removed), Missing,
    Conflict (``out`` exists, or the file changed meanwhile), Unavailable, and what a key provider raises.
    """
    parties = _parties(recipients, passphrase, keychain)
    target = Path(out or f"{path}{SUFFIX}")
    check_target(target, force=force)
    with ExitStack() as stack:
        files = [stack.enter_context(file) for file in sources(path)]
        check_apart(files, target)
        if remove_plaintext:
            check_removable(files)
        source = joined(files)
        new = stack.enter_context(NewFile(target))
        noticing = Noticing(parties[0].recipient)
        whom = [noticing, *(party.recipient for party in parties[1:])]
        kind = Kind.FILES if len(files) > 1 else None
        size = new.write(pack_file(Watched(source, watch), whom, purpose=PURPOSE, kind=kind))
        for file in files:
            file.check_unchanged()
        digest = _read_back(new, noticing.dek, parties, source if remove_plaintext else None)
        new.publish(replace=force)
        if remove_plaintext:
            remove(files)
    names = tuple(str(file.path) for file in files)
    ids = tuple(party.id for party in parties)
    held = names if len(names) > 1 else ()
    return FileSealed(path, str(target), source.size, size, digest, ids, held, remove_plaintext)


def stream_sealed(
    path: str,
    recipients: Sequence[str],
    into: Callable[[memoryview], object],
    *,
    passphrase: Ask | None = None,
    keychain: Keychain | None = None,
) -> None:
    """``seal_file`` to a pipe: hands the sealed file to ``into``, chunk by chunk. Raises what ``seal_file`` raises."""
    parties = _parties(recipients, passphrase, keychain)
    with ExitStack() as stack:
        files = [stack.enter_context(file) for file in sources(path)]
        whom = [party.recipient for party in parties]
        for chunk in pack_file(joined(files), whom, purpose=PURPOSE, kind=Kind.FILES if len(files) > 1 else None):
            into(memoryview(chunk))
        for file in files:
            file.check_unchanged()


def open_file(
    path: str,
    identities: Sequence[str] = (),
    *,
    passphrase: bytes | Ask | None = None,
    out: str = "",
    keychain: Keychain | None = None,
    watch: Watch = lambda _: None,
) -> FileOpened:
    """Write what is sealed in ``path`` to the new file ``out``, byte for byte; several files to a new folder ``out``.

    identities: files of X-Wing identities, and key URIs. Without any, ``passphrase`` opens. ``out``: the name without ``.keep``
    when empty. Nothing appears before all of it has been checked and is on the disk.
    Raises NotTrusted (another key, altered, cut, plaintext), Conflict (``out`` exists), Invalid, Missing, Unavailable.
    """
    if not out and not path.endswith(SUFFIX):
        raise Invalid(f"{path} does not end with {SUFFIX}: name an output")
    target = Path(out or path.removesuffix(SUFFIX))
    check_target(target)
    with SealedReader(path) as reader:
        sealed = unseal(path, reader, identities, passphrase=passphrase, keychain=keychain).sealed
        parts = sealed.files()
        with naming(path):
            if parts:
                _write_folder(sealed, target, watch)
            else:
                with NewFile(target) as new:
                    sealed.write_to(_WatchedWriter(new, watch))
                    new.publish()
    return FileOpened(path, str(target), sealed.source_size, tuple(part.name for part in parts))


def stream_opened(
    path: str,
    identities: Sequence[str],
    into: Callable[[memoryview], object],
    *,
    passphrase: Ask | None = None,
    keychain: Keychain | None = None,
) -> None:
    """``open_file`` to a pipe: hands checked pieces to ``into``. An error says when pieces had been handed out before it."""
    with SealedReader(path) as reader:
        sealed = unseal(path, reader, identities, passphrase=passphrase, keychain=keychain).sealed
        if sealed.files():
            raise Invalid(f"{path} holds several files, and a pipe takes one: name a folder with -o")
        given = 0
        try:
            for chunk in sealed.chunks():
                into(chunk)
                given += chunk.nbytes
        except ModelkeepError as cause:
            if not given:
                raise
            raise NotTrusted(
                f"{path}: {cause}; {given:,} bytes had been written before: they are incomplete, discard them"
            ) from cause


@holds_secrets("block")
@dataclass(frozen=True)
class Unsealed:
    """An opened standalone file: its source, the data key, and what its recipient block says."""

    sealed: SealedFile
    parts: KeepFile
    block: RecipientBlock
    dek: bytes = field(repr=False)


def unseal(
    path: str,
    reader: Reader,
    identities: Sequence[str],
    *,
    passphrase: bytes | Ask | None = None,
    keychain: Keychain | None = None,
) -> Unsealed:
    """Open the standalone file behind ``reader``; its index is proven, no stream is read yet. Raises as ``open_file``."""
    with naming(path):
        parts = split(path, reader)
        block = parse_recipients(parts.block)
        if block.purpose not in _PURPOSES:
            raise NotTrusted(f"it is sealed for {block.purpose[:80]!r}: it holds keys of modelkeep's own, and no file of yours")
        openers = _openers(block, identities, asking(passphrase), keychain or Keychain())
        dek = unlock(parts.block, parts.header_hash, openers, purpose=block.purpose)
        sealed = open_sealed(parts.body, dek)
        if sealed.model_digest != block.model_digest:
            raise NotTrusted("its recipient block names another source than its index: it was put together from two")
    return Unsealed(sealed, parts, block, dek)


def split(path: str, reader: Reader) -> KeepFile:
    """``split_file``, with a word on what else the file may be. Raises NotTrusted."""
    try:
        return split_file(reader)
    except NotTrusted as cause:
        if reader.size >= MIN_BODY and read_bytes(reader, reader.size - 8, 8) == END_MAGIC:
            raise NotTrusted(
                "it is a body without recipients, as a keep stores it: its keep opens it (modelkeep export)"
            ) from cause
        journal = journal_of(Path(path))
        if os.path.lexists(journal):
            raise NotTrusted(f"{cause}; a rewrap was cut off, and {journal.name} beside it does not belong to it") from cause
        raise


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the file's name before an error that lacks it."""
    try:
        yield
    except (Refused, Invalid, Missing, Conflict, Unavailable) as cause:
        if path in str(cause):
            raise
        raise type(cause)(f"{path}: {cause}") from cause


class _WatchedWriter:
    """A ``Writer`` that tells how much was written."""

    def __init__(self, inner: NewFile, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inner.write_at(offset, data)
        self._watch(data.nbytes)


def _parties(recipients: Sequence[str], passphrase: bytes | Ask | None, keychain: Keychain | None) -> tuple[Party, ...]:
    found = (keychain or Keychain()).recipients(recipients, passphrase=asking(passphrase))
    if not found:
        raise Invalid("nobody to seal for: name a recipient or give a passphrase")
    return found


def asking(passphrase: bytes | Ask | None) -> Ask | None:
    """A passphrase that may have been given as it is, as something to ask."""
    return (lambda: passphrase) if isinstance(passphrase, bytes) else passphrase


def _openers(block: RecipientBlock, identities: Sequence[str], ask: Ask | None, keychain: Keychain) -> list[Opener]:
    if identities:
        return keychain.openers(identities)
    if ask is not None and has_passphrase(block.stanzas):
        return [Passphrase(ask())]
    ids = [stanza_id(stanza) for stanza in block.stanzas]
    shown = ", ".join(ids[:4]) + (f" and {len(ids) - 4} others" if len(ids) > 4 else "")
    raise Invalid(f"it is sealed for {shown}: name a key to it with -i")


def _read_back(new: NewFile, dek: bytes, parties: Sequence[Party], source: Reader | None) -> str:
    """The model digest of what was written. With ``source``, the disk is read again, opened, and compared byte for byte."""
    with new.reader() as back:
        parts = split_file(back)
        if source is not None:
            new.sync()
            back.forget()
            for party in parties:
                _check_opens(party, parts)
            sealed = open_sealed(parts.body, unlock(parts.block, parts.header_hash, [DataKey(dek)], purpose=PURPOSE))
            compare(sealed, source)
        return parse_recipients(parts.block).model_digest


def _check_opens(party: Party, parts: KeepFile) -> None:
    """Let a provider or passphrase open what it sealed. (A public key cannot: that its identity is kept is up to people.)"""
    if not isinstance(party.recipient, KmsRecipient | Passphrase):
        return
    try:
        unlock(parts.block, parts.header_hash, [party.recipient], purpose=PURPOSE)
    except Denied as cause:
        raise Denied(
            f"{party.id} may seal here and not open, so nothing can be proven and nothing was removed: {cause}"
        ) from cause


def _write_folder(sealed: SealedFile, target: Path, watch: Watch) -> None:
    """Several files appear at once, in a folder that was filled under a temporary name."""
    fresh = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.new")
    try:
        fresh.mkdir(mode=0o700)
        for part in sealed.files():
            place = fresh / part.name
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with NewFile(place) as new:
                sealed.write_file(part.name, _WatchedWriter(new, watch))
                new.publish()
        for folder, _, _ in os.walk(fresh):  # a folder in it that is not durable could be missing after a crash
            sync_folder(Path(folder))
        check_target(target)
        fresh.rename(target)
        sync_folder(target.parent)
    except FileNotFoundError as cause:
        raise Missing(f"there is no folder {target.parent}") from cause
    except OSError as cause:
        raise Unavailable(f"cannot write {target}: {cause.strerror}; nothing was kept of it") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
