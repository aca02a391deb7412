"""What an inner layer of the model makes of a question: its leading directions, which leave the runtime in place of the layer.

A model learnt to see in its inner layers what matters of its inputs, so that a row which the model finds strange is far from
real rows there, also when it is near to them in the numbers that it was asked with, such as a picture that is upside down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction.features import Embedding, fit_embedding

Floats = NDArray[np.float64]

DIRECTIONS = 16
"""Numbers of a layer that are looked at, and stand in the record of an answer."""
WIDEST_LAYER = 16_384
"""A layer with more values a row, such as one of a picture's size, has too many directions to keep."""
_ROWS = 1500


@dataclass(frozen=True, slots=True, eq=False)
class Inner:
    """An inner tensor called ``tensor``, and ``of``: rows (b, d) to its values (b, w)."""

    tensor: str
    of: Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """``tensor``: its name in the graph; ``centre``: (w,); ``basis``: (w, r), orthonormal, r at most 16; ``embedding``: of the
    r coordinates."""

    tensor: str
    centre: Floats
    basis: Floats
    embedding: Embedding

    @property
    def directions(self) -> int:
        """How many coordinates it has."""
        return int(self.basis.shape[1])

    def strangeness(self, hidden: NDArray[np.float32]) -> Floats:
        """How far coordinates (b, r) are from those of the nearest real rows, standardised over real rows. Shape (b,)."""
        return self.embedding.features(np.asarray(hidden, dtype=np.float64), None)[:, -5]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Named arrays for the profile's file."""
        out: dict[str, NDArray[np.generic]] = {f"layer.{f.name}": getattr(self.embedding, f.name) for f in fields(Embedding)}
        name = np.frombuffer(self.tensor.encode(), dtype=np.uint8).astype(np.int64)
        return out | {"layer.tensor": name, "layer.origin": self.centre, "layer.basis_of_layer": self.basis}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> "Layer | None":
        """Rebuild from ``to_arrays``; None when there is no layer among them. Raises KeyError, ValueError (they do not fit)."""
        if "layer.tensor" not in arrays:
            return None
        name = bytes(arrays["layer.tensor"].astype(np.uint8).tolist()).decode()
        embedding = Embedding(**{f.name: arrays[f"layer.{f.name}"] for f in fields(Embedding)})
        found = cls(name, arrays["layer.origin"], arrays["layer.basis_of_layer"], embedding)
        wide, count = found.basis.shape
        if found.centre.shape != (wide,) or embedding.basis.shape[0] != count or not 0 < count <= DIRECTIONS:
            raise ValueError("layer")
        return found

    def project(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Coordinates (b, r) of what the tensor held, shape (b, ...), bounded; what is no number is as far away as can be.
        Raises Invalid (another width).
        """
        flat = values.reshape(len(values), -1)
        if flat.shape[1] != len(self.centre):
            raise Invalid(f"the inner layer {self.tensor[:60]!r} has {flat.shape[1]} values a row, not {len(self.centre)}")
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.nan_to_num((flat - self.centre) @ self.basis, nan=_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
        return np.clip(found, -_LARGEST, _LARGEST).astype(np.float32)


_LARGEST = 1e30


def fit_layer(inner: Inner, rows: Floats, rng: np.random.Generator) -> Layer:
    """The leading directions of the layer over real ``rows`` (n, d). Raises Invalid (too wide, not finite, constant)."""
    values = np.asarray(inner.of(rows), dtype=np.float64)
    values = values.reshape(len(values), -1)
    if len(values) != len(rows) or values.shape[1] > WIDEST_LAYER:
        raise Invalid(
            f"the inner layer {inner.tensor[:60]!r} has the shape {values.shape} for {len(rows)} rows: choose one with at most "
            f"{WIDEST_LAYER} values a row"
        )
    if not np.isfinite(values).all():
        raise Invalid(f"the inner layer {inner.tensor[:60]!r} holds numbers that are not finite for some of the reference rows")
    centre = values.mean(axis=0)
    some = values[rng.permutation(len(values))[:_ROWS]] - centre
    _, strength, directions = np.linalg.svd(some, full_matrices=False)
    count = min(DIRECTIONS, int((strength > 1e-6 * max(strength[0], 1e-300)).sum()))
    if strength[0] <= 1e-12 * max(1.0, float(np.abs(centre).max())):
        raise Invalid(f"the inner layer {inner.tensor[:60]!r} is the same for all reference rows: choose another")
    blank = Layer(inner.tensor, centre, directions[:count].T.copy(), _nothing())
    return Layer(inner.tensor, centre, blank.basis, fit_embedding(blank.project(values).astype(np.float64), None, rng))


def _nothing() -> Embedding:
    empty = np.empty(0)
    return Embedding(empty, empty, empty, empty, empty, empty, empty, empty, empty)
