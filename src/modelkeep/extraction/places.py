"""Where an account has asked: coordinates in which only a row within measurement noise of another counts as its repeat.

The leading principal coordinates alone would let a thief move along everything they leave out and be taken for repeating
himself. So the rest of the row counts through directions that only the sealed profile gives away: random signs, from a hash of
its memory of real rows, made orthonormal to the leading directions and to each other. All directions are unit vectors of
standardised columns, so noise of s deviations a column moves each coordinate by s, and a step hidden from the leading ones
keeps sqrt(16 / columns left) of its length in the mean (Johnson and Lindenstrauss 1984). Distances depend on the subspace
alone, not on the basis that linear algebra finds for it: the same profile judges the same everywhere.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.features import Z_CLIP, Embedding

Floats = NDArray[np.float64]

LEADING = 16
HIDDEN = 16
DIMENSIONS = LEADING + HIDDEN
_LARGEST = 1e300


class Places:
    """Maps rows to their places. Immutable; build it once for a profile."""

    def __init__(self, embedding: Embedding) -> None:
        """Deterministic in ``embedding``."""
        self._mean, self._scale = embedding.mean, embedding.scale
        leading = embedding.basis[:, :LEADING]
        columns = len(leading)
        hidden = min(HIDDEN, columns - leading.shape[1])
        size = (columns * hidden + 7) // 8
        secret = hashlib.shake_256(np.ascontiguousarray(embedding.memory, dtype="<f8").tobytes()).digest(size)
        bits = np.unpackbits(np.frombuffer(secret, dtype=np.uint8))[: columns * hidden]
        signs = 2.0 * bits.reshape(columns, hidden) - 1.0
        within = np.linalg.qr(np.concatenate([leading, signs], axis=1))[0][:, leading.shape[1] :]
        self._basis = np.concatenate([leading, within], axis=1)

    def of(self, x: Floats) -> Floats:
        """Places (b, at most 32) of rows ``x`` (b, d).

        Beyond ±12 deviations a column counts by its logarithm and not, as in the features, not at all: a step out there is a
        step, too.
        """
        z = (x - self._mean) / self._scale
        far = np.minimum(np.abs(z), _LARGEST)
        over = np.log1p(np.maximum(far - Z_CLIP, 0.0))
        out: Floats = (np.sign(z) * (np.minimum(far, Z_CLIP) + over)) @ self._basis
        return out
