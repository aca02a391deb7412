"""ActiveThief: choose from a pool what an active learner would want labelled."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker
from modelkeep.extraction.attacks.jacobian import differences

Choice = Callable[[Knowledge, Surrogate, Array, Array, int], NDArray[np.intp]]
"""(known, copy, open rows (m, d), asked rows (n, d), count) -> which ``count`` of the open rows to ask next."""


def active_thief(
    known: Knowledge, rng: np.random.Generator, surrogate: SurrogateMaker, choose: Choice, *, start: int = 50, step: int = 50
) -> Plan:
    """Ask ``start`` rows of the pool, train a copy, ask the ``step`` rows that ``choose`` likes best, retrain, repeat.

    The pool is the thief's foreign rows, or its own and shuffled ones; each is asked once.
    Source: Pal et al. 2020, "ActiveThief: Model Extraction Using Active Learning and Unannotated Public Data", algorithm 1.
    """
    left = known.pool(rng)
    x, left = left[:start], left[start:]
    answers = yield x
    while len(left):
        copy = surrogate()
        copy.fit(x, answers)
        picked = choose(known, copy, left, x, min(step, len(left)))
        asked, left = left[picked], np.delete(left, picked, axis=0)
        x, answers = np.concatenate([x, asked]), np.concatenate([answers, (yield asked)])


def entropy(known: Knowledge, copy: Surrogate, left: Array, asked: Array, count: int) -> NDArray[np.intp]:  # noqa: ARG001  # all choose alike
    """The rows on which the copy's answer has the most entropy (there: "uncertainty strategy")."""
    guess = copy.predict(left)
    doubt = -(guess * np.log(np.maximum(guess, 1e-12))).sum(axis=1)
    return np.argsort(-doubt, kind="stable")[:count]


def k_centre(known: Knowledge, copy: Surrogate, left: Array, asked: Array, count: int) -> NDArray[np.intp]:  # noqa: ARG001  # all choose alike
    """Greedy k-centre: again and again the row whose answer by the copy is farthest from those of all rows chosen or asked."""
    guess, seen = copy.predict(left), copy.predict(asked)
    far = ((guess[:, None, :] - seen) ** 2).sum(axis=2).min(axis=1)
    picked = []
    for _ in range(count):
        best = int(far.argmax())
        picked.append(best)
        far = np.minimum(far, ((guess - guess[best]) ** 2).sum(axis=1))
        far[best] = -1.0
    return np.array(picked, dtype=np.intp)


def dfal(known: Knowledge, copy: Surrogate, left: Array, asked: Array, count: int) -> NDArray[np.intp]:  # noqa: ARG001  # all choose alike
    """DeepFool active learning: the rows nearest to the copy's boundary, in units of the columns' ranges.

    The distance is DeepFool's first step, (p1 - p2) / |gradient of it|, computed for the 4 x ``count`` rows with the least p1
    - p2.
    Source: Ducoffe and Precioso 2018, "Adversarial Active Learning for Deep Networks: a Margin Based Approach".
    """
    guess = copy.predict(left)
    order = np.argsort(guess, axis=1)
    first, second = order[:, -1], order[:, -2]
    rows = np.arange(len(left))
    margin = guess[rows, first] - guess[rows, second]
    near = np.argsort(margin, kind="stable")[: 4 * count]
    slopes = differences(copy, left[near], 0.01 * known.width) / 0.02
    at = np.arange(len(near))
    steep = np.sqrt(((slopes[at, :, first[near]] - slopes[at, :, second[near]]) ** 2).sum(axis=1))
    distance = margin[near] / np.maximum(steep, 1e-12)
    return near[np.argsort(distance, kind="stable")[:count]]
