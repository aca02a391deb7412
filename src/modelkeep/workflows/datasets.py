"""Add a data set: seal it, say so in the log. Open one. And settle what a process that died left behind.

The order is that of a release (workflows/publish): a pending record that names a claim of this process, the sealed body, the
record completed with where it is and the wrapped key beside it, *then* the log, which alone makes it a data set. Whoever finds
a pending record whose claim nobody holds completes it (it is in the log) or collects it (it is not).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from modelkeep.container.layout import Kind
from modelkeep.container.open import SealedFile, open_sealed
from modelkeep.container.reader import BlobReader, Reader
from modelkeep.container.recipients import Binding, KmsRecipient, Opener, encode_recipients, unlock
from modelkeep.container.seal import seal
from modelkeep.core.ports import Change, Record, WrappingKeys
from modelkeep.core.values import Digest, ReleaseRef
from modelkeep.custody.datasets import (
    ADDED,
    DATA_COUNTER,
    DATA_RECIPIENTS,
    DATASET,
    PENDING,
    About,
    DatasetRecord,
    check_columns,
    inherited,
    logged,
    parse_data_name,
    parse_data_ref,
)
from modelkeep.custody.dossier import Told
from modelkeep.custody.releases import file_name
from modelkeep.custody.salting import salted
from modelkeep.errors import Conflict, Missing, ModelkeepError, NotTrusted
from modelkeep.ledger.attestations import Dataset, Salted, SealedData
from modelkeep.ledger.statements import predicate_of
from modelkeep.workflows.registry import Desk, Registry
from modelkeep.workflows.versions import reserve_version

PURPOSE = "dataset"
"""Purpose of sealed bodies: a model put in a data set's place does not open."""


class Salts(Protocol):
    """Where the salts of data sets come from. ``custody.salting.DataSalts`` is one."""

    def salt(self, name: str) -> bytes: ...


class Content(NamedTuple):
    """What is to be sealed. ``kind``, ``rows`` and ``kinds`` as in ``DatasetRecord``; ``check`` raises if it changed since."""

    reader: Reader
    kind: str
    filename: str
    rows: int
    kinds: tuple[tuple[str, str], ...]
    check: Callable[[], None]


def add_dataset(
    desk: Desk,
    keys: WrappingKeys,
    salts: Salts,
    content: Content,
    name: str,
    about: About,
    *,
    actor: str,
    may: Callable[[], None] = lambda: None,
) -> DatasetRecord:
    """Seal ``content`` as the next version of ``name``, and log it. ``keys``: the family ``data-kek``.

    ``may``: raises Denied if the actor may not add to this name; asked when the number is taken, since the name may have become
    somebody else's. On any error nothing was added and nothing is left, or settling removes it. Raises Invalid, Missing (a
    parent), Unavailable, NotTrusted, Conflict (the log does not count it; somebody else is adding the first version), Denied.
    """
    about.check()
    parse_data_name(name), file_name(content.filename)
    check_columns([column for column, _ in content.kinds])
    made_of = [find_dataset(desk.registry, parse_data_ref(parent)) for parent in about.parents]
    about = inherited(about, [(str(each.ref), each.about.purposes) for each in made_of])
    parents = tuple(Salted(str(each.ref), each.digest) for each in made_of if each.digest is not None)
    claim = desk.entropy.token(16).hex()
    with desk.claims.hold(claim):
        blank = DatasetRecord(
            ref=ReleaseRef(name, 1),
            state=PENDING,
            claim=claim,
            kind=content.kind,
            filename=content.filename,
            size=content.reader.size,
            rows=content.rows,
            kinds=content.kinds,
            actor=actor,
            created=desk.clock.now_ns(),
            about=about,
            parents=parents,
        )
        record = _reserve(desk, blank, may)
        try:
            return _carry_out(desk, keys, salts, content, record)
        except ModelkeepError:
            found = _settle_after_failure(desk, record)
            if found is None:
                raise
            return found


def find_dataset(registry: Registry, ref: ReleaseRef) -> DatasetRecord:
    """A version that the log has, as its statement says. Raises Missing, NotTrusted (record and log disagree), Unavailable."""
    try:
        found = DatasetRecord.parse(registry.records.get(DATASET, str(ref)))
    except Missing:
        raise Missing(f"there is no data set {ref}") from None
    told = logged(registry.refresh().attestations, found)
    if found.ref != ref or predicate_of(found.statement(), Dataset) != told.said:
        raise NotTrusted(f"the record of the data set {ref} is not what the releases log says: restore it from a backup")
    return found


