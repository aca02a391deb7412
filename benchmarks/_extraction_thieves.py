"""Thieves of the extraction bench: whole attacks, asked of the bare victim, and at which query the evidence raises the alarm.

The evidence is on its own here: no ladder slows the thief, and no answer is coarsened. An alarm time is counted in queries of
the attack itself; those of honest cover around them come on top.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from benchmarks import Row, _extraction_pictures
from benchmarks._extraction import Floats, Setting, is_vision, narrow
from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.extraction.attacks import STRATEGIES, Knowledge, Plan, Planned, Strategy, SurrogateMaker, make_strategy
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.profile import Profile

SEEDS = 400
"""Natural rows that a thief has; one who asks nothing else has all that there are."""
EXAM = 2000
"""Natural rows that nobody asks: copies are measured on them."""
FOREIGN = 3000
SLEEP = 3000
WITHIN = (50, 150, 500)
NATURAL = "in-distribution"

Draw = Callable[[Floats, np.random.Generator, int], Floats]


class Alarm(NamedTuple):
    """``queries`` of the attack at the alarm, None without one in ``asked``."""

    queries: int | None
    asked: int


# -- what is asked --


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


def _changed(change: _extraction_pictures.Change) -> Draw:
    def draw(seeds: Floats, rng: np.random.Generator, count: int) -> Floats:
        side = int(np.sqrt(seeds.shape[1]))
        rows = seeds[rng.integers(len(seeds), size=count)].reshape(count, side, side)
        return change(rows, rng).reshape(count, -1)

    return draw


def _photographs(seeds: Floats, rng: np.random.Generator, count: int) -> Floats:
    return _extraction_pictures.photographs(int(np.sqrt(seeds.shape[1])), float(seeds.max()), count, rng)


TABULAR: dict[str, Draw] = {
    "columns shuffled": partial(_columns_shuffled, share=1.0),
    "half the columns shuffled": partial(_columns_shuffled, share=0.5),
    "Gaussian copula": _copula,
}
VISION: dict[str, Draw] = {
    "photographs": _photographs,
    **{name: _changed(change) for name, change in _extraction_pictures.TURNS.items()},
}


def attacks(setting: Setting) -> list[str]:
    """What is tried on this setting."""
    planned = [name for name in STRATEGIES if name not in {NATURAL, "explanations"}]  # those are no queries
    return [*planned, *(VISION if is_vision(setting) else TABULAR), NATURAL]


def natural_rows(setting: Setting) -> Floats:
    """The rows of the pool that thieves and their honest cover draw from."""
    return setting.pool[_order(setting)[_exams(setting) :]]


def exam_rows(setting: Setting) -> Floats:
    """The rows of the pool on which copies are measured."""
    return setting.pool[_order(setting)[: _exams(setting)]]


def _exams(setting: Setting) -> int:
    return min(EXAM, len(setting.pool) // 3)


def _order(setting: Setting) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.random.default_rng(31).permutation(len(setting.pool))


def knowledge(setting: Setting, seed: int) -> Knowledge:
    """What a thief has: natural rows, and of picture models foreign pictures."""
    rng = np.random.default_rng([seed, 17])
    rows = natural_rows(setting)
    seeds = rows[rng.choice(len(rows), size=min(SEEDS, len(rows) // 2), replace=False)]
    if not is_vision(setting):
        return Knowledge.of(seeds)
    upscaled = setting.name.startswith("fashion")
    foreign = _extraction_pictures.digits(FOREIGN, rng) if upscaled else _photographs(seeds, rng, FOREIGN)
    return Knowledge.of(seeds, foreign)


def planner(seed: int) -> SurrogateMaker:
    """What adaptive attacks train on the way."""
    return lambda: MlpSurrogate(seed=seed, updates=150)


def strategy(setting: Setting, attack: str, seed: int, surrogate: SurrogateMaker) -> Strategy:
    """One thief of that name. Equal arguments and answers make equal questions."""
    if attack == NATURAL:
        rows = natural_rows(setting)
        return Planned(_pieces(rows[np.random.default_rng([seed, 23]).permutation(len(rows))]))
    known = knowledge(setting, seed)
    draws = VISION if is_vision(setting) else TABULAR
    if attack in draws:
        return Planned(_drawn(draws[attack], known, np.random.default_rng([seed, *attack.encode()])))
    return make_strategy(attack, known, seed=seed, surrogate=surrogate)


def _pieces(rows: Floats) -> Plan:
    for at in range(0, len(rows), 64):
        yield rows[at : at + 64]


def _drawn(draw: Draw, known: Knowledge, rng: np.random.Generator) -> Plan:
    while True:
        yield known.snap(draw(known.seeds, rng, 256))


class Loot:
    """What one thief asks of the bare victim, in order, made as far as somebody looks: rows as they reach the model."""

    def __init__(self, setting: Setting, attack: str, seed: int) -> None:
        self._strategy, self._predict = strategy(setting, attack, seed, planner(seed)), setting.predict
        self._rows = np.empty((0, setting.pool.shape[1]))

    def first(self, count: int) -> Floats:
        """The first ``count`` rows, fewer where the attack has nothing more to ask."""
        while len(self._rows) < count:
            rows = narrow(self._strategy.propose(64))
            if not len(rows):
                break
            self._strategy.feed(rows, np.asarray(self._predict(rows)))
            self._rows = np.concatenate([self._rows, rows])
        return self._rows[:count]


def loot(setting: Setting, attack: str, budget: int, seed: int) -> Floats:
    """The first ``budget`` rows of one thief, shape (at most ``budget``, d)."""
    return Loot(setting, attack, seed).first(budget)


# -- when it is found --


def alarm(
    setting: Setting,
    loot: Loot,
    budget: int,
    *,
    share: float = 1.0,
    sleep: int = 0,
    seed: int = 0,
    profile: Profile | None = None,
) -> Alarm:
    """When the evidence finds a thief that hides the first ``budget`` of ``loot`` among honest rows (``share`` is the
    attack's), after ``sleep`` honest ones; by another ``profile`` than the setting's, if need be."""
    rng = np.random.default_rng([seed, 3])
    honest, guard, spent = natural_rows(setting), Guard(profile or setting.profile), 0
    for at in range(0, sleep, 512):
        _observe(setting, guard, honest[rng.integers(len(honest), size=min(512, sleep - at))])
    if guard.verdict("thief").alarmed_at:
        return Alarm(0, 0)
    while spent < budget and not guard.verdict("thief").alarmed_at:
        before, mine = guard.verdict("thief").queries, rng.random(64) < share
        own = loot.first(min(budget, spent + int(mine.sum())))[spent:]
        if len(own) < mine.sum():  # the last piece
            budget = spent + len(own)
            mine &= mine.cumsum() <= len(own)
        rows = honest[rng.integers(len(honest), size=len(mine))]
        rows[mine] = own
        _observe(setting, guard, rows)
        alarmed = guard.verdict("thief").alarmed_at
        if alarmed:
            return Alarm(spent + int(mine[: max(alarmed - before, 0)].sum()), spent)
        spent += len(own)
    return Alarm(None, spent)


def _observe(setting: Setting, guard: Guard, rows: Floats) -> None:
    guard.observe("thief", rows, np.asarray(setting.predict(rows)))


WAYS: dict[str, dict[str, float]] = {"as it is": {}, "one in ten": {"share": 0.1}, f"after {SLEEP:,}": {"sleep": SLEEP}}


def found(setting: Setting, names: Sequence[str], runs: int, budget: int) -> Iterator[Row]:
    """Alarm times of every attack: how many of the runs were found, median and largest query, and found within 50, 150, 500."""
    for attack in names:
        loots = [Loot(setting, attack, run) for run in range(runs)]
        for how, options in WAYS.items() if attack != NATURAL else [("as it is", WAYS["as it is"])]:
            times = [alarm(setting, loot, budget, seed=run, **options).queries for run, loot in enumerate(loots)]  # type: ignore[arg-type]
            yield timed({"part": "thieves", "setting": setting.name, "attack": attack, "how": how}, times)


def timed(row: Row, times: Sequence[int | None]) -> Row:
    """``row`` with what its alarm ``times`` come to, None = not found."""
    hits = sorted(at for at in times if at is not None)
    return {
        **row,
        "times": [-1 if at is None else at for at in times],
        "runs": len(times),
        "found": len(hits),
        "median": int(np.median(hits)) if hits else "",
        "largest": hits[-1] if hits else "",
        **{f"within {most}": sum(at <= most for at in hits) for most in WITHIN},
    }
