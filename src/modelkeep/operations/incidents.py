"""Incidents: what went wrong, from its opening to its end, as a state table.

Records of kind ``incident``; the key is the incident's id, which names its cause, so the same cause opens one incident only.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from modelkeep.core.ports import Change, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict

KIND = "incident"


class IncidentState(StrEnum):
    """Where an incident stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class Incident(msgspec.Struct, frozen=True):
    """One incident. ``opened`` and ``changed``: Unix nanoseconds; ``about``: a release or an account."""

    id: str
    kind: str
    about: str
    detail: str
    state: IncidentState
    opened: int
    changed: int
    note: str = ""


_STEPS = {
    (IncidentState.OPEN, "acknowledge"): IncidentState.ACKNOWLEDGED,
    (IncidentState.OPEN, "resolve"): IncidentState.RESOLVED,
    (IncidentState.ACKNOWLEDGED, "resolve"): IncidentState.RESOLVED,
    (IncidentState.RESOLVED, "reopen"): IncidentState.OPEN,
}


def parse_incident(record: Record) -> Incident:
    """The incident in a record. Raises NotTrusted when it is not one."""
    return parse_record(record, Incident, f"incident {record.key}")


def open_incident(existing: Record | None, *, kind: str, about: str, detail: str, at: int) -> tuple[Incident, Sequence[Change]]:
    """Open the incident ``kind:about`` at ``at``, or open it again if it was resolved; an open one stays as it is."""
    identity = f"{kind}:{about}"
    if existing is not None and existing.body is not None:
        found = parse_incident(existing)
        if found.state is not IncidentState.RESOLVED:
            return found, ()
        again = msgspec.structs.replace(found, state=IncidentState.OPEN, detail=detail, changed=at, note="")
        return again, (Change(KIND, identity, to_json(again), existing.revision),)
    fresh = Incident(identity, kind, about, detail, IncidentState.OPEN, at, at)
    return fresh, (Change(KIND, identity, to_json(fresh), 0),)


def step(record: Record, verb: str, *, note: str, at: int) -> tuple[Incident, Sequence[Change]]:
    """Move an incident by ``verb``. Raises Conflict when its state does not allow it."""
    found = parse_incident(record)
    state = _STEPS.get((found.state, verb))
    if state is None:
        raise Conflict(f"incident {found.id} is {found.state}: it cannot be {verb}d")
    moved = msgspec.structs.replace(found, state=state, note=note, changed=at)
    return moved, (Change(KIND, found.id, to_json(moved), record.revision),)
