"""Membership inference: what a model shows of who was in its training data, and what that says against a promise.

- ``audit_one_run``: canaries, each in the training data by the toss of a coin, are guessed from one trained model; too many
  right guesses refute a promise, so that epsilon is at least so large (Steinke, Nasr and Jagielski 2023, "Privacy Auditing
  with One (1) Training Run", theorem 5.2).
- ``lira``, ``rmia``: scores of membership with a few shadow models (Carlini et al. 2022; Zarifzadeh et al. 2024).
- ``area``, ``caught``: how well scores tell members from others, with intervals.

An audit bounds epsilon from below, and proves no privacy: a better attack may find more.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.robustness import share
from modelkeep.training.tails import binomial_tail

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Of the canaries, how many are guessed; the best counts, and its p-value times how many there are."""
CONFIDENCE = 0.95
_SMALLEST = 1e-12


class Interval(msgspec.Struct, frozen=True):
    """``value`` with its interval at 95 %."""

    value: float
    low: float
    high: float


class OneRun(msgspec.Struct, frozen=True):
    """An audit in one run. ``epsilon``: lower bound at ``confidence``; ``correct`` of ``guesses`` about ``canaries``, in the
    best of the shares that were tried."""

    epsilon: float
    canaries: int
    guesses: int
    correct: int
    confidence: float


