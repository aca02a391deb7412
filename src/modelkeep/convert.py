"""``modelkeep.convert``: ONNX of a model that you hold, made in your own process. Nothing is unpickled."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.app.fidelity import compare
from modelkeep.errors import Invalid


def from_sklearn(estimator: Any, example: Any) -> bytes:
    """The fitted scikit-learn ``estimator`` (a pipeline, too) as the bytes of an ONNX file, fit for ``modelkeep publish``.

    ``example``: some rows: an array (n, d), which become one input ``X``, FP32 or text; or columns by name (a data frame, a
    mapping of arrays), each an input of its own: texts, whole numbers, or FP32. A classifier gives ``label`` and
    ``probabilities``. Both are asked the example: every label must be the same, unless the original holds two for as probable,
    and no number may differ by more than 1e-4.

    Raises Invalid (skl2onnx is not installed, or cannot convert it), NotTrusted (they do not answer alike).
    """
    try:
        from modelkeep.adapters.conversion import answers, sklearn_to_onnx

        onnx = sklearn_to_onnx(estimator, example)
    except ImportError as cause:
        raise Invalid(f"converting scikit-learn needs skl2onnx: 'pip install modelkeep[lab]' ({cause})") from cause
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as cause:
        raise Invalid(f"{type(estimator).__name__} cannot be converted: {' '.join(str(cause).split())[:300]}") from cause
    values, labels = answers(estimator, example)
    compare(onnx, _feeds(example), values, labels)
    return onnx


def _feeds(example: Any) -> dict[str, NDArray[Any]]:
    if isinstance(example, np.ndarray):
        return {"X": example.astype(object if example.dtype.kind in "OU" else np.float32)}
    names = list(example) if isinstance(example, Mapping) else list(example.columns)
    return {str(name): _column(np.asarray(example[name])) for name in names}


def _column(values: NDArray[Any]) -> NDArray[Any]:
    kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}.get(values.dtype.kind, object)
    return values.astype(kind).reshape(-1, 1)
