"""Publish a model: read it, seal it, say so in the log. And settle what a publisher that died left behind.

The order is what makes it safe to be cut off anywhere: a pending record that names a claim of this process, the sealed bodies,
the record completed with where they are, *then* the log, which alone makes it a release, then the record's own state. Whoever
finds a pending record whose claim nobody holds either completes it (it is in the log) or collects it (it is not).
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from modelkeep.core.ports import Change, Record
from modelkeep.core.values import Digest, ModelSignature, ReleaseRef, ReleaseState, Statement, digest_of, parse_name
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import COUNTER, RELEASE, Release, file_name
from modelkeep.custody.scan import ScanVerdict, refusal
from modelkeep.custody.signing import ReleaseFacts, SealedProfile, interface_of, release_statements
from modelkeep.errors import Conflict, Missing, ModelkeepError, NotTrusted
from modelkeep.formats.safetensors import dump, load
from modelkeep.ledger.attestations import Conversion
from modelkeep.ledger.predicates import TraceTerms
from modelkeep.ledger.statements import make_statement
from modelkeep.workflows.bodies import Stored, let_go, store
from modelkeep.workflows.datasets import pending_datasets, settle_datasets
from modelkeep.workflows.describe import Sheet
from modelkeep.workflows.oms import sign_model
from modelkeep.workflows.registry import MODEL, PROFILE, Desk, Registry
from modelkeep.workflows.staging import STAGE, clear_stages
from modelkeep.workflows.versions import reserve_version


class ModelFile(msgspec.Struct, frozen=True):
    """The file to publish: its bytes and its plain name."""

    data: bytes | bytearray | memoryview
    filename: str


class Calibration(msgspec.Struct, frozen=True):
    """How to fit the extraction profile. ``fit``: model bytes and interface to named arrays.

    ``rows``: reference rows used; ``reference``: digest of the reference file; ``code``, ``trace``: of the arrays, what the log
    says of their trace code, and of what else a trace goes by.
    """

    fit: Callable[[memoryview, ModelSignature], Mapping[str, NDArray[Any]]]
    rows: int
    reference: Digest
    code: Callable[[Mapping[str, NDArray[Any]]], Digest | None] = lambda _arrays: None
    trace: Callable[[Mapping[str, NDArray[Any]]], TraceTerms | None] = lambda _arrays: None


class ConvertedFrom(msgspec.Struct, frozen=True):
    """What the file was made from, as the predicate ``Conversion`` says it."""

    source: Digest
    filename: str
    format: str
    scanner: str
    converter: str
    versions: dict[str, str]
    rows: int
    reference: Digest
    difference: float


class Settled(msgspec.Struct, frozen=True):
    """What settling did: releases completed, pending ones collected, ones still being published, bodies removed."""

    completed: tuple[str, ...] = ()
    collected: tuple[str, ...] = ()
    underway: tuple[str, ...] = ()
    bodies: int = 0


def publish(
    desk: Desk,
    model: ModelFile,
    name: str,
    *,
    actor: str,
    calibration: Calibration | None = None,
    sheet: Sheet | None = None,
    source: ConvertedFrom | None = None,
) -> ReleaseEvidence:
    """Release ``model`` as the next version of ``name``; what the log then says of it.

    The same file again is a version like any other, which shares the sealed body. ``sheet``: metadata, logged in the same
    step, and so is ``source``, what the file was converted from. On any error nothing was released and nothing is left, or
    settling removes it. Raises Invalid (name, file), NotTrusted (the scan refuses the file), Unavailable (store full or
    failing), Conflict (the log does not count the release).
    """
    name, filename = parse_name(name, "model name"), file_name(model.filename)
    data = memoryview(model.data).cast("B")
    verdict = _scan(desk, data, filename)
    profile = dump(calibration.fit(data, interface_of(verdict))) if calibration else None
    claim = desk.entropy.token(16).hex()
    with desk.claims.hold(claim):
        blank = Release(
            ref=ReleaseRef(name, 1),
            state=ReleaseState.PENDING,
            claim=claim,
            model=digest_of(data),
            filename=filename,
            format=verdict.format,
            size=data.nbytes,
            actor=actor,
            created=desk.clock.now_ns(),
            interface=interface_of(verdict),
        )
        record = _reserve(desk, blank)
        try:
            return _carry_out(desk, record, data, verdict, profile, calibration, _Also(sheet, source))
        except ModelkeepError:
            found = _settle_after_failure(desk, record)
            if found is None:
                raise
            return found


def settle(desk: Desk) -> Settled:
    """Complete what is in the log, collect what is not and whose publisher is gone, and remove bodies that nothing names.

    Safe beside live publishers and other settlers, and idempotent. Raises NotTrusted (the log), Unavailable.
    """
    stored = list(desk.registry.blobs.all())  # before asking who is alive: a later publisher's bodies are not in this list
    done = settle_publishers(desk)
    return msgspec.structs.replace(done, bodies=0 if done.underway else _remove_unnamed(desk, stored))


def settle_publishers(desk: Desk) -> Settled:
    """The same for releases under way alone, without looking for bodies. Raises NotTrusted (the log), Unavailable."""
    outcomes: dict[str, list[str]] = {"completed": [], "collected": [], "underway": []}
    desk.registry.refresh()
    for record in desk.registry.records.scan(RELEASE):
        release = Release.parse(record.body or b"")
        if release.state is ReleaseState.PENDING:
            outcomes[_settle_pending(desk, record, release)].append(str(release.ref))
    outcomes["underway"] += [*settle_datasets(desk), *clear_stages(desk)]
    completed, collected, underway = (tuple(outcomes[key]) for key in ("completed", "collected", "underway"))
    return Settled(completed, collected, underway)


def pending(registry: Registry) -> tuple[str, ...]:
    """Releases, data sets and stages that were begun and not ended, by live processes or dead ones.

    Raises NotTrusted, Unavailable.
    """
    found = [Release.parse(record.body or b"") for record in registry.records.scan(RELEASE)]
    stages = (f"stage {record.key}" for record in registry.records.scan(STAGE))
    begun = (str(release.ref) for release in found if release.state is ReleaseState.PENDING)
    return (*begun, *pending_datasets(registry), *stages)


def _carry_out(
    desk: Desk,
    record: Record,
    data: memoryview,
    verdict: ScanVerdict,
    profile: bytes | None,
    calibration: Calibration | None,
    also: "_Also",
) -> ReleaseEvidence:
    try:
        release, sealed, sealed_profile = _store(desk, record, data, profile, reuse=True)
    except Conflict:  # a body to share was collected or rewrapped at this moment
        release, sealed, sealed_profile = _store(desk, record, data, profile, reuse=False)
    about = None
    if sealed_profile is not None and calibration is not None:
        arrays = load(profile) if profile else {}
        code, trace = (calibration.code(arrays), calibration.trace(arrays)) if profile else (None, None)
        about = SealedProfile(sealed_profile.body, sealed_profile.source, calibration.rows, calibration.reference, code, trace)
    facts = ReleaseFacts(
        release.ref, release.model, release.filename, release.size, verdict, sealed.body, about, release.actor,
        release.created, sign_model(desk, release.filename, release.model),
    )  # fmt: skip
    statements = release_statements(facts)
    index = desk.log_statements([*statements, *also.statements(desk, facts)])[len(statements) - 1]
    book = desk.registry.refresh()
    evidence = _logged(book, release)
    if evidence is None or evidence.index != index:
        raise Conflict(f"{release.ref} was logged at {index} and does not count: {_problem(book, index)}")
    _complete(desk, release.ref, evidence)
    return evidence


class _Also(NamedTuple):
    """What is logged with a release, behind it."""

    sheet: Sheet | None
    source: ConvertedFrom | None

    def statements(self, desk: Desk, facts: ReleaseFacts) -> list[Statement]:
        found = []
        if self.sheet is not None:
            found.append(self.sheet.statement(desk, facts.ref, facts.resource, facts.actor))
        if self.source is not None:
            said = Conversion(actor=facts.actor, at=facts.at, **msgspec.structs.asdict(self.source))
            found.append(make_statement(said, facts.resource))
        return found


def _scan(desk: Desk, data: memoryview, filename: str) -> ScanVerdict:
    verdict = desk.scanner.judge(data, filename)
    first = refusal(verdict, filename)
    if first is not None:
        more = f" (and {len(verdict.findings) - 1} more)" if len(verdict.findings) > 1 else ""
        raise NotTrusted(f"the scan refuses {filename}: {first.message} [{first.rule} at {first.where}]{more}")
    return verdict


def _reserve(desk: Desk, blank: Release) -> Record:
    name, registry = blank.ref.name, desk.registry

    def pending_release(version: int) -> bytes:
        return msgspec.structs.replace(blank, ref=ReleaseRef(name, version)).encode()

    return reserve_version(
        registry.records,
        (COUNTER, RELEASE),
        name,
        last=lambda _records: registry.refresh().last_version(name),
        pending=pending_release,
    )


def _store(
    desk: Desk, record: Record, data: memoryview, profile: bytes | None, *, reuse: bool
) -> tuple[Release, Stored, Stored | None]:
    """Bodies for the pending release, new or shared, and its record, which refers to them from here on. Raises Conflict."""
    release = Release.parse(record.body or b"")
    sealed = store(desk, data, release.model, MODEL, reuse=reuse)
    fitted = store(desk, profile, digest_of(profile), PROFILE, reuse=reuse) if profile is not None else None
    release = msgspec.structs.replace(
        release,
        body=sealed.body,
        profile=fitted.body if fitted else None,
        profile_digest=fitted.source if fitted else None,
    )
    blocks = [each.change for each in (sealed, fitted) if each]
    desk.registry.records.commit([Change(RELEASE, record.key, release.encode(), record.revision), *blocks])
    return release, sealed, fitted


def _settle_after_failure(desk: Desk, record: Record) -> ReleaseEvidence | None:
    """Undo, or find that the log has it after all. Whatever fails here is left for the next ``settle``."""
    with contextlib.suppress(ModelkeepError):
        current = desk.registry.records.get(RELEASE, record.key)
        release = Release.parse(current.body or b"")
        evidence = _logged(desk.registry.refresh(), release)
        if evidence is None:
            _collect(desk, current, release)
            return None
        _complete(desk, release.ref, evidence)
        return evidence
    return None


def _settle_pending(desk: Desk, record: Record, release: Release) -> str:
    evidence = _logged(desk.registry.book, release)
    if evidence is not None:
        _complete(desk, release.ref, evidence)
        return "completed"
    try:
        with desk.claims.hold(release.claim):
            current = desk.registry.records.get(RELEASE, record.key)  # Missing: someone else was quicker
            release = Release.parse(current.body or b"")
            evidence = _logged(desk.registry.refresh(), release)  # it may have been logged just before its publisher ended
            if evidence is not None:
                _complete(desk, release.ref, evidence)
                return "completed"
            _collect(desk, current, release)
            return "collected"
    except Missing:
        return "collected"
    except Conflict:
        return "underway"


def _logged(book: EvidenceBook, release: Release) -> ReleaseEvidence | None:
    """The evidence, when the log's release of that name and version is this very one, sealed anew since or not."""
    try:
        evidence = book.release(release.ref)
    except Missing:
        return None
    first = evidence.history[0]
    same = (evidence.model, first.actor, first.at) == (release.model, release.actor, release.created)
    body = evidence.body in (release.body, release.next_body)
    profile = evidence.profile_body in (release.profile, release.next_profile)
    return evidence if same and body and profile else None


