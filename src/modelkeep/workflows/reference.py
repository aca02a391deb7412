"""What is kept of the reference data beside the extraction profile, in the same sealed file: ranges, and rows to explain by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.serving.ranges import learn_ranges

BACKGROUND = "background.rows"
"""Array of the profile's file: the rows that explanations are measured against, shape (rows, features)."""
MOST_BACKGROUND, MOST_NUMBERS = 32, 1 << 20
"""Rows of it, and numbers in them; never fewer than 8 rows."""


def learn_reference(rows: NDArray[np.float64], seed: int) -> dict[str, NDArray[Any]]:
    """Named arrays learnt from reference rows, shape (n, d), finite: their ranges and a sample of them."""
    count = max(8, min(MOST_BACKGROUND, MOST_NUMBERS // rows.shape[1]))
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return {**learn_ranges(rows).to_arrays(), BACKGROUND: np.ascontiguousarray(rows[np.sort(chosen)])}


def background_of(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64] | None:
    """The sample, None where none was kept (a release of an earlier modelkeep). Raises Invalid (malformed)."""
    if BACKGROUND not in arrays:
        return None
    rows = np.asarray(arrays[BACKGROUND], dtype=np.float64)
    if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
        raise Invalid("the background rows of the extraction profile are malformed: publish the model again")
    return rows
