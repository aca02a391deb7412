"""Shapley values of a model's answer: how much each number of a row moves it away from what reference rows get.

The game is the interventional one: a coalition's worth is the mean answer for rows that have the coalition's numbers from the
explained row and all others from a background row (Lundberg and Lee 2017, "A Unified Approach to Interpreting Model
Predictions"; Janzing, Minorics and Blöbaum 2020, "Feature relevance quantification in explainable AI"). Few enough numbers are
computed exactly, over all coalitions (Shapley 1953); otherwise permutations are sampled (Castro, Gómez and Tejada 2009,
"Polynomial calculation of the Shapley value based on sampling"), each with its reverse (antithetic: Mitchell, Cooper, Frank
and Holmes 2022, "Sampling Permutations for Shapley Value Estimation"). Either way the values add up to the answer less the
mean answer of the background rows that were used: along one permutation the differences telescope.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import TooLarge

Floats = NDArray[np.float64]
Ask = Callable[[Floats], Floats]
"""Rows (n, d) to the answers that are explained, (n,)."""

_BATCH, _NUMBERS = 1024, 1 << 21
"""Rows that the model is asked at once, and numbers in them."""
_MOST_EXACT = 12
"""Numbers of a row above which nobody waits for all coalitions."""


class Attribution(NamedTuple):
    """``phi``: shape (d,), adds up to ``value`` - ``base``; ``value``: the answer; ``base``: the mean answer of the background
    rows used; ``rows``: how many rows the model was asked; ``pairs``: of permutations, 0 = exact."""

    phi: Floats
    value: float
    base: float
    rows: int
    pairs: int


def shapley(ask: Ask, x: Floats, background: Floats, *, pairs: int, max_rows: int, seed: int) -> Attribution:
    """Explain ``ask`` at ``x``, shape (d,), against ``background``, shape (b, d).

    ``pairs``: permutations to sample, each with its reverse; every background row is used equally often, so that fewer pairs
    than rows use fewer rows; ``max_rows``: most rows to ask. Exact when all coalitions cost no more than that sample would,
    or than a tenth of ``max_rows``. Deterministic in ``seed``. Raises TooLarge (not even one pair fits ``max_rows``).
    """
    features, rows = len(x), len(background)
    if features <= _MOST_EXACT and rows << features <= max(max_rows // 10, min(max_rows, pairs * 2 * features)):
        return _exact(ask, x, background)
    fit = min(pairs, (max_rows - 1) // (2 * features))
    if fit < 1:
        raise TooLarge(
            f"an explanation of {features} numbers asks at least {2 * features + 1} rows, more than the {max_rows} set"
        )
    used = background[: min(fit, rows)]
    return _sampled(ask, x, used, fit // len(used), np.random.default_rng(seed))


def _exact(ask: Ask, x: Floats, background: Floats) -> Attribution:
    """All 2^d coalitions: phi_j = sum over S without j of |S|! (d - |S| - 1)! / d! · (v(S + j) - v(S))."""
    features = len(x)
    masks = (np.arange(1 << features)[:, None] >> np.arange(features)) & 1 == 1
    worth = np.zeros(len(masks))
    for row in background:
        worth += _ask(ask, (np.where(part, x, row) for part in np.array_split(masks, -(-len(masks) // _BATCH))))
    worth /= len(background)
    size = masks.sum(axis=1)
    weights = np.array([math.factorial(s) * math.factorial(features - s - 1) for s in range(features)]) / math.factorial(
        features
    )
    phi = np.empty(features)
    for j in range(features):
        without = np.flatnonzero(~masks[:, j])
        phi[j] = float(weights[size[without]] @ (worth[without | (1 << j)] - worth[without]))
    value, base = float(worth[-1]), float(worth[0])
    return Attribution(_balanced(phi, value - base), value, base, len(background) << features, 0)


def _sampled(ask: Ask, x: Floats, background: Floats, each: int, rng: np.random.Generator) -> Attribution:
    """``each`` pairs of permutations for every background row."""
    features = len(x)
    ends = _ask(ask, iter([x[None], background]))
    value, starts = float(ends[0]), ends[1:]
    phi, asked = np.zeros(features), len(ends)
    for start, row in zip(starts.tolist(), background, strict=True):
        orders = [one for _ in range(each) for order in [rng.permutation(features)] for one in (order, order[::-1])]
        answers = _ask(ask, (path for order in orders for path in _path(x, row, order)))
        asked += len(answers)
        steps = answers.reshape(len(orders), features - 1)
        ends_too = np.concatenate([np.full((len(orders), 1), start), steps, np.full((len(orders), 1), value)], axis=1)
        for order, moved in zip(orders, np.diff(ends_too, axis=1), strict=True):
            phi[order] += moved
    pairs = each * len(background)
    base = float(starts.mean())
    return Attribution(_balanced(phi / (2 * pairs), value - base), value, base, asked, pairs)


def _path(x: Floats, row: Floats, order: NDArray[np.int64]) -> Iterator[Floats]:
    """The rows between ``row`` and ``x`` when numbers change over in ``order``: d - 1 rows, in parts."""
    place = np.empty(len(x), dtype=np.int64)
    place[order] = np.arange(len(x))
    most = _most(len(x))
    for at in range(1, len(x), most):
        yield np.where(place < np.arange(at, min(at + most, len(x)))[:, None], x, row)


def _most(features: int) -> int:
    return max(1, min(_BATCH, _NUMBERS // max(features, 1)))


def _ask(ask: Ask, parts: Iterator[Floats]) -> Floats:
    """Answers for all rows of ``parts``, in order, asked in batches of about ``_most`` rows."""
    answers: list[Floats] = []
    held: list[Floats] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= _most(part.shape[1]):
            answers.append(ask(np.concatenate(held)))
            held, count = [], 0
    if held:
        answers.append(ask(np.concatenate(held)))
    return np.concatenate(answers) if answers else np.empty(0)


def _balanced(phi: Floats, total: float) -> Floats:
    """``phi`` with what rounding of the sums lost put on the largest, so that it adds up to ``total``."""
    phi[np.abs(phi).argmax()] += total - float(phi.sum())
    return phi


def in_units(found: Attribution, unit: float) -> tuple[NDArray[np.int64], int, int]:
    """Values, answer and base in whole ``unit``s, still adding up: what is left goes to the largest remainders (Hamilton's
    method), so that each value is within one unit of the true one."""
    value, base = round(found.value / unit), round(found.base / unit)
    exact = found.phi / unit
    whole = np.floor(exact).astype(np.int64)
    left = value - base - int(whole.sum())
    order = np.argsort(whole - exact, kind="stable")  # the largest remainder first
    if left > 0:
        np.add.at(whole, np.resize(order, left), 1)
    elif left < 0:
        np.subtract.at(whole, np.resize(order[::-1], -left), 1)
    return whole, value, base
