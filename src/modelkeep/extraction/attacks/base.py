"""What every extraction attack is made of: what the thief knows, how it asks, and the copy that it trains.

An attack is a *plan*: a generator that yields questions and is sent their answers. ``Planned`` turns a plan into a
``Strategy`` that asks in requests of any size, so that one plan runs over HTTP against a gateway or in memory.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid

Array = NDArray[np.float64]
Plan = Generator[Array, Array, None]
"""Yields questions (n, d); is sent their answers (n, k); returns when there is nothing more to ask."""


class Surrogate(Protocol):
    """The copy that a thief trains."""

    def fit(self, x: Array, probs: Array) -> None:
        """Learn from questions (n, d) and their soft answers (n, k); forgets what it learnt before."""
        ...

    def predict(self, x: Array) -> Array:
        """Class probabilities (n, k) for rows (n, d)."""
        ...


SurrogateMaker = Callable[[], Surrogate]


class Strategy(Protocol):
    """A way to choose questions. Ask what ``propose`` gives, then ``feed`` back the answers, in turn."""

    def propose(self, count: int) -> Array:
        """The next questions: shape (at most ``count``, d); no rows at all when there is nothing more to ask."""
        ...

    def feed(self, x: Array, probs: Array) -> None:
        """The answers (n, k) to the questions (n, d) that ``propose`` gave last, all or the first of them."""
        ...


@dataclass(frozen=True)
class Knowledge:
    """What the thief knows beforehand: natural rows of its own and the values that a valid row may hold.

    ``seeds``: (n, d); ``lower``, ``upper``: (d,); ``whole``: (d,), true where a column holds only whole numbers.
    """

    seeds: Array
    lower: Array
    upper: Array
    whole: NDArray[np.bool_]

    @classmethod
    def of(cls, seeds: Array) -> Self:
        """Read ranges and whole-number columns off the thief's rows (n >= 2, d). Raises Invalid."""
        rows = np.asarray(seeds, dtype=np.float64)
        if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1] or not np.isfinite(rows).all():
            raise Invalid(
                f"an attack needs at least two rows of finite numbers to start from, not an array of shape {rows.shape}"
            )
        return cls(rows, rows.min(axis=0), rows.max(axis=0), np.all(rows == np.rint(rows), axis=0))

    def snap(self, x: Array) -> Array:
        """The nearest valid rows: inside the ranges, whole where the column is. Harder to tell from honest."""
        inside = np.clip(x, self.lower, self.upper)
        return np.where(self.whole, np.rint(inside), inside)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """``count`` natural rows, without repeats while the seeds last."""
        return self.seeds[rng.choice(len(self.seeds), size=count, replace=count > len(self.seeds))]


class Planned:
    """The ``Strategy`` that follows a plan, however the questions are cut into requests."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._round = self._settle(next(plan, None))
        self._answers: list[Array] = []
        self._fed = 0

    @staticmethod
    def _settle(questions: Array | None) -> Array:
        return np.empty((0, 0)) if questions is None else questions

    def propose(self, count: int) -> Array:
        """The next rows of the round in hand."""
        return self._round[self._fed : self._fed + count]

    def feed(self, x: Array, probs: Array) -> None:
        """Take answers; when the round is complete, let the plan think of the next one. Raises Invalid."""
        if len(x) != len(probs) or self._fed + len(x) > len(self._round):
            raise Invalid(f"{len(probs)} answers do not fit {len(x)} questions with {len(self._round) - self._fed} still open")
        self._answers.append(np.asarray(probs, dtype=np.float64))
        self._fed += len(x)
        if self._fed < len(self._round):
            return
        answers, self._answers, self._fed = np.concatenate(self._answers), [], 0
        try:
            self._round = self._settle(self._plan.send(answers))
        except StopIteration:
            self._round = self._round[:0]
