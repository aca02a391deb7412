"""Statements that go with no change of a release: administrative acts, audit checkpoints, commitments to watermark keys."""

from collections.abc import Iterable, Mapping

from modelkeep.core.values import ReleaseRef, Resource, digest_of
from modelkeep.crypto.notes import Checkpoint
from modelkeep.custody.book import EvidenceBook
from modelkeep.errors import Conflict
from modelkeep.ledger.predicates import Act, AuditCheckpoint, Commitment
from modelkeep.ledger.statements import commitment_statements, keep_resource, make_statement
from modelkeep.workflows.registry import Desk


def log_act(desk: Desk, origin: str, verb: str, about: str, *, actor: str, detail: Mapping[str, str] | None = None) -> int:
    """Log an administrative act on the keep ``origin``; its index. Raises TooLarge, NotTrusted, Unavailable."""
    said = Act(actor=actor, at=desk.clock.now_ns(), verb=verb, about=about, detail=dict(detail or {}))
    (index,) = desk.log_statements([make_statement(said, keep_resource(origin))])
    return index


def log_audit_checkpoint(desk: Desk, note: bytes, checkpoint: Checkpoint, *, actor: str, phase: str) -> int:
    """Log an audit log's checkpoint, already verified, with its signed ``note``; its index.

    ``phase``: start, running or final. Raises TooLarge, NotTrusted, Unavailable.
    """
    said = AuditCheckpoint(
        actor=actor,
        at=desk.clock.now_ns(),
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        checkpoint=note.decode(),
        phase=phase,
    )
    (index,) = desk.log_statements([make_statement(said, Resource(checkpoint.origin, digest_of(note)))])
    return index


def commit_traces(desk: Desk, ref: ReleaseRef, entries: Iterable[Commitment], *, actor: str) -> int:
    """Commit to watermark keys of accounts for a release, before their first answer by them; how many were new.

    An account that has the same commitment already is passed over. Raises Conflict (it has another: a key cannot be exchanged
    afterwards; or the epoch before it has none), Missing (no such release), TooLarge, NotTrusted, Unavailable.
    """
    known = desk.registry.release(ref)
    new = _new(desk.registry.book, ref, entries)
    model, now = Resource(known.filename, known.model), desk.clock.now_ns()
    statements = list(commitment_statements(model, str(ref), new, actor=actor, at=now))
    if statements:
        desk.log_statements(statements)
        if _new(desk.registry.refresh(), ref, new):  # another writer may have been first: then this raises
            raise Conflict(f"the releases log did not take commitments to watermark keys for {ref}: see 'modelkeep log verify'")
    return len(new)


def _new(book: EvidenceBook, ref: ReleaseRef, entries: Iterable[Commitment]) -> list[Commitment]:
    new = []
    for entry in entries:
        standing = book.committed(entry.subject, ref)
        if entry.epoch == len(standing):
            new.append(entry)
        elif entry.epoch > len(standing):
            raise Conflict(f"{entry.subject} has no watermark key for {ref} of the epoch before {entry.epoch}")
        elif standing[entry.epoch].commitment != entry.commitment:
            raise Conflict(f"{entry.subject} is committed to another watermark key for {ref}: the first one stands")
    return new
