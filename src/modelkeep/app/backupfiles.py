"""The files of a keep as one source to seal, at one moment, while servers may run; and the same files written again.

What only grows (journals) is taken up to the size it had; what may go (partial tiles) and what changes (checkpoints, keys,
records) is read at once; the rest never changes.
"""

import contextlib
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from modelkeep.adapters.files import NewFile, SourceFile
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.app.intelligence import index_in_force
from modelkeep.app.liferesults import BackedUp
from modelkeep.app.premises import CA_FILE, TRUST_FILE, Premises
from modelkeep.app.settings import FILE_NAME, Settings
from modelkeep.app.stores import BLOBS_FOLDER, open_records
from modelkeep.app.witnessing import inside
from modelkeep.container.bundle import FilesReader
from modelkeep.container.file import pack_file
from modelkeep.container.layout import Kind
from modelkeep.container.reader import BytesReader
from modelkeep.container.recipients import Recipient
from modelkeep.core.ports import Records
from modelkeep.core.values import digest_hex, parse_digest
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.log import read_checkpoint
from modelkeep.ledger.tiles import CHECKPOINT
from modelkeep.operations.backup import CONTENT, MANIFEST, RECORDS, WITNESS, Manifest, Part, encode_manifest
from modelkeep.serving.journal import FOLDER

PURPOSE = "backup"
"""What a backup is sealed for: it opens as nothing else."""

Source = bytes | Path
_TRIES = 20


class Snapshot(msgspec.Struct, frozen=True):
    """What a keep was at one moment: the manifest, and the bytes or the file behind each of its parts, in the same order."""

    manifest: Manifest
    sources: tuple[Source, ...]


class Joined:
    """A ``Reader`` over the parts of a snapshot, one after the other."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._parts, self._sources = snapshot.manifest.parts, snapshot.sources
        self._starts = _starts(self._parts)
        self.size = snapshot.manifest.content_size

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into``. Raises NotTrusted (a file became shorter, or past the end), Unavailable, Missing."""
        for number, at, piece in _pieces(self._parts, self._starts, offset, into):
            source = self._sources[number]
            if isinstance(source, bytes):
                piece[:] = source[at : at + piece.nbytes]
                continue
            with SourceFile(source) as file:
                file.read_into(at, piece)


