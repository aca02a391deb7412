"""Data sets checked before anything is trained on them; rows in question set apart, and data sets without them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from msgspec import Struct

from modelkeep.adapters.datarows import copy_pictures, other_pictures, without_rows
from modelkeep.adapters.files import NewFile, SourceFile
from modelkeep.adapters.tables import IMAGES, Source, kind_of, pictures, read_table, table_of
from modelkeep.app.dataresults import DataFetched
from modelkeep.app.dataverbs import DataVerbs
from modelkeep.container.reader import BytesReader, read_bytes
from modelkeep.core.tables import Table
from modelkeep.core.values import Digest, digest_of, parse_digest, to_json
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.attestations import Step
from modelkeep.training.datapage import Subject, render
from modelkeep.training.findings import Asked, Examined, Finding, Level, default_label, examine, reasons_of
from modelkeep.training.personal import Personal
from modelkeep.training.schema import Schema, digest, encode

_PIECE = 1 << 20


class DataChecked(Struct, frozen=True):
    """What a check found. ``clean``: nothing that must be mended or declared; ``suspects``: rows in question, by reason;
    ``telling``: how well each column alone tells the label, 0 to 1; ``schema``: digest of the schema that the rows follow."""

    data: str
    digest: str
    rows: int
    columns: int
    label: str
    clean: bool
    findings: tuple[Finding, ...]
    personal: tuple[Personal, ...]
    telling: dict[str, float]
    suspects: dict[str, int]
    schema: str


class Quarantined(Struct, frozen=True, forbid_unknown_fields=True):
    """One row, counted from 0, and why it is in question."""

    row: int
    why: tuple[str, ...]


class Quarantine(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the data set ``data`` (a digest) that are in question. People strike out those that are to stay."""

    data: str
    rows: int
    quarantined: tuple[Quarantined, ...]
    version: int = 1


