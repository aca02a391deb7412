"""Weight marks in ONNX files: put in with what it cost, and read again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.arrays import load_rows
from modelkeep.app.markresults import MarkCost, MarkEmbedded
from modelkeep.app.predictor import Predictor, Rows
from modelkeep.core.values import ModelSignature, digest_of
from modelkeep.custody.scan import refusal, scan
from modelkeep.custody.signing import interface_of
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.detect import Format, detect
from modelkeep.formats.onnx import parse_onnx
from modelkeep.formats.onnx_inner import with_output
from modelkeep.formats.onnx_weights import Weight, weights_of, with_weights
from modelkeep.training.weightmark import (
    BITS,
    WIDEST,
    Floats,
    Layout,
    Plan,
    Reading,
    commitment,
    embed,
    layout_of,
    plan_of,
    read,
)

_WINDOWS = 20_000
"""Windows of a convolution that its second moments are taken over, of one batch of rows."""


def mark_model(data: bytes, key: bytes, owner: str, reference: bytes = b"") -> MarkEmbedded:
    """Put a mark in a model's weights. ``reference``: npz with rows (array ``x``) whose answers count, b"" = none.

    Every other row decides where the change does least; the rest measure what it cost. Raises Invalid (no ONNX model, too few
    weights, no such rows), NotTrusted (it is to be run and a scan finds something in it).
    """
    weights = onnx_weights(data, "the model")
    matrices = [weight.matrix for weight in weights]
    layout = layout_of(matrices)
    plan = plan_of(key, owner, layout)
    if not reference:
        done, cost = embed(matrices, plan), None
        made = with_weights(data, done.matrices)
    else:
        interface, rows = _runnable(data), load_rows(reference, "the reference data")
        done = embed(matrices, plan, _moments(data, interface, weights, rows[::2]))
        made = with_weights(data, done.matrices)
        cost = _cost(data, made, interface, rows[1::2] if len(rows) > 1 else rows)
    if read([weight.matrix for weight in weights_of(made)], plan).matched < BITS:
        raise Invalid("the numbers of the file are too coarse to hold a mark: mark the model before its precision is reduced")
    carrying = sum(rows * columns for rows, columns in layout)
    return MarkEmbedded(made, digest_of(made), commitment(key, owner, layout).hex(), carrying, done.change, done.largest, cost)


def model_layout(data: bytes, what: str) -> Layout:
    """The layout that the weights of a marked model have. Raises Invalid."""
    return layout_of([weight.matrix for weight in onnx_weights(data, what)])


def read_mark(data: bytes, plan: Plan, what: str) -> Reading:
    """What an ONNX model shows of a mark; it is not run. Raises Invalid (no ONNX model, or of another architecture)."""
    return read([weight.matrix for weight in onnx_weights(data, what)], plan)


def onnx_weights(data: bytes, what: str) -> tuple[Weight, ...]:
    """The weights in an ONNX file. Raises Invalid, in words that call the file ``what``."""
    kind = detect(data[:4096])
    if kind is not Format.ONNX:
        raise Invalid(f"{what} is {kind.article}, and weight marks are in ONNX models")
    if parse_onnx(data).external:
        raise Invalid(f"{what} keeps weights in other files: write it as one file, with its tensors inside")
    return weights_of(data)


def _runnable(data: bytes) -> ModelSignature:
    verdict = scan(data, "the model")
    found = refusal(verdict, "the model")
    if found is not None:
        raise NotTrusted(f"the model is not run, because it is not clean: {found.message}")
    return interface_of(verdict)


def _moments(data: bytes, interface: ModelSignature, weights: Sequence[Weight], rows: Rows) -> list[Floats | None]:
    """Second moments of what each weight is multiplied with, over ``rows``; None where that is wide, or split in groups."""
    inputs = {spec.name for spec in interface.inputs}
    wanted = [weight for weight in weights if weight.matrix.shape[1] <= WIDEST and weight.groups == 1]
    open_model = data
    for name in {weight.given for weight in wanted} - inputs:
        open_model = with_output(open_model, name)
    predictor = Predictor(OnnxRuntime(open_model), interface, rows)
    sums: dict[str, Floats] = {}
    for answer in predictor.answers(rows):
        for weight in wanted:
            seen = _seen(answer, weight)
            if seen is not None:
                sums[weight.name] = sums.get(weight.name, 0.0) + seen.T @ seen
    return [sums.get(weight.name) for weight in weights]


def _seen(answer: Mapping[str, NDArray[Any]], weight: Weight) -> Floats | None:
    """What ``weight`` is multiplied with, as rows (n, in): of a convolution its windows, those over the border left out."""
    given, kernel = answer[weight.given], weight.kernel
    if given.dtype.kind != "f" or given.ndim < 2:
        return None
    if kernel:
        axes = tuple(range(2, 2 + len(kernel)))
        if given.ndim != 2 + len(kernel) or any(given.shape[at] < size for at, size in zip(axes, kernel, strict=True)):
            return None
        windows = np.lib.stride_tricks.sliding_window_view(given, kernel, axes)
        given = np.moveaxis(windows, 1, 1 + len(kernel)).reshape(-1, given.shape[1] * int(np.prod(kernel)))
        given = given[:: -(-len(given) // _WINDOWS)]
    flat = given.reshape(-1, given.shape[-1]).astype(np.float64)
    return flat if flat.shape[1] == weight.matrix.shape[1] and np.isfinite(flat).all() else None


def _cost(before: bytes, after: bytes, interface: ModelSignature, rows: Rows) -> MarkCost:
    one, other = (Predictor(OnnxRuntime(model), interface, rows) for model in (before, after))
    if not one.classifies:
        was, now = one.numbers(rows), other.numbers(rows)
        return MarkCost(len(rows), 0.0, float(np.abs(was - now).max(initial=0.0)))
    was, now = one.probabilities(rows), other.probabilities(rows)
    changed = float((was.argmax(axis=1) != now.argmax(axis=1)).mean())
    return MarkCost(len(rows), changed, float(np.abs(was - now).max(initial=0.0)))
