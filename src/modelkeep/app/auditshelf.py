"""The audit logs of a keep as those see them who archive them: which are closed, which were pruned, which are still needed."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.app.liferesults import ArchivedRow
from modelkeep.app.premises import SINKS_FOLDER, Premises
from modelkeep.app.rows import all_audit_checkpoints
from modelkeep.core.values import ReleaseState
from modelkeep.crypto.notes import Checkpoint, encode_vkey, open_checkpoint
from modelkeep.errors import Conflict, Invalid, Missing, Unavailable
from modelkeep.serving.sinks import read_cursor
from modelkeep.workflows.archive import Removed, check_archive, closed_at, entries_of, final_of, read_stub

EVIDENCE = frozenset({"predict", "explain"})
"""Kinds of the records that a gateway rebuilds evidence and budgets from."""


class ClosedLog(NamedTuple):
    """A closed audit log: its files here, its verifier key and its final checkpoint."""

    instance: str
    files: FolderLogFiles
    vkey: str
    final: Checkpoint


def check_elsewhere(keep: Path, to: str, logs: Iterable[ClosedLog]) -> None:
    """Check that ``to`` is no folder of the keep, by whatever path: a log is no copy of itself, and pruning it the end.

    Raises Invalid, Unavailable.
    """
    try:
        inside = Path(to).resolve().is_relative_to(keep.resolve())
        places = [(Path(to) / log.instance, keep / "log" / "audit" / log.instance) for log in logs]
        if inside or any(copy.exists() and copy.samefile(source) for copy, source in places):
            raise Invalid(f"{to} is in the keep itself: name a folder elsewhere, best on another disk")
    except (OSError, RuntimeError) as cause:  # the latter: links in a circle
        raise Unavailable(f"cannot look at {to}: {cause}") from cause


class AuditShelf:
    """What the releases log says about this keep's audit logs, at one moment."""

    def __init__(self, premises: Premises) -> None:
        """Raises NotTrusted, Missing, Unavailable."""
        self._here = premises
        self._book = premises.registry().book
        self._said = self._book.audits()
        self._archived = premises.decisions().archived

    def closed(self, instance: str) -> ClosedLog:
        """One closed log. Raises Missing, Conflict (it is not closed), NotTrusted, Unavailable."""
        if instance not in self._here.audit_instances():
            raise Missing(f"there is no audit log {instance[:80]!r} here: 'modelkeep status' names them")
        origin = self._here.audit_origin(instance)
        files, vkey = self._here.audit_files(instance), self._vkey(origin)
        return ClosedLog(instance, files, vkey, final_of(files, vkey, origin, self._said.get(origin)))

    def closed_before(self, at: int) -> list[ClosedLog]:
        """Every log that was closed before Unix nanosecond ``at`` and is still here, oldest first. Raises NotTrusted."""
        found = []
        for instance in self._here.audit_instances():
            said = self._said.get(self._here.audit_origin(instance))
            if said is None or said.phase != "final" or self._gone(instance):
                continue
            log = self.closed(instance)
            if closed_at(log.files, log.final) < at:
                found.append(log)
        return found

    def check_not_needed(self, logs: Iterable[ClosedLog]) -> None:
        """Raises Conflict: a restarted gateway would rebuild evidence on a promoted release from the bodies of one of them."""
        served = {str(found.ref) for found in self._book.releases() if found.state is ReleaseState.PROMOTED}
        for log in logs:
            if self._gone(log.instance):
                continue
            named = sorted({e.release for e in entries_of(log.files, log.final) if e.kind in EVIDENCE} & served)
            if named:
                raise Conflict(
                    f"the extraction evidence on {named[0]}, which is served, is rebuilt from {log.instance}: "
                    "say --with-evidence to do without it from the next start of a gateway on"
                )

    def check_delivered(self, logs: Iterable[ClosedLog]) -> None:
        """Raises Conflict: a sink has not accepted all of one of them, and is sent the rest from here."""
        for log in logs:
            for cursor in (self._here.directory / SINKS_FOLDER).glob(f"*/{log.instance}"):
                accepted = read_cursor(FolderLogFiles(cursor))
                if accepted < log.final.size:
                    raise Conflict(
                        f"a sink has accepted {accepted} of the {log.final.size} records of {log.instance}, and gets the rest "
                        f"from here: let a gateway send them, or take the sink out of the settings and remove {cursor}"
                    )

    def archived(self, at: str) -> tuple[ArchivedRow, ...]:
        """Every pruned log; each checked whole in the folder ``at``, unless that is empty. Raises NotTrusted, Missing."""
        rows = []
        kept = all_audit_checkpoints(self._book.signatories, self._here.view()) if at else []
        for origin, said in sorted(self._archived.items()):
            instance, checked = origin.rpartition("/")[2], "not looked at"
            if at:
                vkey = self._vkey(origin)
                earlier = [open_checkpoint(one.checkpoint.encode(), vkey, origin) for one in kept if one.origin == origin]
                report = check_archive(FolderLogFiles(Path(at) / instance), vkey, origin, said, earlier)
                checked = f"signatures, entries, tiles, {report.bodies} bodies, {len(earlier)} checkpoints kept"
            stub = read_stub(self._here.audit_files(instance))
            rows.append(ArchivedRow(instance, said.size, said.removed, said.index, at or (stub.to if stub else ""), checked))
        return tuple(rows)

    def _vkey(self, origin: str) -> str:
        return encode_vkey(origin, self._here.trust.audit_key)

    def _gone(self, instance: str) -> bool:
        said = self._archived.get(self._here.audit_origin(instance))
        return said is not None and said.removed is Removed.EVERYTHING
