"""What the verbs answer: frozen values that print as tables and travel as JSON or MessagePack."""

from typing import Any

from msgspec import Struct

from modelkeep.app.accountresults import BudgetRow
from modelkeep.core.hidden import holds_secrets
from modelkeep.operations.integrity import IntegrityPass


@holds_secrets("directory", "origin", "admin")
class Initialised(Struct, frozen=True):
    """A new keep. ``password`` and ``recovery`` are shown once and stored nowhere."""

    directory: str
    origin: str
    admin: str
    password: str
    recovery: str


class Published(Struct, frozen=True):
    """A published release. ``log_index``: of its release statement; ``promise``: what its profile covers, in words;
    ``signature``: the text of its OpenSSF signature; ``custody``: sealed, or external when another server has the weights;
    ``layer``: the inner tensor that extraction evidence looks at, "" = at none.
    """

    ref: str
    model_digest: str
    sealed_digest: str
    log_index: int
    promise: str
    signature: str
    custody: str = "sealed"
    layer: str = ""


class Verified(Struct, frozen=True):
    """A release that holds: what was checked, in words."""

    ref: str
    model_digest: str
    signer: str
    log_index: int
    tree_size: int
    checks: tuple[str, ...]


class Exported(Struct, frozen=True):
    """The model file again. ``log_index``: of the statement that records the export; ``signature``: as of ``Published``."""

    ref: str
    filename: str
    model: bytes
    log_index: int
    signature: str


class SignatureChecked(Struct, frozen=True):
    """A model that is what an OpenSSF signature says. ``name``: what the signer called it; ``key``: the hint of the signer's
    key; ``files``: what was hashed, ``.`` for the one file; ``ignored``: what the signer left out.
    """

    model: str
    name: str
    key: str
    algorithm: str
    files: tuple[str, ...]
    ignored: tuple[str, ...]


class ReleaseRow(Struct, frozen=True):
    """One release in a list. ``published``: Unix nanoseconds; owner, classification and tags as its metadata say;
    ``custody``: as of ``Published``."""

    ref: str
    state: str
    model_digest: str
    format: str
    published: int
    by: str
    aliases: tuple[str, ...] = ()
    owner: str = ""
    classification: str = ""
    tags: tuple[str, ...] = ()
    held: bool = False
    custody: str = "sealed"


class StatementRow(Struct, frozen=True):
    """One entry of the releases log, in short."""

    index: int
    type: str
    at: int
    actor: str
    about: str
    summary: str


class ReleaseDetail(Struct, frozen=True):
    """One release with its evidence, from the log. ``card``: digest of its model card, or empty; ``holds``: that stand."""

    release: ReleaseRow
    sealed_digest: str
    interface: str
    admission: str
    statements: tuple[StatementRow, ...]
    description: str = ""
    licence: str = ""
    card: str = ""
    holds: tuple["HoldRow", ...] = ()


class Attested(Struct, frozen=True):
    """What was said about a file: the short ``type``, the file's name and digest, and where it is logged."""

    type: str
    about: str
    digest: str
    log_index: int


class Approved(Struct, frozen=True):
    """A word on a release was logged. ``by``, ``against``: accounts whose last word is an approval, or a rejection."""

    ref: str
    verdict: str
    by: tuple[str, ...]
    against: tuple[str, ...]
    log_index: int


class PolicyRow(Struct, frozen=True):
    """A policy: its ``kind``, its ``name``, since when (Unix ns), by whom and why; ``log_index`` -1: nobody set it yet."""

    kind: str
    name: str
    at: int
    by: str
    reason: str
    log_index: int


class PolicyShown(Struct, frozen=True):
    """The policy in force and its Cedar text."""

    policy: PolicyRow
    text: str


class RuleRow(Struct, frozen=True):
    """One rule: its ``effect`` (permit or forbid), whether the release satisfies it, in words, and what would mend it.

    ``needs``: short type of the statement that would satisfy it, "" when none does.
    """

    id: str
    effect: str
    satisfied: bool
    says: str
    mend: str
    needs: str


class PolicyJudged(Struct, frozen=True):
    """A release judged by an admission policy: ``summary`` in one sentence; ``facts``: what the rules could see."""

    ref: str
    policy: str
    admitted: bool
    summary: str
    rules: tuple[RuleRow, ...]
    facts: dict[str, Any]


class AliasRow(Struct, frozen=True):
    """One alias: ``ref`` what it means now. ``at``: when it was last moved (Unix ns), ``by`` whom, and where logged."""

    name: str
    alias: str
    ref: str
    at: int
    by: str
    log_index: int


