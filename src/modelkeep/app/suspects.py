"""Tracing a suspect model: what every account asked, from the audit logs, against what the suspect has learnt."""

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.names import names_by_pseudonym
from modelkeep.app.predictor import BATCH, Predictor
from modelkeep.app.premises import Premises
from modelkeep.app.results import Accusation
from modelkeep.app.upstreams import Upstreams
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT, MODEL_KEK, WATERMARK
from modelkeep.custody.scan import refusal, scan
from modelkeep.custody.signing import interface_of
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.trace import AccountTrail, trace
from modelkeep.formats.detect import Format
from modelkeep.formats.safetensors import load
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.serving.recovery import read_bodies
from modelkeep.workflows import upstream
from modelkeep.workflows.decisions import decisions_of
from modelkeep.workflows.marks import account_key
from modelkeep.workflows.registry import MODEL, PROFILE, Registry

Rows = NDArray[np.float64]
PREDICT = "predict"


def trace_suspect(premises: Premises, ref: ReleaseRef, suspect: bytes, probes: Rows) -> list[Accusation]:
    """Test every account that asked ``ref``, most suspicious first.

    The suspect is scanned before it is loaded, and run in memory. Raises Missing, Invalid, NotTrusted, Unavailable.
    """
    keyring = premises.keyring([MODEL_KEK, AUDIT_SUBJECT, WATERMARK])
    registry = premises.registry(premises.openers())
    evidence = registry.release(ref)
    if evidence.profile_body is None or evidence.profile_digest is None:
        raise Missing(f"{ref} has no extraction profile: its answers were not marked")
    opened = registry.open_body(evidence.profile_body, evidence.profile_digest, PROFILE)
    profile = Profile.from_arrays(load(opened.read_source()))
    if probes.shape[1] != profile.n_features:
        raise Invalid(f"the probes have {probes.shape[1]} values a row, and {ref} takes {profile.n_features}")
    model = registry.open_body(evidence.body, evidence.model, MODEL).read_source()
    upstreams = Upstreams(premises.settings.upstream, premises.directory)
    batch = upstream.BATCH if evidence.format == Format.UPSTREAM.id else BATCH
    victim = Predictor(upstreams.runtime(evidence, bytes(model)), evidence.interface, probes, batch=batch)
    verdict = scan(suspect, "suspect")
    reason = refusal(verdict, "suspect")
    if reason is None and verdict.format != Format.ONNX.id:
        raise Invalid(f"the suspect is {verdict.format}, and only an ONNX model can be asked here")
    if reason is not None:
        raise NotTrusted(f"the suspect is not run, because it is not clean: {reason.message}")
    thief = Predictor(OnnxRuntime(suspect), interface_of(verdict), probes)
    trails = [
        AccountTrail(subject, account_key(keyring.secret(WATERMARK), subject, ref), x)
        for subject, x in recorded_questions(premises, registry, ref).items()
    ]
    names = names_by_pseudonym(premises.records)
    epsilon = premises.settings.extraction.epsilon
    found = trace(thief.probabilities, victim.probabilities, trails, profile, probes=probes, epsilon=epsilon)
    asked = {trail.subject: len(trail.x) for trail in trails}
    return [
        Accusation(names.get(r.subject, r.subject), r.subject, r.p_bonferroni, r.statistics, asked[r.subject]) for r in found
    ]


def recorded_questions(premises: Premises, registry: Registry, ref: ReleaseRef) -> dict[str, Rows]:
    """Every account's recorded questions (n, d) to one release, in order; accounts whose key was erased are left out.

    Needs the key family ``audit-subject``. Raises NotTrusted, Unavailable.
    """
    epochs = decisions_of(registry.view, premises.trust).epochs()
    keys = SubjectKeys(premises.records, premises.ring_keys(AUDIT_SUBJECT), premises.entropy, epochs)
    asked: dict[str, list[Rows]] = {}
    for instance in premises.audit_instances():
        origin = premises.audit_origin(instance)
        vkey = encode_vkey(origin, premises.trust.audit_key)
        for _, entry, sealed in read_bodies(premises.audit_files(instance), vkey, origin):
            if entry.kind != PREDICT or entry.release != str(ref):
                continue
            try:
                body = keys.open(sealed, entry.subject, str(ref))
            except Missing:
                continue
            asked.setdefault(entry.subject, []).append(body.inputs())
    return {subject: np.concatenate(parts) for subject, parts in asked.items()}
