"""Seal releases anew: fresh data keys for bodies whose data key somebody else may have.

Rewrapping is not enough then: whoever had the wrapping key and an old copy of the records has the data keys, and those stay
the same when they are wrapped again. A body is sealed anew in an order that may be cut off anywhere: the new body and a record
that names both, *then* the log, whose sealing statement names the body that it replaces, then the record with the new body
alone, and last the old body is let go of. Run again, it goes on where it stopped.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from modelkeep.core.ports import Change, Record
from modelkeep.core.values import Digest, ReleaseRef, ReleaseState, Resource, Statement
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.catalogue import Described
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.metadata import CARD_SUBJECT
from modelkeep.custody.releases import RELEASE, Release, SealedBody
from modelkeep.custody.signing import resealing_statements
from modelkeep.errors import Conflict, ModelkeepError
from modelkeep.ledger.predicates import CardBody
from modelkeep.ledger.statements import make_statement, parse_statement
from modelkeep.workflows.bodies import Stored, let_go, seal_anew
from modelkeep.workflows.registry import CARD, MODEL, PROFILE, Desk
from modelkeep.workflows.rewrap import Progress, silent
from modelkeep.workflows.staging import stage
from modelkeep.workflows.trust_changes import entries_of

Exposed = Callable[[SealedBody], bool]
"""Whether somebody may have the data key of a body."""


@dataclass
class _Sealer:
    """One run. ``made``: the new body of each old one, because releases with the same content share a body."""

    desk: Desk
    exposed: Exposed
    actor: str
    made: dict[Digest, Stored] = field(default_factory=dict)

    def again(self, body: SealedBody | None, source: Digest | None, purpose: str) -> Stored | None:
        """The new body that takes the place of ``body``; None when it needs none."""
        if body is None or source is None or not self.exposed(body):
            return None
        if body.sealed not in self.made:
            opened = self.desk.registry.open_body(body, source, purpose)
            opened.check_model_digest()
            self.made[body.sealed] = seal_anew(self.desk, opened.read_source(), purpose)
            return self.made[body.sealed]
        shared = self.made[body.sealed]
        record = self.desk.registry.records.get(shared.change.kind, shared.change.key)
        return msgspec.structs.replace(shared, change=Change(record.kind, record.key, record.body, record.revision))


def reencrypt(desk: Desk, exposed: Exposed, *, actor: str, progress: Progress = silent) -> int:
    """Seal every release with an exposed body anew, and their model cards; how many releases. Run again to resume.

    What cannot be sealed anew is left as it is; the rest is done before the first such failure is raised: NotTrusted
    (damaged), Denied (keys), Conflict (it changes all the time, or somebody published meanwhile and shared an exposed body),
    Unavailable.
    """
    sealer = _Sealer(desk, exposed, actor)
    wanted = [each for each in desk.registry.refresh().releases() if _needs(desk, each, exposed)]
    failures: list[ModelkeepError] = []
    progress("reencrypt", 0, len(wanted))
    for number, evidence in enumerate(wanted, 1):
        try:
            if evidence.state is not ReleaseState.COLLECTED:
                _release(sealer, evidence.ref)
            _card(sealer, evidence)
        except ModelkeepError as failure:
            failures.append(failure)
        progress("reencrypt", number, len(wanted))
    _forget(desk, (body.sealed for body in desk.registry.refresh().bodies().values() if exposed(body)))
    if failures:
        raise failures[0]
    late = _late(desk, exposed)
    if late:
        raise Conflict(f"{', '.join(late)} came meanwhile, with a body whose data key somebody else may have: run this again")
    return len(wanted)


def _late(desk: Desk, exposed: Exposed) -> list[str]:
    """Releases that have an exposed body, or are about to: they shared it before its recipients were gone."""
    found = [str(each.ref) for each in desk.registry.refresh().releases() if _needs(desk, each, exposed)]
    for record in desk.registry.records.scan(RELEASE):
        release = Release.parse(record.body or b"")
        if release.state is ReleaseState.PENDING and any(map(exposed, release.bodies)):
            found.append(str(release.ref))
    return sorted(set(found))


def sealed_before(desk: Desk, moment: int) -> set[Digest]:
    """Bodies that were sealed before ``moment`` (Unix nanoseconds), by the first time at which anything was said of each.

    A body may be said again later: metadata that keep their card, a release signed again. Who said it first is not asked,
    because believing too much here only seals more anew. Raises NotTrusted, Unavailable.
    """
    first = dict.fromkeys(desk.registry.refresh().bodies(), moment)
    for _, entry in entries_of(desk.registry.view):
        try:
            said = parse_statement(parse_envelope(entry).unverified_payload()).predicate
        except ModelkeepError:
            continue
        card, at = said.get("card"), said.get("at")
        sealed = card.get("sealed") if isinstance(card, dict) else said.get("sealed")
        if isinstance(sealed, str) and isinstance(at, int) and sealed in first:
            first[Digest(sealed)] = min(at, first[Digest(sealed)])
    return {sealed for sealed, at in first.items() if at < moment}


def _needs(desk: Desk, evidence: ReleaseEvidence, exposed: Exposed) -> bool:
    card = desk.registry.book.catalogue.described(evidence.ref)
    if evidence.state is ReleaseState.COLLECTED:  # only its model card is left
        return card is not None and card.card is not None and exposed(card.card)
    bodies = (evidence.body, evidence.profile_body, card.card if card else None)
    return any(body is not None and exposed(body) for body in bodies) or bool(_under_way(desk, evidence.ref))


def _under_way(desk: Desk, ref: ReleaseRef) -> Record | None:
    """The record of a release whose sealing anew was cut off."""
    record = desk.registry.records.get(RELEASE, str(ref))
    release = Release.parse(record.body or b"")
    return record if release.next_body or release.next_profile else None


def _release(sealer: _Sealer, ref: ReleaseRef) -> None:
    desk = sealer.desk
    record = _under_way(desk, ref) or _prepare(sealer, desk.registry.release(ref))
    if record is None:
        return
    release = Release.parse(record.body or b"")
    known = desk.registry.release(ref)
    body = release.next_body if release.next_body != known.body else None
    profile = release.next_profile if release.next_profile != known.profile_body else None
    statements = resealing_statements(known, body, profile, actor=sealer.actor, at=desk.clock.now_ns())
    if statements:
        _log(desk, statements)
        known = desk.registry.release(ref)
    done = msgspec.structs.replace(
        release, body=known.body, profile=known.profile_body, entries=known.entries, next_body=None, next_profile=None
    )
    desk.registry.records.commit([Change(RELEASE, record.key, done.encode(), record.revision)])
    left = {each.sealed for each in release.bodies} - {each.sealed for each in done.bodies}
    _forget(desk, left)


def _prepare(sealer: _Sealer, evidence: ReleaseEvidence) -> Record | None:
    """Seal anew what is exposed, and have the record name it before anything is said; None when nothing is exposed."""
    records = sealer.desk.registry.records
    with stage(sealer.desk):
        body = sealer.again(evidence.body, evidence.model, MODEL)
        profile = sealer.again(evidence.profile_body, evidence.profile_digest, PROFILE)
        made = [each for each in (body, profile) if each is not None]
        if not made:
            return None
        record = records.get(RELEASE, str(evidence.ref))
        release = msgspec.structs.replace(
            Release.parse(record.body or b""),
            next_body=body.body if body else None,
            next_profile=profile.body if profile else None,
        ).encode()
        revision = records.commit([Change(RELEASE, record.key, release, record.revision), *(each.change for each in made)])
    return Record(RELEASE, record.key, release, revision)


def _card(sealer: _Sealer, evidence: ReleaseEvidence) -> None:
    """The metadata of a release again, word for word, with its card in a new body."""
    desk = sealer.desk
    described = desk.registry.refresh().catalogue.described(evidence.ref)
    if described is None or described.card is None or described.card_digest is None:
        return
    with stage(desk):
        stored = sealer.again(described.card, described.card_digest, CARD)
        if stored is None:
            return
        desk.registry.records.commit([stored.change])
        _log(desk, [_card_statement(desk, evidence, described, stored.body, sealer.actor)])
    _forget(desk, [described.card.sealed])


def _card_statement(desk: Desk, evidence: ReleaseEvidence, described: Described, body: SealedBody, actor: str) -> Statement:
    said = msgspec.structs.replace(
        described.said,
        actor=actor,
        at=desk.clock.now_ns(),
        id=desk.entropy.token(16).hex(),
        card=CardBody(body.sealed, body.root, body.header, body.size),
    )
    assert described.card_digest is not None
    model = Resource(evidence.filename, evidence.model)
    return make_statement(said, model, Resource(CARD_SUBJECT, described.card_digest))


def _log(desk: Desk, statements: Iterable[Statement]) -> None:
    """Log, and see that every one counts. Raises Conflict (another writer was first), NotTrusted, Unavailable."""
    indexes = desk.log_statements(list(statements))
    for problem in desk.registry.refresh().problems:
        if problem.index in indexes:
            raise Conflict(f"sealing anew was logged at {problem.index} without effect: {problem.why}")


def _forget(desk: Desk, bodies: Iterable[Digest]) -> None:
    """Delete those of ``bodies`` that nothing refers to any more."""
    for sealed in let_go(desk, bodies):
        desk.registry.blobs.delete(sealed)
