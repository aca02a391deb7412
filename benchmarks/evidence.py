"""Extraction evidence: microseconds a query off the path, mark and verdict on it, beside the model itself in the same run.

``python -m benchmarks evidence``: digits, a network with 64 hidden units (scikit-learn's forward pass is the yardstick).
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks import Row, report
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT, respond
from modelkeep.extraction.perturb import Marker

BATCH = 64


def _timed(case: str, work: Callable[[], object], *, queries: int = 1, rounds: int = 400) -> Row:
    """p50 and p99 over ``rounds`` calls, in microseconds a query."""
    for _ in range(20):
        work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) / queries * 1e6)
    return {
        "bench": "evidence",
        "case": case,
        "p50_us": round(statistics.median(taken), 2),
        "p99_us": round(statistics.quantiles(taken, n=100)[98], 2),
    }


def run(args: list[str]) -> None:
    """Print the figures. Takes no arguments."""
    data = load_digits()
    x, y = data.data.astype(np.float32).astype(np.float64), data.target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier((64,), max_iter=60, random_state=0).fit(x[:600], y[:600])
    began = time.perf_counter()
    profile = fit_profile(x[600:1200], model.predict_proba, seed=0, train_rows=x[:600])
    fitted = time.perf_counter() - began
    pool = x[1200:]
    answers = model.predict_proba(pool)
    rng = np.random.default_rng(0)
    rows: list[Row] = [_timed("the model itself, one query", lambda: model.predict_proba(pool[:1]))]
    marker = Marker(bytes(range(32)), profile)
    at = iter(range(10**9))

    def mark() -> None:
        i = next(at) % len(pool)
        marker.apply(pool[i : i + 1], answers[i : i + 1])

    rows.append(_timed("on the path: mark one answer", mark, rounds=4000))
    rows.append(_timed("on the path: round one answer", lambda: respond(DEFAULT.steps[0], answers[:1]), rounds=4000))
    watched = Guard(profile)
    watched.observe("a", pool, answers)
    rows.append(_timed("on the path: read a verdict", lambda: watched.verdict("a"), rounds=4000))
    for accounts, clusters in ((1, 0), (8, 0), (BATCH, 0), (8, 1), (BATCH, 1), (BATCH, 8)):
        guard = Guard(profile)

        def observe(guard: Guard = guard, accounts: int = accounts, clusters: int = clusters) -> None:
            fresh = pool[rng.integers(len(pool), size=BATCH)] + rng.normal(size=(BATCH, pool.shape[1]))
            names = [f"a{i % accounts}" for i in range(BATCH)]
            shared = [[f"c{i % accounts % clusters}"] if clusters else [] for i in range(BATCH)]
            guard.observe_many(names, fresh, answers[:BATCH], shared)

        case = f"off the path: observe {BATCH} queries of {accounts} accounts" + (
            f" in {clusters} clusters" if clusters else ""
        )
        rows.append(_timed(case, observe, queries=BATCH, rounds=200))
    rows.append({"bench": "evidence", "case": "fit a profile (600 reference rows)", "p50_us": round(fitted * 1e6)})
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or "all"
    report(f"extraction evidence, microseconds a query (BLAS threads: {threads})", rows)


if __name__ == "__main__":
    run([])