class Scattered:
    """A ``Writer`` that puts a content into files below a folder, which it makes (0700, 0600) when it is made."""

    def __init__(self, root: Path, parts: Sequence[Part]) -> None:
        """Raises Unavailable."""
        self._root, self._parts, self._starts = root, parts, _starts(parts)
        try:
            for part in parts:
                path = root / part.name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``; several threads may. Raises Unavailable, NotTrusted (past the end)."""
        for number, at, piece in _pieces(self._parts, self._starts, offset, data):
            try:
                fd = os.open(self._root / self._parts[number].name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    done = 0
                    while done < piece.nbytes:
                        done += os.pwrite(fd, piece[done:], at + done)
                finally:
                    os.close(fd)
            except OSError as cause:
                raise self._unwritable(cause) from cause

    def _unwritable(self, cause: OSError) -> Unavailable:
        return Unavailable(f"cannot write the restored keep: {cause.strerror}; nothing was kept of it")


def take_snapshot(here: Premises) -> Snapshot:
    """The keep as it is now. Publishers wait while records and the releases log are looked at, some milliseconds.

    Raises Unavailable (a file went meanwhile: run it again), NotTrusted, Missing.
    """
    raw = open_records(here.directory, here.settings, here.trust.origin)  # with the signatures of signed records
    found: list[tuple[str, Source, int]] = []
    with here.keys.lock(), here.releases_files().lock(wait=True):
        dump, revision = _dump(raw), raw.revision()
        raw.close()
        trust = _small(here.directory / TRUST_FILE)
        checkpoint = read_checkpoint(here.releases_files(), here.trust.releases_log, here.trust.releases_origin)
        found += [(f"keys/{family}.keep", here.keys.read(family), -1) for family in here.keys.families()]
        found += _log_parts(here.releases_files(), here.directory, "log/releases")
    for instance in here.audit_instances():
        found += _log_parts(here.audit_files(instance), here.directory, f"log/audit/{instance}")
    found += [(FILE_NAME, _small(here.directory / FILE_NAME), -1), (TRUST_FILE, trust, -1), (RECORDS, dump, -1)]
    found += [(CA_FILE, _small(here.directory / CA_FILE), -1)]
    found += _named(here)
    blobs = list(here.blobs.all())
    inside = not here.settings.blobs.url
    if inside:
        for digest in sorted(blobs):
            name = f"{BLOBS_FOLDER}/{digest_hex(digest)[:2]}/{digest_hex(digest)}"
            found.append((name, here.directory / name, here.blobs.size(digest)))
    parts = tuple(Part(name, len(data) if isinstance(data, bytes) else size) for name, data, size in found)
    manifest = Manifest(
        origin=here.trust.origin,
        made=here.clock.now_ns(),
        log=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        revision=revision,
        parts=parts,
        outside=() if inside else tuple(sorted(blobs)),
    )
    return Snapshot(manifest, tuple(data for _, data, _ in found))


def _named(here: Premises) -> list[tuple[str, Source, int]]:
    """What the settings and the records name besides: the witness policy, its authorities, the advisories in force."""
    asked = {"policy": here.settings.witness.policy, "ca": here.settings.witness.ca}
    found: list[tuple[str, Source, int]] = [
        (WITNESS[key], _small(inside(here.directory, name, f"witness.{key}")), -1) for key, name in asked.items() if name
    ]
    with contextlib.suppress(NotTrusted, Missing):  # whoever asks for the advisories is told to import them again
        index = index_in_force(here)
        if index is not None:
            found.append((index.relative_to(here.directory).as_posix(), _small(index), -1))
    return found


def put_named(folder: Path, settings: Settings) -> None:
    """Put the files of witnesses where the settings want them, in an unpacked backup. Raises Invalid (one cannot be)."""
    for key, name in {"policy": settings.witness.policy, "ca": settings.witness.ca}.items():
        source = folder / WITNESS[key]
        if name and source.is_file():
            target = inside(folder, name, f"witness.{key}")
            if target.exists():
                raise Invalid(f"witness.{key} is {name!r}, which is another file of the keep: name one of its own")
            source.rename(target)
    shutil.rmtree(folder / "witness", ignore_errors=True)


def write_backup(snapshot: Snapshot, out: str, recipients: Sequence[Recipient]) -> BackedUp:
    """Seal a snapshot to the new file ``out``. Raises Conflict (``out`` exists), Missing, NotTrusted, Unavailable."""
    manifest = snapshot.manifest
    source = FilesReader([(MANIFEST, BytesReader(encode_manifest(manifest))), (CONTENT, Joined(snapshot))])
    with NewFile(out) as new:
        size = new.write(pack_file(source, recipients, purpose=PURPOSE, kind=Kind.FILES))
        new.publish()
    return BackedUp(out, size, len(manifest.parts), manifest.size, len(manifest.outside))


def blob_of(part: Part) -> str:
    """The digest that a part must have if it is a sealed body, "" otherwise. Raises Invalid (a blob of another name)."""
    if not part.name.startswith(f"{BLOBS_FOLDER}/"):
        return ""
    return parse_digest("sha256:" + part.name.rpartition("/")[2])


def _dump(records: Records) -> bytes:
    rows = [(r.kind, r.key, r.body) for r in records.since(0) if r.body is not None]
    return msgspec.msgpack.encode(rows)


def _log_parts(files: FolderLogFiles, root: Path, folder: str) -> list[tuple[str, Source, int]]:
    """The files of one log under the checkpoint that it has now: what grows or goes is pinned."""
    for _ in range(_TRIES):
        try:
            note = files.read(CHECKPOINT)
            paths = [path for path in files.paths() if path != CHECKPOINT]
            pinned = {path: files.read(path) for path in paths if ".p/" in path}
            whole = [path for path in paths if path not in pinned]
            sizes = {path: (root / folder / path).stat().st_size for path in whole}
        except Missing:
            if not files.paths(FOLDER):
                return []  # a process died before its log began
            continue
        except OSError:
            continue
        if files.read(CHECKPOINT) == note:
            parts: list[tuple[str, Source, int]] = [(f"{folder}/{path}", root / folder / path, sizes[path]) for path in whole]
            parts += [(f"{folder}/{path}", data, -1) for path, data in pinned.items()]
            return [*parts, (f"{folder}/{CHECKPOINT}", note, -1)]
    raise Unavailable(f"{folder} changes too fast to be backed up: try again in a moment")


def _small(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as cause:
        raise Missing(f"{path} is missing: restore it from a copy") from cause
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


def _starts(parts: Sequence[Part]) -> list[int]:
    starts, at = [], 0
    for part in parts:
        starts.append(at)
        at += part.size
    return starts


def _pieces(
    parts: Sequence[Part], starts: Sequence[int], offset: int, view: memoryview
) -> Iterator[tuple[int, int, memoryview]]:
    """Cut ``view``, which stands at ``offset``, by parts: number of the part, offset in it, the piece. Raises NotTrusted."""
    number = max(0, bisect_right(starts, offset) - 1)
    while view.nbytes:
        if number >= len(parts):
            raise NotTrusted("the content of the backup is longer than its manifest says")
        at = offset - starts[number]
        size = min(view.nbytes, parts[number].size - at)
        if size:
            yield number, at, view[:size]
        view, offset, number = view[size:], offset + size, number + 1


def check_gone(path: Path) -> None:
    """Check that nothing is at ``path``, or an empty folder. Raises Conflict, Unavailable."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Conflict(f"{path} holds something already; nothing was touched: name a new folder")
    except OSError as cause:
        raise Unavailable(f"cannot look at {path}: {cause.strerror}") from cause
