"""What the verbs answer: frozen values that print as tables and travel as JSON or MessagePack."""

from msgspec import Struct

from modelkeep.operations.integrity import IntegrityPass


class Initialised(Struct, frozen=True):
    """A new keep. ``password`` and ``recovery`` are shown once and stored nowhere."""

    directory: str
    origin: str
    admin: str
    password: str
    recovery: str


class Published(Struct, frozen=True):
    """A published release. ``log_index``: of its release statement; ``promise``: what its profile covers, in words."""

    ref: str
    model_digest: str
    sealed_digest: str
    log_index: int
    promise: str


class Verified(Struct, frozen=True):
    """A release that holds: what was checked, in words."""

    ref: str
    model_digest: str
    signer: str
    log_index: int
    tree_size: int
    checks: tuple[str, ...]


class Exported(Struct, frozen=True):
    """The model file again. ``log_index``: of the statement that records the export."""

    ref: str
    filename: str
    model: bytes
    log_index: int


class ReleaseRow(Struct, frozen=True):
    """One release in a list. ``published``: Unix nanoseconds."""

    ref: str
    state: str
    model_digest: str
    format: str
    published: int
    by: str


class StatementRow(Struct, frozen=True):
    """One entry of the releases log, in short."""

    index: int
    type: str
    at: int
    actor: str
    about: str
    summary: str


class ReleaseDetail(Struct, frozen=True):
    """One release with its evidence, from the log."""

    release: ReleaseRow
    sealed_digest: str
    interface: str
    admission: str
    statements: tuple[StatementRow, ...]


class StateChanged(Struct, frozen=True):
    """A release after promote, quarantine, reinstate or retire."""

    ref: str
    state: str
    log_index: int


class UserAdded(Struct, frozen=True):
    """A new account with its one-time password, shown once."""

    name: str
    roles: tuple[str, ...]
    password: str


class UserRow(Struct, frozen=True):
    """One account."""

    name: str
    roles: tuple[str, ...]
    disabled: bool
    subject: str
    created: int


class KeyIssued(Struct, frozen=True):
    """A new API key; ``token`` is shown once and stored only as its hash. ``expires``: Unix nanoseconds."""

    id: str
    account: str
    token: str
    expires: int
    quota: int


class KeyRow(Struct, frozen=True):
    """One API key, without its secret."""

    id: str
    account: str
    state: str
    expires: int
    quota: int
    used: int
    models: tuple[str, ...]


class FamilyRow(Struct, frozen=True):
    """One key compartment."""

    family: str
    purpose: str
    versions: tuple[str, ...]


class LogChecked(Struct, frozen=True):
    """One log that verified, from its static files."""

    origin: str
    size: int
    root: str
    detail: str


class Accusation(Struct, frozen=True):
    """One account in a trace. ``p``: corrected for the number of accounts (Bonferroni)."""

    account: str
    subject: str
    p: float
    statistics: dict[str, float]
    queries: int


class Traced(Struct, frozen=True):
    """The outcome of a trace; ``verdict`` names the account, or says that there is none."""

    ref: str
    verdict: str
    significance: float
    accounts: tuple[Accusation, ...]


class IncidentRow(Struct, frozen=True):
    """One incident."""

    id: str
    state: str
    opened: int
    detail: str
    note: str


class Reviewed(Struct, frozen=True):
    """An account after a review of its extraction evidence."""

    account: str
    outcome: str
    log_index: int


class GatewayRow(Struct, frozen=True):
    """One audit log of a serving process. ``open``: its process has not said goodbye yet."""

    instance: str
    records: int
    open: bool


class Status(Struct, frozen=True):
    """What is sealed, served and quarantined; the last integrity pass; open incidents."""

    origin: str
    releases: tuple[ReleaseRow, ...]
    log_size: int
    integrity: IntegrityPass | None
    incidents: tuple[IncidentRow, ...]
    gateways: tuple[GatewayRow, ...]