def _complete(desk: Desk, ref: ReleaseRef, evidence: ReleaseEvidence) -> None:
    """Mark the record as logged; silent when someone else did."""
    with contextlib.suppress(Conflict, Missing):
        record = desk.registry.records.get(RELEASE, str(ref))
        release = Release.parse(record.body or b"")
        if release.state is ReleaseState.PENDING:
            done = msgspec.structs.replace(release, state=ReleaseState.PUBLISHED, claim="", entries=evidence.entries)
            desk.registry.records.commit([Change(RELEASE, record.key, done.encode(), record.revision)])


def _collect(desk: Desk, record: Record, release: Release) -> None:
    """Forget a release that was never logged: its record first, then its bodies, unless the log or another record has them.

    The log alone does not do: a release whose signer was compromised is in no log that counts until it is signed again.
    """
    desk.registry.records.commit([Change(RELEASE, record.key, None, record.revision)])
    shared = desk.registry.refresh().bodies()
    for sealed in let_go(desk, [body.sealed for body in release.bodies if body.sealed not in shared]):
        desk.registry.blobs.delete(sealed)


def _remove_unnamed(desk: Desk, stored: Iterable[Digest]) -> int:
    """Remove bodies that no release in the log ever had, and none under way has; the others are for ``collect``."""
    known = desk.registry.refresh().bodies()
    unnamed = let_go(desk, [sealed for sealed in stored if sealed not in known])
    for sealed in unnamed:
        desk.registry.blobs.delete(sealed)
    return len(unnamed)


def _problem(book: EvidenceBook, index: int) -> str:
    return next((problem.why for problem in book.problems if problem.index == index), "another release came first")