def all_datasets(registry: Registry) -> Iterator[DatasetRecord]:
    """Every version that the log has, by name and version. Raises NotTrusted, Unavailable."""
    book = registry.refresh()
    found = [DatasetRecord.parse(record) for record in registry.records.scan(DATASET)]
    for each in sorted(found, key=lambda one: one.ref):
        with contextlib.suppress(Missing):
            logged(book.attestations, each)
            yield each


def last_version(registry: Registry, name: str) -> DatasetRecord:
    """The newest version of ``name``. Raises Missing, NotTrusted, Unavailable."""
    found = [each for each in all_datasets(registry) if each.ref.name == parse_data_name(name)]
    if not found:
        raise Missing(f"there is no data set {name[:80]}")
    return found[-1]


def first_adder(registry: Registry, name: str) -> str:
    """The pseudonym of who added the first version of ``name``, as the log has it; "" when nobody did. Removing it changes
    nothing: the name stays his. Raises NotTrusted, Unavailable."""
    return next((told.said.actor for told, _ in _told(registry, name)), "")


def last_said(registry: Registry, name: str) -> Dataset:
    """What the log says of the newest version of ``name``, removed or not. Raises Missing, NotTrusted, Unavailable."""
    told = list(_told(registry, name))
    if not told:
        raise Missing(f"there is no data set {name[:80]}")
    return max(told, key=lambda one: one[1])[0].said


def _told(registry: Registry, name: str) -> Iterator[tuple[Told[Dataset], int]]:
    """What the log says of versions of ``name`` that lay sealed here, and their numbers, oldest first."""
    for told in registry.refresh().attestations.every(Dataset):
        said, at, version = told.said.name.rpartition("@")
        if at and said == name and version.isdecimal() and told.said.body is not None:
            yield told, int(version)


def open_dataset(registry: Registry, openers: Sequence[Opener], record: DatasetRecord, salt: bytes | None) -> SealedFile:
    """Open the sealed body of a version that ``find_dataset`` gave. ``salt``: of the version, None when it was erased.

    Raises NotTrusted (missing, altered, swapped, other keys), Denied (the key is disabled), Unavailable.
    """
    body = record.body
    if body is None:
        raise NotTrusted(f"the data set {record.ref} has no sealed body")
    try:
        block = registry.records.get(DATA_RECIPIENTS, body.sealed).body or b""
        reader = BlobReader(registry.blobs, body.sealed)
    except Missing as cause:
        raise NotTrusted(f"the data set {record.ref} cannot be opened: {cause}") from cause
    if reader.size != body.size:
        raise NotTrusted(f"the sealed body {body.sealed} has {reader.size} bytes, and {body.size} were signed: it was altered")
    dek = unlock(block, bytes.fromhex(body.header), openers, purpose=PURPOSE)
    opened = open_sealed(reader, dek, root=bytes.fromhex(body.root))
    if opened.header_hash.hex() != body.header or (salt is not None and salted(salt, opened.model_digest) != record.digest):
        raise NotTrusted(f"the sealed body {body.sealed} is not that of the data set {record.ref}")
    return opened


def remove_dataset(desk: Desk, record: DatasetRecord, say: Callable[[], int]) -> int:
    """Remove a version for good; the log index of the act that ``say`` logs first. Run again when it was cut off.

    What the log says of it stays, and its number is not given again. Raises Conflict (it changed meanwhile), Unavailable.
    """
    held = desk.registry.records.get(DATASET, str(record.ref))
    index = say()
    changes = [Change(DATASET, held.key, None, held.revision)]
    if record.body is not None:
        changes.append(Change(DATA_RECIPIENTS, record.body.sealed, None))
    desk.registry.records.commit(changes)
    if record.body is not None:
        desk.registry.blobs.delete(record.body.sealed)
    return index


def settle_datasets(desk: Desk) -> tuple[str, ...]:
    """Complete what is in the log and collect what is not and whose adder is gone; those still under way, in words.

    Bodies of what was collected are unnamed then, and go with the others. Raises NotTrusted, Unavailable.
    """
    alive = []
    for record in desk.registry.records.scan(DATASET):
        found = DatasetRecord.parse(record)
        if found.state != PENDING:
            continue
        try:
            with desk.claims.hold(found.claim):
                _settle_one(desk, desk.registry.records.get(DATASET, record.key))
        except Missing:
            continue
        except Conflict:
            alive.append(f"data set {found.ref}")
    return tuple(alive)


