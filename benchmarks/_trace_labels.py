"""Thieves who look at labels alone, of an account whose labels are flipped after a review: is the copy traced?

p-values are after Bonferroni over 100,000 accounts. Each suspect is asked for labels alone, and once more for probabilities.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from benchmarks import Row
from benchmarks._extraction import BESIDE, Floats, Ints, Predict, Setting, settings
from modelkeep.extraction.flips import Flipper, flipped, spots_of
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.probes import draw_probes
from modelkeep.extraction.trace import AccountTrail, trace

ACCOUNTS = 100_000
SETTINGS = ("digits/mlp", "credit/mlp")
PROBES = 2_000
KEYS = 200
"""Keys that each copy of clean labels is tested with."""
NOISE = 0.02
"""Deviations a column, by which a thief moves each question twice to outvote the flips."""


def _mlp(hidden: tuple[int, ...], **more: Any) -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier(hidden, **more))


def _converged(seed: int) -> Any:
    return _mlp((128, 64), alpha=0.0, max_iter=300, tol=0.0, n_iter_no_change=300, learning_rate_init=2e-3, random_state=seed)


class Theft(NamedTuple):
    """A copy (from a seed), the share of its labels that are flipped, and how many questions it learns from."""

    copy: Callable[[int], Any]
    share: float
    queries: int


MEMORISING: dict[str, Callable[[int], Any]] = {
    "tree": lambda seed: DecisionTreeClassifier(random_state=seed),
    "forest": lambda seed: RandomForestClassifier(100, random_state=seed),
    "boosted trees": lambda seed: HistGradientBoostingClassifier(early_stopping=False, random_state=seed),
    "MLP 128x64, converged": _converged,
}
EARLY: dict[str, Callable[[int], Any]] = {
    "MLP 64, stopped early": lambda seed: _mlp((64,), early_stopping=True, random_state=seed),
    "MLP 128x64, stopped early": lambda seed: _mlp((128, 64), early_stopping=True, random_state=seed),
    "boosted trees, stopped early": lambda seed: HistGradientBoostingClassifier(early_stopping=True, random_state=seed),
    "tree, 20 rows a leaf": lambda seed: DecisionTreeClassifier(min_samples_leaf=20, random_state=seed),
}
THEFTS = {
    **{name: Theft(copy, 0.005, 4_000) for name, copy in MEMORISING.items()},
    **{name: Theft(copy, 0.02, 16_000) for name, copy in EARLY.items()},
}


def questions(setting: Setting, count: int, rng: np.random.Generator) -> Floats:
    """Natural rows; where there are too few, mixes of two, as whole numbers where rows are."""
    pool = setting.pool
    if len(pool) >= count:
        return pool[rng.permutation(len(pool))[:count]]
    one, other = pool[rng.integers(len(pool), size=(2, count))]
    mixed = one + rng.uniform(0.0, 0.5, size=(count, 1)) * (other - one)
    return np.rint(mixed) if (pool == np.rint(pool)).all() else mixed


def labels(
    folder: Path | None = None, *, runs: int = 3, wanted: tuple[str, ...] = SETTINGS, only: tuple[str, ...] = ()
) -> Iterator[Row]:
    """One row for each setting and copy. ``folder``: where data sets are; ``only``: copies, all when empty."""
    for setting in settings(folder or BESIDE, set(wanted)):
        for name, theft in THEFTS.items():
            if not only or name in only:
                yield _row(setting, name, theft, runs)


class _Stolen(NamedTuple):
    """One theft: corrected p of the copy's labels and of its probabilities, how many labels were flipped, and the share of
    those that the copy tells."""

    labels: float
    probabilities: float
    flipped: int
    kept: float


def _row(setting: Setting, name: str, theft: Theft, runs: int) -> Row:
    found = [_stolen(setting, theft, seed) for seed in range(runs)]
    innocent = _innocent(setting, theft)
    return {
        "bench": "labels",
        "case": f"{setting.name}: {name}",
        "flips": f"{theft.share:.1%}",
        "queries": theft.queries,
        "flipped": int(np.median([one.flipped for one in found])),
        "memorised": round(float(np.mean([one.kept for one in found])), 2),
        "p_median": f"{np.median([one.labels for one in found]):.0e}",
        "p_worst": f"{max(one.labels for one in found):.0e}",
        "p_outvoted": f"{_stolen(setting, theft, 0, outvote=True).labels:.0e}",
        "probabilities_worst": f"{max(one.probabilities for one in found):.0e}",
        "innocent_least": f"{innocent.min():.2g}",
        "innocent_5%": round(float((innocent <= 0.05).mean()), 3),
    }


def _stolen(setting: Setting, theft: Theft, seed: int, outvote: bool = False) -> _Stolen:
    """``outvote``: the thief asks each question three times, twice a little aside, and learns the label that most have."""
    rng = np.random.default_rng([seed, theft.queries])
    key, x = rng.bytes(32), questions(setting, theft.queries, rng)
    asked, told = [x], [_told(setting, key, x, theft.share)]
    if outvote:
        scale = setting.profile.embedding.scale
        asked += [x + rng.normal(size=x.shape) * NOISE * scale for _ in range(2)]
        told += [_told(setting, key, rows, theft.share) for rows in asked[1:]]
    classes = setting.answers.shape[1]
    votes = np.sum([np.eye(classes)[each] for each in told], axis=0)
    clean, learnt = np.asarray(setting.predict(x)).argmax(axis=1), votes.argmax(axis=1)
    labels, probabilities = _copy(theft, x, learnt, classes, seed)
    flips = told[0] != clean
    kept = float((labels(x).argmax(axis=1)[flips] == told[0][flips]).mean()) if flips.any() else 0.0
    everything = np.concatenate(asked)
    trail = AccountTrail("thief", key, everything, flips=theft.share, flipped=everything)
    p, soft = (min(1.0, ACCOUNTS * _p(setting, suspect, [trail])[0]) for suspect in (labels, probabilities))
    return _Stolen(p, soft, int(flips.sum()), kept)


def _innocent(setting: Setting, theft: Theft) -> Floats:
    """p, not corrected, by other keys, of a copy that learnt the model's own labels of the very questions."""
    rng = np.random.default_rng(99)
    x = questions(setting, theft.queries, rng)
    suspect, _ = _copy(theft, x, np.asarray(setting.predict(x)).argmax(axis=1), setting.answers.shape[1], 0)
    few = x[: theft.queries // 4]  # of as many as tell
    trails = [AccountTrail(str(i), rng.bytes(32), few[:0], flips=theft.share, flipped=few) for i in range(KEYS)]
    return np.array(_p(setting, suspect, trails))


def _told(setting: Setting, key: bytes, x: Floats, share: float) -> Ints:
    marked = Marker(key, setting.profile).apply(x, np.asarray(setting.predict(x)))
    out: Ints = flipped(Flipper(key, spots_of(setting.profile)), x, marked, share).argmax(axis=1)
    return out


def _copy(theft: Theft, x: Floats, told: Ints, classes: int, seed: int) -> tuple[Predict, Predict]:
    """A copy that is asked for labels, and for probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of epochs that end it
        model = theft.copy(seed).fit(x, told)

    def probabilities(rows: Floats) -> Floats:
        out = np.zeros((len(rows), classes))
        out[:, model.classes_] = model.predict_proba(rows)
        return out

    return lambda rows: np.eye(classes)[model.predict(rows)], probabilities


def _p(setting: Setting, suspect: Predict, trails: list[AccountTrail]) -> list[float]:
    probes = draw_probes(setting.profile, PROBES, 5)
    found = trace(suspect, setting.predict, trails, setting.profile, probes=probes)
    return [one.p_value for one in found]
