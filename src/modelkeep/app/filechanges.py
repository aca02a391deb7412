"""Change who can open sealed files: rewrap (recipients only, the body stays) and reencrypt (a fresh data key).

Rewrapping revokes nobody who already holds the data key or a copy of the old file. Reencrypting makes a new data key, so that
former recipients cannot open *this* file; a copy that they kept they still can.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from msgspec import Struct

from modelkeep.adapters.files import NewFile
from modelkeep.adapters.tails import HeldFile, held
from modelkeep.app.filekeys import TYPED, Ask, Keychain, Party, stanza_id
from modelkeep.app.files import DataKey, Noticing, Unsealed, Watch, Watched, asking, naming, split, unseal
from modelkeep.container.file import pack_file, rewrap_tail, split_file
from modelkeep.container.open import open_sealed
from modelkeep.container.recipients import MAX_STANZAS, Stanza, parse_recipients, unlock
from modelkeep.errors import Conflict, Invalid, ModelkeepError, NotTrusted


class RecipientChange(Struct, frozen=True):
    """What is to become of the recipients.

    ``add``: recipients to seal for too (one that is there already stays as it is; a passphrase replaces the former one);
    ``remove``: ids that shall not be there; ``only``: nobody but those in ``add`` stays;
    ``under``: leave files alone that this id is no recipient of, "" = none.
    """

    add: tuple[Party, ...] = ()
    remove: tuple[str, ...] = ()
    only: bool = False
    under: str = ""

    def after(self, before: Sequence[str]) -> list[str]:
        """The ids that stay or come, those that stay first."""
        added = [party.id for party in self.add]
        stay = [id_ for id_ in before if id_ not in self.remove and (not self.only or id_ in added)]
        return [*stay, *(id_ for id_ in added if id_ not in stay)]

    def check(self) -> None:
        """Raises Invalid when it contradicts itself."""
        both = {party.id for party in self.add} & set(self.remove)
        if both:
            raise Invalid(f"{sorted(both)[0]} is to be added and to be removed: choose one")
        if self.only and not self.add:
            raise Invalid("--remove-others needs a recipient to keep: name it with -r")


class FileRewrapped(Struct, frozen=True):
    """A file after ``rewrap`` or ``reencrypt``. ``changed``: false when it was so already; ``recipients``: ids, from now on."""

    file: str
    changed: bool
    recipients: tuple[str, ...]
    absent: tuple[str, ...] = ()


def rewrap_file(
    path: str,
    change: RecipientChange,
    identities: Sequence[str] = (),
    *,
    passphrase: bytes | Ask | None = None,
    keychain: Keychain | None = None,
) -> FileRewrapped:
    """Replace the recipient block of the sealed file ``path``, in place and crash-safe; the body's bytes stay as they are.

    Idempotent: a file that is as ``change`` wants it is not opened and not touched. It revokes nobody.
    Raises Invalid (nobody would be left, more than 64), NotTrusted, Missing, Conflict (it is held), Unavailable.
    """
    change.check()
    if not (change.add or change.remove):
        raise Invalid("nothing to change: name a recipient to add (-r) or to remove (--remove-recipient)")
    with naming(path), held(path) as file:
        stanzas = parse_recipients(split(path, file).block).stanzas
        before = [stanza_id(stanza) for stanza in stanzas]
        absent = tuple(id_ for id_ in change.remove if id_ not in before)
        if change.under and change.under not in before:
            return FileRewrapped(path, False, tuple(before), absent)
        after = _checked(change.after(before))
        added = [party for party in change.add if party.id == TYPED or party.id not in before]
        if not added and len(after) == len(before):
            return FileRewrapped(path, False, tuple(before), absent)
        found = unseal(path, file, identities, passphrase=passphrase, keychain=keychain)
        fresh = {party.id for party in added}
        kept = [stanza for stanza in stanzas if (id_ := stanza_id(stanza)) in after and id_ not in fresh]
        _replace(file, found, added, kept)
        return FileRewrapped(path, True, tuple(after), absent)


def reencrypt_file(
    path: str,
    change: RecipientChange,
    identities: Sequence[str] = (),
    *,
    passphrase: bytes | Ask | None = None,
    keychain: Keychain | None = None,
    watch: Watch = lambda _: None,
) -> FileRewrapped:
    """Seal the contents of ``path`` anew under a fresh data key, verify the result, and put it in the place of the old file.

    Recipients are those of before, changed by ``change``. One that stays must be known well enough to be sealed for: named in
    ``change.add``, or by one of ``identities``, or the passphrase. No plaintext touches the disk.
    Raises Invalid (a recipient would be lost silently), NotTrusted, Missing, Conflict (held, or replaced), Unavailable.
    """
    change.check()
    chain = keychain or Keychain()
    with naming(path), ExitStack() as stack:
        file = stack.enter_context(held(path))
        found = unseal(path, file, identities, passphrase=passphrase, keychain=chain)
        before = [stanza_id(stanza) for stanza in found.block.stanzas]
        absent = tuple(id_ for id_ in change.remove if id_ not in before)
        if change.under and change.under not in before:
            return FileRewrapped(path, False, tuple(before), absent)
        parties = _anew(change, before, chain, identities, asking(passphrase))
        new = stack.enter_context(NewFile(file.path, like=file.stat()))
        noticing = Noticing(parties[0].recipient)
        whom = [noticing, *(party.recipient for party in parties[1:])]
        source = Watched(found.sealed.as_source(), watch)
        new.write(pack_file(source, whom, purpose=found.block.purpose, kind=found.sealed.kind))
        _verify(new, found, noticing.dek)
        _check_in_place(file)
        new.publish(replace=True)
    return FileRewrapped(path, True, tuple(party.id for party in parties), absent)


def each_file(
    paths: Sequence[str], work: Callable[[str], FileRewrapped], *, threads: int
) -> Iterator[tuple[str, FileRewrapped | ModelkeepError]]:
    """Do ``work`` on every file, several at a time, and tell what came of each, as it ends. One failure stops no other."""

    def one(path: str) -> tuple[str, FileRewrapped | ModelkeepError]:
        try:
            return path, work(path)
        except ModelkeepError as failed:
            return path, failed

    with ThreadPoolExecutor(max(1, threads), "modelkeep-rewrap") as pool:
        try:
            yield from pool.map(one, paths)
        finally:
            pool.shutdown(cancel_futures=True)


def _check_in_place(file: HeldFile) -> None:
    """Raises Conflict when the name leads to another file now, or to none."""
    try:
        same = os.path.samestat(file.stat(), file.path.stat())
    except FileNotFoundError:
        same = False
    if not same:
        raise Conflict(f"{file.path} was replaced or removed by another process meanwhile: it is as that left it")


def _replace(file: HeldFile, found: Unsealed, added: Sequence[Party], kept: Sequence[Stanza]) -> None:
    recipients = [party.recipient for party in added]
    tail = rewrap_tail(file, [DataKey(found.dek)], recipients, purpose=found.block.purpose, keep=kept)
    file.replace_tail(found.parts.body.size, tail)


def _anew(
    change: RecipientChange, before: Sequence[str], chain: Keychain, identities: Sequence[str], passphrase: Ask | None
) -> list[Party]:
    """Everyone to seal for, each with what it takes to do so."""
    named = {party.id: party for party in change.add}
    found: dict[str, Party] = {}
    for id_ in _checked(change.after(before)):
        party = named.get(id_) or chain.party_of(id_, identities, passphrase)
        if party is None:
            raise Invalid(f"its recipient {id_} would be lost: name it with -r, or leave it out with --remove-recipient {id_}")
        if party.id in change.remove:  # a provider's key seals with its primary version, whichever was there
            raise Invalid(f"{id_} stays, and its key seals as {party.id} now, which is to be removed: remove both")
        found[party.id] = party
    return list(found.values())


def _checked(ids: list[str]) -> list[str]:
    if not ids:
        raise Invalid("nobody could open it any more: keep or add a recipient")
    if len(ids) > MAX_STANZAS:
        raise Invalid(f"it would have {len(ids)} recipients, and a sealed file has at most {MAX_STANZAS}")
    return ids


def _verify(new: NewFile, old: Unsealed, dek: bytes) -> None:
    """Read the new file back from the disk, open it, and compare what is in it with what the old one stated."""
    new.sync()
    with new.reader() as back:
        back.forget()
        parts = split_file(back)
        key = unlock(parts.block, parts.header_hash, [DataKey(dek)], purpose=old.block.purpose)
        sealed = open_sealed(parts.body, key)
        sealed.check_model_digest()
        if sealed.model_digest != old.sealed.model_digest:
            raise NotTrusted("it does not hold what its sealer stated (another SHA-256): the old file was left in place")