def pending_datasets(registry: Registry) -> tuple[str, ...]:
    """Those that were begun and not ended. Raises NotTrusted, Unavailable."""
    found = (DatasetRecord.parse(record) for record in registry.records.scan(DATASET))
    return tuple(f"data set {each.ref}" for each in found if each.state == PENDING)


def _reserve(desk: Desk, blank: DatasetRecord, may: Callable[[], None]) -> Record:
    name, registry = blank.ref.name, desk.registry

    def others(records: Iterable[Record]) -> bool:
        return any(DatasetRecord.parse(record).actor != blank.actor for record in records)

    def last(records: Sequence[Record]) -> int:
        if others(records) and not first_adder(registry, name):
            settle_datasets(desk)  # who died over it adds nothing any more
        if others(registry.records.scan(DATASET, f"{name}@")) and not first_adder(registry, name):
            raise Conflict(f"somebody else is adding the first version of {name}: use another name, or see whose it becomes")
        may()
        return max((version for _, version in _told(registry, name)), default=0)

    def pending(version: int) -> bytes:
        return msgspec.structs.replace(blank, ref=ReleaseRef(name, version)).encode()

    return reserve_version(registry.records, (DATA_COUNTER, DATASET), name, last=last, pending=pending)


def _carry_out(desk: Desk, keys: WrappingKeys, salts: Salts, content: Content, record: Record) -> DatasetRecord:
    sealing = seal(content.reader, kind=Kind.PIECES)
    sealed = desk.registry.blobs.put(sealing.chunks())
    content.check()
    made = sealing.model
    binding = Binding(made.header_hash, made.model_digest, PURPOSE)
    stanza = KmsRecipient(keys.wrapper()).stanza(made.dek, binding.context())
    block = Change(DATA_RECIPIENTS, sealed, encode_recipients([stanza], made.dek, binding), 0)
    found = DatasetRecord.parse(record)
    full = msgspec.structs.replace(
        found,
        digest=salted(salts.salt(str(found.ref)), made.model_digest),
        body=SealedData(sealed, made.root.hex(), made.header_hash.hex(), made.size),
    )
    desk.registry.records.commit([Change(DATASET, record.key, full.encode(), record.revision), block])
    (index,) = desk.log_statements([full.statement()])
    book = desk.registry.refresh()
    try:
        logged(book.attestations, full)
    except Missing:
        why = next((problem.why for problem in book.problems if problem.index == index), "its signer may not speak about it")
        raise Conflict(f"{full.ref} was logged at {index} and does not count: {why}") from None
    return _complete(desk, full, index)


def _complete(desk: Desk, full: DatasetRecord, index: int) -> DatasetRecord:
    """Mark the record as logged; silent when someone else did."""
    done = msgspec.structs.replace(full, state=ADDED, claim="", entry=index)
    with contextlib.suppress(Conflict, Missing):
        record = desk.registry.records.get(DATASET, str(full.ref))
        if DatasetRecord.parse(record).state == PENDING:
            desk.registry.records.commit([Change(DATASET, record.key, done.encode(), record.revision)])
    return done


def _settle_after_failure(desk: Desk, record: Record) -> DatasetRecord | None:
    """Undo, or find that the log has it after all. Whatever fails here is left for the next settling."""
    with contextlib.suppress(ModelkeepError):
        return _settle_one(desk, desk.registry.records.get(DATASET, record.key))
    return None


def _settle_one(desk: Desk, record: Record) -> DatasetRecord | None:
    """Complete it or collect it. Its record goes first: nothing can be opened without it, and its body is unnamed then."""
    found = DatasetRecord.parse(record)
    try:
        return _complete(desk, found, logged(desk.registry.refresh().attestations, found).index)
    except Missing:
        pass
    changes = [Change(DATASET, record.key, None, record.revision)]
    if found.body is not None:
        changes.append(Change(DATA_RECIPIENTS, found.body.sealed, None))
    desk.registry.records.commit(changes)
    if found.body is not None:
        desk.registry.blobs.delete(found.body.sealed)
    return None


def header_of(registry: Registry) -> Callable[[Digest], bytes]:
    """The header hash of each sealed data set, by its digest. Raises Conflict (it belongs to no data set)."""
    known = {
        found.body.sealed: bytes.fromhex(found.body.header)
        for found in map(DatasetRecord.parse, registry.records.scan(DATASET))
        if found.body is not None
    }

    def of(sealed: Digest) -> bytes:
        try:
            return known[sealed]
        except KeyError:
            raise Conflict(f"the recipients of {sealed} belong to no data set: settle first") from None

    return of
