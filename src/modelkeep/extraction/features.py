"""What the evidence looks at: one row and its answer become a short vector on which real and synthetic rows differ."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_COMPONENTS = 48
MAX_MEMORY = 800
Z_CLIP = 12.0
SELF = 0.05
"""Deviations a column by which a row may differ from a memory row and still be it: above the null's rounding and jitter."""
SLICE = 16
"""Rows that are compared with the memory at once: larger tables go back to the system each time, which costs twice the work."""
EXTRA = 10
"""Features after the principal components: residual, three bands, three distances, two edges, margin."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Standardisation, principal components and a memory of real rows.

    ``mean``, ``scale``: shape (d,); ``basis``: (d, r), orthonormal; ``spread``: (r,), deviation along each component, floored;
    ``memory``: (m, r) projections of training rows; ``low``, ``high``: (d,) ranges of the training rows;
    ``centre``, ``width``: (r + 10,) that standardise the finished features over real rows.
    """

    mean: Floats
    scale: Floats
    basis: Floats
    spread: Floats
    memory: Floats
    low: Floats
    high: Floats
    centre: Floats
    width: Floats

    def project(self, x: Floats) -> tuple[Floats, Floats]:
        """Standardised rows (b, d) clipped to ±12 deviations, and their principal coordinates (b, r)."""
        z = np.clip((x - self.mean) / self.scale, -Z_CLIP, Z_CLIP)
        return z, z @ self.basis

    def raw(self, x: Floats, probs: Floats | None) -> Floats:
        """Features (b, r + 10) before standardisation.

        A memory row within measurement noise of ``x`` is taken for ``x`` itself and left out of the distances: an account that
        asks the reference rows themselves is no thief, and in training every row would otherwise be its own neighbour.
        """
        z, t = self.project(x)
        white = np.clip(t / self.spread, -6.0, 6.0)
        square = (t / self.spread) ** 2
        residual = np.maximum((z * z).sum(axis=1) - (t * t).sum(axis=1), 0.0)
        third = max(1, t.shape[1] // 3)
        bands = [np.log(part.mean(axis=1) + 1e-3) for part in (square[:, :third], square[:, third:-third], square[:, -third:])]
        six = nearest(t, self.memory, 6)
        near = np.where(six[:, :1] <= SELF * math.sqrt(len(self.mean)), six[:, 1:], six[:, :-1])
        whole = np.sqrt((t * t).sum(axis=1)) + 1e-3
        slack = np.maximum(0.03 * (self.high - self.low), 0.06 * self.scale)
        edges = ((x <= self.low + slack).mean(axis=1), (x >= self.high - slack).mean(axis=1))
        columns = [
            np.log(residual / len(self.mean) + 1e-3),
            *bands,
            np.log(near[:, 0] + 1e-2),
            np.log(near.mean(axis=1) + 1e-2),
            np.log(near.mean(axis=1) / whole + 1e-2),
            *edges,
            margin(probs) if probs is not None else np.zeros(len(x)),
        ]
        return np.concatenate([white, np.stack(columns, axis=1)], axis=1)

    def features(self, x: Floats, probs: Floats | None) -> Floats:
        """Standardised features, shape (b, r + 10), clipped to ±8."""
        out: Floats = np.clip((self.raw(x, probs) - self.centre) / self.width, -8.0, 8.0)
        return out


def margin(probs: Floats) -> Floats:
    """log(p1 / p2) of each row's two largest probabilities, clipped to 0 ... 12. One column (not a class model) gives zeros."""
    if probs.shape[1] < 2:
        return np.zeros(len(probs))
    two = np.partition(probs, -2, axis=1)[:, -2:]
    out: Floats = np.clip(np.log((two[:, 1] + 1e-9) / (two[:, 0] + 1e-9)), 0.0, 12.0)
    return out


def nearest(points: Floats, memory: Floats, count: int) -> Floats:
    """Euclidean distances to the ``count`` nearest memory rows, ascending, shape (b, count)."""
    count = min(count, len(memory))
    found = np.empty((len(points), count))
    own, theirs = (points * points).sum(axis=1)[:, None], (memory * memory).sum(axis=1)
    for at in range(0, len(points), SLICE):
        rows = slice(at, at + SLICE)
        square = own[rows] + theirs
        square -= 2.0 * points[rows] @ memory.T
        square.partition(count - 1, axis=1)
        found[rows] = square[:, :count]
    found.sort(axis=1)
    out: Floats = np.sqrt(np.maximum(found, 0.0))
    return out


def fit_embedding(rows: Floats, probs: Floats | None, rng: np.random.Generator) -> Embedding:
    """Learn the embedding from real ``rows`` (n, d) and the model's answers to them."""
    mean = rows.mean(axis=0)
    deviation = rows.std(axis=0)
    fallback = np.where(np.abs(mean) > 0, np.abs(mean), 1.0)
    alive = deviation > 1e-9 * fallback
    typical = float(np.median(deviation[alive])) if alive.any() else 1.0
    scale = np.where(alive, deviation, np.where(alive.mean() > 0.2, typical, fallback))
    z = np.clip((rows - mean) / scale, -Z_CLIP, Z_CLIP)
    _, singular, directions = np.linalg.svd(z, full_matrices=False)
    count = min(MAX_COMPONENTS, len(directions), max(1, len(rows) // 4))
    variance = singular**2 / max(1, len(rows) - 1)
    spread = np.sqrt(variance[:count] + 0.002 * variance.mean())
    basis = directions[:count].T.copy()
    chosen = rng.permutation(len(rows))[:MAX_MEMORY]
    size = count + EXTRA
    blank = Embedding(
        mean=mean,
        scale=scale,
        basis=basis,
        spread=spread,
        memory=z[chosen] @ basis,
        low=rows.min(axis=0),
        high=rows.max(axis=0),
        centre=np.zeros(size),
        width=np.ones(size),
    )
    raw = blank.raw(rows[chosen], None if probs is None else probs[chosen])
    return Embedding(
        mean=blank.mean,
        scale=blank.scale,
        basis=blank.basis,
        spread=blank.spread,
        memory=blank.memory,
        low=blank.low,
        high=blank.high,
        centre=raw.mean(axis=0),
        width=raw.std(axis=0) + 0.05,
    )
