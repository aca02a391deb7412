"""Audit logs of this keep's processes: a new one for each process, and the ones of dead processes finished."""

from collections.abc import Callable
from pathlib import Path

from modelkeep.adapters.room import FolderRoom
from modelkeep.app.premises import Premises
from modelkeep.app.sinks import open_sinks
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import AUDIT_LOG
from modelkeep.errors import Conflict, Missing
from modelkeep.ledger.tiles import CHECKPOINT
from modelkeep.serving.audit import AuditLimits, AuditLog, Backing, Deliver, deliver_here
from modelkeep.serving.journal import FOLDER
from modelkeep.serving.recovery import recover_audit, restore_tiles
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.breakglass import Glass


def new_audit(
    premises: Premises, keyring: Keyring, role: str, glass: Glass, deliver: Deliver = deliver_here
) -> tuple[str, AuditLog]:
    """Start an audit log for this process: its instance name and the log. Raises Conflict, Invalid (a sink), Unavailable.

    The name begins with the time, so that names sort in the order of starting. ``glass``: what waives required sinks.
    """
    instance = f"{premises.clock.now_ns():020d}-{role}-{premises.entropy.token(4).hex()}"
    origin = premises.audit_origin(instance)
    settings = premises.settings.audit
    limits = AuditLimits(records=settings.queue, hang=settings.hang_seconds)
    signer = keyring.note_signer(AUDIT_LOG, origin)
    room = FolderRoom(_folder(premises, instance), settings.reserve)
    backing = Backing(open_sinks(premises, instance, glass), room)
    files, clock = premises.audit_files(instance), premises.clock
    return instance, AuditLog(files, signer, origin, clock, deliver=deliver, limits=limits, backing=backing)


def new_series(premises: Premises, keyring: Keyring, role: str, glass: Glass, deliver: Deliver = deliver_here) -> AuditSeries:
    """This process's audit logs, one for each period of the settings. Raises as ``new_audit``."""
    period = premises.settings.audit.period_hours * 3600.0
    return AuditSeries(lambda: new_audit(premises, keyring, role, glass, deliver), premises.clock, period=period)


def recover_all(premises: Premises, keyring: Keyring, report: Callable[[str], None]) -> list[bytes]:
    """Finish every audit log that a dead process left open, and return all their checkpoints.

    Raises NotTrusted, Unavailable.
    """
    notes = []
    finished = {origin for origin, said in premises.registry().book.audits().items() if said.phase == "final"}
    for instance in premises.audit_instances():
        origin, files = premises.audit_origin(instance), premises.audit_files(instance)
        signer = keyring.note_signer(AUDIT_LOG, origin)
        _make_ready(premises, instance, signer.vkey, report)
        if origin in finished:
            continue
        try:
            found = recover_audit(files, signer, origin, premises.clock)
        except Conflict:
            continue  # its process lives
        except Missing:
            continue  # its process died before it began
        report(f"finished the audit log {instance} of a process that is gone: {found.size} records")
        notes.append(files.read(CHECKPOINT))
    return notes


def _make_ready(premises: Premises, instance: str, vkey: str, report: Callable[[str], None]) -> None:
    """Give a dead process's reserve back, and make the tiles anew of a log that came back from a mirror, which has none.

    One that was archived and pruned whole has no journal either.
    """
    files, folder = premises.audit_files(instance), _folder(premises, instance)
    mirrored = not files.paths("tile/") and CHECKPOINT in files.paths(CHECKPOINT) and bool(files.paths(FOLDER))
    if not mirrored and not FolderRoom(folder, 0).held:
        return
    try:
        with files.lock(wait=False):
            FolderRoom(folder, 0).release()
            if mirrored:
                restore_tiles(files, vkey, premises.audit_origin(instance))
                report(f"made the tiles of the audit log {instance} anew from its journal")
    except Conflict:
        return  # its process lives


def _folder(premises: Premises, instance: str) -> Path:
    return premises.directory / "log" / "audit" / instance
