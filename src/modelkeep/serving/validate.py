"""Requests against the model's own signature, and against what its inputs usually look like.

``InputPlan``: names, number of inputs, datatype, rank, each fixed dimension, element count, finite numbers and one common
number of rows; what passes is exactly what the model takes. ``Usual``: the ranges and sets learnt from the reference data.
Both are compiled once per model; a check is a handful of comparisons.
"""

import math
from typing import Any, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, TooLarge
from modelkeep.serving.oip import DATATYPES, InputTensor, Question, dtype_of
from modelkeep.serving.ranges import RangeCheck, Ranges

MAX_ROWS = 1024
_FLOATING = ("FP16", "FP32", "FP64")


class Checked(msgspec.Struct, frozen=True):
    """A request that fits the model. ``feeds``: arrays by input name; ``rows``: queries it asks, each counted on its own."""

    feeds: dict[str, NDArray[Any]]
    rows: int


class _Input(msgspec.Struct, frozen=True):
    """One input, and what a request of one row has: its ``shape`` ([] where a dimension is free) and ``size`` in numbers."""

    spec: TensorSpec
    floating: bool
    shape: list[int]
    size: int

    @classmethod
    def of(cls, spec: TensorSpec, *, batched: bool) -> Self:
        """The input that ``spec`` describes; ``batched``: its first dimension counts rows."""
        shape = [1, *spec.shape[1:]] if batched else list(spec.shape)
        known = shape if min(shape, default=0) > 0 else []
        return cls(spec, spec.datatype in _FLOATING, known, math.prod(known))


