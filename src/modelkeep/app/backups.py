"""Make a keep of a backup again: docs/backup.md tells people. No key is ever on the disk in the clear.

It happens in a folder beside the one to be, under a name that begins with a dot. Everything is proven there, the erasures that
came after the backup are done again, the successor of the releases log is opened; one rename ends it.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from modelkeep.access.accounts import ACCOUNT, end_logins
from modelkeep.access.challenges import CHALLENGE
from modelkeep.access.refresh import REFRESH
from modelkeep.access.sessions import SESSION
from modelkeep.adapters.clock import SystemEntropy
from modelkeep.adapters.folders import sync_folder
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.tails import SealedReader
from modelkeep.app.backupfiles import PURPOSE, Scattered, blob_of, check_gone, put_named
from modelkeep.app.keep import FOLDERS, Keep
from modelkeep.app.liferesults import BackupChecked, Restored
from modelkeep.app.offline import check_logs
from modelkeep.app.premises import TRUST_FILE, Premises
from modelkeep.app.settings import load
from modelkeep.app.shelf import keep_shelf
from modelkeep.app.stores import Undo, create_records
from modelkeep.container.file import unpack_file
from modelkeep.container.open import SealedFile
from modelkeep.container.recipients import Opener, XWingOpener
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseState
from modelkeep.crypto.notes import Checkpoint
from modelkeep.custody.keyring import Custodian, Keyring, SetPassphrase, Unlocked
from modelkeep.custody.keys import LOG_SIGNING
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import Act
from modelkeep.operations.backup import CONTENT, MANIFEST, RECORDS, Manifest, parse_manifest
from modelkeep.workflows.decisions import decisions_of
from modelkeep.workflows.erasure import sweep
from modelkeep.workflows.successor import log_succession, open_successor, successor_origin
from modelkeep.workflows.verify import check_present, check_stored

LOGINS = (SESSION, REFRESH, CHALLENGE)
"""Kinds of records about who is logged in."""


class Later(msgspec.Struct, frozen=True):
    """What a newer copy of the releases log says: its signed checkpoint, and the erasures that a backup does not know."""

    note: bytes = b""
    erasures: tuple[tuple[int, Act], ...] = ()


def verify_backup(file: str, word: bytes, identity: str) -> BackupChecked:
    """Open a backup whole beside itself, check logs and bodies, and remove it again.

    Raises NotTrusted, Missing, Unavailable.
    """
    with _unpacked(file, Path(file), [_opener(word, identity)]) as (manifest, folder):
        trust = TrustRoot.parse((folder / TRUST_FILE).read_bytes())
        checked = check_logs(keep_shelf(folder / "log"), trust)
        _check_blobs(folder, manifest)
        return BackupChecked(file, manifest.origin, manifest.made, len(manifest.parts), manifest.size, len(checked))


def restore_backup(file: str, directory: str, word: bytes, *, identity: str, newer: str) -> Restored:
    """Make a keep of ``file`` in ``directory``, which must not exist or be empty.

    ``word``: the passphrase of then; with ``identity``, the recovery identity's text, the passphrase from now on. ``newer``:
    folder with a newer copy of the releases log, whose erasures are done again; "" = there was none after the backup.
    Raises Conflict (``directory`` or a store holds something), NotTrusted, Missing, Invalid, Unavailable; nothing is left then.
    """
    target = Path(directory).absolute()
    check_gone(target)
    opener = _opener(word, identity)
    with _unpacked(file, target, [opener]) as (manifest, folder):
        trust = TrustRoot.parse((folder / TRUST_FILE).read_bytes())
        check_logs(keep_shelf(folder / "log"), trust)
        _check_blobs(folder, manifest)
        later = _later(newer, trust, manifest)
        if isinstance(opener, SetPassphrase):
            unlocked = opener.unlocked()  # the backup was sealed for what the passphrase was stretched to in its key ring
        else:
            Custodian(FileKeys(folder / "keys"), SystemEntropy()).recover(identity, word)
            unlocked = Keyring.unlock(FileKeys(folder / "keys"), [LOG_SIGNING], word)[1]
        put_named(folder, load(folder))
        forget = _put_records(folder, trust)
        try:
            restored = _settle(folder, trust, unlocked, manifest, later)
            (folder / ".lock").unlink()  # this process still holds it
            _sync(folder)
            check_gone(target)
            _rename(folder, target)
        except BaseException:
            forget()
            raise
    return msgspec.structs.replace(restored, directory=str(target))


def _no_passphrase() -> bytes:
    raise Invalid("the passphrase was used already")


def _opener(word: bytes, identity: str) -> SetPassphrase | XWingOpener:
    return XWingOpener(identity) if identity else SetPassphrase(word)


@contextlib.contextmanager
def _unpacked(file: str, beside: Path, openers: Sequence[Opener]) -> Iterator[tuple[Manifest, Path]]:
    """The content of a backup in a folder beside ``beside``, for the length of the block. Raises NotTrusted, Unavailable."""
    folder = beside.with_name(f".{beside.name[:100]}.{secrets.token_hex(6)}.restoring")
    with SealedReader(Path(file)) as reader:
        sealed = unpack_file(reader, openers, purpose=PURPOSE)
        manifest = _manifest(sealed)
        _clear_leftovers(beside)
        try:
            folder.mkdir(mode=0o700)
            with FolderLogFiles(folder).lock(wait=False):
                for name in FOLDERS:
                    (folder / name).mkdir(mode=0o700, exist_ok=True)
                sealed.write_file(CONTENT, Scattered(folder, manifest.parts))
                yield manifest, folder
        except FileNotFoundError as cause:
            raise Missing(f"there is no folder {folder.parent}") from cause
        except OSError as cause:
            raise Unavailable(f"cannot write {folder}: {cause.strerror}; nothing was kept of it") from cause
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear_leftovers(beside: Path) -> None:
    """Remove what restores to the same place that were killed left behind; one that is alive holds its folder."""
    for folder in beside.parent.glob(f".{beside.name[:100]}.*.restoring"):
        with contextlib.suppress(Conflict), FolderLogFiles(folder).lock(wait=False):
            shutil.rmtree(folder, ignore_errors=True)


def _manifest(sealed: SealedFile) -> Manifest:
    sizes = {part.name: part.size for part in sealed.files()}
    if sorted(sizes) != sorted((MANIFEST, CONTENT)):
        raise NotTrusted("this sealed file is no backup: it has other parts")
    return parse_manifest(bytes(sealed.read_file(MANIFEST)), sizes[CONTENT])


def _check_blobs(folder: Path, manifest: Manifest) -> None:
    for part in manifest.parts:
        if expected := blob_of(part):
            with (folder / part.name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if f"sha256:{found}" != expected:
                raise NotTrusted(f"the sealed body {expected} in the backup is damaged: it was so when it was backed up")


def _put_records(folder: Path, trust: TrustRoot) -> Undo:
    """Write the dump to the store that the settings name; returns what takes it back.

    Raises Conflict (it is not empty), NotTrusted, Invalid, Unavailable.
    """
    dump = folder / RECORDS
    try:
        rows = msgspec.msgpack.decode(dump.read_bytes(), type=list[tuple[str, str, bytes]])
    except msgspec.MsgspecError as cause:
        raise NotTrusted(f"the dump of the records in the backup is malformed: {cause}") from cause
    store, forget = create_records(folder, load(folder), trust.origin)
    try:
        store.commit([Change(kind, key, body, 0) for kind, key, body in rows])
    except BaseException:
        forget()
        raise
    finally:
        store.close()
    dump.unlink()
    return forget


def _later(newer: str, trust: TrustRoot, manifest: Manifest) -> Later:
    """What a newer log says. Raises NotTrusted (it does not continue the backup's), Conflict (it is older), Missing."""
    if not newer:
        return Later()
    root = Path(newer)
    places = [path for path in (root / "log" / "releases", root / "releases", root) if (path / "checkpoint").is_file()]
    if not places:
        raise Missing(f"there is no copy of a releases log in {newer}")
    view = LogView(FolderLogFiles(places[0]), trust.releases_log, trust.releases_origin)
    found = view.refresh()
    if found.size < manifest.size:
        raise Conflict(f"the log in {newer} has {found.size} entries, the backup {manifest.size}: it is older")
    if view.root_at(manifest.size).hex() != manifest.root:
        raise NotTrusted(f"the log in {newer} does not continue that of the backup: one of them was rewritten")
    erasures = [(index, act) for index, act in decisions_of(view, trust).erasures if index >= manifest.size]
    return Later(view.note, tuple(erasures))


def _settle(folder: Path, trust: TrustRoot, word: Unlocked, manifest: Manifest, later: Later) -> Restored:
    """Open the successor of the releases log, do later erasures again, and prove that all is there."""
    custodian = Custodian(FileKeys(folder / "keys"), SystemEntropy())
    with custodian.store.lock():
        families = custodian.store.families()
    ring = Keyring.open(custodian.store, families, word)
    ring.trust.check_same(trust.encode())
    origin = successor_origin(trust.origin, len(trust.releases_before) + 2, secrets.token_bytes(4))
    signer = ring.note_signer(LOG_SIGNING, origin)
    after = msgspec.structs.replace(
        trust, releases_log=signer.vkey, releases_before=(*trust.releases_before, trust.releases_log)
    )
    custodian.amend(word, lambda found, _trust: (found, after))
    before = open_successor(FolderLogFiles(folder / "log" / "releases"), trust.releases_log, signer)
    if (before.checkpoint.size, before.checkpoint.root.hex()) != (manifest.size, manifest.root):
        raise NotTrusted("the releases log in the backup is not the one that its manifest names")
    keep = Keep(Premises.open(folder, _no_passphrase, unlocked=word))
    index = log_succession(keep.premises.desk(), before, actor=keep.actor.subject, known=later.note)
    for number, act in later.erasures:
        keep.act(act.verb, act.about, replays=f"{before.checkpoint.origin}/{number}")
    sweep(keep.premises.desk(), lambda: None, wipe=True)
    records = keep.premises.records
    records.commit(end_logins(records.scan(ACCOUNT), [record for kind in LOGINS for record in records.scan(kind)]))
    lost = _lost(before.checkpoint, later)
    _check_bodies(keep, manifest)
    keep.premises.records.close()
    return Restored("", origin, before.checkpoint.origin, before.checkpoint.size, lost, len(later.erasures), index)


def _lost(end: Checkpoint, later: Later) -> int:
    return int(later.note.split(b"\n")[1]) - end.size if later.note else 0


def _check_bodies(keep: Keep, manifest: Manifest) -> None:
    """Every body that the log says should be there is. Raises NotTrusted, Unavailable."""
    registry = keep.premises.registry()
    check = check_present if manifest.outside else check_stored
    for evidence in registry.book.releases():
        if evidence.state in (ReleaseState.PUBLISHED, ReleaseState.PROMOTED):
            check(registry, evidence)


def _sync(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            fd = os.open(Path(place) / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(place))


def _rename(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)  # over an empty folder, or to a new name
        sync_folder(target.parent)
    except OSError as cause:
        raise Unavailable(f"cannot put the restored keep to {target}: {cause.strerror}") from cause
