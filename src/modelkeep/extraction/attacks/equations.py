"""Equation solving: d + 1 answers of a logistic or softmax model are a linear system of its log-odds, those of a linear
regression one of its numbers."""

import numpy as np

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker
from modelkeep.extraction.budget import r_squared

_LEAST = 1e-300
"""What a zero is taken for where answers are not rounded: so that it has a logarithm."""


def equations(known: Knowledge, rng: np.random.Generator, *, spare: int = 8, step: int = 64) -> Plan:
    """Ask d + 1 rows in general position, see whether ``spare`` natural rows' answers follow from them, go on accordingly.

    The rows are the median natural row with one standard deviation (of a whole column: at least 1) added to or taken from every
    column at random: the design that errors of rounding and marks disturb least; columns that are constant are left out of the
    count. Further rows of that kind average such errors. If the victim is not linear in its log-odds (or in its numbers), the
    rest is uniform in the box, for a copy that is trained.
    Source: Tramer et al. 2016, "Stealing Machine Learning Models via Prediction APIs", sections 4.1.1 and 4.1.2 (solving),
    4.1.3 (random points and training, for perceptrons).
    """
    middle, reach = np.median(known.seeds, axis=0), known.seeds.std(axis=0)
    reach = np.where(known.whole, np.maximum(np.rint(reach), 1.0), reach)
    ends = known.snap(np.stack([middle - reach, middle + reach]))
    free = np.flatnonzero(ends[0] != ends[1])
    x = _general_position(ends, free, rng)
    answers = yield x
    linear = SolvedNumbers() if known.numbers else Solved()
    linear.fit(x, answers)
    more = known.draw(rng, spare)
    got = yield more
    follows = explains(linear, more, got, numbers=known.numbers) >= 0.9
    while True:
        yield _corners(ends, rng, step) if follows else known.snap(rng.uniform(known.lower, known.upper, (step, len(middle))))


def _corners(ends: Array, rng: np.random.Generator, count: int) -> Array:
    """``count`` rows, each value one of its column's two ``ends`` (2, d)."""
    return ends[rng.integers(2, size=(count, ends.shape[1])), np.arange(ends.shape[1])]


def _general_position(ends: Array, free: np.ndarray, rng: np.random.Generator) -> Array:
    """One row more than there are ``free`` columns, such that the system has one solution: the best conditioned of a few
    draws."""
    draws = [_corners(ends, rng, len(free) + 1) for _ in range(20)]
    signs = [np.column_stack([np.where(x[:, free] == ends[0, free], -1.0, 1.0), np.ones(len(x))]) for x in draws]
    return draws[int(np.argmin([np.linalg.cond(one) for one in signs]))]


def agreement(copy: Surrogate, x: Array, answers: Array) -> float:
    """Share of rows on which the copy has the top class of the ``answers`` (n, k)."""
    return float((copy.predict(x).argmax(axis=1) == answers.argmax(axis=1)).mean())


def explains(copy: Surrogate, x: Array, answers: Array, *, numbers: bool) -> float:
    """How well the copy has the ``answers`` (n, k): their top classes, or R² of numbers."""
    return r_squared(answers, copy.predict(x)) if numbers else agreement(copy, x, answers)


class Solved:
    """A model whose log-odds are linear, read off answers by weighted least squares; exact from d + 1 exact answers.

    ``weights``: (d, k) and ``bias``: (k,), up to a constant that is the same for all classes: those of the commonest are zero.
    """

    def __init__(self) -> None:
        self.weights: Array = np.empty((0, 0))
        self.bias: Array = np.empty(0)

    def fit(self, x: Array, probs: Array) -> None:
        """Solve. A row counts for a class as its log-odds are certain: pa pb / (pa + pb). Raises Invalid (no rows)."""
        if not len(x) or len(x) != len(probs):
            raise Invalid(f"{len(x)} questions and {len(probs)} answers are no system of equations")
        centre, scale, design = _design(x)
        safe = np.maximum(probs, _floor(probs))
        anchor = int(probs.mean(axis=0).argmax())
        base = safe[:, [anchor]]
        certain = np.maximum(safe * base / (safe + base), 1e-3)
        odds = np.log(safe) - np.log(base)
        found = np.column_stack([_least_squares(design, odds[:, k], certain[:, k]) for k in range(probs.shape[1])])
        self.weights = found[:-1] / scale[:, None]
        self.bias = found[-1] - centre @ self.weights

    def predict(self, x: Array) -> Array:
        """Class probabilities (n, k). Raises Invalid before ``fit``."""
        if not len(self.bias):
            raise Invalid("a system must be solved before it can predict")
        logits = x @ self.weights + self.bias
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))


