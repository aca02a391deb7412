"""Requests against the model's own signature: what passes here is exactly what the model takes.

Names, number of inputs, datatype, rank, each fixed dimension, element count, finite numbers and one common number of rows.
Compiled once per model; a check is a handful of comparisons.
"""

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, TooLarge
from modelkeep.serving.oip import DATATYPES, InputTensor, Question, dtype_of

MAX_ROWS = 1024
_FLOATING = ("FP16", "FP32", "FP64")


class Checked(msgspec.Struct, frozen=True):
    """A request that fits the model. ``feeds``: arrays by input name; ``rows``: queries it asks, each counted on its own."""

    feeds: dict[str, NDArray[Any]]
    rows: int


class InputPlan:
    """The inputs of one model, compiled for checking.

    ``max_rows``: most rows of one batch. Raises Invalid if the signature has a datatype that the protocol lacks.
    """

    def __init__(self, signature: ModelSignature, *, max_rows: int = MAX_ROWS) -> None:
        for spec in signature.inputs:
            if spec.datatype not in DATATYPES:
                raise Invalid(f"input {spec.name!r} has datatype {spec.datatype!r}, which cannot be served")
        self._specs = {spec.name: (spec, spec.datatype in _FLOATING) for spec in signature.inputs}
        self._max_rows = max_rows
        self._batched = bool(signature.inputs) and all(spec.shape[:1] == (-1,) for spec in signature.inputs)
        narrow = all(spec.datatype == "FP32" for spec in signature.inputs)
        self._dtype = np.dtype(np.float32 if narrow else np.float64)
        self._single = narrow and len(signature.inputs) == 1
        self.numeric = tuple(spec.name for spec in signature.inputs if spec.datatype != "BYTES")

    def check(self, request: Question) -> Checked:
        """The request's inputs as arrays of the model's own dtypes and shapes. Raises Invalid, TooLarge."""
        feeds: dict[str, NDArray[Any]] = {}
        rows = 0
        for tensor in request.inputs:
            found = self._specs.get(tensor.name)
            if found is None or tensor.name in feeds:
                raise self._stranger(tensor.name, twice=found is not None)
            spec, floating = found
            shape = tensor.shape
            first = shape[0] if self._batched and shape else 1
            if rows and first != rows:
                raise Invalid(f"the inputs disagree on the number of rows: {rows} and {first}")
            rows = first
            if not 0 < rows <= self._max_rows:
                raise self._rows(rows)
            _check_shape(spec, tensor)
            feeds[tensor.name] = _array(spec, tensor, floating)
        if len(feeds) != len(self._specs):
            missing = next(name for name in self._specs if name not in feeds)
            raise Invalid(f"input {missing!r} is missing")
        return Checked(feeds, rows)

    def matrix(self, checked: Checked) -> NDArray[Any]:
        """The numeric inputs as one matrix, shape (rows, features): inputs in signature order, each row flattened.

        float32 when every input is FP32 (nothing is lost), float64 otherwise.
        """
        feeds, rows = checked.feeds, checked.rows
        if self._single:
            return feeds[self.numeric[0]].reshape(rows, -1)
        if not self.numeric:
            return np.empty((rows, 0), self._dtype)
        return np.concatenate([feeds[name].reshape(rows, -1) for name in self.numeric], axis=1, dtype=self._dtype)

    def probe(self, features: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        """One row to try a model with: ``features`` (its numeric inputs, flattened) if they fit, zeros otherwise.

        Every free dimension is 1; texts are empty.
        """
        row = {name: _zeros(spec) for name, (spec, _) in self._specs.items()}
        if features is not None and sum(row[name].size for name in self.numeric) == features.size:
            at = 0
            for name in self.numeric:
                part = features.ravel()[at : at + row[name].size]
                row[name] = part.astype(row[name].dtype).reshape(row[name].shape)
                at += part.size
        return row

    def _stranger(self, name: str, *, twice: bool) -> Invalid:
        if twice:
            return Invalid(f"input {name!r} is given twice")
        return Invalid(f"the model has no input {name[:60]!r}; it takes {', '.join(self._specs)}")

    def _rows(self, rows: int) -> Invalid:
        if rows > self._max_rows:
            return TooLarge(f"{rows} rows are more than the {self._max_rows} that one request may ask")
        return Invalid("the request has no rows")


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    return np.full(shape, "", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, dtype_of(spec.datatype))


def _check_shape(spec: TensorSpec, tensor: InputTensor) -> None:
    if tensor.datatype != spec.datatype:
        raise Invalid(f"input {spec.name!r} has datatype {tensor.datatype[:20]!r}, the model takes {spec.datatype}")
    if len(tensor.shape) != len(spec.shape):
        raise Invalid(f"input {spec.name!r} has {len(tensor.shape)} dimensions, the model takes {_words(spec)}")
    for got, want in zip(tensor.shape, spec.shape, strict=True):
        if got != want and want >= 0:
            raise Invalid(f"input {spec.name!r} has shape {tensor.shape}, the model takes {_words(spec)}")


def _array(spec: TensorSpec, tensor: InputTensor, floating: bool) -> NDArray[Any]:
    flat = tensor.values(spec.datatype)
    if flat.size != math.prod(tensor.shape):
        raise Invalid(f"input {spec.name!r} has {flat.size} values, its shape {tensor.shape} needs {math.prod(tensor.shape)}")
    if floating and not (math.isfinite(flat.dot(flat)) or np.isfinite(flat).all()):  # the sum of squares alone is quicker
        raise Invalid(f"input {spec.name!r} has a number that does not fit {spec.datatype}")
    if spec.datatype == "BYTES":
        flat = _texts(spec.name, flat)
    return flat.reshape(tensor.shape)


def _texts(name: str, flat: NDArray[Any]) -> NDArray[Any]:
    try:
        return np.array([item.decode() for item in flat] or [], dtype=object)
    except UnicodeDecodeError:
        raise Invalid(f"input {name!r}: a text is not UTF-8") from None


def _words(spec: TensorSpec) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in spec.shape) + "]"
