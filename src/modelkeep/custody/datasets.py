"""Data sets: their records, and what the releases log has to say before one is believed.

Like a release, a data set is what the log says (a signed ``Dataset`` statement that names its sealed body); the record is a
cache, and the place of the key that may change. No digest of the data stands in either unsalted.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from modelkeep.core.ports import Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import Digest, ReleaseRef, Resource, Statement, parse_digest, parse_name, to_json
from modelkeep.custody.dossier import Attestations, Told
from modelkeep.errors import Invalid, Missing
from modelkeep.ledger.attestations import Dataset, Salted, SealedData, Step
from modelkeep.ledger.statements import make_statement

DATASET, DATA_RECIPIENTS, DATA_COUNTER = "dataset", "data-recipients", "dataset-counter"
"""Record kinds: one per version (key ``name@version``), per sealed body (key: sealed digest), per name."""
PENDING, ADDED = "pending", "added"
MAX_TEXT = 2000
MAX_COLUMN = 255
MAX_PURPOSES = 64
MAX_STEPS = 64
ADDING = "+add"
"""Stands in a grant in the place of the purpose, and is none: whom it names may add versions."""
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class About(msgspec.Struct, frozen=True):
    """What whoever adds a data set says of it. ``purposes``: what it may be read for, none = what it is granted for;
    ``parents`` and ``steps``: what it was made of, and how.
    """

    purposes: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    description: str = ""
    personal: bool = False
    parents: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    def check(self) -> None:
        """Raises Invalid."""
        for purpose in self.purposes:
            parse_purpose(purpose)
        if len(self.purposes) > MAX_PURPOSES or len(self.steps) > MAX_STEPS or len(self.parents) > MAX_STEPS:
            raise Invalid(f"a data set has at most {MAX_PURPOSES} purposes, steps and parents")
        for text in (self.licence, self.source, self.description):
            if len(text) > MAX_TEXT or not text.isprintable():
                raise Invalid(f"licence, source and description are one line of at most {MAX_TEXT:,} characters")
        for step in self.steps:
            if not 0 < len(step.name) <= 255 or not step.name.isprintable():
                raise Invalid(f"{step.name[:80]!r} cannot name a step: use 1-255 printable characters")
            parse_digest(step.code)
            for word in (*step.parameters, *step.parameters.values()):
                if len(word) > MAX_TEXT or not word.isprintable():
                    raise Invalid(f"parameters of steps are one line of at most {MAX_TEXT:,} characters")
        if bool(self.steps) != bool(self.parents):
            raise Invalid("steps make a data set of another one: name both, --from and --step")


NOTHING_SAID = About()


def check_columns(names: Sequence[str]) -> None:
    """Raises Invalid: a name that a terminal would act upon, or that is no name any more. Records and people read them."""
    for name in names:
        if not 0 < len(name) <= MAX_COLUMN or not name.isprintable():
            raise Invalid(f"{name[:80]!r} cannot name a column: rename it, with 1-{MAX_COLUMN} printable characters")


def inherited(about: About, parents: Sequence[tuple[str, tuple[str, ...]]]) -> About:
    """With the purposes of what it was made of: ``parents``, names and purposes. Raises Invalid (another purpose is named).

    Else whoever may read data for one purpose could make data for any of it.
    """
    for name, purposes in parents:
        if not purposes:
            continue
        if other := [purpose for purpose in about.purposes if purpose not in purposes]:
            raise Invalid(f"{name} may be read for {', '.join(purposes)}, and so may what is made of it: not for {other[0]}")
        about = msgspec.structs.replace(about, purposes=about.purposes or purposes)
    return about


class DatasetRecord(msgspec.Struct, frozen=True):
    """One version of a data set. ``claim``: of whoever adds it, while ``state`` is pending.

    ``kind``: ``csv``, ``npz``, ``parquet`` or ``images``; ``kinds``: what each column holds, in order; ``size`` in bytes;
    ``rows``: 0 when they are not of one number; ``digest``: salted; ``entry``: log index of its statement, -1 while pending.
    """

    ref: ReleaseRef
    state: str
    claim: str
    kind: str
    filename: str
    size: int
    rows: int
    kinds: tuple[tuple[str, str], ...]
    actor: str
    created: int
    about: About
    digest: Digest | None = None
    body: SealedData | None = None
    parents: tuple[Salted, ...] = ()
    entry: int = -1

    def encode(self) -> bytes:
        """The record's bytes."""
        return to_json(self)

    @classmethod
    def parse(cls, record: Record) -> "DatasetRecord":
        """Raises NotTrusted (damaged)."""
        return parse_record(record, cls, f"data set {record.key[:80]}")

    def statement(self) -> Statement:
        """What the log is to say of it: no names of columns. Raises Invalid (not sealed yet)."""
        if self.digest is None:
            raise Invalid(f"{self.ref} is not sealed yet")
        said = Dataset(
            actor=self.actor,
            at=self.created,
            name=str(self.ref),
            format=self.kind,
            size=self.size,
            rows=self.rows,
            licence=self.about.licence,
            source=self.about.source,
            personal=self.about.personal,
            description=self.about.description,
            purposes=self.about.purposes,
            parents=self.parents,
            steps=self.about.steps,
            body=self.body,
        )
        return make_statement(said, Resource(str(self.ref), self.digest))


def parse_data_ref(text: str) -> ReleaseRef:
    """``name@version`` of a data set. Raises Invalid."""
    name, at, version = text.rpartition("@")
    if not at or not _VERSION.fullmatch(version):
        raise Invalid(f"{text[:80]!r} is no version of a data set: expected NAME@VERSION, such as loans@3")
    return ReleaseRef(parse_data_name(name), int(version))


def parse_data_name(text: str) -> str:
    """Raises Invalid."""
    return parse_name(text, "name of a data set")


def parse_purpose(text: str) -> str:
    """Raises Invalid."""
    return parse_name(text, "purpose")


def logged(attestations: Attestations, record: DatasetRecord) -> Told[Dataset]:
    """The first statement in the log that says of this record's data, name and body what the record says.

    Raises Missing: there is none that counts.
    """
    found = attestations.about(record.digest, record.ref.name) if record.digest else []
    for one in found:
        said = one.said
        if isinstance(said, Dataset) and (said.name, said.body) == (str(record.ref), record.body) and said.body is not None:
            return Told(one.index, one.id, one.signer, one.about, one.second, said)
    raise Missing(f"the releases log does not know the data set {record.ref}")


def fits(purposes: tuple[str, ...], purpose: str) -> bool:
    """Whether data that may be read for ``purposes`` may be read for this one."""
    return not purposes or purpose in purposes


def is_granted(grants: Mapping[tuple[str, str], int], subject: str, roles: tuple[str, ...], purpose: str) -> bool:
    """Whether ``subject`` or one of its roles was granted a data set for ``purpose``, or ``ADDING``."""
    return any((to, purpose) in grants for to in (subject, *(f"role:{role}" for role in roles)))