def confidences(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """log(p / (1 - p)) of each row's own class, from answers (n, k): about normal (Carlini et al. 2022, section IV-C)."""
    own = np.clip(probabilities[np.arange(len(labels)), labels], _SMALLEST, 1.0)
    rest = np.clip(probabilities.sum(axis=1) - own, _SMALLEST, None)
    out: Floats = np.log(own) - np.log(rest)
    return out


def lira(target: Floats, shadows: Floats, inside: Bools) -> Floats:
    """Likelihood-ratio scores (n,) of membership: higher is more of a member.

    ``target`` (n,): confidences of the model that is asked; ``shadows`` (m, n): of shadow models, ``inside`` (m, n): whose
    training data had the row. With few of them spreads are pooled over rows; a row that no shadow was trained on, or all were,
    is judged by the side that there is. Raises Invalid (shapes, or no shadow left a row out).
    """
    if shadows.shape != inside.shape or shadows.shape[1:] != target.shape or inside.all():
        raise Invalid("shadow models have one confidence a row, and some were trained without each")
    without, out_spread = _side(shadows, ~inside)
    score: Floats = (target - without) / out_spread
    if not inside.any():
        return score
    within, in_spread = _side(shadows, inside)
    both: Floats = np.log(out_spread / in_spread) + 0.5 * score**2 - 0.5 * ((target - within) / in_spread) ** 2
    return both


def rmia(target: Floats, reference: Floats, others: Floats, others_reference: Floats, *, gamma: float = 1.0) -> Floats:
    """Share of population rows that each row beats, (n,).

    ``target``, ``reference`` (n,): probability of each row's own class by the model and by the mean of reference models;
    ``others`` (z,): the same of population rows, which were in no training. Source: Zarifzadeh et al. 2024, equation 7.
    """
    ours = np.log(np.clip(target, _SMALLEST, None)) - np.log(np.clip(reference, _SMALLEST, None))
    theirs = np.sort(np.log(np.clip(others, _SMALLEST, None)) - np.log(np.clip(others_reference, _SMALLEST, None)))
    beaten: Floats = np.searchsorted(theirs, ours - math.log(gamma), side="right") / len(theirs)
    return beaten


def area(members: Floats, others: Floats) -> Interval:
    """Area under the ROC curve: chance that a member scores above another row, ties halved; interval by DeLong et al. 1988.

    Raises Invalid (fewer than two of either).
    """
    if min(len(members), len(others)) < 2:
        raise Invalid("members and others are two rows or more each")
    low, high = np.sort(members), np.sort(others)
    wins = 0.5 * (np.searchsorted(high, members, "left") + np.searchsorted(high, members, "right")) / len(others)
    losses = 1.0 - 0.5 * (np.searchsorted(low, others, "left") + np.searchsorted(low, others, "right")) / len(members)
    value = float(wins.mean())
    spread = math.sqrt(float(wins.var(ddof=1)) / len(members) + float(losses.var(ddof=1)) / len(others))
    return Interval(value, max(0.0, value - 1.959964 * spread), min(1.0, value + 1.959964 * spread))


def caught(members: Floats, others: Floats, false: float) -> Interval:
    """Share of members above the least score that at most the share ``false`` of the others exceeds; Clopper-Pearson interval.

    Raises Invalid (too few others for such a share).
    """
    allowed = math.floor(false * len(others))
    if allowed < 1:
        raise Invalid(f"a false-positive rate of {false:g} needs {math.ceil(1 / false):,} rows that were in no training")
    limit = np.sort(others)[::-1][allowed]
    hits = int((members > limit).sum())
    return proportion(hits, len(members))


def proportion(hits: int, trials: int) -> Interval:
    """A share with its interval of Clopper and Pearson (1934)."""
    found = share(hits, trials, CONFIDENCE)
    return Interval(found.value, found.low, found.high)


def one_run_p(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound on the chance of so many ``correct`` of ``guesses`` about ``canaries`` when training is (epsilon, delta)-private.

    Source: Steinke et al. 2023, theorem 5.2 and the listing of appendix D. Raises Invalid.
    """
    if not (0 <= correct <= guesses <= canaries and epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise Invalid(f"{correct} right of {guesses} guesses about {canaries} canaries are no audit")
    right = 1.0 / (1.0 + math.exp(-epsilon))
    beta = binomial_tail(correct, guesses, right)
    if delta == 0.0 or correct == 0:
        return beta
    yes, no = math.log(right), math.log1p(-right) if right < 1.0 else -math.inf
    whole = math.lgamma(guesses + 1)
    below = [
        math.exp(
            whole - math.lgamma(k + 1) - math.lgamma(guesses - k + 1) + k * yes + ((guesses - k) * no if k < guesses else 0)
        )
        for k in range(correct - 1, -1, -1)
    ]
    alpha = float((np.cumsum(below) / np.arange(1, correct + 1)).max())
    return min(1.0, beta + 2.0 * alpha * delta * canaries)


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, p: float) -> float:
    """The largest epsilon that so many right guesses refute at significance ``p``; 0 when they refute none. Raises Invalid."""
    high = 1.0
    while one_run_p(canaries, guesses, correct, high, delta) < p:
        high *= 2.0
        if high > 500.0:
            return 500.0
    low = 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if one_run_p(canaries, guesses, correct, middle, delta) < p else (low, middle)
    return low


def audit_one_run(
    scores: Floats, included: Bools, delta: float, *, shares: Sequence[float] = SHARES, confidence: float = CONFIDENCE
) -> OneRun:
    """Guess canaries from their ``scores`` (m,), higher for members: the highest in, as many of the lowest out, others left.

    ``included`` (m,): what the coins said. Raises Invalid (fewer than 20 canaries).
    """
    count = len(scores)
    if count < 20 or included.shape != scores.shape:
        raise Invalid("an audit has 20 canaries or more, and a coin for each")
    order, found = np.argsort(scores, kind="stable"), []
    for part in shares:
        half = max(1, int(part * count / 2.0))
        correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        epsilon = one_run_epsilon(count, 2 * half, correct, delta, (1.0 - confidence) / len(shares))
        found.append(OneRun(epsilon, count, 2 * half, correct, confidence))
    return max(found, key=lambda one: (one.epsilon, one.guesses))


def _side(shadows: Floats, chosen: Bools) -> tuple[Floats, Floats]:
    """Mean of the chosen shadows of each row, of all rows where a row has none; and one spread for all rows."""
    counts = chosen.sum(axis=0)
    overall = float(shadows[chosen].mean())
    means: Floats = np.where(counts > 0, (shadows * chosen).sum(axis=0) / np.maximum(counts, 1), overall)
    several = chosen & (counts > 1)
    freedom = int((counts[counts > 1] - 1).sum())
    around = float((((shadows - means) ** 2) * several).sum()) / freedom if freedom else float(shadows[chosen].var())
    spread: Floats = np.sqrt(np.maximum(around * (1.0 + 1.0 / np.maximum(counts, 1)), _SMALLEST))
    return means, spread
