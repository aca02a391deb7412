"""What the verbs about data sets answer."""

from msgspec import Struct

from modelkeep.training.lineage import Lineage


class DataAdded(Struct, frozen=True):
    """A version that was added. ``digest``: salted; ``rows``: 0 when they are not of one number; ``size``: bytes."""

    ref: str
    kind: str
    rows: int
    size: int
    digest: str
    sealed: str
    log_index: int


class DatasetRow(Struct, frozen=True):
    """One version in a list. ``owner``: who added it; ``created``: Unix nanoseconds."""

    ref: str
    kind: str
    rows: int
    size: int
    purposes: tuple[str, ...]
    personal: bool
    owner: str
    created: int


class GrantRow(Struct, frozen=True):
    """``to``: an account, or ``role:NAME``; ``purpose``: what it may be read for, or "" and ``add``: versions may be added.

    ``log_index``: of the act that granted it.
    """

    dataset: str
    to: str
    purpose: str
    log_index: int
    add: bool = False


class StepRow(Struct, frozen=True):
    """A declared step of preparation. ``code``: SHA-256 of its file."""

    name: str
    code: str
    parameters: dict[str, str]


class DatasetShown(Struct, frozen=True):
    """One version, and who may read it. ``columns``: what each holds."""

    row: DatasetRow
    columns: dict[str, str]
    licence: str
    source: str
    description: str
    digest: str
    sealed: str
    log_index: int
    parents: tuple[str, ...]
    steps: tuple[StepRow, ...]
    grants: tuple[GrantRow, ...]


class DataFetched(Struct, frozen=True):
    """The very bytes that were added; pictures as a tar archive. ``log_index``: of the act that records it; ``columns``: what
    each holds, so that nobody has to find out.
    """

    ref: str
    kind: str
    filename: str
    data: bytes
    log_index: int
    columns: dict[str, str] = {}


class DataRemoved(Struct, frozen=True):
    """A version that is gone. ``log_index``: of the act that says so."""

    ref: str
    log_index: int


class LineageShown(Struct, frozen=True):
    """Where a version comes from and what became of it; ``text``: as a tree."""

    ref: str
    lineage: Lineage
    text: str


class Replayed(Struct, frozen=True):
    """The declared steps were run on the parent again, and gave the same bytes. ``confined``: without network and disk."""

    ref: str
    parent: str
    steps: tuple[str, ...]
    size: int
    confined: bool
    log_index: int
