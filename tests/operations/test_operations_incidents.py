"""Incidents: the state table, and one incident per cause."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.ports import Record
from modelkeep.errors import Conflict, NotTrusted
from modelkeep.operations.incidents import IncidentState, open_incident, parse_incident, step


def record(incident_changes):
    (change,) = incident_changes
    return Record(change.kind, change.key, change.body, 7)


def test_a_cause_opens_one_incident_and_a_resolved_one_opens_again():
    incident, changes = open_incident(None, kind="integrity", about="m@1", detail="flipped", at=5)
    assert (incident.id, incident.state, changes[0].expected) == ("integrity:m@1", IncidentState.OPEN, 0)
    kept = record(changes)
    assert open_incident(kept, kind="integrity", about="m@1", detail="again", at=6) == (incident, ())
    resolved, changes = step(kept, "resolve", note="restored", at=7)
    assert resolved.state is IncidentState.RESOLVED
    assert resolved.note == "restored"
    again, changes = open_incident(record(changes), kind="integrity", about="m@1", detail="again", at=8)
    assert (again.state, again.opened, again.changed, changes[0].expected) == (IncidentState.OPEN, 5, 8, 7)


@given(st.lists(st.sampled_from(["acknowledge", "resolve", "reopen", "close"]), max_size=8))
def test_every_walk_stays_on_the_table(verbs):
    allowed = {
        ("open", "acknowledge"): "acknowledged",
        ("open", "resolve"): "resolved",
        ("acknowledged", "resolve"): "resolved",
        ("resolved", "reopen"): "open",
    }
    _, changes = open_incident(None, kind="k", about="a", detail="d", at=0)
    kept, state = record(changes), "open"
    for at, name in enumerate(verbs):
        if (state, name) in allowed:
            moved, changes = step(kept, name, note="", at=at)
            kept, state = record(changes), allowed[state, name]
            assert moved.state == state
        else:
            with pytest.raises(Conflict):
                step(kept, name, note="", at=at)


def test_a_damaged_record_is_not_trusted():
    with pytest.raises(NotTrusted):
        parse_incident(Record("incident", "x", b'{"id":', 1))
