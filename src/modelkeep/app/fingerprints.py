"""Fingerprints of models: made and committed to by the keep, and suspects compared with them and with independent models."""

from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from modelkeep.app.acting import Acts
from modelkeep.app.arrays import load_rows
from modelkeep.app.suspects import Suspect, ask_release, onnx_suspect
from modelkeep.app.verbs import verb
from modelkeep.core.hidden import holds_secrets
from modelkeep.core.values import Digest, Resource, digest_of
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.ledger.kinds import short_type
from modelkeep.training.fingerprint import (
    KEY_BYTES,
    LEAST_POPULATION,
    LEAST_PROBES,
    PROBES,
    Floats,
    Predict,
    Resemblance,
    answers,
    draw_probes,
    likeness,
    resemblance,
)
from modelkeep.training.triggers import MOST_ROWS, Leaning, Trigger, leanings, name_rows, weigh
from modelkeep.workflows.attest import attest, subject_of
from modelkeep.workflows.fingerprints import Made, check_drawn, statement_of

MOST_PROBES = 100_000


@holds_secrets("model", "model_digest", "probes", "commitment", "log_index")
class FingerprintMade(Struct, frozen=True):
    """A fingerprint: its file, the file of the model that it is of, what commits to it, and the log entry that does."""

    model: str
    model_digest: str
    probes: int
    commitment: str
    log_index: int
    fingerprint: bytes


class Committed(Struct, frozen=True):
    """Where the log commits to a fingerprint or a watermark: ``kind``, of which file (``model``, a digest). ``at``: Unix
    nanoseconds, by the keep's clock; ``signer``: of the statement; ``commitments``: of this kind in the log up to it."""

    kind: str
    model: str
    log_index: int
    at: int
    signer: str
    commitments: int = 1

    def corrected(self, p: float) -> float:
        """``p`` of the one that is claimed, for all of which it may be the best (Bonferroni)."""
        return min(1.0, p * self.commitments)


class FingerprintVerbs(Acts):
    """fingerprint make, and what checks ask of the log."""

    @verb("trace")
    def fingerprint_make(self, *, ref: str, reference: bytes, probes: int = PROBES) -> FingerprintMade:
        """Make a fingerprint of a release and commit to it in the log. ``reference``: an npz file of natural rows.

        Raises Missing, Invalid (not a classifier, too few rows or probes), NotTrusted, Unavailable.
        """
        rows = load_rows(reference, "the reference rows")
        self.premises.keyring([MODEL_KEK])
        registry = self.premises.registry(self.premises.openers())
        evidence = registry.release(self.ref(ref))
        ask = ask_release(self.premises, registry, evidence, rows)
        return self._made(Resource(evidence.filename, evidence.model), ask, reference, probes)

    @verb("trace")
    def fingerprint_make_file(self, *, filename: str, model: bytes, reference: bytes, probes: int = PROBES) -> FingerprintMade:
        """The same of an ONNX file that need not be released. Raises as ``fingerprint_make``."""
        rows = load_rows(reference, "the reference rows")
        return self._made(subject_of(filename, digest_of(model)), onnx_suspect(model, filename).ask(rows), reference, probes)

    @verb("trace")
    def committed(self, *, commitment: str) -> Committed:
        """Where the log first commits to a fingerprint or a watermark. Raises NotTrusted (nowhere)."""
        try:
            attestations = self.premises.registry().book.attestations
            found = attestations.committing(commitment)
        except Missing as cause:
            raise NotTrusted(f"the releases log does not commit to this: {commitment[:16]}… is nowhere in it") from cause
        said, count = found.said, attestations.count(type(found.said), found.index + 1)
        return Committed(short_type(said.TYPE), found.about, found.index, said.at, found.signer, count)

    def _made(self, model: Resource, ask: Predict, reference: bytes, count: int) -> FingerprintMade:
        if not LEAST_PROBES <= count <= MOST_PROBES:
            raise Invalid(f"a fingerprint has {LEAST_PROBES} to {MOST_PROBES:,} probes, not {count:,}")
        key = self.premises.entropy.token(KEY_BYTES)
        drawn = draw_probes(ask, load_rows(reference, "the reference rows"), key, count)
        made = Made(model, digest_of(reference), key, drawn).encode()
        said = statement_of(made, count, actor=self.actor.subject, at=self.premises.clock.now_ns())
        index = attest(self.premises.desk(), model, said)
        return FingerprintMade(model.name, model.digest, count, said.commitment, index, made)


def open_population(files: Mapping[str, bytes], not_among: Mapping[Digest, str]) -> list[Suspect]:
    """Independent models. ``not_among``: digests of what is no independent model, with words for it.

    Raises Invalid (too few, one twice, or one of those), NotTrusted (one is not clean).
    """
    models = {name: data for name, data in files.items() if name.endswith(".onnx")}
    if len(models) < LEAST_POPULATION:
        raise Invalid(
            f"a claim needs {LEAST_POPULATION} independent models or more, and the folder has {len(models)} ONNX files"
        )
    names = dict(not_among)
    for name, data in models.items():
        digest = digest_of(data)
        if digest in names:
            raise Invalid(f"{name} of the population is {names[digest]}: name models that were trained independently")
        names[digest] = f"the same file as {name}"
    return [onnx_suspect(data, name) for name, data in models.items()]


def compare(suspect: Suspect, made: Made, population: list[Suspect]) -> Resemblance:
    """Ask everybody about every probe and compare as the version says. Raises Invalid (a model does not take these rows)."""
    points = made.probes.points
    own, *others = (answers(one.ask(points), points) for one in (suspect, *population))
    if made.version == 1:
        return resemblance(made.probes, own.argmax(axis=1), np.stack([one.argmax(axis=1) for one in others]))
    return likeness(made.probes, own, others)


def lean(suspect: Suspect, trigger: Trigger, rows: Floats, population: list[Suspect]) -> Leaning:
    """Ask everybody about the first ``MOST_ROWS`` of natural rows (n, d) with every pattern. Raises as ``compare``, and
    NotTrusted (other rows than the trigger says)."""
    if trigger.asked not in ("", name_rows(rows)):
        raise NotTrusted("these are not the rows that the trigger says suspects are asked with: give those of 'trigger mark'")
    few = rows[:MOST_ROWS]
    own, *others = (leanings(one.ask(few), few, trigger) for one in (suspect, *population))
    return weigh(trigger, own, others)


def redraw(made: Made, model: bytes, reference: bytes) -> None:
    """Draw the probes again. ``model``: its ONNX file. Raises NotTrusted (another model, other rows, other probes), Invalid."""
    for what, data, digest in (("model", model, made.model.digest), ("reference", reference, made.reference)):
        if digest_of(data) != digest:
            raise Invalid(f"this {what} is {digest_of(data)}, and the fingerprint was made with {digest}")
    rows = load_rows(reference, "the reference rows")
    check_drawn(made, onnx_suspect(model, "the model").ask(rows), rows)
