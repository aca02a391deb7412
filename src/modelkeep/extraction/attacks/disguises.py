"""The adaptive thief: wrappers around any ``Strategy`` that hide it or get more out of its answers.

Each is a ``Strategy`` itself, so they nest in any order, and counts hold: a wrapper asks what it asks in requests of any size.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks.base import Array, Knowledge, Lesson, Strategy

_BLOCK = 4096
"""Most of the inner attack's questions that are disguised at a time; those of one round of it are."""


class Disguise(ABC):
    """Base class: asks ``_expand`` of what the inner attack asks, and hands it one answer for each of its questions."""

    def __init__(self, inner: Strategy) -> None:
        self._inner = inner
        self._rows, self._block = np.empty((0, 0)), np.empty((0, 0))
        self._owner = self._last = np.empty(0, dtype=np.int64)
        self._told: list[Array] = []
        self._fed = 0

    @abstractmethod
    def _expand(self, block: Array) -> tuple[Array, NDArray[np.int64]]:
        """Rows to ask (m, d) for the inner attack's next questions (n, d), and which of these each belongs to (m,), rising; -1:
        none, it is an honest row."""

    def _teach(self, question: Array, asked: Array, told: Array) -> Lesson:  # noqa: ARG002  # for those who override it
        """Hand the inner attack the answer to its ``question`` (1, d), for which ``asked`` (j, d) were asked and ``told`` (j,
        k)."""
        return self._inner.feed(question, told.mean(axis=0, keepdims=True))

    def propose(self, count: int) -> Array:
        """The next rows of the block in hand."""
        if self._fed == len(self._rows):
            self._block = self._inner.propose(_BLOCK)
            self._rows, self._owner = self._expand(self._block)
            self._last = np.zeros(len(self._block), dtype=np.int64)
            np.maximum.at(self._last, self._owner[self._owner >= 0], np.flatnonzero(self._owner >= 0))
            self._fed, self._told = 0, []
        return self._rows[self._fed : self._fed + count]

    def feed(self, x: Array, probs: Array) -> Lesson:
        """Take answers; the inner attack is told as soon as all that was asked for a question of its own is answered."""
        if len(x) != len(probs) or self._fed + len(x) > len(self._rows):
            raise Invalid(f"{len(probs)} answers do not fit {len(x)} questions with {len(self._rows) - self._fed} still open")
        lessons = [Lesson(x[:0], probs[:0], 0), *map(self._learn, x, probs)]
        rows, answers, own = zip(*lessons, strict=True)
        return Lesson(np.concatenate(rows), np.concatenate(answers), sum(own))

    def _learn(self, row: Array, answer: Array) -> Lesson:
        at, owner = self._fed, int(self._owner[self._fed])
        self._fed += 1
        if owner < 0:
            return Lesson(row[None], answer[None], 0)
        self._told.append(answer)
        if at < self._last[owner]:
            return Lesson(row[None][:0], answer[None][:0], 0)
        asked, told, self._told = self._rows[self._owner == owner], np.array(self._told), []
        lesson = self._teach(self._block[owner : owner + 1], asked, told)
        return lesson._replace(own=lesson.own * len(asked))  # the earlier ones, which were not counted yet, too


class Repeated(Disguise):
    """Asks every question ``times`` times and believes the mean of the answers. (Against answers that are the same for an exact
    repeat it gains nothing unless noise is added.)"""

    def __init__(self, inner: Strategy, times: int) -> None:
        super().__init__(inner)
        self._times = times

    def _expand(self, block: Array) -> tuple[Array, NDArray[np.int64]]:
        return np.repeat(block, self._times, axis=0), np.repeat(np.arange(len(block)), self._times)


class Noisy(Disguise):
    """Adds normal noise to every question, ``scale`` of each column's range, and snaps it. The inner attack thinks that its own
    question was answered; the copy learns what was really asked."""

    def __init__(self, inner: Strategy, scale: float, known: Knowledge, rng: np.random.Generator) -> None:
        super().__init__(inner)
        self._scale, self._known, self._rng = scale, known, rng

    def _expand(self, block: Array) -> tuple[Array, NDArray[np.int64]]:
        if not len(block):
            return block, np.empty(0, dtype=np.int64)
        noise = self._scale * self._known.width * self._rng.normal(size=block.shape)
        return self._known.snap(block + noise), np.arange(len(block))

    def _teach(self, question: Array, asked: Array, told: Array) -> Lesson:
        return Lesson(asked, told, super()._teach(question, asked, told).own)


class Interleaved(Disguise):
    """Hides the attack among ``honest`` rows (m, d), asked in random order and again when they are used up: of any t questions
    that begin with the first, ``share`` t belong to the attack, rounded down."""

    def __init__(self, inner: Strategy, share: float, honest: Array, rng: np.random.Generator) -> None:
        super().__init__(inner)
        self._share, self._turn, self._honest = share, 0, _Honest(honest, rng)

    def _expand(self, block: Array) -> tuple[Array, NDArray[np.int64]]:
        owner: list[int] = []
        own = 0
        while own < len(block):
            self._turn += 1
            ours = int(self._turn * self._share + 1e-9) > int((self._turn - 1) * self._share + 1e-9)  # 10 x 0.1 is one
            owner.append(own if ours else -1)
            own += ours
        places = np.array(owner, dtype=np.int64)
        if not len(places):
            return block, places
        rows = block[places]
        rows[places < 0] = self._honest.take(int((places < 0).sum()))
        return rows, places


class Sleeper(Disguise):
    """Asks ``first`` of the ``honest`` rows (m, d) before anything else."""

    def __init__(self, inner: Strategy, first: int, honest: Array, rng: np.random.Generator) -> None:
        super().__init__(inner)
        self._first, self._honest = first, _Honest(honest, rng)

    def _expand(self, block: Array) -> tuple[Array, NDArray[np.int64]]:
        asleep, self._first = self._first, 0
        if not asleep:
            return block, np.arange(len(block))
        rows = self._honest.take(asleep)
        owner = np.concatenate([np.full(asleep, -1), np.arange(len(block))])
        return (np.concatenate([rows, block]) if len(block) else rows), owner


class _Honest:
    """Honest rows in random order, and again in another when they are used up."""

    def __init__(self, rows: Array, rng: np.random.Generator) -> None:
        if not len(rows):
            raise Invalid("there are no honest rows to hide among")
        self._rows, self._rng, self._left = rows, rng, np.empty(0, dtype=np.int64)

    def take(self, count: int) -> Array:
        while len(self._left) < count:
            self._left = np.concatenate([self._left, self._rng.permutation(len(self._rows))])
        taken, self._left = self._left[:count], self._left[count:]
        rows: Array = self._rows[taken]
        return rows