class SolvedNumbers:
    """A model whose numbers are linear, read off answers by least squares; exact from d + 1 exact answers.

    ``weights``: (d, k) and ``bias``: (k,).
    """

    def __init__(self) -> None:
        self.weights: Array = np.empty((0, 0))
        self.bias: Array = np.empty(0)

    def fit(self, x: Array, answers: Array) -> None:
        """Solve. Raises Invalid (no rows)."""
        if not len(x) or len(x) != len(answers):
            raise Invalid(f"{len(x)} questions and {len(answers)} answers are no system of equations")
        centre, scale, design = _design(x)
        found = np.linalg.lstsq(design, answers, rcond=None)[0]
        self.weights = found[:-1] / scale[:, None]
        self.bias = found[-1] - centre @ self.weights

    def predict(self, x: Array) -> Array:
        """Numbers (n, k). Raises Invalid before ``fit``."""
        if not len(self.bias):
            raise Invalid("a system must be solved before it can predict")
        return np.asarray(x @ self.weights + self.bias)


def _design(x: Array) -> tuple[Array, Array, Array]:
    """Centre and scale (d,) of the columns of ``x`` (n, d), and the rows standardised by them with a column of ones."""
    centre, scale = x.mean(axis=0), np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)
    return centre, scale, np.column_stack([(x - centre) / scale, np.ones(len(x))])


def _floor(probs: Array) -> float:
    """What a zero stands for: half of the last digit of answers that are rounded, else next to nothing."""
    for digits in range(1, 7):
        if np.allclose(probs * 10**digits, np.rint(probs * 10**digits), rtol=0.0, atol=1e-9):
            return 0.5 * 10.0**-digits
    return _LEAST


def _least_squares(design: Array, odds: Array, certain: Array) -> Array:
    root = np.sqrt(certain)
    return np.asarray(np.linalg.lstsq(design * root[:, None], odds * root, rcond=None)[0])


class SolvedOr:
    """The solved model, or the copy that ``otherwise`` trains (a perceptron, for example) where that explains answers better.

    ``least``: a solution that has the top class of so many of the answers kept aside, or of ``numbers`` explains so much of
    their variance, is taken without training another.
    """

    def __init__(self, otherwise: SurrogateMaker, *, least: float = 0.97, numbers: bool = False) -> None:
        self._otherwise, self._least, self._numbers = otherwise, least, numbers
        self._solved: SurrogateMaker = SolvedNumbers if numbers else Solved
        self._copy: Surrogate = self._solved()

    def fit(self, x: Array, probs: Array) -> None:
        """Solve; with answers to spare, keep every fifth aside to see which copy explains them, then learn from all."""
        self._copy = self._solved() if len(x) < 1.25 * (x.shape[1] + 1) + 4 else self._better(x, probs)
        self._copy.fit(x, probs)

    def _better(self, x: Array, probs: Array) -> Surrogate:
        aside = np.arange(len(x)) % 5 == 4
        linear = self._solved()
        linear.fit(x[~aside], probs[~aside])
        found = explains(linear, x[aside], probs[aside], numbers=self._numbers)
        if found >= self._least:
            return linear
        other = self._otherwise()
        other.fit(x[~aside], probs[~aside])
        return other if explains(other, x[aside], probs[aside], numbers=self._numbers) > found else linear

    def predict(self, x: Array) -> Array:
        """Class probabilities, or numbers, (n, k)."""
        return self._copy.predict(x)
