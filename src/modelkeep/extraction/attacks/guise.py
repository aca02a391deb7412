"""What a thief does besides its attack, as one value that any attack can wear."""

from dataclasses import dataclass

import numpy as np

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks.base import Array, Knowledge, Lesson, Strategy
from modelkeep.extraction.attacks.disguises import Interleaved, Noisy, Repeated, Sleeper


class Coarsened:
    """Makes less of every answer before anything else sees it: the top class only (``decimals`` None), or so many decimals.
    A thief does so who fears the mark in the fine digits."""

    def __init__(self, inner: Strategy, decimals: int | None = None) -> None:
        self._inner, self._decimals = inner, decimals

    def propose(self, count: int) -> Array:
        """What the inner attack asks."""
        return self._inner.propose(count)

    def feed(self, x: Array, probs: Array) -> Lesson:
        """The coarsened answers."""
        coarse = hard(probs) if self._decimals is None else np.round(probs, self._decimals)
        return self._inner.feed(x, coarse)


def hard(probs: Array) -> Array:
    """One-hot rows (n, k) with the top class of each answer; the first of equals."""
    return np.asarray(np.eye(probs.shape[1])[probs.argmax(axis=1)])


@dataclass(frozen=True)
class Guise:
    """What a thief does besides its attack; as it stands, nothing.

    ``repeats``: times each question is asked; ``noise``: share of each column's range; ``share``: of the questions that are the
    attack's; ``sleep``: honest questions first; ``labels_only``, ``decimals``: what is made of the answers.
    """

    repeats: int = 1
    noise: float = 0.0
    share: float = 1.0
    sleep: int = 0
    labels_only: bool = False
    decimals: int | None = None

    def wear(self, attack: Strategy, known: Knowledge, *, honest: Array | None = None, seed: int = 0) -> Strategy:
        """``attack`` in this guise, hidden among ``honest`` rows (m, d), or the thief's own. Raises Invalid (out of bounds)."""
        if self.repeats < 1 or self.noise < 0 or not 0 < self.share <= 1 or self.sleep < 0 or self.decimals == 0:
            raise Invalid(f"no thief can look like this: {self}")
        cover = known.seeds if honest is None else honest
        if cover.shape[1] != known.seeds.shape[1]:
            raise Invalid(f"honest rows of {cover.shape[1]} columns do not fit own rows of {known.seeds.shape[1]}")
        noise, hide, sleep = (np.random.default_rng((seed, one)) for one in range(3))
        worn = Repeated(attack, self.repeats) if self.repeats > 1 else attack
        worn = Noisy(worn, self.noise, known, noise) if self.noise else worn
        worn = Interleaved(worn, self.share, cover, hide) if self.share < 1 else worn
        worn = Sleeper(worn, self.sleep, cover, sleep) if self.sleep else worn
        worn = Coarsened(worn, self.decimals) if self.decimals is not None else worn
        return Coarsened(worn) if self.labels_only else worn

    def words(self) -> tuple[str, ...]:
        """What is done, for a report: empty when nothing is."""
        said = {
            f"every question {self.repeats} times": self.repeats > 1,
            f"noise of {self.noise:g} ranges": self.noise > 0,
            f"{self.share:.0%} attack": self.share < 1,
            f"{self.sleep} honest questions first": self.sleep > 0,
            f"{self.decimals} decimals": self.decimals is not None,
            "labels only": self.labels_only,
        }
        return tuple(words for words, done in said.items() if done)
