"""What every extraction attack is made of: what the thief knows, how it asks, and the copy that it trains.

An attack is a *plan*: a generator that yields questions and is sent their answers. ``Planned`` turns a plan into a
``Strategy`` that asks in requests of any size, so that one plan runs over HTTP against a gateway or in memory.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid

Array = NDArray[np.float64]
Plan = Generator[Array, Array, None]
"""Yields questions (n, d); is sent their answers (n, k), probabilities unless the thief knows of numbers; returns when there
is nothing more to ask."""


class Surrogate(Protocol):
    """The copy that a thief trains."""

    def fit(self, x: Array, probs: Array) -> None:
        """Learn from questions (n, d) and their soft answers, or numbers, (n, k); forgets what it learnt before."""
        ...

    def predict(self, x: Array) -> Array:
        """Class probabilities, or numbers, (n, k) for rows (n, d)."""
        ...


SurrogateMaker = Callable[[], Surrogate]


class Lesson(NamedTuple):
    """What answers taught: rows (m, d), what the thief takes their answers to be (m, k), and how many of the questions that
    were answered were the attack's own, not a disguise's."""

    x: Array
    probs: Array
    own: int


class Strategy(Protocol):
    """A way to choose questions. Ask what ``propose`` gives, then ``feed`` back the answers, in turn."""

    def propose(self, count: int) -> Array:
        """The next questions: shape (at most ``count``, d); no rows at all when there is nothing more to ask."""
        ...

    def feed(self, x: Array, probs: Array) -> Lesson:
        """The answers (n, k) to the questions (n, d) that ``propose`` gave last, all or the first of them; what they teach."""
        ...


@dataclass(frozen=True)
class Knowledge:
    """What the thief knows beforehand: natural rows of its own and the values that a valid row may hold.

    ``seeds``: (n, d); ``lower``, ``upper``: (d,); ``whole``: (d,), true where a column holds only whole numbers; ``foreign``:
    (m, d), rows from another distribution, if the thief has any; ``numbers``: the model answers with numbers (a regression),
    not with class probabilities.
    """

    seeds: Array
    lower: Array
    upper: Array
    whole: NDArray[np.bool_]
    foreign: Array | None = None
    numbers: bool = False

    @classmethod
    def of(cls, seeds: Array, foreign: Array | None = None, *, numbers: bool = False) -> Self:
        """Read ranges and whole-number columns off the thief's rows (n >= 2, d). Raises Invalid, also when foreign rows have
        another number of columns."""
        rows = np.asarray(seeds, dtype=np.float64)
        if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1] or not np.isfinite(rows).all():
            raise Invalid(
                f"an attack needs at least two rows of finite numbers to start from, not an array of shape {rows.shape}"
            )
        if foreign is not None and (foreign.ndim != 2 or not len(foreign) or foreign.shape[1] != rows.shape[1]):
            raise Invalid(f"foreign rows of shape {foreign.shape} do not fit own rows of {rows.shape[1]} columns")
        return cls(rows, rows.min(axis=0), rows.max(axis=0), np.all(rows == np.rint(rows), axis=0), foreign, numbers)

    @property
    def width(self) -> Array:
        """The range of each column, (d,)."""
        return self.upper - self.lower

    def snap(self, x: Array) -> Array:
        """The nearest valid rows: inside the ranges, whole where the column is. Harder to tell from honest."""
        inside = np.clip(x, self.lower, self.upper)
        return np.where(self.whole, np.rint(inside), inside)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """``count`` natural rows, without repeats while the seeds last."""
        return self.seeds[rng.choice(len(self.seeds), size=count, replace=count > len(self.seeds))]

    def stride(self, step: float) -> Array:
        """``step`` as a share of each column's range, (d,); at least 1 where whole, since less rounds back; 0 where
        constant."""
        return np.where(self.width > 0, np.maximum(step * self.width, np.where(self.whole, 1.0, 0.0)), 0.0)

    def shuffled(self, rng: np.random.Generator, count: int) -> Array:
        """``count`` made-up rows, each column drawn from the thief's own rows: values look natural, what ties them is
        broken."""
        columns = np.arange(self.seeds.shape[1])
        return self.seeds[rng.integers(len(self.seeds), size=(count, len(columns))), columns]

    def pool(self, rng: np.random.Generator, size: int = 2_000) -> Array:
        """Rows to choose questions from, in random order: the foreign ones, or own rows and shuffled ones, ``size`` in all."""
        if self.foreign is not None:
            return self.snap(self.foreign[rng.permutation(len(self.foreign))])
        own = self.seeds[rng.permutation(len(self.seeds))[:size]]
        return np.concatenate([own, self.shuffled(rng, size - len(own))])


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

    def feed(self, x: Array, probs: Array) -> Lesson:
        """Take answers; when the round is complete, let the plan think of the next one. Raises Invalid."""
        if len(x) != len(probs) or self._fed + len(x) > len(self._round):
            raise Invalid(f"{len(probs)} answers do not fit {len(x)} questions with {len(self._round) - self._fed} still open")
        self._answers.append(np.asarray(probs, dtype=np.float64))
        self._fed += len(x)
        if self._fed == len(self._round):
            self._think()
        return Lesson(x, probs, len(x))

    def _think(self) -> None:
        answers, self._answers, self._fed = np.concatenate(self._answers), [], 0
        try:
            self._round = self._settle(self._plan.send(answers))
        except StopIteration:
            self._round = self._round[:0]
