"""What may be said about a model: the predicates of modelkeep's statements, one struct each.

``docs/formats/statements.md`` describes every field. Adding an optional field keeps the type, changing a meaning makes a new
``:v2``. Times are Unix nanoseconds; digests are ``sha256:<hex>``. ``statements`` has the envelope around them.
"""

from typing import Annotated, ClassVar

import msgspec

from modelkeep.core.values import Digest, ModelSignature, Opinion, ReleaseRef
from modelkeep.crypto.signatures import PublicIdentity


class Predicate(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every predicate: ``actor`` did it, at Unix time ``at`` in nanoseconds by the signer's clock."""

    TYPE: ClassVar[str] = ""
    actor: str
    at: int

    def model(self) -> str | None:
        """Name of the model that this speaks about, by its field ``release``; None when it is about none in particular.

        An identity that is limited to some releases may say only what names one of them. Raises Invalid.
        """
        release = getattr(self, "release", None)
        return ReleaseRef.parse(release).name if isinstance(release, str) else None


class Finding(msgspec.Struct, frozen=True):
    """One thing that a scanner found: the rule, where in the file, and what it means."""

    rule: str
    where: str
    message: str


class Scan(Predicate, frozen=True, kw_only=True):
    """The model file was read, without running it, by ``scanner``. Subject: the model file.

    ``opinions``: what other scanners said; ``clean`` holds only if each of them agrees.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:scan:v1"
    scanner: str
    rules_version: str
    format: str
    size: int
    clean: bool
    findings: tuple[Finding, ...] = ()
    opinions: tuple[Opinion, ...] = ()


class Sealing(Predicate, frozen=True, kw_only=True):
    """The model file was sealed. Subject: the model file; the only statement that binds the sealed body.

    ``release``: which release this body serves; ``sealed``: SHA-256 of the body; ``root``: hex of the Merkle root over what
    is inside; ``header``: hex of the header hash; ``size``: bytes of the body. ``replaces``: the sealed digest of the body
    that this one takes the place of (same release, same model file); empty for the first one.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:sealing:v1"
    release: str
    sealed: Digest
    root: str
    header: str
    size: int
    replaces: str = ""


class TraceTerms(msgspec.Struct, frozen=True):
    """What a trace of suspects goes by, settled before any account has a key: whoever could choose it afterwards could choose
    what accuses somebody. ``epsilon``, ``decimals``: of the mark, as the reader takes them; ``pool``: Merkle root, 64 hex
    digits, over the ``rows`` rows that probes are drawn of."""

    epsilon: float
    decimals: int
    pool: str
    rows: int


class Profile(Predicate, frozen=True, kw_only=True):
    """An extraction profile was fitted and sealed. Subjects: the model file, and the profile's plain bytes (``profile``).

    ``sealed``, ``root``, ``header`` and ``size`` are those of the profile's own sealed body; ``rows`` reference rows were
    used, whose file has the digest ``reference``. ``replaces``: the sealed digest of the body that this one takes the place of
    (same release, same plain bytes); empty for the first one. ``code``: digest of the cells and spots of the trace code,
    ``trace``: what else a trace goes by, each None where earlier versions published.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:profile:v1"
    release: str
    sealed: Digest
    root: str
    header: str
    size: int
    rows: int
    reference: Digest
    replaces: str = ""
    code: Digest | None = None
    trace: TraceTerms | None = None


class DeclaredTool(msgspec.Struct, frozen=True):
    """Rows as a tool sends them: the SHA-256 of their file, and how many there are."""

    digest: Digest
    rows: int


class Calibration(Predicate, frozen=True, kw_only=True):
    """The null of a release's extraction evidence has other bounds from here on. Subjects: the model file, and the plain bytes
    of the extraction profile that they belong to.

    ``kappa``: the bounds, one a stream of the profile; ``tools``: declared ones whose rows were fitted now; ``accounts``: real
    ones over whose ``rows`` recorded queries between ``since`` and ``until`` (Unix nanoseconds) it was fitted, 0 when over
    none; ``afresh``: it began from the profile's own bounds, and not from those in force. ``replaces``: log index of the
    calibration in force until now, -1 = none, so that of two who calibrate at once only one succeeds; ``id``: 32 random hex
    digits.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:calibration:v1"
    release: str
    id: str
    replaces: int
    kappa: tuple[float, ...]
    tools: tuple[DeclaredTool, ...] = ()
    accounts: int = 0
    rows: int = 0
    since: int = 0
    until: int = 0
    afresh: bool = False
    reason: str = ""


class Release(Predicate, frozen=True, kw_only=True):
    """The model file is released under a name and a version. Subject: the model file.

    ``evidence``: short type (``scan``, ``sealing``, ``profile``) to the SHA-256 of the payload of the statement meant; they
    must stand earlier in the log. ``size``: bytes of the model file. ``interface``: what the model takes and gives.
    ``bundle``: the OpenSSF signature of the model file, the whole text of its ``.sig``; "" when the keep had no key for one.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:release:v1"
    name: str
    version: int
    filename: str
    format: str
    size: int
    interface: ModelSignature
    evidence: dict[str, Digest]
    bundle: str = ""

    def model(self) -> str | None:
        """The name that it is released under."""
        return self.name


class State(Predicate, frozen=True, kw_only=True):
    """A release changes state or is exported. Subject: the model file.

    ``verb``: promote, quarantine, reinstate, retire, export or collect; ``id``: 32 random hex digits, so that a copy never
    counts twice.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:state:v1"
    release: str
    verb: str
    id: str
    reason: str = ""


class Act(Predicate, frozen=True, kw_only=True):
    """An administrative act (accounts, API keys, key ring). Subject: the keep, by the digest of its origin."""

    TYPE: ClassVar[str] = "urn:x-modelkeep:act:v1"
    verb: str
    about: str
    detail: dict[str, str] = {}


class Commitment(msgspec.Struct, frozen=True):
    """``subject``: account pseudonym; ``commitment``: 64 hex digits that commit to its watermark key of ``epoch``, which begins
    with this statement: the first is 0."""

    subject: str
    commitment: str
    epoch: Annotated[int, msgspec.Meta(ge=0)] = 0


class TraceCommitments(Predicate, frozen=True, kw_only=True):
    """Watermark keys of accounts are committed before the first answer that they mark. Subject: the model file."""

    TYPE: ClassVar[str] = "urn:x-modelkeep:trace-commitments:v1"
    release: str
    entries: tuple[Commitment, ...]


class Alias(Predicate, frozen=True, kw_only=True):
    """A second name of a version moves. Subject: the model file of ``name@version``, or of the version left when it is removed.

    ``version``: what ``name@alias`` means from now on, 0 = nothing; ``replaces``: what it meant until now, 0 = nothing, so that
    of two who move it at once only one succeeds. ``id``: 32 random hex digits.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:alias:v1"
    name: str
    alias: str
    version: int
    replaces: int
    id: str

    def model(self) -> str | None:
        """The name whose alias moves."""
        return self.name


class CardBody(msgspec.Struct, frozen=True):
    """The sealed body of a model card; fields as in ``Sealing``."""

    sealed: Digest
    root: str
    header: str
    size: int


class Metadata(Predicate, frozen=True, kw_only=True):
    """What a release is, in its owner's words; takes the place of what was said before. Subject: the model file, and (when
    there is a ``card``) the card's plain bytes.

    ``classification``: public, internal, confidential or restricted; ``licence``: an SPDX expression, or empty;
    ``id``: 32 random hex digits.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:metadata:v1"
    release: str
    id: str
    owner: str
    classification: str
    licence: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    card: CardBody | None = None


