"""False answers for an account that a review put on the last rung: plausible, marked, and the owner can tell which.

Answers are false region by region: for a keyed share of the pairs (cell of the input space, top class) the two leading classes
change places. So asking again, or a little to the side, averages nothing out; a copy learns the false regions; and whoever has
the account's key, which was committed to before its first answer, knows every one of them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.perturb import Marker

Floats = NDArray[np.float64]


def deceived(marker: Marker, x: Floats, probs: Floats, share: float) -> Floats:
    """Answers of which about ``share`` have another class on top. ``x``: (b, d); ``probs``: (b, k), marked; a new array."""
    top = probs.argmax(axis=1).tolist()
    cells = marker.cells_of(x).tolist()
    return exchanged(probs, [is_false(marker.falsity, cell, at, share) for cell, at in zip(cells, top, strict=True)])


def exchanged(probs: Floats, false: Sequence[bool] | NDArray[np.bool_]) -> Floats:
    """``probs`` (b, k) with the two leading classes of the rows that are ``false`` (b,) in each other's place; a new array. One
    class stays what it is."""
    out = np.array(probs, dtype=np.float64)
    if probs.shape[1] < 2:
        return out
    for row in np.flatnonzero(np.asarray(false, dtype=bool)):
        first, second = np.argsort(-out[row], kind="stable")[:2]
        out[row, [first, second]] = out[row, [second, first]]
        if out[row].argmax() == first:  # a tie, which the earlier class wins
            out[row, second] = np.nextafter(out[row, first], 2.0)
    return out


def is_false(key: bytes, cell: int, top: int, share: float) -> bool:
    """Whether answers in ``cell`` whose true top class is ``top`` are false under a 32-byte ``key``."""
    said = hashlib.blake2b(b"%d/%d" % (cell, top), key=key, digest_size=8).digest()
    return int.from_bytes(said, "big") < share * 2.0**64
