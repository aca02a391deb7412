"""How a suspect's numbers are read as class probabilities: a copy need not answer as the model does.

A copy that was fitted to answers as a regression gives numbers that are a little below 0, or sum to .98; another gives logits.
Whatever is done to them uses no key, so every p-value of a trace holds; what matters is that the same is done to all answers.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid, ModelkeepError

Floats = NDArray[np.float64]
Predict = Callable[[Floats], Floats]

SAMPLE = 64
"""Rows by whose answers it is decided how all are read."""
_NEARLY = 1e-3
_LIKE_SHARES = 0.5
_NOTHING = 1e-12


def read_as_probabilities(ask: Predict, rows: Floats, *, silent: bool = False) -> Predict:
    """``ask``, (b, d) to numbers (b, k), as a function to probabilities (b, k), decided on the first of ``rows`` (n, d).

    Rows that are probabilities are left as they are. Numbers of 0 and more are divided by their sum; numbers that sum to 1 but
    for a half, some below 0, are cut at 0 first; all others are logits. ``silent``: rows with what is no finite number are left
    as NaN. Raises Invalid: not finite (rows, two or more classes).
    """
    sample = _checked(ask(rows[:SAMPLE]), len(rows[:SAMPLE]), silent)
    sample = sample[np.isfinite(sample).all(axis=1)]
    if not len(sample):
        raise Invalid(f"the suspect answers none of the first {SAMPLE} rows with finite numbers")
    with np.errstate(over="ignore"):
        logits = bool(sample.min() < 0.0 and (np.abs(sample.sum(axis=1) - 1.0) > _LIKE_SHARES).any())

    def answer(some: Floats) -> Floats:
        found = _checked(ask(some), len(some), silent)
        told = np.isfinite(found).all(axis=1)
        out = np.full(found.shape, np.nan)
        out[told] = _softmax(found[told]) if logits else _shares(found[told])
        return out

    return answer


class Patient:
    """``ask`` of a suspect that refuses some rows, (b, d) to numbers (b, k): these are NaN, and all others are asked again.

    Whoever has an account's questions could otherwise forbid the trace by an error for one of them. Before a row counts as
    refused, one that was answered is asked again: raises what ``ask`` raises if that, or the first of all, is not answered.
    """

    def __init__(self, ask: Predict) -> None:
        self._ask, self._width = ask, 0
        self._known: Floats | None = None

    def __call__(self, rows: Floats) -> Floats:
        """What it gives for ``rows`` (b, d), with NaN for those that it refuses."""
        try:
            found = self._told(rows)
        except ModelkeepError:
            if self._known is None:
                raise
            self._told(self._known)
            if len(rows) == 1:
                return np.full((1, self._width), np.nan)
            half = len(rows) // 2
            return np.concatenate([self(rows[:half]), self(rows[half:])])
        if self._known is None and len(rows):
            self._known, self._width = rows[:1], found.shape[1]
        return found

    def _told(self, rows: Floats) -> Floats:
        found = np.asarray(self._ask(rows), dtype=np.float64)
        if found.ndim != 2 or len(found) != len(rows) or (self._known is not None and found.shape[1] != self._width):
            raise Invalid(
                f"the suspect must answer numbers (rows, two or more classes), not shape {found.shape} for {len(rows)} rows"
            )
        return found


def _checked(found: Floats, rows: int, silent: bool) -> Floats:
    out = np.asarray(found, dtype=np.float64)
    if out.ndim != 2 or len(out) != rows or out.shape[1] < 2 or not (silent or np.isfinite(out).all()):
        raise Invalid(
            f"the suspect must answer finite numbers (rows, two or more classes), not shape {out.shape} for {rows} rows"
        )
    return out


def _shares(found: Floats) -> Floats:
    """Rows that are no probabilities, cut at 0 and over their sum; a row of nothing but zeros, or nearly, names no class."""
    with np.errstate(over="ignore"):
        wrong = (found.min(axis=1) < 0.0) | (np.abs(found.sum(axis=1) - 1.0) > _NEARLY)
    if not wrong.any():
        return found
    out = found.copy()
    cut = np.maximum(out[wrong], 0.0)
    most = cut.max(axis=1, keepdims=True)
    cut = np.where(most > _NOTHING, cut / np.maximum(most, _NOTHING), 1.0)  # first by the largest: a sum could overflow
    out[wrong] = cut / cut.sum(axis=1, keepdims=True)
    return out


def _softmax(found: Floats) -> Floats:
    with np.errstate(over="ignore"):
        tilted = np.exp(found - found.max(axis=1, keepdims=True))
    out: Floats = tilted / tilted.sum(axis=1, keepdims=True)
    return out
