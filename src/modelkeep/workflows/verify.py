"""Verify one release, as its owner or as a stranger with nothing but the public keys."""

import msgspec

from modelkeep.container.check import check_body
from modelkeep.core.values import Digest, ReleaseRef, ReleaseState
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import RELEASE, Release, SealedBody
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Missing, NotTrusted
from modelkeep.ledger.proofs import check_proof
from modelkeep.workflows.oms import check_bundle
from modelkeep.workflows.registry import CARD, MODEL, PROFILE, Registry, body_reader


class Verified(msgspec.Struct, frozen=True):
    """A release that holds. ``opened``: it was also opened, its signed root and source digest recomputed (with keys)."""

    ref: ReleaseRef
    state: ReleaseState
    signer: str
    log_index: int
    log_size: int
    model: Digest
    sealed: Digest
    opened: bool
    checks: tuple[str, ...]


def verify_release(registry: Registry, trust: TrustRoot, ref: ReleaseRef, *, signer: str | None = None) -> Verified:
    """Check signatures, log inclusion, the sealed bodies and (with keys) what is inside, from the bottom up.

    ``signer``: the identity that must have signed; None = any that the trust root lets sign releases.
    Raises Missing (no such release), NotTrusted (one line for the first thing that does not hold), Unavailable.
    """
    evidence = registry.release(ref)
    checks = [_check_entries(registry, trust, evidence)]
    if signer is not None and evidence.signer != signer:
        raise NotTrusted(f"{ref} was signed by {evidence.signer}, not by {signer}")
    if evidence.bundle:
        checks.append(check_bundle(trust, evidence))
    _check_record(registry, evidence)
    checks.append("the record agrees with the log")
    for body, purpose in _bodies(evidence):
        _check_sealed(registry, body, f"{purpose} of {ref}")
        checks.append(f"the sealed {purpose} has the digest that was signed")
    checks.extend(_check_card(registry, ref))
    collected = evidence.state is ReleaseState.COLLECTED
    if collected:
        checks.append(f"collected: its sealed bodies were given up by log entry {evidence.history[-1].index}, on purpose")
    if registry.openers and not collected:
        registry.open_body(evidence.body, evidence.model, MODEL).check_model_digest()
        checks.append("the model inside has the root and the digest that were signed")
        if evidence.profile_body is not None and evidence.profile_digest is not None:
            registry.open_body(evidence.profile_body, evidence.profile_digest, PROFILE).check_model_digest()
            checks.append("the extraction profile inside has the root and the digest that were signed")
    return Verified(
        ref, evidence.state, evidence.signer, evidence.index, registry.book.size, evidence.model, evidence.body.sealed,
        bool(registry.openers) and not collected, tuple(checks),
    )  # fmt: skip


def _check_card(registry: Registry, ref: ReleaseRef) -> list[str]:
    """The model card in force, which a release that was collected keeps."""
    described = registry.book.catalogue.described(ref)
    if described is None or described.card is None or described.card_digest is None:
        return []
    _check_sealed(registry, described.card, f"model card of {ref}")
    if registry.openers:
        registry.open_body(described.card, described.card_digest, CARD).check_model_digest()
    return ["the sealed model card has the digest that was signed"]


def check_stored(registry: Registry, evidence: ReleaseEvidence) -> None:
    """The integrity pass over one release, without any key: record and sealed bodies against the log.

    Raises NotTrusted with one line for the first damage found, Unavailable.
    """
    _check_record(registry, evidence)
    for body, purpose in _bodies(evidence):
        _check_sealed(registry, body, f"{purpose} of {evidence.ref}")


def check_present(registry: Registry, evidence: ReleaseEvidence) -> None:
    """One look at each sealed body: it is there, with the size that was signed. Nothing is read.

    Raises NotTrusted (gone, or of another size), Unavailable.
    """
    for body, purpose in _bodies(evidence):
        try:
            size = registry.blobs.size(body.sealed)
        except Missing as cause:
            raise NotTrusted(f"the sealed {purpose} of {evidence.ref} is gone: {cause}") from cause
        if size != body.size:
            raise NotTrusted(f"the sealed {purpose} of {evidence.ref} has {size} bytes, and {body.size} were signed: verify it")


def _bodies(evidence: ReleaseEvidence) -> list[tuple[SealedBody, str]]:
    """What must be there: nothing of a release that was collected."""
    if evidence.state is ReleaseState.COLLECTED:
        return []
    profile = evidence.profile_body
    return [(evidence.body, MODEL), *([(profile, PROFILE)] if profile else [])]


def _check_entries(registry: Registry, trust: TrustRoot, evidence: ReleaseEvidence) -> str:
    """Every statement that the evidence rests on: its two signatures, and its inclusion proof as a stranger would check it."""
    signatories = registry.book.signatories
    for kind, index in sorted(evidence.entries.items()):
        proof, _ = check_proof(registry.view.inclusion(index).encode(), trust.releases_log)
        statement, _ = signatories.check(parse_envelope(proof.entry), index)
        if proof.index != index or statement.subject[0].digest != evidence.model:
            raise NotTrusted(f"log entry {index} is not the {kind} statement of {evidence.ref}")
    witnessed = _witnessed(registry, max(evidence.entries.values()))
    return f"{len(evidence.entries)} statements are signed twice each and proven to be in the log{witnessed}"


def _witnessed(registry: Registry, index: int) -> str:
    """What witnesses say of the log up to entry ``index``, where they are asked for. Raises NotTrusted (they contradict it)."""
    found = registry.witnessed()
    if found is None:
        return ""
    if index >= found.size:
        return ", not all of them witnessed yet"
    return f", cosigned by {', '.join(found.names)}" if found.names else ""


def _check_record(registry: Registry, evidence: ReleaseEvidence) -> None:
    try:
        release = Release.parse(registry.records.get(RELEASE, str(evidence.ref)).body or b"")
    except Missing as cause:
        raise NotTrusted(f"the record of {evidence.ref} is gone, and the log has the release: restore the records") from cause
    # Between the log and the record of a release that is sealed anew, the record names the former and the next body.
    bodies, profiles = (release.body, release.next_body), (release.profile, release.next_profile)
    said = (release.ref, release.model, evidence.body in bodies, evidence.profile_body in profiles)
    if said != (evidence.ref, evidence.model, True, True):
        raise NotTrusted(f"the record of {evidence.ref} was altered: it names another model or body than the log")


def _check_sealed(registry: Registry, body: SealedBody, what: str) -> None:
    try:
        check_body(body_reader(registry.blobs, body), body.sealed)
    except Missing as cause:
        raise NotTrusted(f"the sealed {what} is gone: {cause}") from cause
    except NotTrusted as cause:
        raise NotTrusted(f"the sealed {what} is damaged: {cause}") from cause
