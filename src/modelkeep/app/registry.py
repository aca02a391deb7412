"""Verbs about releases: publish, verify, export, list, show, promote, quarantine, reinstate, retire."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import msgspec
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.acting import Acts
from modelkeep.app.arrays import load_rows, load_truth
from modelkeep.app.conversions import from_pickle
from modelkeep.app.predictor import BATCH, Predictor
from modelkeep.app.results import Exported, Published, ReleaseDetail, ReleaseRow, StateChanged, Verified
from modelkeep.app.rows import hold_row, release_row, statement_row
from modelkeep.app.upstreams import UpstreamPlace, Upstreams
from modelkeep.app.verbs import verb
from modelkeep.core.values import ModelSignature, ReleaseRef, digest_bytes, digest_of
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.metadata import parse_about
from modelkeep.custody.releases import PROMOTE, QUARANTINE, REINSTATE, RETIRE, next_state
from modelkeep.errors import Conflict, Invalid, NotAdmitted, Quarantined
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.profile import Profile, with_error
from modelkeep.extraction.regression import own_error
from modelkeep.formats.detect import Format, detect
from modelkeep.formats.onnx_inner import inner_tensor, with_output
from modelkeep.formats.upstream import parse_upstream
from modelkeep.policy.admission import AdmissionPolicy
from modelkeep.serving.runtime import Runtime
from modelkeep.workflows import upstream
from modelkeep.workflows.describe import prepared
from modelkeep.workflows.follow import judge
from modelkeep.workflows.publish import Calibration, ConvertedFrom, ModelFile, publish
from modelkeep.workflows.reference import learn_reference
from modelkeep.workflows.release_state import change_state, export_release
from modelkeep.workflows.tracereport import DECIMALS, code_of, terms_of
from modelkeep.workflows.verify import check_present, check_stored, verify_release


class RegistryVerbs(Acts):
    """Releases, from publishing to retirement."""

    @verb("publish")
    def publish(
        self,
        *,
        name: str,
        filename: str,
        model: bytes,
        reference: bytes = b"",
        metadata: bytes = b"",
        card: bytes = b"",
        convert: bool = False,
        embedding: str = "",
    ) -> Published:
        """Scan, seal, calibrate, sign and log a model file as the next version of ``name``.

        ``reference``: an npz file of benign rows. An ONNX model needs it; weights without a graph (safetensors) are kept,
        exported and verified, cannot be served, and take none. ``metadata`` (TOML) and ``card`` (Markdown): as of
        ``metadata_set``, logged in the same step. ``convert``: the file is a pickle of scikit-learn, and ONNX is made of it and
        published (app/conversions.py). ``embedding``: an inner tensor of the graph that extraction evidence looks at, too, or
        "auto" for what its last Gemm or MatMul is given. Raises Invalid, NotTrusted (the scan refuses it), Conflict,
        Unavailable.
        """
        source = None
        if convert:
            file, source = from_pickle(self.premises, model, filename, reference)
            model, filename = bytes(file.data), file.filename
        kind = detect(model)
        if kind is Format.UPSTREAM:
            raise Invalid("an upstream is published by its address, so that it is asked what it is: give --upstream")
        if kind is not Format.ONNX and embedding:
            raise Invalid("only an ONNX model has a graph with inner layers: leave out --embedding")
        if kind is Format.SAFETENSORS and reference:
            raise Invalid("safetensors holds weights without a graph and cannot be calibrated: leave out --reference")
        fitted: list[Profile] = []
        calibration = None
        if kind is not Format.SAFETENSORS:
            layer = inner_tensor(model, embedding) if embedding else ""

            def start(data: memoryview) -> Runtime:
                return OnnxRuntime(with_output(data, layer) if layer else bytes(data))

            calibration = self._calibration(reference, fitted, start, layer=layer)
        return self._publish(name, ModelFile(model, filename), calibration, fitted, (metadata, card), source)

    @verb("publish")
    def publish_upstream(
        self,
        *,
        name: str,
        at: UpstreamPlace,
        reference: bytes = b"",
        metadata: bytes = b"",
        card: bytes = b"",
    ) -> Published:
        """Publish a model that another Open Inference Protocol v2 server runs, as the next version of ``name``.

        What is sealed, signed and logged is where it is and what it says of itself: custody is *external*, and only admission
        policies that allow that let it be served. ``at``: the server, and what the model is called there; the rest as of
        ``publish``. Raises Invalid, Denied (the settings do not allow it), NotTrusted, Conflict, Unavailable.
        """
        upstreams = Upstreams(self.premises.settings.upstream, self.premises.directory)
        document = upstreams.discover(at, name)
        fitted: list[Profile] = []

        def start(data: memoryview) -> Runtime:
            return upstreams.open(parse_upstream(data))

        calibration = self._calibration(reference, fitted, start, batch=upstream.BATCH)
        file = ModelFile(document.encode(), "upstream.json")
        return self._publish(name, file, calibration, fitted, (metadata, card))

    def _publish(
        self,
        name: str,
        file: ModelFile,
        calibration: Calibration | None,
        fitted: list[Profile],
        described: tuple[bytes, bytes],
        source: ConvertedFrom | None = None,
    ) -> Published:
        metadata, card = described
        about = parse_about(metadata) if metadata else None
        if card and about is None:
            raise Invalid("a model card goes with metadata that name it: give --metadata")
        desk = self.premises.desk()
        with prepared(desk, about, card) if about else nullcontext() as sheet:
            evidence = publish(desk, file, name, actor=self.actor.subject, calibration=calibration, sheet=sheet, source=source)
        promise = fitted[0].promise if fitted else "none: weights without a graph are kept and exported, not served"
        layer = fitted[0].layer.tensor if fitted and fitted[0].layer else ""
        told = (str(evidence.ref), evidence.model, evidence.body.sealed, evidence.index, promise, evidence.bundle)
        return Published(*told, evidence.custody, layer)

    def _calibration(
        self,
        reference: bytes,
        fitted: list[Profile],
        start: Callable[[memoryview], Runtime],
        *,
        batch: int = BATCH,
        layer: str = "",
    ) -> Calibration:
        if not reference:
            raise Invalid("a model that can be served needs benign rows to calibrate on: give --reference")
        rows = load_rows(reference, "the reference data")
        digest = digest_of(reference)

        def fit(data: memoryview, interface: ModelSignature) -> Mapping[str, NDArray[Any]]:
            predictor = Predictor(start(data), interface, rows, batch=batch)
            seed = int.from_bytes(digest_bytes(digest)[:8], "big")
            alpha = self.premises.settings.extraction.alpha
            inner = predictor.inner(layer) if layer else None
            ask, tell = predictor.as_function(), predictor.as_numbers()
            shape = interface.inputs[0].shape[1:]
            truth = load_truth(reference, "the reference data", len(rows)) if tell and predictor.one_number else None
            error = 0.0 if truth is None or tell is None else own_error(tell(rows)[:, 0], truth)
            profile = fit_profile(rows, ask, seed=seed, alpha=alpha, numbers=tell, inner=inner, shape=shape)
            fitted.append(with_error(profile, error) if error else profile)
            return {**fitted[0].to_arrays(), **learn_reference(rows, seed)}

        epsilon = self.premises.settings.extraction.epsilon
        return Calibration(fit, len(rows), digest, code_of, lambda arrays: terms_of(arrays, epsilon, DECIMALS))

    @verb("verify")
    def verify(self, *, ref: str) -> Verified:
        """Check signatures, log inclusion, record and sealed bodies. Raises NotTrusted (one line for the damage), Missing."""
        found = verify_release(self.premises.registry(), self.premises.trust, self.ref(ref))
        return Verified(str(found.ref), found.model, found.signer, found.log_index, found.log_size, found.checks)

    @verb("export")
    def export(self, *, ref: str) -> Exported:
        """The model file again, byte for byte; logged first. Raises Missing, Conflict (in quarantine), NotTrusted."""
        desk, parsed = self.premises.desk(), self.ref(ref)
        model = export_release(desk, parsed, actor=self.actor.subject)
        evidence = desk.registry.release(parsed)
        return Exported(str(parsed), evidence.filename, bytes(model), evidence.history[-1].index, evidence.bundle)

    @verb("list")
    def releases(self, *, owner: str = "", classification: str = "", tag: str = "") -> tuple[ReleaseRow, ...]:
        """Every release, by name and version; or those whose metadata have this owner, classification, tag."""
        names, book = self.names(), self.premises.registry().book
        rows = (release_row(evidence, names, book.catalogue) for evidence in book.releases())
        return tuple(
            row
            for row in rows
            if owner in ("", row.owner) and classification in ("", row.classification) and (not tag or tag in row.tags)
        )

    @verb("show")
    def show(self, *, ref: str) -> ReleaseDetail:
        """One release with its evidence. Raises Missing."""
        book = self.premises.registry().book
        found, catalogue, view = book.release(self.ref(ref)), book.catalogue, self.premises.view()
        said = {each.index for each in catalogue.metadata(found.ref)} | {hold.index for hold in catalogue.holds_on(found.ref)}
        said |= {index for index, _ in book.calibrations(found.ref)}
        dossier = book.dossier(found.ref)
        said |= {*(one.index for one in dossier.everything()), *(one.index for one in dossier.bills)}
        indexes = sorted({*found.entries.values(), *(event.index for event in found.history), *said})
        names, described = self.names(), catalogue.described(found.ref)
        statements = tuple(statement_row(index, view.entries(index, index + 1)[0], names) for index in indexes)
        return ReleaseDetail(
            release_row(found, names, catalogue),
            found.body.sealed,
            _words(found.interface),
            self._admission(found),
            statements,
            description=described.said.description if described else "",
            licence=described.said.licence if described else "",
            card=str(described.card_digest or "") if described else "",
            holds=tuple(hold_row(hold, names) for hold in catalogue.holds_on(found.ref)),
        )

    @verb("promote")
    def promote(self, *, ref: str) -> StateChanged:
        """Let gateways serve a release, once every account's mark on it is committed.

        Raises Missing, Conflict, NotTrusted (a sealed body is gone or has another size), Unavailable (its store is silent).
        """
        self.commit_marks(self.subjects(), ahead_of=self._possible(ref, PROMOTE))
        changed = self._change(ref, PROMOTE, "")
        self.commit_marks(self.subjects())  # of accounts that were added in between
        registry = self.premises.registry()
        return msgspec.structs.replace(changed, note=self._not_admitted(registry.release(self.ref(ref))))

    @verb("quarantine")
    def quarantine(self, *, ref: str, reason: str) -> StateChanged:
        """Stop serving a release; no request that starts after this returns is answered. Raises Missing, Conflict."""
        return self._change(ref, QUARANTINE, reason)

    @verb("reinstate")
    def reinstate(self, *, ref: str, reason: str) -> StateChanged:
        """Take a release whose bodies are sound out of quarantine. Raises NotTrusted (they are not), Missing, Conflict."""
        registry = self.premises.registry()
        check_stored(registry, registry.release(self.ref(ref)))
        return self._change(ref, REINSTATE, reason)

    @verb("retire")
    def retire(self, *, ref: str, reason: str) -> StateChanged:
        """End a release for good. Raises Missing, Conflict."""
        return self._change(ref, RETIRE, reason)

    def _possible(self, ref: str, what: str) -> ReleaseRef:
        registry = self.premises.registry()
        found = registry.release(self.ref(ref))
        next_state(found.state, what)
        check_present(registry, found)
        if not found.interface.inputs:
            raise Conflict(
                f"{ref} is {found.format}, weights without a graph: export it, or publish the model as ONNX to serve it"
            )
        return found.ref

    def _change(self, ref: str, what: str, reason: str) -> StateChanged:
        after = change_state(self.premises.desk(), self.ref(ref), what, actor=self.actor.subject, reason=reason)
        return StateChanged(str(after.ref), str(after.state), after.history[-1].index)

    def _admission(self, found: ReleaseEvidence) -> str:
        refused = self._not_admitted(found)
        return f"not served: {refused}" if refused else f"admitted by the {self._policy.name} policy"

    @property
    def _policy(self) -> AdmissionPolicy:
        return self.premises.admission.of(self.premises.registry().book)

    def _not_admitted(self, found: ReleaseEvidence) -> str:
        """Why the log and the policy in force do not let a release be served; "" when they do. Raises Unavailable."""
        try:
            judge(self._policy, self.premises.registry(), found.ref, self.premises.spent)
        except (NotAdmitted, Quarantined) as reason:
            return str(reason)
        return ""


def _words(interface: ModelSignature) -> str:
    def side(specs: Any) -> str:
        return ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in specs)

    return f"{side(interface.inputs)} → {side(interface.outputs)}"
