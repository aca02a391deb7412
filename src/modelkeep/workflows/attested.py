"""The statements that count for one release, read from the log: what ``custody/materials`` makes a dossier of."""

import contextlib
from collections.abc import Container, Iterable, Iterator, Sequence

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, Statement
from modelkeep.crypto.dsse import Envelope, parse_envelope
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.materials import KINDS, Attested, Dossier, dossier
from modelkeep.errors import Conflict, Invalid, NotTrusted
from modelkeep.ledger.attestations import ATTESTATIONS, Bom, Evaluation, TrainingRun
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.statements import parse_statement, peek_type, predicate_of, statement_id
from modelkeep.workflows.registry import Registry

Peeked = tuple[int, Envelope, Statement]
"""An entry that is not verified yet: its log index, its envelope, and what it claims to say."""


def dossier_of(registry: Registry, ref: ReleaseRef, until: int | None = None) -> Dossier:
    """What the log says about how ``ref`` came to be; ``until``: by its first so many entries.

    Raises Missing (no such release, or not by then), NotTrusted, Unavailable.
    """
    (found,) = dossiers_of(registry, [ref], until)
    return found


def dossiers_of(registry: Registry, refs: Iterable[ReleaseRef], until: int | None = None) -> Iterator[Dossier]:
    """The same of several releases; the log is read once."""
    book = registry.refresh()
    size = min(book.size, registry.view.checkpoint.size)
    peeked = list(_peek(registry, size if until is None else min(size, until), KINDS))
    return (dossier(ref, _counting(book, ref, peeked)) for ref in refs)


def _counting(book: EvidenceBook, ref: ReleaseRef, peeked: Sequence[Peeked]) -> Iterator[Attested]:
    """The statements among ``peeked`` that count for ``ref``, in the order of the log."""
    known = book.release(ref)
    own = {known.index, known.entries.get("scan", known.index), *(found.index for found in book.catalogue.metadata(ref))}
    about = {known.model} | {digest for _, _, said in peeked for digest in _data(said, known.model)}
    seen: set[Digest] = set()
    for index, envelope, said in peeked:
        attests = said.predicate_type in ATTESTATIONS
        if said.subject[0].digest not in about if attests else index not in own:
            continue
        with contextlib.suppress(NotTrusted, Conflict, Invalid):  # what its signer may not say, or a copy, counts for nothing
            one = _checked(book, ref, index, envelope)
            identifier = statement_id(one.statement)
            if identifier not in seen:
                seen.add(identifier)
                yield one


def bills_of(registry: Registry, ref: ReleaseRef, digest: Digest) -> Iterator[int]:
    """Log indexes of the statements that record the bill of materials ``digest`` of ``ref``. Raises Missing, NotTrusted."""
    book = registry.refresh()
    known = book.release(ref)
    for index, envelope, said in _peek(registry, registry.view.checkpoint.size, (Bom.TYPE,)):
        if [subject.digest for subject in said.subject] == [known.model, digest]:
            with contextlib.suppress(NotTrusted, Conflict, Invalid):
                if predicate_of(_checked(book, ref, index, envelope).statement, Bom).release == str(ref):
                    yield index


def _checked(book: EvidenceBook, ref: ReleaseRef, index: int, envelope: Envelope) -> Attested:
    """A statement, once its signer may make it, about this model name too. Raises NotTrusted, Conflict, Invalid."""
    statement, signer = book.signatories.check(envelope, index)
    if statement.predicate_type in ATTESTATIONS:
        book.signatories.check_about(signer.name, index, short_type(statement.predicate_type), ref.name)
    return Attested(index, statement, signer.name)


def _peek(registry: Registry, until: int, kinds: Container[str]) -> Iterator[Peeked]:
    """Entries of these types, not verified yet."""
    for start in range(0, until, 256):
        for index, entry in enumerate(registry.view.entries(start, min(until, start + 256)), start):
            with contextlib.suppress(NotTrusted, Invalid):
                envelope = parse_envelope(entry)
                if peek_type(envelope) in kinds:
                    yield index, envelope, parse_statement(envelope.unverified_payload())


def _data(said: Statement, model: Digest) -> Iterator[Digest]:
    """The data sets that a statement about the model names. It is not verified yet: it only says what to look at."""
    if said.subject[0].digest != model:
        return
    with contextlib.suppress(Invalid, msgspec.MsgspecError):
        if said.predicate_type == TrainingRun.TYPE:
            yield from (data.digest for data in predicate_of(said, TrainingRun).inputs)
        elif said.predicate_type == Evaluation.TYPE:
            data = predicate_of(said, Evaluation).dataset
            yield from () if data is None else (data.digest,)
