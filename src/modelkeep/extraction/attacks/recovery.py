"""Recovery: undo the rounding and marking of answers with what was learnt from pairs that the thief simulates itself."""

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.attacks.base import Array, SurrogateMaker

_UNITS = (1.0, 0.25, 0.1, 0.01, 0.001, 0.0001)
"""Grids that answers are looked at for, coarsest first. 1: top classes only."""
_MOST = 4_000
"""Most simulated answers."""
_WINDOW = 17
"""Rows that are looked at together, since a row with one certain class fits every grid; a gateway changes its grid seldom."""


class Recovering:
    """A copy that learns from recovered answers.

    ``fit`` trains a shadow copy on the answers as they are, simulates the defence on what the shadow would answer, and adds to
    each answer the mean correction of its ``near`` nearest simulated ones with the same top class, which stays the top class.
    Whoever reads modelkeep knows how answers are marked and rounded, but not the keys: symbols are simulated as uniform.
    Source: Chen et al. 2023, "D-DAE: Defense-Penetrating Model Extraction Attacks" (shadow models; a recovery learnt on pairs
    that are simulated); Tang et al. 2024, "ModelGuard" (pBayes: the posterior mean of the clean answer, from samples).
    """

    def __init__(self, make: SurrogateMaker, *, epsilon: float = 0.05, near: int = 16, draws: int = 8, seed: int = 0) -> None:
        """``epsilon``: the most L1 change that the mark is thought to make; ``draws``: simulations of each answer."""
        self._make, self._copy = make, make()
        self._epsilon, self._near, self._draws, self._seed = epsilon, near, draws, seed

    def fit(self, x: Array, probs: Array) -> None:
        """Recover the answers (n, k) to the questions (n, d), then learn from them."""
        self._copy = self._make()
        self._copy.fit(x, self.recover(x, probs))

    def predict(self, x: Array) -> Array:
        """Class probabilities (n, k)."""
        return self._copy.predict(x)

    def recover(self, x: Array, probs: Array) -> Array:
        """What the answers (n, k) were before they were marked and rounded, as far as can be told; rows add up to 1."""
        shadow = self._make()
        shadow.fit(x, probs)
        guess = shadow.predict(x)
        clean = _prior(guess, self._draws, np.random.default_rng(self._seed))
        return recover(probs, guess, clean, epsilon=self._epsilon, near=self._near, seed=self._seed)


def _prior(guess: Array, draws: int, rng: np.random.Generator) -> Array:
    """Clean answers as the victim may give them: the shadow's own, sharpened or blunted and jittered, ``draws`` times each, but
    no more than ``_MOST`` in all."""
    logits = np.log(np.maximum(np.tile(guess, (draws, 1)), 1e-9))
    logits = logits[rng.permutation(len(logits))[:_MOST]]
    logits = logits * np.exp(0.3 * rng.normal(size=(len(logits), 1))) + 0.2 * rng.normal(size=logits.shape)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def recover(probs: Array, guess: Array, clean: Array, *, epsilon: float, near: int, seed: int) -> Array:
    """``probs`` (n, k), each with the mean correction of the ``near`` nearest simulations of ``clean`` (m, k).

    Near is a simulated answer that looks like the one that was told, and among such, one whose clean answer is like the
    shadow's ``guess`` (n, k): that alone tells apart rows that coarse answers make the same. No entry falls to zero.
    """
    rng, out = np.random.default_rng(seed), np.array(probs, dtype=np.float64)
    units, tops = grid(probs), probs.argmax(axis=1)
    for unit in np.unique(units):
        told = simulate(clean, rng, unit=float(unit), epsilon=epsilon)
        for top in np.unique(tops[units == unit]):
            like = np.flatnonzero((told.argmax(axis=1) == top) & (clean.argmax(axis=1) == top))
            if not len(like):
                continue
            for row in np.flatnonzero((units == unit) & (tops == top)):
                gap = np.abs(probs[row] - told[like]).sum(axis=1) + 0.1 * np.abs(guess[row] - clean[like]).sum(axis=1)
                nearest = like[np.argsort(gap, kind="stable")[:near]]
                out[row] += (clean[nearest] - told[nearest]).mean(axis=0)
    out = np.maximum(out, np.clip(0.1 * units, 1e-9, 1e-3)[:, None])
    out /= out.sum(axis=1, keepdims=True)
    kept = out.argmax(axis=1) == tops
    return np.asarray(np.where(kept[:, None], out, probs))


def grid(probs: Array) -> NDArray[np.float64]:
    """The unit (n,) that each answer (n, k) and those around it are whole multiples of; 0 where they are rounded to none."""
    units = np.zeros(len(probs))
    for unit in reversed(_UNITS):
        units[np.all(np.abs(probs / unit - np.rint(probs / unit)) < 1e-6, axis=1)] = unit
    around = np.pad(units, _WINDOW // 2, mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(around, _WINDOW).min(axis=1))


def simulate(clean: Array, rng: np.random.Generator, *, unit: float, epsilon: float) -> Array:
    """Answers (m, k) as a gateway would mark them under an unknown key and round them to multiples of ``unit`` (0: not).

    One symbol with the whole room: for k > 2 it gives mass of the top class to another one, for k = 2 it says whether the top
    class gives or takes (``extraction/perturb.py``, profiles of version 6).
    """
    rows, classes = np.arange(len(clean)), clean.shape[1]
    top, two = clean.argmax(axis=1), np.sort(clean, axis=1)[:, -2:]
    marked = clean.copy()
    if classes == 2:
        down, up = np.minimum(epsilon / 2, 0.95 * (two[:, 1] - 0.5)), np.minimum(epsilon / 2, 0.8 * (1.0 - two[:, 1]))
        gives = rng.integers(0, 2, size=len(clean))
        shift = gives * down - (1 - gives) * up
        marked[rows, top] -= shift
        marked[rows, 1 - top] += shift
    else:
        whole = np.minimum(epsilon / 2, 0.45 * (two[:, 1] - two[:, 0]))
        other = (top + rng.integers(1, classes, size=len(clean))) % classes
        marked[rows, other] += whole
        marked[rows, top] -= whole
    if unit == 1.0:
        return np.asarray(np.eye(classes)[top])
    return np.rint(marked / unit) * unit if unit else marked