class Purged(Struct, frozen=True):
    """A data set without rows that were in question: ``before``, ``after``: digests of both; ``reasons``: rows by reason;
    ``out``: the file or the new version."""

    before: str
    after: str
    rows: int
    removed: int
    reasons: dict[str, int]
    out: str


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in memory, under the ``name`` that people know it by. ``personal``: it is said to be about persons."""

    name: str
    digest: Digest
    table: Table
    personal: bool = False


@dataclass(frozen=True, eq=False)
class Check:
    """A data set with what was found in it; ``scores``: of every row by the methods that look for planted ones."""

    data: DataSet
    label: str
    found: Examined
    against: DataSet | None = None
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def result(self) -> DataChecked:
        """What there is to tell."""
        return DataChecked(
            data=self.data.name,
            digest=self.data.digest,
            rows=len(self.data.table),
            columns=len(self.data.table.columns),
            label=self.label,
            clean=not any(one.level is Level.ERROR for one in self.found.findings),
            findings=self.found.findings,
            personal=self.found.personal,
            telling={one.column: round(one.score, 4) for one in self.found.telling},
            suspects={reason: int(rows.sum()) for reason, rows in self.found.suspects.items()},
            schema=digest(self.found.schema),
        )

    def page(self) -> bytes:
        """The report, as one page of HTML."""
        beside = self.against
        subject = Subject(
            self.data.name,
            self.data.digest,
            self.data.table,
            self.label,
            beside.table if beside else None,
            beside.name if beside else "",
        )
        return render(subject, self.found, self.scores)

    def quarantine(self) -> bytes:
        """The rows in question, as a file that ``purge_file`` takes: JSON, one row a line, so that people can strike some
        out."""
        rows = [Quarantined(row, tuple(why)) for row, why in reasons_of(self.found.suspects).items()]
        head = f'{{"data": "{self.data.digest}", "rows": {len(self.data.table)}, "version": 1, "quarantined": ['
        return head.encode() + b",".join(b"\n " + msgspec.json.encode(one) for one in rows) + b"\n]}\n"

    def pinned(self, declared: frozenset[str]) -> bytes:
        """The schema of the rows as a file, with what is personal in the ``declared`` columns."""
        kinds = {one.column: one.kind for one in self.found.personal if one.column in declared}
        columns = (msgspec.structs.replace(one, personal=kinds.get(one.name, "")) for one in self.found.schema.columns)
        return encode(Schema(self.found.schema.rows, tuple(columns)))


def read_data(path: str) -> DataSet:
    """A CSV, npz or Parquet file, or a folder of pictures. Raises Missing, Invalid, TooLarge, Unavailable."""
    return DataSet(Path(path).name, digest_of_data(path), read_table(path))


def read_sealed(keep: DataVerbs, ref: str, *, purpose: str = "") -> DataSet:
    """A sealed data set, ``name@version``, read in memory. Raises Denied (and logs it), Missing, NotTrusted, TooLarge,
    Unavailable."""
    opened = keep.data(ref, purpose=purpose)
    return DataSet(opened.ref, Digest(opened.sealed.model_digest), opened.table(), opened.record.about.personal)


def read_fetched(got: DataFetched, *, personal: bool) -> DataSet:
    """The same of a sealed data set that came from a server. Raises Invalid, TooLarge."""
    source = Source(got.kind, BytesReader(got.data), got.columns or None)
    return DataSet(got.ref, digest_of(got.data), table_of(source.rows()), personal)


def check_data(data: DataSet, asked: Asked, *, against: DataSet | None = None) -> Check:
    """Check a data set; ``against``: the test set that must not share its rows. Raises Missing (no such column), Invalid."""
    label = asked.label or default_label(data.table)
    declared = frozenset(data.table.columns) if data.personal else asked.declared
    asked = replace(asked, label=label, declared=declared)
    return Check(data, label, examine(data.table, asked, against=against.table if against else None), against)


def digest_of_data(path: str) -> Digest:
    """SHA-256 of a file; of a folder of pictures, that of its names and contents. Raises Missing, Invalid, Unavailable."""
    place, whole = Path(path), hashlib.sha256()
    if kind_of(place) == IMAGES:
        for name, read in pictures(place).items():
            whole.update(f"{hashlib.sha256(read()).hexdigest()}  {name}\n".encode())
        return Digest(f"sha256:{whole.hexdigest()}")
    with SourceFile(place) as source:
        for at in range(0, source.size, _PIECE):
            whole.update(read_bytes(source, at, min(_PIECE, source.size - at)))
    return Digest(f"sha256:{whole.hexdigest()}")


def read_quarantine(data: bytes) -> Quarantine:
    """Raises Invalid (no quarantine, or rows that cannot be)."""
    try:
        found = msgspec.json.decode(data, type=Quarantine)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is no quarantine of a data set: {cause}") from cause
    parse_digest(found.data)
    rows = [one.row for one in found.quarantined]
    if found.version != 1 or len(set(rows)) < len(rows) or not all(0 <= row < found.rows for row in rows):
        raise Invalid("a quarantine of version 1 names rows of its data set, each once")
    if len(rows) == found.rows:
        raise Invalid("the quarantine names every row of the data set: nothing would be left")
    return found


def purge_file(path: str, quarantine: Quarantine, out: str) -> Purged:
    """Write the data set at ``path`` without the rows in quarantine to ``out``, which must not exist.

    Raises NotTrusted (the quarantine is of another data set), Invalid, Missing, Unavailable.
    """
    place, goal = Path(path), Path(out)
    before, kind = digest_of_data(path), kind_of(place)
    _check_same(quarantine, before)
    if goal.exists():
        raise Invalid(f"{out} exists: name another or remove it first")
    gone = frozenset(one.row for one in quarantine.quarantined)
    if kind == IMAGES:
        copy_pictures(place, other_pictures(pictures(place), gone), goal)
    else:
        with SourceFile(place) as source, NewFile(goal) as new:
            new.write(without_rows(kind, source, gone))
            new.publish()
    return _purged(quarantine, digest_of_data(out), out)


def purge_sealed(keep: DataVerbs, ref: str, quarantine: Quarantine, *, purpose: str = "") -> Purged:
    """Add the sealed data set ``ref`` without the rows in quarantine as its next version, made of ``ref`` by the step
    ``purge``.

    The step's digest is that of the quarantine, canonical. No plaintext is written. Raises as ``purge_file``, Denied (and logs
    it), Conflict.
    """
    opened = keep.data(ref, purpose=purpose)
    _check_same(quarantine, Digest(opened.sealed.model_digest))
    said, gone = opened.record, frozenset(one.row for one in quarantine.quarantined)
    left = b"".join(without_rows(said.kind, opened.reader(), gone))
    step = Step("purge", digest_of(to_json(quarantine)), {"removed": str(len(gone))})
    about = msgspec.structs.replace(said.about, parents=(opened.ref,), steps=(step,))
    made = keep.data_add(name=said.ref.name, filename=said.filename, data=left, about=about, kind=said.kind)
    return _purged(quarantine, digest_of(left), made.ref)


def _check_same(quarantine: Quarantine, data: Digest) -> None:
    """Raises NotTrusted if the rows in quarantine are not those of ``data``."""
    if quarantine.data != data:
        raise NotTrusted(f"the quarantine is of {quarantine.data[:19]}…, and this data set is {data[:19]}…: check it again")


def _purged(quarantine: Quarantine, after: Digest, out: str) -> Purged:
    reasons: dict[str, int] = {}
    for one in quarantine.quarantined:
        for why in one.why:
            reasons[why] = reasons.get(why, 0) + 1
    removed = len(quarantine.quarantined)
    return Purged(quarantine.data, after, quarantine.rows - removed, removed, reasons, out)
