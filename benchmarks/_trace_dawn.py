"""DAWN beside the trace: a keyed few of an account's answers name the wrong class, and a copy that learnt them is told by it.

Source: Szyller et al. 2021, "DAWN: Dynamic Adversarial Watermarking of Neural Networks": an HMAC of the question decides
whether its answer is false. Here the two leading classes change places then, which an honest user is least likely to notice.
Their test counts what the suspect repeats; this one is exact, since the key is uniform given all questions and the suspect.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

Floats = NDArray[np.float64]
SHARE = 0.005
"""Of the answers that are false, as in the paper's evaluation."""


def flipped(key: bytes, x: Floats) -> NDArray[np.bool_]:
    """Which questions (n, d) are answered falsely."""
    drawn = [hashlib.blake2b(row.astype(np.float32).tobytes(), key=key, digest_size=8).digest() for row in x]
    return np.array([int.from_bytes(one, "big") < SHARE * 2.0**64 for one in drawn])


def answered(key: bytes, x: Floats, clean: Floats) -> Floats:
    """The model's answers ``clean`` (n, k), in some the two leading classes with each other's probability."""
    out = clean.copy()
    for row in np.flatnonzero(flipped(key, x)):
        first, second = np.argsort(-clean[row], kind="stable")[:2]
        out[row, [first, second]] = clean[row, [second, first]]
    return out


def p_value(key: bytes, x: Floats, clean: Floats, read: Floats) -> float:
    """The chance that so many of the flips are among the questions where the suspect tells the second class: hypergeometric."""
    false, second = flipped(key, x), np.argsort(-clean, axis=1, kind="stable")[:, 1]
    told = read.argmax(axis=1) == second
    return float(hypergeom.sf((told & false).sum() - 1, len(x), told.sum(), false.sum()))
