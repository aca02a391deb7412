"""What publishing says: the statements about one release, in the order in which they are logged."""

import msgspec

from modelkeep.core.values import Digest, ModelSignature, ReleaseRef, Resource, Statement, to_json
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import SealedBody
from modelkeep.custody.scan import ScanVerdict
from modelkeep.errors import Invalid
from modelkeep.ledger.predicates import Finding, Profile, Release, Scan, Sealing, State, TraceTerms
from modelkeep.ledger.statements import make_statement, statement_id

MOST_OF_FINDINGS = 24 << 10
"""Bytes of the findings in a scan statement, as JSON: an entry has room for twice as many."""


class SealedProfile(msgspec.Struct, frozen=True):
    """A sealed extraction profile: its body, the digest of its plain bytes, what it was fitted on, the digest of its trace
    code, and what else a trace goes by."""

    body: SealedBody
    plain: Digest
    rows: int
    reference: Digest
    code: Digest | None = None
    trace: TraceTerms | None = None


class ReleaseFacts(msgspec.Struct, frozen=True):
    """Everything that the statements of one release say. ``size``: bytes of the model file; ``at``: Unix nanoseconds.

    ``bundle``: the OpenSSF signature of the model file, "" when there is none.
    """

    ref: ReleaseRef
    model: Digest
    filename: str
    size: int
    scan: ScanVerdict
    body: SealedBody
    profile: SealedProfile | None
    actor: str
    at: int
    bundle: str = ""

    @property
    def resource(self) -> Resource:
        """The model file as the subject of statements."""
        return Resource(self.filename, self.model)


def interface_of(verdict: ScanVerdict) -> ModelSignature:
    """What the scanned model takes and gives; nothing for formats that do not say."""
    return verdict.signature or ModelSignature((), ())


def release_statements(facts: ReleaseFacts) -> tuple[Statement, ...]:
    """Scan, sealing, profile (when there is one) and release: the last one names the others by their payload's SHA-256."""
    model, actor, at, ref = facts.resource, facts.actor, facts.at, str(facts.ref)
    body = facts.body
    sealing = Sealing(actor=actor, at=at, release=ref, sealed=body.sealed, root=body.root, header=body.header, size=body.size)
    scanned = scan_statement(model, facts.scan, size=facts.size, actor=actor, at=at)
    evidence = {"scan": scanned, "sealing": make_statement(sealing, model)}
    if facts.profile is not None:
        evidence["profile"] = _profile_statement(facts, facts.profile)
    release = Release(
        actor=actor,
        at=at,
        name=facts.ref.name,
        version=facts.ref.version,
        filename=facts.filename,
        format=facts.scan.format,
        size=facts.size,
        interface=interface_of(facts.scan),
        evidence={kind: statement_id(statement) for kind, statement in evidence.items()},
        bundle=facts.bundle,
    )
    return (*evidence.values(), make_statement(release, model))


def scan_statement(model: Resource, verdict: ScanVerdict, *, size: int, actor: str, at: int) -> Statement:
    """What was seen in the model file, of ``size`` bytes. Of very many findings the first are kept, and how many there were."""
    said = Scan(
        actor=actor,
        at=at,
        scanner=verdict.scanner,
        rules_version=verdict.rules_version,
        format=verdict.format,
        size=size,
        clean=verdict.clean,
        findings=_some(verdict.findings),
        opinions=verdict.opinions,
    )
    return make_statement(said, model)


def _some(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """As many as surely fit a log entry."""
    room = MOST_OF_FINDINGS
    for at, finding in enumerate(findings):
        room -= len(to_json(finding))
        if room < 0:
            return (*findings[:at], Finding("more", "model", f"{len(findings) - at} more findings"))
    return findings


def resealing_statements(
    known: ReleaseEvidence, body: SealedBody | None, profile: SealedBody | None, *, actor: str, at: int
) -> tuple[Statement, ...]:
    """That a release is sealed anew: ``body`` and ``profile`` take the place of those that it has; None = it keeps that one."""
    made, model = [], Resource(known.filename, known.model)
    if body is not None:
        sealing = Sealing(
            actor=actor,
            at=at,
            release=str(known.ref),
            sealed=body.sealed,
            root=body.root,
            header=body.header,
            size=body.size,
            replaces=known.body.sealed,
        )
        made.append(make_statement(sealing, model))
    if profile is not None and known.profile is not None and known.profile_digest is not None:
        said = msgspec.structs.replace(
            known.profile,
            actor=actor,
            at=at,
            sealed=profile.sealed,
            root=profile.root,
            header=profile.header,
            size=profile.size,
            replaces=known.profile.sealed,
        )
        made.append(make_statement(said, model, Resource("extraction profile", known.profile_digest)))
    return tuple(made)


def state_statement(
    model: Resource, ref: ReleaseRef, verb: str, *, actor: str, at: int, nonce: bytes, reason: str
) -> Statement:
    """A change of state, or an export. ``nonce``: 16 random bytes. Raises Invalid (another size, or a very long reason)."""
    if len(nonce) != 16 or len(reason) > 2000:
        raise Invalid("a change of state carries 16 random bytes and a reason of at most 2,000 characters")
    said = State(actor=actor, at=at, release=str(ref), verb=verb, id=nonce.hex(), reason=reason)
    return make_statement(said, model)


def _profile_statement(facts: ReleaseFacts, profile: SealedProfile) -> Statement:
    said = Profile(
        actor=facts.actor,
        at=facts.at,
        release=str(facts.ref),
        sealed=profile.body.sealed,
        root=profile.body.root,
        header=profile.body.header,
        size=profile.body.size,
        rows=profile.rows,
        reference=profile.reference,
        code=profile.code,
        trace=profile.trace,
    )
    return make_statement(said, facts.resource, Resource("extraction profile", profile.plain))
