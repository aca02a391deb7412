"""Whose answers taught this copy of a regression? p of thieves' accounts, by size of the mark, queries and kind of copy.

``python -m benchmarks regression [-- VICTIM… traced innocent cost runs=3 models=40 keys=500]``: victims (``friedman/trees``,
``friedman/mlp``, ``diabetes/trees``) and parts to run, all without any. Boosted trees and a perceptron on Friedman's first
function (10 columns, noise 1; 3,000 rows to learn from, 1,500 reference rows), and boosted trees on scikit-learn's diabetes
(150 rows, 200, and questions of jittered rows of the others). A thief trains on marked answers; p is corrected for 1,000
accounts, and read with the account's log and from fresh probes alone. Beside it the model's own error on new rows with and
without the mark. Equal arguments, equal p-values.
"""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks import Row, report
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.probes import draw_probes
from modelkeep.extraction.profile import Profile, with_error
from modelkeep.extraction.regression import NumberMarker, NumberReading, hear_numbers, own_error

Floats = NDArray[np.float64]

VICTIMS = ("friedman/trees", "friedman/mlp", "diabetes/trees")
PARTS = ("traced", "innocent", "cost")
EPSILONS = (0.05, 0.1, 0.2)
QUERIES = (500, 2000)
ACCOUNTS = 1_000
PROBES = 2_000


class Victim(NamedTuple):
    """A model, its profile with its error, rows that nobody learnt from with their truth, and rows to ask (n, d)."""

    name: str
    model: Any
    profile: Profile
    held: Floats
    truth: Floats
    asked: Floats

    def predict(self, x: Floats) -> Floats:
        """What it answers without a mark, (n,)."""
        return np.asarray(self.model.predict(x), dtype=np.float64)


def _perceptron(seed: int) -> Any:
    network = MLPRegressor(hidden_layer_sizes=(128, 64), max_iter=300, random_state=seed)
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), network), transformer=StandardScaler())


COPIES = {
    "forest, each tree on all rows": lambda seed: ExtraTreesRegressor(100, random_state=seed),
    "forest, bootstrapped": lambda seed: RandomForestRegressor(100, random_state=seed),
    "perceptron 128-64": _perceptron,
    "boosted trees": lambda seed: HistGradientBoostingRegressor(random_state=seed),
}


def _victims(names: Sequence[str]) -> Iterator[Victim]:
    """Those of ``VICTIMS`` that are named."""
    x, y = make_friedman1(12_000, 10, noise=1.0, random_state=0)
    for name, made in ((VICTIMS[0], COPIES["boosted trees"](0)), (VICTIMS[1], _perceptron(0))):
        if name in names:
            yield _victim(name, made, x, y, x[6500:], (3000, 4500, 6500))
    if VICTIMS[2] not in names:
        return
    x, y = load_diabetes(return_X_y=True)
    order, rng = np.random.default_rng(0).permutation(len(x)), np.random.default_rng(1)
    x, y = x[order], y[order]
    jittered = x[rng.integers(350, len(x), size=6000)] + 0.5 * x.std(axis=0) * rng.normal(size=(6000, x.shape[1]))
    small = HistGradientBoostingRegressor(max_iter=40, min_samples_leaf=8, random_state=0)
    yield _victim(VICTIMS[2], small, x, y, jittered, (150, 350, len(x)))


def _victim(name: str, model: Any, x: Floats, y: Floats, asked: Floats, ends: tuple[int, int, int]) -> Victim:
    """``ends``: of the rows that it learns from, of the reference rows, and of those held out."""
    train, reference, held = ends
    x, asked = x.astype(np.float32).astype(np.float64), asked.astype(np.float32).astype(np.float64)
    model.fit(x[:train], y[:train])
    rows = x[train:reference]
    profile = fit_profile(rows, None, seed=1, numbers=lambda some: model.predict(some)[:, None])
    error = own_error(np.asarray(model.predict(rows), dtype=np.float64), y[train:reference])
    return Victim(name, model, with_error(profile, error), x[reference:held], y[reference:held], asked)


def _said(found: list[float]) -> str:
    """Median of p-values, and the largest."""
    ordered = sorted(min(1.0, ACCOUNTS * p) for p in found)
    return f"{ordered[len(ordered) // 2]:.0e} ({ordered[-1]:.0e})"


