"""A pickle of scikit-learn becomes ONNX at publish: scanned, run where it can reach nothing, and held to its own answers."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.confine import Limits
from modelkeep.adapters.converting import Converted, convert
from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.arrays import load_rows
from modelkeep.app.premises import Premises
from modelkeep.core.values import digest_of
from modelkeep.custody.scan import refusal, scan
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.detect import Format, detect
from modelkeep.workflows.publish import ConvertedFrom, ModelFile

TOLERANCE = 1e-4
"""Greatest difference of a probability, or of a value beside its size, that both may have."""
_PICKLES = (Format.PICKLE, Format.JOBLIB)


class FromPickle(NamedTuple):
    """The file to publish in place of the pickle, and what is said about that."""

    file: ModelFile
    source: ConvertedFrom


def from_pickle(premises: Premises, model: bytes, filename: str, reference: bytes) -> FromPickle:
    """Convert a scikit-learn model in the pickle ``model``. ``reference``: npz with rows that both are asked.

    Raises NotTrusted (a scan finds something in it, or both do not answer alike), Invalid (no pickle of scikit-learn, no rows,
    or it cannot be converted), Unavailable (the kernel does not let it be confined: then it was not run).
    """
    if not reference:
        raise Invalid("a converted model is held to what the original answers: give rows to ask both with --reference")
    kind = detect(model)
    if kind not in _PICKLES:
        raise Invalid(f"{filename} is {kind.article}, and only a pickle of scikit-learn is converted here{_advice(kind)}")
    # Of the others, picklescan calls every class of scikit-learn dangerous: they are heard where the settings require them.
    required = premises.settings.scan.opinions == "require"
    verdict = premises.scanner.judge(model, filename) if required else scan(model, filename)
    if not verdict.clean:
        first = verdict.findings[0]
        raise NotTrusted(f"{filename} is not run to convert it, because it is not clean: {first.where}: {first.message}")
    rows, settings = load_rows(reference, "the reference data"), premises.settings.convert
    limits = Limits(settings.memory, settings.seconds, settings.max_model)
    hidden = (str(premises.directory.resolve()),)
    made = convert(memoryview(model), rows, python=settings.python, limits=limits, hidden=hidden)
    name = f"{filename.rpartition('.')[0] or filename}.onnx"
    found = refusal(premises.scanner.judge(made.onnx, name), name)
    if found is not None:
        raise NotTrusted(f"what {filename} was converted to is not clean: {found.where}: {found.message}")
    source = ConvertedFrom(
        source=digest_of(model),
        filename=filename,
        format=kind.id,
        scanner=f"{verdict.scanner}/{verdict.rules_version}",
        converter="skl2onnx",
        versions=made.versions,
        rows=len(rows),
        reference=digest_of(reference),
        difference=compare(made, rows),
    )
    return FromPickle(ModelFile(made.onnx, name), source)


def compare(made: Converted, rows: NDArray[np.float64]) -> float:
    """The greatest difference between what the original and the converted model answer to ``rows`` (n, d).

    Raises NotTrusted: they do not answer alike.
    """
    found = OnnxRuntime(made.onnx).run({"X": rows.astype(np.float32)})
    if made.labels is not None:
        labels = [one.decode() if isinstance(one, bytes) else str(one) for one in found["label"].ravel().tolist()]
        top = np.sort(made.values, axis=1)[:, -2:]
        tied = np.ptp(top, axis=1) <= TOLERANCE  # then the last bit of a sum decides, in the original as well
        differ = int((~tied & np.array([one != other for one, other in zip(labels, made.labels, strict=True)])).sum())
        if differ:
            raise NotTrusted(f"the converted model gives another label to {differ} of {len(rows)} reference rows")
    values = np.asarray(found["probabilities" if made.labels is not None else "variable"], np.float64).reshape(len(rows), -1)
    if values.shape != made.values.shape or not np.isfinite(values).all():
        raise NotTrusted(f"the converted model answers in the shape {values.shape}, the original in {made.values.shape}")
    difference = float((np.abs(values - made.values) / np.maximum(1.0, np.abs(made.values))).max(initial=0.0))
    if difference > TOLERANCE:
        raise NotTrusted(f"the converted model differs by {difference:.2g} from the original, more than {TOLERANCE:g}")
    return difference


def _advice(kind: Format) -> str:
    if kind in (Format.TORCH_ZIP, Format.TORCH_LEGACY):
        return ": convert a PyTorch model where it is at hand, with modelkeep.torch.to_onnx"
    return ": publish it as it is" if kind in (Format.ONNX, Format.SAFETENSORS) else ""
