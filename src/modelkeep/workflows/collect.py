"""Collection: remove the bodies that no release and no hold refers to, and let go of releases that were retired long ago.

Nothing here decides by itself what is dead. A release gives up its bodies by a ``collect`` statement, which counts only if it
is retired and not held at that place in the log; a body goes only after the record through which it could be shared went
(workflows/bodies). Cut off anywhere, collection is simply run again.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, ReleaseState
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import COLLECT, RECIPIENTS, RETIRE
from modelkeep.errors import Conflict, Missing
from modelkeep.ledger.predicates import Act
from modelkeep.ledger.statements import keep_resource, make_statement
from modelkeep.workflows.bodies import let_go, parts, referred
from modelkeep.workflows.publish import pending, settle_publishers
from modelkeep.workflows.registry import Desk
from modelkeep.workflows.release_state import log_verb

BATCH = 64
"""Bodies whose removal is logged in one step."""


class RemovedBody(msgspec.Struct, frozen=True):
    """A body that was removed, or would be. ``size``: bytes, 0 when it was gone already; ``why`` in words."""

    sealed: Digest
    size: int
    why: str


class KeptRelease(msgspec.Struct, frozen=True):
    """A release that is old enough to be collected and is not. ``why`` in words."""

    ref: ReleaseRef
    why: str


class Collection(msgspec.Struct, frozen=True):
    """What collecting did, or would do. ``underway``: live publishers, beside whom bodies that nothing names are left alone."""

    releases: tuple[ReleaseRef, ...]
    bodies: tuple[RemovedBody, ...]
    kept: tuple[KeptRelease, ...]
    underway: tuple[str, ...]


def plan_collection(desk: Desk, retired_for: int | None) -> Collection:
    """What ``collect`` would do now, beside publishers of whom nobody knows yet whether they live. Changes nothing.

    Raises NotTrusted, Unavailable.
    """
    stored = list(desk.registry.blobs.all())
    underway = pending(desk.registry)
    releases, kept = _due(desk, retired_for)
    needed = referred(desk.registry, releases)
    candidates = [sealed for sealed in _candidates(desk, stored, underway) if sealed not in needed]
    return Collection(releases, tuple(_removed(desk, sealed, releases) for sealed in candidates), kept, underway)


def collect(desk: Desk, origin: str, *, actor: str, retired_for: int | None) -> Collection:
    """Remove every body that nothing refers to; what was done.

    ``origin``: the keep's, which the acts in the log are about. ``retired_for``: nanoseconds; releases that were retired at
    least so long ago are let go of first; None = none. Safe beside publishers and other collectors. Raises NotTrusted,
    Unavailable.
    """
    stored = list(desk.registry.blobs.all())  # before asking who is alive: a later publisher's bodies are not in this list
    underway = settle_publishers(desk).underway
    due, kept = _due(desk, retired_for)
    releases, refused = _let_go_of(desk, due, actor)
    desk.registry.refresh()
    removed = tuple(_remove(desk, origin, _candidates(desk, stored, underway), actor))
    return Collection(releases, removed, (*kept, *refused), underway)


def _due(desk: Desk, retired_for: int | None) -> tuple[tuple[ReleaseRef, ...], tuple[KeptRelease, ...]]:
    """Releases to let go of, and those that something keeps."""
    due, kept = [], []
    book, now = desk.registry.refresh(), desk.clock.now_ns()
    for evidence in book.releases():
        if retired_for is None or evidence.state is not ReleaseState.RETIRED or _retired(evidence) > now - retired_for:
            continue
        names = book.catalogue.aliases_of(evidence.ref)
        try:
            book.catalogue.check_free(evidence.ref)
        except Conflict as held:
            kept.append(KeptRelease(evidence.ref, str(held)))
            continue
        if names:
            kept.append(KeptRelease(evidence.ref, f"alias {names[0]} names it: move or remove the alias first"))
        else:
            due.append(evidence.ref)
    return tuple(due), tuple(kept)


def _retired(evidence: ReleaseEvidence) -> int:
    return max(event.at for event in evidence.history if event.verb == RETIRE)


def _let_go_of(desk: Desk, due: Iterable[ReleaseRef], actor: str) -> tuple[tuple[ReleaseRef, ...], tuple[KeptRelease, ...]]:
    done, refused = [], []
    for ref in due:
        try:
            log_verb(desk, ref, COLLECT, actor=actor)
            done.append(ref)
        except Conflict as cause:  # held, or collected by somebody else, between our look and the log
            refused.append(KeptRelease(ref, str(cause)))
    return tuple(done), tuple(refused)


def _candidates(desk: Desk, stored: Iterable[Digest], underway: Sequence[str]) -> list[Digest]:
    """Every body there is, also one of which only the recipients are left; beside publishers only those that the log knows."""
    known = desk.registry.book.bodies()
    blocks = {Digest(record.key) for record in desk.registry.records.scan(RECIPIENTS)}
    return sorted({*(sealed for sealed in stored if sealed in known or not underway), *(blocks & known.keys())})


def _remove(desk: Desk, origin: str, candidates: Iterable[Digest], actor: str) -> Iterator[RemovedBody]:
    """Let go of each, log it, delete it: in this order, so that a body is gone only when the log says so."""
    gone = let_go(desk, candidates)
    for start in range(0, len(gone), BATCH):
        removed = [_removed(desk, sealed, ()) for sealed in gone[start : start + BATCH]]
        about, now = keep_resource(origin), desk.clock.now_ns()
        acts = [
            Act(actor=actor, at=now, verb=COLLECT, about=body.sealed, detail={"bytes": str(body.size), "why": body.why})
            for body in removed
        ]
        desk.log_statements([make_statement(act, about) for act in acts])
        for body in removed:
            desk.registry.blobs.delete(body.sealed)
        yield from removed


def _removed(desk: Desk, sealed: Digest, due: Iterable[ReleaseRef]) -> RemovedBody:
    book, due = desk.registry.book, set(due)
    try:
        size = desk.registry.blobs.size(sealed)
    except Missing:
        size = 0
    of = [
        str(evidence.ref)
        for evidence in book.releases()
        if evidence.state is ReleaseState.COLLECTED or evidence.ref in due
        for body, _, _ in parts(book, evidence)
        if body.sealed == sealed
    ]
    if of:
        why = f"{', '.join(of[:8])} {'was' if len(of) == 1 else 'were'} collected"
    else:
        why = "another body took its place" if sealed in book.bodies() else "no release was published with it"
    return RemovedBody(sealed, size, why)
