"""Sealed bodies: stored once for every content, shared by the releases that have it, and let go of when nobody refers to them.

Whoever wants to share a body and whoever wants to remove it meet at one record, the body's recipients, and compare-and-set
decides: sharing writes it again in the same commit as the pending record that refers to the body, removing deletes it at the
revision it had *before* asking who refers to it. So a body that was removed is never shared, and a shared one is never removed.
"""

from collections.abc import Iterable, Iterator

import msgspec

from modelkeep.container.check import check_body
from modelkeep.container.reader import BlobReader, BytesReader
from modelkeep.container.recipients import Binding, KmsRecipient, KmsStanza, encode_recipients, parse_recipients
from modelkeep.container.seal import seal
from modelkeep.core.ports import Change
from modelkeep.core.values import Digest, ReleaseRef, ReleaseState
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.datasets import DATASET, DatasetRecord
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import RECIPIENTS, RELEASE, Release, SealedBody
from modelkeep.errors import Conflict, Denied, Missing, NotTrusted
from modelkeep.workflows.registry import CARD, MODEL, PROFILE, Desk, Registry


class Stored(msgspec.Struct, frozen=True):
    """A body in the blob store. ``source``: digest of what is inside; ``reused``: it served another release already.

    ``change``: what goes into the commit that refers to the body. It raises Conflict when the body was let go of meanwhile.
    """

    body: SealedBody
    source: Digest
    reused: bool
    change: Change


def store(desk: Desk, data: bytes | memoryview, source: Digest, purpose: str, *, reuse: bool = True) -> Stored:
    """The sealed body of ``data``, whose digest is ``source``: one that is there and sound, or a new one.

    Raises Unavailable, Denied (no key to wrap with).
    """
    known = find(desk, source, purpose) if reuse else None
    return known or seal_anew(desk, data, purpose)


def seal_anew(desk: Desk, data: bytes | memoryview, purpose: str) -> Stored:
    """Seal ``data`` into a new body. Raises Unavailable, Denied."""
    sealing = seal(BytesReader(data))
    sealed = desk.registry.blobs.put(sealing.chunks())
    made = sealing.model
    binding = Binding(made.header_hash, made.model_digest, purpose)
    stanza = KmsRecipient(desk.wrapper).stanza(made.dek, binding.context())
    body = SealedBody(sealed, made.root.hex(), made.header_hash.hex(), made.size)
    block = encode_recipients([stanza], made.dek, binding)
    return Stored(body, made.model_digest, False, Change(RECIPIENTS, sealed, block, 0))


def find(desk: Desk, source: Digest, purpose: str) -> Stored | None:
    """A body of ``source`` that a release in the log has, and that is whole, opens, and is wrapped under the primary key.

    One that any quarantined release has is not taken. Raises Unavailable.
    """
    book = desk.registry.refresh()
    quarantined = (each for each in book.releases() if each.state is ReleaseState.QUARANTINED)
    suspect = {body.sealed for each in quarantined for body, _, _ in parts(book, each)}
    for evidence in book.releases():
        if evidence.state is ReleaseState.COLLECTED:
            continue
        for body, digest, what in parts(book, evidence):
            if (digest, what) == (source, purpose) and body.sealed not in suspect:
                try:
                    return _usable(desk, body, source, purpose)
                except (NotTrusted, Denied, Missing):
                    continue  # it is damaged, or its key is not what new bodies are wrapped under: verify tells, we seal anew
    return None


def _usable(desk: Desk, body: SealedBody, source: Digest, purpose: str) -> Stored:
    record = desk.registry.records.get(RECIPIENTS, body.sealed)
    keys = [stanza.key_id for stanza in parse_recipients(record.body or b"").stanzas if isinstance(stanza, KmsStanza)]
    if desk.wrapper.key_id not in keys:
        raise Denied(f"{body.sealed} is not wrapped under {desk.wrapper.key_id}")
    check_body(BlobReader(desk.registry.blobs, body.sealed), body.sealed)
    desk.registry.open_body(body, source, purpose)
    return Stored(body, source, True, Change(RECIPIENTS, body.sealed, record.body, record.revision))


def parts(book: EvidenceBook, evidence: ReleaseEvidence) -> Iterator[tuple[SealedBody, Digest, str]]:
    """The bodies that a release has now: (body, digest of what is inside, purpose)."""
    yield evidence.body, evidence.model, MODEL
    if evidence.profile_body is not None and evidence.profile_digest is not None:
        yield evidence.profile_body, evidence.profile_digest, PROFILE
    described = book.catalogue.described(evidence.ref)
    if described is not None and described.card is not None and described.card_digest is not None:
        yield described.card, described.card_digest, CARD


def referred(registry: Registry, without: Iterable[ReleaseRef] = ()) -> set[Digest]:
    """The bodies that a release refers to, by the log or by its record, and those of data sets.

    Ask for the recipients' revisions *before* this.
    A collected release, and one of ``without``, refers to its model card alone. Raises NotTrusted, Unavailable.
    """
    book, gone = registry.refresh(), set(without)
    found = {card.sealed for card in book.catalogue.cards()}
    for evidence in book.releases():
        if evidence.state is ReleaseState.COLLECTED:
            gone.add(evidence.ref)
        elif evidence.ref not in gone:
            found |= {body.sealed for body in (evidence.body, evidence.profile_body) if body}
    for record in registry.records.scan(RELEASE):
        release = Release.parse(record.body or b"")
        if release.ref not in gone:
            found |= {body.sealed for body in release.bodies}
    sets = (DatasetRecord.parse(record) for record in registry.records.scan(DATASET))
    found |= {each.body.sealed for each in sets if each.body is not None}
    return found


def let_go(desk: Desk, wanted: Iterable[Digest]) -> list[Digest]:
    """Delete the recipients of each body in ``wanted`` that nothing refers to: nobody can open or share it any more.

    Returns these bodies, for the caller to delete. One that is shared or rewrapped at this moment stays.
    Raises NotTrusted, Unavailable.
    """
    registry, wanted = desk.registry, list(wanted)
    if not wanted:
        return []
    revisions = {record.key: record.revision for record in registry.records.scan(RECIPIENTS)}
    needed, gone = referred(registry), []
    for sealed in wanted:
        if sealed in needed:
            continue
        try:
            if sealed in revisions:
                registry.records.commit([Change(RECIPIENTS, sealed, None, revisions[sealed])])
        except Conflict:
            continue
        gone.append(sealed)
    return gone