class Hold(Predicate, frozen=True, kw_only=True):
    """While a hold stands, the release is not collected. Subject: the model file.

    ``verb``: add or remove; ``id``: 32 random hex digits that name the hold.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:hold:v1"
    release: str
    verb: str
    id: str
    reason: str = ""


class Policy(Predicate, frozen=True, kw_only=True):
    """A policy is in force from here on. Subject: the keep, by the digest of its origin.

    ``kind``: admission (what may be served) or access (who may do what); ``name``: a profile that ships with modelkeep, or
    ``custom`` with its Cedar ``text``. ``replaces``: log index of the policy statement in force until now, -1 = none, so that
    of two who change it at once only one succeeds. ``id``: 32 random hex digits.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:policy:v1"
    kind: str
    name: str
    replaces: int
    id: str
    text: str = ""
    reason: str = ""


class AuditCheckpoint(Predicate, frozen=True, kw_only=True):
    """A checkpoint of an audit log was received. Subject: the audit log, by the SHA-256 of the checkpoint's text."""

    TYPE: ClassVar[str] = "urn:x-modelkeep:audit-checkpoint:v1"
    origin: str
    size: int
    root: str
    checkpoint: str
    phase: str = "running"


class Succession(Predicate, frozen=True, kw_only=True):
    """This log succeeds another, which a restored backup ends. Subject: the other log, by the SHA-256 of the checkpoint's text.

    Its entries before this one are those of ``origin``, whose checkpoint they lead to: ``size``, ``root`` (hex) and the signed
    note ``checkpoint``. ``known``: the signed note of the furthest checkpoint of ``origin`` that whoever restored knew of; the
    entries from ``size`` up to there are lost. Empty when none is known to be.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:succession:v1"
    origin: str
    size: int
    root: str
    checkpoint: str
    known: str = ""


class NamedIdentity(msgspec.Struct, frozen=True):
    """The public half of an identity in a statement: its name and both raw public keys, base64."""

    name: str
    ed25519: bytes
    mldsa65: bytes

    @classmethod
    def of(cls, public: PublicIdentity) -> "NamedIdentity":
        """The same, as statements carry it."""
        return cls(public.name, public.ed25519, public.mldsa65)

    def public(self) -> PublicIdentity:
        """Raises Invalid (keys of a wrong size)."""
        return PublicIdentity(self.name, self.ed25519, self.mldsa65)


class Trust(Predicate, frozen=True, kw_only=True):
    """Who may sign changes, from the next log index on. Subject: the keep, by the digest of its origin.

    ``change``: rotate (the signer ends, ``identity`` takes its place and has signed this envelope too), add (it begins),
    limit (``name`` gets these rights) or remove (``name`` ends). ``may_sign``, ``releases``: the rights, but for remove.
    ``id``: 32 random hex digits. custody/signatories says when it counts.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:trust:v1"
    change: str
    name: str
    id: str
    may_sign: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    identity: NamedIdentity | None = None
    reason: str = ""