class InputPlan:
    """The inputs of one model, compiled for checking.

    ``max_rows``: most rows of one batch; ``features``: numbers in one row, where the evidence needs just as many (None = as
    many as the signature lets through). Raises Invalid if the signature has a datatype that the protocol lacks.
    """

    def __init__(self, signature: ModelSignature, *, max_rows: int = MAX_ROWS, features: int | None = None) -> None:
        for spec in signature.inputs:
            if spec.datatype not in DATATYPES:
                raise Invalid(f"input {spec.name!r} has datatype {spec.datatype!r}, which cannot be served")
        self._max_rows = max_rows
        self._batched = bool(signature.inputs) and all(spec.shape[:1] == (-1,) for spec in signature.inputs)
        self._specs = {spec.name: _Input.of(spec, batched=self._batched) for spec in signature.inputs}
        narrow = all(spec.datatype == "FP32" for spec in signature.inputs)
        self._dtype = np.dtype(np.float32 if narrow else np.float64)
        self._single = narrow and len(signature.inputs) == 1
        self.texts = any(spec.datatype == "BYTES" for spec in signature.inputs)
        self.numeric = tuple(spec.name for spec in signature.inputs if spec.datatype != "BYTES")
        inner = [size for spec in signature.inputs for size in (spec.shape[1:] if self._batched else spec.shape)]
        self._features = features if min(inner, default=0) < 0 else None  # fixed dimensions say it themselves

    @property
    def dtype(self) -> np.dtype[Any]:
        """What ``matrix`` gives: float32 when every input is FP32, float64 otherwise."""
        return self._dtype

    def check(self, request: Question) -> Checked:
        """The request's inputs as arrays of the model's own dtypes and shapes. Raises Invalid, TooLarge."""
        feeds: dict[str, NDArray[Any]] = {}
        rows = 0
        for tensor in request.inputs:
            found = self._specs.get(tensor.name)
            if found is None or tensor.name in feeds:
                raise self._stranger(tensor.name, twice=found is not None)
            shape = tensor.shape
            first = shape[0] if self._batched and shape else 1
            if rows and first != rows:
                raise Invalid(f"the inputs disagree on the number of rows: {rows} and {first}")
            rows = first
            if not 0 < rows <= self._max_rows:
                raise self._rows(rows)
            feeds[tensor.name] = _array(found, tensor)
        if len(feeds) != len(self._specs):
            missing = next(name for name in self._specs if name not in feeds)
            raise Invalid(f"input {missing!r} is missing")
        if self._features is not None:
            self._check_width(feeds, rows)
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

    def spread(self, x: NDArray[Any], checked: Checked) -> dict[str, NDArray[Any]]:
        """Feeds for the rows ``x``, shape (n, features), laid out as ``matrix`` does; texts are those of ``checked``, one row.

        Numbers are brought to the dtype of their input, integers by rounding to the nearest that there is.
        """
        feeds, at = {}, 0
        for name, one in checked.feeds.items():
            feeds[name] = np.repeat(one, len(x), axis=0)
        for name in self.numeric:
            one = checked.feeds[name]
            feeds[name] = _as_dtype(x[:, at : at + one.size], one.dtype).reshape(len(x), *one.shape[1:])
            at += one.size
        return feeds

    def place(self, checked: Checked, column: int) -> str:
        """Where column ``column`` of ``matrix`` stands, in words: ``value 3 of input 'X'``, counted from 0."""
        for name in self.numeric:
            size = checked.feeds[name].size // checked.rows
            if column < size:
                return f"value {column} of input {name!r}" if size > 1 else f"input {name!r}"
            column -= size
        raise IndexError(column)

    def probe(self, features: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        """One row to try a model with: ``features`` (its numeric inputs, flattened) if they fit, zeros otherwise.

        Every free dimension is 1; texts are empty.
        """
        row = {name: _zeros(found.spec) for name, found in self._specs.items()}
        if features is not None and sum(row[name].size for name in self.numeric) == features.size:
            at = 0
            for name in self.numeric:
                part = features.ravel()[at : at + row[name].size]
                row[name] = part.astype(row[name].dtype).reshape(row[name].shape)
                at += part.size
        return row

    def _check_width(self, feeds: dict[str, NDArray[Any]], rows: int) -> None:
        width = sum(feeds[name].size for name in self.numeric) // rows
        if width != self._features:
            raise Invalid(f"a row has {width} numbers, and this release was calibrated on rows of {self._features}")

    def _stranger(self, name: str, *, twice: bool) -> Invalid:
        if twice:
            return Invalid(f"input {name!r} is given twice")
        return Invalid(f"the model has no input {name[:60]!r}; it takes {', '.join(self._specs)}")

    def _rows(self, rows: int) -> Invalid:
        if rows > self._max_rows:
            return TooLarge(f"{rows} rows are more than the {self._max_rows} that one request may ask")
        return Invalid("the request has no rows")


class RangePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an input outside of what was learnt. ``tolerance``: share of a value's usual width that it may lie
    outside its range; ``tell``: what a refusal names."""

    action: Literal["refuse", "record", "off"] = "record"
    tolerance: float = 1.0
    tell: Literal["nothing", "feature", "bounds"] = "feature"


class Usual:
    """What the inputs of one model usually look like, and what becomes of those that do not."""

    def __init__(self, ranges: Ranges, inputs: InputPlan, policy: RangePolicy) -> None:
        self._check = RangeCheck(ranges, policy.tolerance, inputs.dtype)
        self._inputs, self._policy = inputs, policy

    def check(self, checked: Checked, x: NDArray[Any]) -> bool:
        """Whether every row of ``x``, the matrix of ``checked``, looks like the reference data. Raises Invalid if one does not
        and the policy is to refuse."""
        found = self._check.outside(x)
        if found is not None and self._policy.action == "refuse":
            raise Invalid(self._refusal(checked, found))
        return found is None

    def _refusal(self, checked: Checked, column: int) -> str:
        if self._policy.tell == "nothing":
            return "an input is outside of what this model's reference data cover"
        said = f"{self._inputs.place(checked, column)} is outside of what this model's reference data cover"
        if self._policy.tell == "feature":
            return said
        low, high = self._check.bounds(column)
        return (
            f"{said}, {low:.6g} to {high:.6g}{', or is none of the few values that they have' if column in self._check else ''}"
        )


def usual(ranges: Ranges | None, inputs: InputPlan, policy: RangePolicy) -> Usual | None:
    """The check of one release; None when nothing was learnt, or the policy is to look at nothing."""
    return None if ranges is None or policy.action == "off" else Usual(ranges, inputs, policy)


def _as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind not in "iu":
        return np.ascontiguousarray(values.astype(dtype))
    info = np.iinfo(dtype)
    most = float(info.max) if int(float(info.max)) <= info.max else math.nextafter(float(info.max), 0.0)
    whole: NDArray[Any] = np.rint(np.clip(values, float(info.min), most)).astype(dtype)
    return whole


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


def _array(known: _Input, tensor: InputTensor) -> NDArray[Any]:
    spec, size = known.spec, known.size
    if not size or tensor.shape != known.shape or tensor.datatype != spec.datatype:
        _check_shape(spec, tensor)
        size = math.prod(tensor.shape)
    flat = tensor.values(spec.datatype)
    if flat.size != size:
        raise Invalid(f"input {spec.name!r} has {flat.size} values, its shape {tensor.shape} needs {size}")
    if known.floating and not (tensor.finite and spec.datatype != "FP16") and not _finite(flat):
        raise Invalid(f"input {spec.name!r} has a number that does not fit {spec.datatype}")
    if spec.datatype == "BYTES":
        flat = _texts(spec.name, flat)
    return flat.reshape(tensor.shape)


def _finite(flat: NDArray[Any]) -> bool:
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())  # the sum of squares alone is quicker


def _texts(name: str, flat: NDArray[Any]) -> NDArray[Any]:
    try:
        return np.array([item.decode() for item in flat] or [], dtype=object)
    except UnicodeDecodeError:
        raise Invalid(f"input {name!r}: a text is not UTF-8") from None


def _words(spec: TensorSpec) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in spec.shape) + "]"
