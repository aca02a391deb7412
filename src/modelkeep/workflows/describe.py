"""Metadata of releases and holds on them: statements in the log, and the sealed model card."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, Resource, Statement
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.catalogue import ADD, REMOVE, Described, HoldRecord
from modelkeep.custody.metadata import About, check_card, hold_statement, metadata_statement
from modelkeep.custody.releases import SealedBody
from modelkeep.errors import Conflict, Invalid, Missing
from modelkeep.workflows.bodies import seal_anew
from modelkeep.workflows.registry import CARD, Desk, Registry
from modelkeep.workflows.staging import stage


class Sheet(msgspec.Struct, frozen=True):
    """Metadata that are ready to be logged. ``card``: the stored model card, whose recipients are in the records by now."""

    about: About
    card: tuple[SealedBody, Digest] | None

    def statement(self, desk: Desk, ref: ReleaseRef, model: Resource, actor: str) -> Statement:
        """The statement about ``ref``, made now."""
        at, nonce = desk.clock.now_ns(), desk.entropy.token(16)
        return metadata_statement(model, ref, self.about, self.card, actor=actor, at=at, nonce=nonce)


@contextmanager
def prepared(desk: Desk, about: About, card: bytes) -> Iterator[Sheet]:
    """Metadata with their model card sealed; log their statement within this block. ``card``: empty = none.

    Raises Invalid (no UTF-8 text, too large, or ``about`` names a card that was not given, or none), Unavailable.
    """
    if bool(about.card) != bool(card):
        raise Invalid("the metadata name a model card that was not given" if about.card else "the metadata name no model card")
    if not card:
        yield Sheet(about, None)
        return
    text = check_card(card)
    with stage(desk):
        stored = seal_anew(desk, text, CARD)
        desk.registry.records.commit([stored.change])
        yield Sheet(about, (stored.body, stored.source))


def describe(desk: Desk, ref: ReleaseRef, about: About, card: bytes, *, actor: str) -> Described:
    """Say what a release is, in place of what was said before. Raises Missing, Invalid, NotTrusted, Unavailable."""
    known = desk.registry.release(ref)
    with prepared(desk, about, card) as sheet:
        (index,) = desk.log_statements([sheet.statement(desk, ref, Resource(known.filename, known.model), actor)])
    book = desk.registry.refresh()
    found = next((found for found in book.catalogue.metadata(ref) if found.index == index), None)
    if found is None:
        raise _no_effect(book, ref, index)
    return found


def read_card(registry: Registry, ref: ReleaseRef) -> bytes:
    """The text of a release's model card, opened and checked. Raises Missing (there is none), NotTrusted, Denied."""
    registry.release(ref)
    found = registry.book.catalogue.described(ref)
    if found is None or found.card is None or found.card_digest is None:
        raise Missing(f"{ref} has no model card: 'modelkeep metadata set' gives it one")
    opened = registry.open_body(found.card, found.card_digest, CARD)
    opened.check_model_digest()
    return bytes(opened.read_source())


def add_hold(desk: Desk, ref: ReleaseRef, *, actor: str, reason: str) -> HoldRecord:
    """Keep the bodies of a release, whatever becomes of it. Raises Missing, Conflict (collected already), Invalid (reason)."""
    known = desk.registry.release(ref)
    return _log_hold(desk, ref, Resource(known.filename, known.model), ADD, desk.entropy.token(16).hex(), actor, reason)


def remove_hold(desk: Desk, hold_id: str, *, actor: str, reason: str) -> HoldRecord:
    """Remove one hold; others on the same release stay. Raises Missing, Conflict (it was removed before), Invalid (reason)."""
    hold = desk.registry.refresh().catalogue.hold(hold_id)
    if hold.lifted >= 0:
        raise Conflict(f"hold {hold.id[:8]} on {hold.ref} was removed before, by log entry {hold.lifted}")
    known = desk.registry.release(hold.ref)
    return _log_hold(desk, hold.ref, Resource(known.filename, known.model), REMOVE, hold.id, actor, reason)


def _log_hold(desk: Desk, ref: ReleaseRef, model: Resource, verb: str, hold_id: str, actor: str, reason: str) -> HoldRecord:
    statement = hold_statement(model, ref, verb, hold_id, actor=actor, at=desk.clock.now_ns(), reason=reason)
    (index,) = desk.log_statements([statement])
    book = desk.registry.refresh()
    found = next((hold for hold in book.catalogue.holds() if index in (hold.index, hold.lifted)), None)
    if found is None:
        raise _no_effect(book, ref, index)
    return found


def _no_effect(book: EvidenceBook, ref: ReleaseRef, index: int) -> Conflict:
    why = next((problem.why for problem in book.problems if problem.index == index), "it does not count")
    return Conflict(f"{ref} changed meanwhile: what was logged at {index} has no effect ({why})")
