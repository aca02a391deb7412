"""Archive a closed audit log elsewhere, and prune it here: only once the releases log says so, and never a log that is alive.

The copy is proven whole first. Then the act is logged, which alone makes what is missing afterwards an archive and not damage;
then a stub says where it went, and last the files go. Cut off anywhere, it is simply run again.
"""

import contextlib
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from modelkeep.core.ports import LogFiles, StaticFiles
from modelkeep.core.values import to_json
from modelkeep.crypto.notes import Checkpoint
from modelkeep.errors import Conflict, Missing, NotTrusted
from modelkeep.ledger.log import read_checkpoint
from modelkeep.ledger.predicates import AuditCheckpoint
from modelkeep.ledger.tiles import CHECKPOINT, TileFiles, TrustedTiles
from modelkeep.ledger.verify import verify_log
from modelkeep.serving.journal import FOLDER, AuditEntry, decode_entry
from modelkeep.serving.recovery import CLOSE, TORN, AuditReport, verify_audit

STUB = "archived"
"""File in the folder of a pruned log: where it went."""


class Removed(StrEnum):
    """What was pruned: the encrypted bodies, or everything but the final checkpoint."""

    BODIES = "bodies"
    EVERYTHING = "everything"


class Archived(msgspec.Struct, frozen=True):
    """What the releases log says of a pruned log: its final size and root (hex), what was removed, and the act's index."""

    size: int
    root: str
    removed: Removed
    index: int


class Stub(msgspec.Struct, frozen=True):
    """What stands in the place of a pruned log. ``to``: the folder it was copied to; ``log_index``: of the act."""

    origin: str
    size: int
    root: str
    removed: Removed
    to: str
    log_index: int


def final_of(files: LogFiles, vkey: str, origin: str, said: AuditCheckpoint | None) -> Checkpoint:
    """The final checkpoint of a log that is closed. ``said``: the last of its checkpoints in the releases log.

    Raises Conflict (not closed, or the releases log does not know so yet), Missing (no log here), NotTrusted, Unavailable.
    """
    found = read_checkpoint(files, vkey, origin)
    if said is None or said.phase != "final":
        raise Conflict(f"{origin} is not closed, as far as the releases log knows: stop its process, or start control")
    if (found.size, found.root.hex()) != (said.size, said.root):
        raise NotTrusted(f"the checkpoint of {origin} is not the final one that the releases log holds")
    return found


def closed_at(files: LogFiles, final: Checkpoint) -> int:
    """When a closed log was closed, Unix nanoseconds. Raises NotTrusted, Missing (its tiles are gone), Unavailable."""
    (last,) = TrustedTiles(files, final).entries(final.size - 1, final.size)
    entry = decode_entry(last, final.size - 1)
    if entry.kind != CLOSE:
        raise NotTrusted(f"{final.origin} does not end with a closing entry")
    return entry.t


def entries_of(files: LogFiles, final: Checkpoint) -> Iterator[AuditEntry]:
    """Every entry of a closed log. Raises NotTrusted, Missing (its tiles are gone), Unavailable."""
    for index, data in enumerate(TrustedTiles(files, final).entries(0, final.size)):
        yield decode_entry(data, index)


def copy_log(source: LogFiles, target: LogFiles, vkey: str, final: Checkpoint) -> AuditReport:
    """Copy what is here of a closed log to ``target`` and prove the copy whole, with every body. Rerun to resume.

    Raises Conflict (another log is there), NotTrusted (the copy is not whole), Unavailable.
    """
    try:
        other = target.read(CHECKPOINT).partition(b"\n")[0].decode("utf-8", "replace")
    except Missing:
        other = final.origin
    if other != final.origin:
        raise Conflict(f"the archive holds another log in this place, {other[:120]}: name another folder")
    paths = [path for path in source.paths() if path not in (CHECKPOINT, STUB)]
    for path in [*paths, CHECKPOINT]:  # the checkpoint last: without it there is no log
        data = source.read(path)
        if _at(target, path) != data:
            target.write(path, data)
    return check_copy(target, vkey, final)


def _at(files: LogFiles, path: str) -> bytes | None:
    try:
        return files.read(path)
    except Missing:
        return None


def check_copy(target: LogFiles, vkey: str, final: Checkpoint) -> AuditReport:
    """Prove that ``target`` holds the whole log under ``final``, with every body. Raises NotTrusted, Missing, Unavailable."""
    report = verify_audit(target, vkey, final.origin, [final])
    if (report.size, report.root) != (final.size, final.root) or not report.closed:
        raise NotTrusted(f"the archive of {final.origin} is not that of its final checkpoint")
    if report.absent:
        raise NotTrusted(f"the archive of {final.origin} lacks {report.absent} of its bodies")
    return report


def prune(files: TileFiles, stub: Stub) -> None:
    """Put the stub in place, then remove what it says. The act stands in the releases log already. Rerun to resume.

    Raises Conflict (a live process holds the log), Unavailable.
    """
    with files.lock(wait=False):
        files.write(STUB, to_json(stub))
        paths = [path for path in files.paths() if path not in (CHECKPOINT, STUB)]
        if stub.removed is Removed.BODIES:
            paths = [path for path in paths if path.startswith(FOLDER) or path == TORN]
        for path in paths:
            files.delete(path)


def read_stub(files: LogFiles) -> Stub | None:
    """What stands in the place of a pruned log, in nobody's words but the operator's; None when there is none."""
    try:
        return msgspec.json.decode(files.read(STUB), type=Stub)
    except (Missing, msgspec.MsgspecError):
        return None


def check_absent(report: AuditReport, said: Archived | None, *, own: bool) -> str:
    """Judge the bodies that a log lacks, in words for its report. ``own``: the keep's own folder, where all should be.

    Raises NotTrusted: bodies are gone, and no act in the releases log says that they were archived.
    """
    if not report.absent:
        return f"{report.bodies} bodies"
    if said is not None and (said.size, said.root) == (report.size, report.root.hex()):
        return f"{report.bodies} bodies, {report.absent} archived by entry {said.index} of the releases log"
    if own or report.bodies:
        raise NotTrusted(f"{report.absent} bodies of {report.origin} are gone, and no entry of the releases log says why")
    return "0 bodies"  # in a copy that has none, as an auditor may have it


def check_pruned(files: StaticFiles, vkey: str, origin: str, said: Archived, kept: list[Checkpoint]) -> str:
    """Judge a log of which at most the final checkpoint is here, in words. ``kept``: its checkpoints in the releases log.

    Raises NotTrusted: the checkpoint is not the one that was archived, or the releases log holds a later or another one.
    """
    final = Checkpoint(origin, said.size, bytes.fromhex(said.root))
    with contextlib.suppress(Missing):  # the releases log holds the checkpoint, too
        if read_checkpoint(files, vkey, origin) != final:
            raise NotTrusted(f"the checkpoint of {origin} is not the one under which it was archived")
    if final not in kept or any(one.size > final.size for one in kept):
        raise NotTrusted(f"the releases log holds another final checkpoint of {origin} than the one that was archived")
    return f"archived by entry {said.index} of the releases log, not here"


def check_archive(elsewhere: LogFiles, vkey: str, origin: str, said: Archived, kept: list[Checkpoint]) -> AuditReport:
    """Check an archived log where it is now: whole, with every body, and continuing all that the releases log holds of it.

    Raises NotTrusted, Missing (it is not there), Unavailable.
    """
    report = check_copy(elsewhere, vkey, Checkpoint(origin, said.size, bytes.fromhex(said.root)))
    verify_log(elsewhere, vkey, origin, kept)
    return report
