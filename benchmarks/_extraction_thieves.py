"""Thieves of the extraction bench: whole attacks, asked of the bare victim, and at which query the evidence raises the alarm.

The evidence is on its own here: no ladder slows the thief, and no answer is coarsened. An alarm time is counted in queries of
the attack itself; those of honest cover around them come on top.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from benchmarks._extraction import Floats, Setting
from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.extraction.attacks import STRATEGIES, Knowledge, make_strategy
from modelkeep.extraction.guard import Guard

SEEDS = 400
"""Natural rows that a thief has."""
SHARES = (1.0, 0.5, 0.3, 0.1, 0.05)
SLEEP = 3000

Draw = Callable[[Setting, Floats, np.random.Generator, int], Floats]


class Alarm(NamedTuple):
    """``queries`` of the attack at the alarm, None without one in ``asked``."""

    queries: int | None
    asked: int


def _columns_shuffled(seeds: Floats, rng: np.random.Generator, count: int, share: float) -> Floats:
    rows = seeds[rng.integers(len(seeds), size=count)]
    other = seeds[rng.integers(len(seeds), size=rows.shape), np.arange(rows.shape[1])]
    moved = rng.random(rows.shape[1]) < share
    return np.where(moved, other, rows)


def _copula(seeds: Floats, rng: np.random.Generator, count: int) -> Floats:
    """A Gaussian copula: every column as it is, tied to the others by rank correlations alone."""
    ranks = (np.argsort(np.argsort(seeds + 1e-9 * rng.normal(size=seeds.shape), axis=0), axis=0) + 0.5) / len(seeds)
    ties = np.corrcoef(norm.ppf(ranks), rowvar=False)
    drawn = rng.multivariate_normal(
        np.zeros(len(ties)), np.nan_to_num(ties) + 1e-6 * np.eye(len(ties)), size=count, method="eigh"
    )
    at = np.clip((norm.cdf(drawn) * len(seeds)).astype(int), 0, len(seeds) - 1)
    return np.take_along_axis(np.sort(seeds, axis=0), at, axis=0)


def _picture(change: Callable[[Floats], Floats]) -> Draw:
    def draw(_: Setting, seeds: Floats, rng: np.random.Generator, count: int) -> Floats:
        side = int(np.sqrt(seeds.shape[1]))
        rows = seeds[rng.integers(len(seeds), size=count)].reshape(count, side, side)
        return change(rows).reshape(count, -1)

    return draw


TABULAR: dict[str, Draw] = {
    "columns shuffled": lambda _, seeds, rng, count: _columns_shuffled(seeds, rng, count, 1.0),
    "half the columns shuffled": lambda _, seeds, rng, count: _columns_shuffled(seeds, rng, count, 0.5),
    "Gaussian copula": lambda _, seeds, rng, count: _copula(seeds, rng, count),
}
VISION: dict[str, Draw] = {
    "turned": _picture(lambda rows: np.transpose(rows, (0, 2, 1))),
    "upside down": _picture(lambda rows: rows[:, ::-1]),
    "mirrored": _picture(lambda rows: rows[:, :, ::-1]),
}


def is_vision(setting: Setting) -> bool:
    """Whether rows are square pictures."""
    return setting.name.split("/")[0] in {"digits", "fashion"}


def loot(setting: Setting, attack: str, budget: int, seed: int) -> Floats:
    """What one thief asks, in order, shape (at most ``budget``, d), as it reaches the model."""
    rng = np.random.default_rng([seed, *attack.encode()])
    seeds = setting.pool[rng.choice(len(setting.pool), size=min(SEEDS, len(setting.pool) // 2), replace=False)]
    known = Knowledge.of(seeds)
    draws = VISION if is_vision(setting) else TABULAR
    if attack in draws:
        return _narrow(known.snap(draws[attack](setting, seeds, rng, budget)))
    plan = make_strategy(attack, known, seed=seed, surrogate=lambda: MlpSurrogate(seed=seed, updates=150))
    asked: list[Floats] = []
    while sum(map(len, asked)) < budget:
        rows = _narrow(plan.propose(min(64, budget - sum(map(len, asked)))))
        if not len(rows):
            break
        plan.feed(rows, np.asarray(setting.predict(rows)))
        asked.append(rows)
    return np.concatenate(asked)


def _narrow(rows: Floats) -> Floats:
    return rows.astype(np.float32).astype(np.float64)


def attacks(setting: Setting) -> Iterator[str]:
    """What is tried on this setting."""
    yield from (name for name in STRATEGIES if name not in {"in-distribution", "explanations"})  # those are no queries
    yield from VISION if is_vision(setting) else TABULAR
    yield "in-distribution"


def alarm(setting: Setting, asked: Floats, *, share: float = 1.0, sleep: int = 0, seed: int = 0) -> Alarm:
    """When the evidence finds a thief that hides ``asked`` among honest rows (``share`` is the attack's), after ``sleep``
    honest ones."""
    rng = np.random.default_rng([seed, 3])
    mine = rng.random(round(len(asked) / share) + 1) < share
    mine = mine[: int(np.flatnonzero(mine.cumsum() == min(len(asked), mine.sum()))[0]) + 1]
    rows = setting.pool[rng.integers(len(setting.pool), size=len(mine))]
    rows[mine] = asked[: mine.sum()]
    if sleep:
        rows = np.concatenate([setting.pool[rng.integers(len(setting.pool), size=sleep)], rows])
        mine = np.concatenate([np.zeros(sleep, dtype=bool), mine])
    guard, answers = Guard(setting.profile), np.asarray(setting.predict(rows))
    for at in range(0, len(rows), 64):
        guard.observe("thief", rows[at : at + 64], answers[at : at + 64])
        alarmed = guard.verdict("thief").alarmed_at
        if alarmed is not None:
            return Alarm(int(mine[:alarmed].sum()), int(mine.sum()))
    return Alarm(None, int(mine.sum()))
