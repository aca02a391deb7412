"""Turn a fitted scikit-learn model into ONNX, in the process that holds it.

This file is also the program that a confined interpreter runs on a pickle (adapters/converting.py): it needs scikit-learn,
skl2onnx and numpy, and nothing of modelkeep. Loading a pickle runs it, so that is all that this process may be trusted with;
what it says on its standard output is checked by whoever started it.

What it is given: eight bytes with the length of the pickle, the pickle, and reference rows as float32. What it says: eight
bytes with the length of a JSON head, the head, the ONNX file, and what the original answers to the rows: probabilities or
values as float64, then labels as one JSON array.
"""

import io
import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OPSET = 18
PACKAGES = ("scikit-learn", "skl2onnx", "onnx", "numpy", "scipy", "joblib")
"""Those that decide what comes out."""


def sklearn_to_onnx(estimator: Any, example: Any) -> bytes:
    """The fitted ``estimator`` (a pipeline, too) as an ONNX file whose ends are plain tensors.

    ``example``: rows as an array (n, d), which become one input ``X``, FP32 or text; or columns by name (a mapping, a data
    frame), each an input of its own of shape (n, 1): texts, whole numbers, or FP32. A classifier gives ``label`` and
    ``probabilities``.
    Raises TypeError, ValueError, RuntimeError and what skl2onnx raises, when it cannot be converted.
    """
    import skl2onnx
    from sklearn.base import is_classifier

    options = {id(estimator): {"zipmap": False}} if is_classifier(estimator) else None
    made = skl2onnx.to_onnx(estimator, initial_types=_inputs(example), options=options, target_opset=OPSET)
    return bytes(made.SerializeToString())


def _inputs(example: Any) -> list[tuple[str, Any]]:
    import numpy as np
    from skl2onnx.common import data_types as kinds

    if isinstance(example, np.ndarray) and example.ndim == 2 and example.dtype.kind in "fiubOU":
        kind = kinds.StringTensorType if example.dtype.kind in "OU" else kinds.FloatTensorType
        return [("X", kind([None, example.shape[1]]))]
    if not isinstance(example, Mapping) and not hasattr(example, "columns"):
        raise TypeError("the example has to be rows of numbers or of texts, of shape (n, features), or columns by name")
    names = list(example) if isinstance(example, Mapping) else list(example.columns)
    by_kind = {"f": kinds.FloatTensorType, "i": kinds.Int64TensorType, "u": kinds.Int64TensorType, "b": kinds.BooleanTensorType}
    return [(str(name), by_kind.get(np.asarray(example[name]).dtype.kind, kinds.StringTensorType)([None, 1])) for name in names]


def answers(estimator: Any, rows: Any) -> tuple[Any, list[str] | None]:
    """What the original answers to ``rows``: probabilities (n, k) with a label each, or values (n, m) and no labels."""
    import numpy as np

    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(rows), np.float64), [str(one) for one in estimator.predict(rows)]
    return np.asarray(estimator.predict(rows), np.float64).reshape(len(rows), -1), None


def versions() -> dict[str, str]:
    """Of Python, and of the packages that decide what comes out."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# -- what follows runs in the confined interpreter --


def _main(path: str, columns: str) -> None:
    os.environ.update(JOBLIB_MULTIPROCESSING="0")  # there are no semaphores here
    import joblib
    import numpy as np
    from sklearn.base import BaseEstimator

    say = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints
    with open(path, "rb") as stream:  # noqa: PTH123  # this file stands alone
        data = stream.read()
    size = int.from_bytes(data[:8], "little")
    rows = np.frombuffer(data[8 + size :], np.float32).reshape(-1, int(columns))
    estimator = joblib.load(io.BytesIO(data[8 : 8 + size]))
    if not isinstance(estimator, BaseEstimator):
        raise TypeError(f"it holds a {type(estimator).__name__}, and no model of scikit-learn: pickle the fitted model alone")
    onnx = sklearn_to_onnx(estimator, rows)
    values, labels = answers(estimator, rows)
    tail = json.dumps(labels).encode()
    head = {"onnx": len(onnx), "values": list(values.shape), "labels": len(tail), "versions": versions()}
    text = json.dumps(head).encode()
    for part in (len(text).to_bytes(8, "little"), text, onnx, np.ascontiguousarray(values).tobytes(), tail):
        say.write(part)
    say.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