def _traced(victim: Victim, runs: int) -> Iterator[Row]:
    for epsilon in EPSILONS:
        size = epsilon * victim.profile.error
        for queries in QUERIES:
            for kind, make in COPIES.items():
                log, fresh = [], []
                for run in range(runs):
                    rng = np.random.default_rng([run, queries])
                    key, x = rng.bytes(32), victim.asked[rng.permutation(len(victim.asked))[:queries]]
                    copy = make(run).fit(x, NumberMarker(key, victim.profile, size).apply(x, victim.predict(x)))
                    probes = hear_numbers(copy.predict, victim.predict, draw_probes(victim.profile, PROBES, run))
                    reading = NumberReading(probes, size)
                    log.append(reading.weigh(key, victim.profile, hear_numbers(copy.predict, victim.predict, x))[0])
                    fresh.append(reading.weigh(key, victim.profile, None)[0])
                yield {
                    "case": f"{victim.name}, {kind}",
                    "epsilon": epsilon,
                    "queries": queries,
                    "with_the_log": _said(log),
                    "from_fresh_probes": _said(fresh),
                }


def _innocent(victim: Victim, models: int, keys: int) -> Row:
    """Copies that learnt from the very questions that the keys' accounts asked, without a mark."""
    size, found = 0.1 * victim.profile.error, []
    for run in range(models):
        rng = np.random.default_rng([run, 7])
        x = victim.asked[rng.permutation(len(victim.asked))[:300]]
        make = COPIES["forest, each tree on all rows" if run % 2 else "boosted trees"]
        rival = make(run).fit(x, victim.predict(x) + 0.1 * size * rng.normal(size=len(x)))
        reading = NumberReading(hear_numbers(rival.predict, victim.predict, draw_probes(victim.profile, 500, run)), size)
        asked = hear_numbers(rival.predict, victim.predict, x[:150])
        found += [reading.weigh(rng.bytes(32), victim.profile, asked)[0] for _ in range(keys)]
    p = np.array(found)
    shares = {f"p_≤_{level:g}": f"{(p <= level).mean():.5f}" for level in (0.1, 0.01, 0.001)}
    return {"case": victim.name, "tests": len(p), "smallest": f"{p.min():.1e}", "one_over_tests": f"{1 / len(p):.1e}", **shares}


def _cost(victim: Victim) -> Iterator[Row]:
    clean = victim.predict(victim.held)
    before = own_error(clean, victim.truth)
    for epsilon in EPSILONS:
        marker = NumberMarker(bytes(32), victim.profile, epsilon * victim.profile.error)
        after = own_error(marker.apply(victim.held, clean), victim.truth)
        one, times = victim.held[:1], []
        for _ in range(500):
            begun = time.perf_counter()
            marker.apply(one, clean[:1])
            times.append(time.perf_counter() - begun)
        yield {
            "case": victim.name,
            "epsilon": epsilon,
            "error": f"{before:.3f}",
            "error_marked": f"{after:.3f}",
            "more": f"{100 * (after / before - 1):+.2f} %",
            "mark_us": f"{1e6 * float(np.median(times)):.0f}",
        }


def run(args: list[str]) -> None:
    """Print p-values of thefts and of innocent keys, and what the mark costs."""
    told = {"runs": 3, "models": 40, "keys": 500}
    told |= {name: int(value) for name, _, value in (each.partition("=") for each in args if "=" in each)}
    parts = [part for part in PARTS if part in args] or list(PARTS)
    warnings.filterwarnings("ignore", module="sklearn")
    with threadpool_limits(1):
        for victim in _victims([name for name in VICTIMS if name in args] or VICTIMS):
            if "traced" in parts:
                _tell("traced", _traced(victim, told["runs"]))
            if "innocent" in parts:
                _tell("innocent", [_innocent(victim, told["models"], told["keys"])])
            if "cost" in parts:
                _tell("cost", _cost(victim))


def _tell(part: str, rows: Iterable[Row]) -> None:
    report(f"regression: {part}", [{"bench": f"regression {part}", **row} for row in rows])


if __name__ == "__main__":
    run(sys.argv[1:])
