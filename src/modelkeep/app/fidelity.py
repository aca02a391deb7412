"""Whether a converted model answers as the original does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.errors import NotTrusted

TOLERANCE = 1e-4
"""Greatest difference of a probability, or of a value beside its size, that both may have."""


def compare(onnx: bytes, feeds: Mapping[str, NDArray[Any]], values: NDArray[np.float64], labels: list[str] | None) -> float:
    """The greatest difference between the answers of ``onnx`` to ``feeds`` and what the original gave.

    ``values``: probabilities or values, shape (n, k); ``labels``: of a classifier, as text: then the outputs are called
    ``label`` and ``probabilities``, as skl2onnx has them, else there is one. Raises NotTrusted: they do not answer alike.
    """
    found = OnnxRuntime(onnx).run(feeds)
    if labels is not None:
        given = [one.decode() if isinstance(one, bytes) else str(one) for one in found["label"].ravel().tolist()]
        top = np.sort(values, axis=1)[:, -2:]
        tied = np.ptp(top, axis=1) <= TOLERANCE  # then the last bit of a sum decides, in the original as well
        differ = int((~tied & np.array([one != other for one, other in zip(given, labels, strict=True)])).sum())
        if differ:
            raise NotTrusted(f"the converted model gives another label to {differ} of {len(labels)} rows")
    rest = found["probabilities"] if labels is not None else next(iter(found.values()))
    return differences(rest.reshape(len(values), -1), values)


def differences(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The greatest difference between two answers, beside their size when that is above 1. Raises NotTrusted: too great."""
    one, other = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if one.shape != other.shape or not np.isfinite(one).all():
        raise NotTrusted(f"the converted model answers in the shape {one.shape}, the original in {other.shape}")
    difference = float((np.abs(one - other) / np.maximum(1.0, np.abs(other))).max(initial=0.0))
    if difference > TOLERANCE:
        raise NotTrusted(f"the converted model differs by {difference:.2g} from the original, more than {TOLERANCE:g}")
    return difference
