"""Adaptive retraining: ask where the copy of the moment is least certain, retrain, and again."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker


def adaptive(
    known: Knowledge,
    rng: np.random.Generator,
    surrogate: SurrogateMaker,
    *,
    start: int = 50,
    step: int = 50,
    bisections: int = 12,
) -> Plan:
    """Ask ``start`` uniform rows, train a copy, then ask ``step`` rows on the copy's own decision boundary, retrain, repeat.

    Half of the starting rows are natural where the thief has them, so that it sees more classes than one. Boundary points are
    bisected on the copy, which costs no questions.
    Source: Tramer et al. 2016, "Stealing Machine Learning Models via Prediction APIs", section 5.2.1 (adaptive retraining).
    """
    own = known.draw(rng, min(start // 2, len(known.seeds)))
    x = np.concatenate([own, known.snap(rng.uniform(known.lower, known.upper, size=(start - len(own), len(known.lower))))])
    answers = yield x
    while True:
        copy = surrogate()
        copy.fit(x, answers)
        asked = known.snap(_boundary(copy, x, known, rng, step, bisections))
        x, answers = np.concatenate([x, asked]), np.concatenate([answers, (yield asked)])


def _boundary(copy: Surrogate, x: Array, known: Knowledge, rng: np.random.Generator, count: int, bisections: int) -> Array:
    """``count`` points where the copy's top class changes; uniform ones while the copy knows one class only."""
    ends = np.concatenate([known.snap(rng.uniform(known.lower, known.upper, size=(4 * count, x.shape[1]))), x])
    top = copy.predict(ends).argmax(axis=1)
    if len(np.unique(top)) < 2:
        return ends[:count]
    first = rng.integers(len(ends), size=count)
    second = np.array([rng.choice(np.flatnonzero(top != top[one])) for one in first])
    near, far, mine = ends[first], ends[second], top[first]
    for _ in range(bisections):
        middle = (near + far) / 2
        same = (copy.predict(middle).argmax(axis=1) == mine)[:, None]
        near, far = np.where(same, middle, near), np.where(same, far, middle)
    return np.asarray((near + far) / 2)
