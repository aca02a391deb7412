"""Change the state of a release, or take the model out again. Each is a statement in the log before it takes effect."""

from modelkeep.core.values import ReleaseRef, Resource
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import EXPORT, QUARANTINE, RETIRE, VERBS, next_state
from modelkeep.custody.signing import state_statement
from modelkeep.errors import Conflict, Invalid
from modelkeep.workflows.registry import MODEL, Desk

WAITS = (QUARANTINE, RETIRE)
"""Verbs that end serving: they return once every gateway's lease on the former state has run out."""


def change_state(desk: Desk, ref: ReleaseRef, verb: str, *, actor: str, reason: str = "") -> ReleaseEvidence:
    """Promote, quarantine, reinstate or retire a release; what the log then says of it.

    Quarantine and retire wait out the gateways' lease, so no request that starts after the return is served.
    Raises Missing, Conflict (not possible from its state, or it changed meanwhile), Invalid, NotTrusted, Unavailable.
    """
    if verb not in VERBS:
        raise Invalid(f"{verb[:40]!r} is not a change of state: use {', '.join(VERBS)}")
    evidence = log_verb(desk, ref, verb, actor=actor, reason=reason)
    if verb in WAITS:
        desk.clock.sleep(desk.lease)
    return evidence


def export_release(desk: Desk, ref: ReleaseRef, *, actor: str, reason: str = "") -> memoryview:
    """The model file again, byte for byte, whole and checked; the export is in the log before the bytes are handed out.

    Raises Missing, Conflict (a quarantined release is not exported), NotTrusted (damaged), Denied (keys), Unavailable.
    """
    evidence = desk.registry.release(ref)
    next_state(evidence.state, EXPORT)
    opened = desk.registry.open_body(evidence.body, evidence.model, MODEL)
    opened.check_model_digest()
    source = opened.read_source()
    log_verb(desk, ref, EXPORT, actor=actor, reason=reason)
    return source


def log_verb(desk: Desk, ref: ReleaseRef, verb: str, *, actor: str, reason: str = "") -> ReleaseEvidence:
    """Log a change of state, or an export; what the log then says of the release. Raises Missing, Conflict, NotTrusted."""
    known = desk.registry.release(ref)
    next_state(known.state, verb)
    model, nonce, now = Resource(known.filename, known.model), desk.entropy.token(16), desk.clock.now_ns()
    statement = state_statement(model, ref, verb, actor=actor, at=now, nonce=nonce, reason=reason)
    (index,) = desk.log_statements([statement])
    book = desk.registry.refresh()
    after = book.release(ref)
    if all(event.index != index for event in after.history):
        why = next((problem.why for problem in book.problems if problem.index == index), "it does not count")
        raise Conflict(f"{ref} changed meanwhile: {verb} was logged at {index} without effect ({why})")
    return after
