"""Explanations: attributions of made-up rows name the weights of a model, column by column."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker
from modelkeep.extraction.attacks.equations import Solved, agreement


def explanations(known: Knowledge, rng: np.random.Generator, *, step: int = 4) -> Plan:
    """Ask to have rows explained whose every value is a standard deviation above or below the mean, the signs at random.

    The answers are wide, (n, k (2 + d)): see ``parts``. A gateway of modelkeep gives Shapley values, no counterfactuals and no
    leaf of a tree, so there is no path to follow; one explanation says about as much as d + 1 answers, and is charged so.
    Source: Milli et al. 2019, "Model Reconstruction from Model Explanations", section 3 (there: gradients); the reading of
    Shapley values is ours.
    """
    middle, reach = known.seeds.mean(axis=0), known.seeds.std(axis=0)
    reach = np.where(known.whole, np.maximum(np.rint(reach), 1.0), reach)
    while True:
        yield known.snap(middle + reach * rng.choice([-1.0, 1.0], size=(step, len(middle))))


def parts(answers: Array, columns: int) -> tuple[Array, Array, Array]:
    """Wide answers (n, k (2 + d)) as the model's probabilities (n, k), their means over the background (n, k), and how much
    each column moved each probability (n, k, d)."""
    classes = answers.shape[1] // (columns + 2)
    return (
        answers[:, :classes],
        answers[:, classes : 2 * classes],
        answers[:, 2 * classes :].reshape(len(answers), classes, columns),
    )


class Attributed:
    """A copy from explanations. Its log-odds are linear in scores, one a class, whose weights are attributions over distances;
    if that misses too many of the answers, ``otherwise`` trains on rows with one column at a time put back to the centre."""

    def __init__(self, known: Knowledge, otherwise: SurrogateMaker, *, least: float = 0.9) -> None:
        self._centre, self._otherwise, self._least = known.seeds.mean(axis=0), otherwise, least
        self._slope: Array = np.empty((0, 0))
        self._copy: Surrogate = Solved()

    def fit(self, x: Array, answers: Array) -> None:
        """Learn from explained rows (n, d) and wide answers."""
        probs, base, moved = parts(answers, x.shape[1])
        away = x - self._centre
        square = (away**2).sum(axis=0)
        self._slope = (moved * away[:, None, :]).sum(axis=0).T / np.where(square > 0, square, np.inf)[:, None]
        self._copy = Solved()
        self._copy.fit(np.concatenate([away @ self._slope, np.zeros((1, probs.shape[1]))]), np.concatenate([probs, base[:1]]))
        if len(x) > probs.shape[1] + 1 and agreement(self, x, probs) < self._least:
            self._slope, self._copy = np.empty((0, 0)), self._otherwise()
            self._copy.fit(*_put_back(x, probs, moved, self._centre))

    def predict(self, x: Array) -> Array:
        """Class probabilities (n, k)."""
        return self._copy.predict((x - self._centre) @ self._slope if len(self._slope) else x)


def _put_back(x: Array, probs: Array, moved: Array, centre: Array) -> tuple[Array, Array]:
    """The rows (n (1 + d), d), each also with every column in turn at the centre, and about what the model says of them."""
    columns = x.shape[1]
    back = np.where(np.eye(columns, dtype=bool), centre, x[:, None, :]).reshape(-1, columns)
    less = np.clip(probs[:, :, None] - moved, 1e-3, 1.0).transpose(0, 2, 1).reshape(len(back), -1)
    return np.concatenate([x, back]), np.concatenate([probs, less / less.sum(axis=1, keepdims=True)])