class AliasMoved(Struct, frozen=True):
    """One move of an alias: from version ``replaced`` to ``version``; 0 = none."""

    name: str
    alias: str
    version: int
    replaced: int
    at: int
    by: str
    log_index: int


class MetadataRow(Struct, frozen=True):
    """What was said about a release at one place in the log. ``card``: digest of the model card, or empty."""

    log_index: int
    at: int
    by: str
    owner: str
    classification: str
    licence: str
    description: str
    tags: tuple[str, ...]
    card: str


class HoldRow(Struct, frozen=True):
    """One hold. ``standing``: it was not removed; ``removed``: by whom and why it was."""

    id: str
    ref: str
    by: str
    reason: str
    at: int
    standing: bool
    removed: str


class CollectedBody(Struct, frozen=True):
    """A sealed body that was removed, or would be. ``size``: bytes."""

    sealed: str
    size: int
    why: str


class Collected(Struct, frozen=True):
    """What collecting did, or (``dry_run``) would do. ``kept``: releases that are old enough, and why they stay;
    ``underway``: live publishers, beside whom bodies that nothing names yet were left alone."""

    dry_run: bool
    releases: tuple[str, ...]
    bodies: tuple[CollectedBody, ...]
    size: int
    kept: dict[str, str]
    underway: tuple[str, ...]


class StateChanged(Struct, frozen=True):
    """A release after promote, quarantine, reinstate or retire. ``note``: why a promoted one is not served yet, "" if it is."""

    ref: str
    state: str
    log_index: int
    note: str = ""


@holds_secrets("name", "roles")
class UserAdded(Struct, frozen=True):
    """A new account with its one-time password, shown once."""

    name: str
    roles: tuple[str, ...]
    password: str


class CertificateRow(Struct, frozen=True):
    """A client certificate that speaks for ``account``. ``expires``: Unix nanoseconds."""

    name: str
    account: str
    expires: int
    quota: int
    models: tuple[str, ...]


class UserRow(Struct, frozen=True):
    """One account. ``mfa``: ``codes`` (its logins need one), ``required`` (it must add a factor), or nothing."""

    name: str
    roles: tuple[str, ...]
    disabled: bool
    subject: str
    created: int
    mfa: str = ""


@holds_secrets("account")
class FactorBegun(Struct, frozen=True):
    """A secret for one-time codes that waits for its first code; shown once. ``uri``: for an authenticator app."""

    account: str
    secret: str
    uri: str


@holds_secrets("account")
class FactorEnrolled(Struct, frozen=True):
    """One-time codes are in force. ``recovery``: codes for when the device is lost, each good once; shown once."""

    account: str
    recovery: tuple[str, ...]


class FactorRow(Struct, frozen=True):
    """The second factors of an account. ``recovery``: codes left; ``passkeys``: what their owner calls them."""

    account: str
    required: bool
    codes: bool
    recovery: int
    passkeys: tuple[str, ...]


class SessionRow(Struct, frozen=True):
    """A session that has not expired. ``state``: ``active`` or ``ended``; ``amr``: how it was proven. Times: nanoseconds."""

    id: str
    account: str
    state: str
    issued: int
    expires: int
    used: int
    max_requests: int
    models: tuple[str, ...]
    operations: tuple[str, ...]
    amr: tuple[str, ...]


class SteppedUp(Struct, frozen=True):
    """An account that may go on. ``at``: Unix nanoseconds."""

    account: str
    at: int


@holds_secrets("id", "account", "expires", "quota")
class KeyIssued(Struct, frozen=True):
    """A new API key; ``token`` is shown once and stored only as its hash. ``expires``: Unix nanoseconds."""

    id: str
    account: str
    token: str
    expires: int
    quota: int


class KeyRow(Struct, frozen=True):
    """One API key, without its secret. ``last_used``: Unix nanoseconds, to the minute; 0 = never."""

    id: str
    account: str
    state: str
    expires: int
    quota: int
    used: int
    models: tuple[str, ...]
    actions: tuple[str, ...] = ()
    last_used: int = 0


class LogChecked(Struct, frozen=True):
    """One log that verified, from its static files."""

    origin: str
    size: int
    root: str
    detail: str


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
    """What is sealed, served and quarantined; the last integrity pass; open incidents; ``budgets``: of accounts and clusters,
    by pseudonym, of which half is spent or more, those that are spent most first."""

    origin: str
    releases: tuple[ReleaseRow, ...]
    log_size: int
    integrity: IntegrityPass | None
    incidents: tuple[IncidentRow, ...]
    gateways: tuple[GatewayRow, ...]
    witnessed: int | None = None
    """How many entries of the releases log a quorum of witnesses has cosigned; None = no witness is asked."""
    budgets: tuple[BudgetRow, ...] = ()
