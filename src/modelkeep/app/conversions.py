"""A pickle of scikit-learn becomes ONNX at publish: scanned, run where it can reach nothing, and held to its own answers."""

from typing import NamedTuple

import numpy as np

from modelkeep.adapters.confine import Limits
from modelkeep.adapters.converting import convert
from modelkeep.app.arrays import load_rows
from modelkeep.app.fidelity import compare
from modelkeep.app.premises import Premises
from modelkeep.core.values import digest_of
from modelkeep.custody.scan import refusal, scan
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.detect import Format, detect
from modelkeep.workflows.publish import ConvertedFrom, ModelFile

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
        difference=compare(made.onnx, {"X": rows.astype(np.float32)}, made.values, made.labels),
    )
    return FromPickle(ModelFile(made.onnx, name), source)


def _advice(kind: Format) -> str:
    if kind in (Format.TORCH_ZIP, Format.TORCH_LEGACY):
        return ": convert a PyTorch model where it is at hand, with modelkeep.torch.to_onnx"
    return ": publish it as it is" if kind in (Format.ONNX, Format.SAFETENSORS) else ""
