"""The red team's story: steal through a target, train a copy on what was answered, and measure how good the copy is.

The same function runs over HTTPS against a gateway and in memory against a bare model; only the target differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid, ModelkeepError, OverBudget, Refused
from modelkeep.extraction.attacks import ATTACKS, Array, Lesson, Strategy, Surrogate, SurrogateMaker, parts
from modelkeep.extraction.budget import r_squared

LEAST_ROWS = 5
"""Fewer answers than this are not worth a copy: the thief is left with the commonest class. The curve begins here."""
POINTS = 6
"""Copies trained for one curve."""


class Target(Protocol):
    """A model that answers."""

    def predict(self, x: Array) -> Array:
        """Class probabilities, or numbers, (n, k) for rows (n, d); one-hot rows where the target gives labels only.

        Raises what the gateway says: Denied and its kin (held, revoked, quarantined), OverBudget, Unavailable, Invalid.
        """
        ...


@dataclass(frozen=True)
class Exam:
    """Rows the thief never asked (n, d) and the victim's own answers (n, k): what fidelity is measured on. ``numbers``: the
    answers are a regression's numbers, no probabilities. Without rows, every fifth answer that the thief gets is kept aside."""

    x: Array = field(default_factory=lambda: np.empty((0, 0)))
    answers: Array = field(default_factory=lambda: np.empty((0, 0)))
    numbers: bool = False

    @classmethod
    def by(cls, victim: Target, x: Array, *, numbers: bool = False) -> Self:
        """Let the bare victim answer ``x``. Raises Invalid when there are no rows."""
        if not len(x):
            raise Invalid("the evaluation data holds no rows")
        return cls(x, victim.predict(x), numbers)

    def fidelity(self, copy: Surrogate) -> float:
        """The share of rows on which the copy's top class is the victim's, or R² of the copy's numbers."""
        guess = copy.predict(self.x)
        if self.numbers:
            return r_squared(self.answers, guess)
        return float((guess.argmax(axis=1) == self.answers.argmax(axis=1)).mean())

    @property
    def majority(self) -> float:
        """The fidelity of a constant copy: of one that always answers the commonest class, or the mean of the numbers."""
        if self.numbers:
            return 0.0
        return float(np.unique(self.answers.argmax(axis=1), return_counts=True)[1].max() / len(self.answers))


class Point(msgspec.Struct, frozen=True):
    """The fidelity of a copy trained on the first ``queries`` answers."""

    queries: int
    fidelity: float


class AttackReport(msgspec.Struct, frozen=True):
    """How an attack went.

    ``queries``: rows answered, of which ``own`` belong to the attack and the others to its disguise; ``guise``: what that does;
    ``accounts``: rows answered to each account; ``stopped``: stable code of the error that ended it, "budget" (all was spent)
    or "exhausted" (the plan had nothing more to ask); ``measured_on``: "held-out rows" or "held-out answers"; ``majority``:
    fidelity of the constant copy; ``fidelity``: of the copy trained on everything, or of the constant one when that is too
    little; ``measure``: what fidelity is, "agreement" of top classes or "R²" of numbers; ``hashes``: spent on the gateway's
    puzzles.
    """

    strategy: str
    budget: int
    queries: int
    stopped: str
    reason: str
    measured_on: str
    majority: float
    fidelity: float
    curve: tuple[Point, ...]
    own: int = 0
    guise: tuple[str, ...] = ()
    accounts: tuple[int, ...] = ()
    measure: str = "agreement"
    hashes: int = 0


@dataclass(frozen=True)
class Loot:
    """What the thief learnt: rows (n, d) and their answers (n, k), in order, and why it ended.

    ``after``: (n,), rows that had been answered when each was learnt; ``asked``: rows answered in all; ``own``: of the attack.
    """

    x: Array
    probs: Array
    stopped: str
    reason: str
    after: NDArray[np.int64]
    asked: int
    own: int

    def until(self, spent: int) -> tuple[Array, Array]:
        """What was learnt from the first ``spent`` answers."""
        known = int(np.searchsorted(self.after, spent, side="right"))
        return self.x[:known], self.probs[:known]


def steal(
    target: Target,
    strategy: Strategy,
    *,
    budget: int,
    batch: int = 1,
    watch: Callable[[int], None] | None = None,
) -> Loot:
    """Ask until ``budget`` rows are answered, the target refuses, or the strategy has nothing more to ask.

    ``batch``: rows a request; ``watch`` is told the number of answers after each request.
    Raises what the target raises if it refuses the very first request (a wrong key is not a defence) or fails.
    """
    lessons: list[Lesson] = []
    after: list[NDArray[np.int64]] = []
    spent, stopped, reason = 0, "budget", f"all {budget} queries were answered"
    while spent < budget:
        asked = strategy.propose(min(batch, budget - spent))
        if not len(asked):
            stopped, reason = "exhausted", "the attack had nothing more to ask"
            break
        try:
            answers = target.predict(asked)
        except (Refused, OverBudget) as refusal:
            if not spent:
                raise
            stopped, reason = _why(refusal)
            break
        lessons.append(strategy.feed(asked, answers))
        after.append(_moments(len(lessons[-1].x), len(asked), spent))
        spent += len(asked)
        if watch:
            watch(spent)
    x = np.concatenate([one.x for one in lessons]) if lessons else np.empty((0, 0))
    probs = np.concatenate([one.probs for one in lessons]) if lessons else np.empty((0, 0))
    return Loot(
        x,
        probs,
        stopped,
        reason,
        after=np.concatenate(after) if after else np.empty(0, dtype=np.int64),
        asked=spent,
        own=sum(one.own for one in lessons),
    )


def _moments(learnt: int, answered: int, before: int) -> NDArray[np.int64]:
    """When each of ``learnt`` rows was learnt: row by row where every answer of a request taught one, else at its end."""
    steps = np.arange(1, answered + 1) if learnt == answered else np.full(learnt, answered)
    return np.asarray(before + steps, dtype=np.int64)


def appraise(loot: Loot, surrogate: SurrogateMaker, exam: Exam, sizes: tuple[int, ...]) -> tuple[Point, ...]:
    """The fidelity of copies trained on what the first n answers taught, for each n of ``sizes`` at which that was
    something."""
    curve = []
    for size in sizes:
        x, answers = loot.until(size)
        if not len(x):
            continue
        copy = surrogate()
        copy.fit(x, answers)
        curve.append(Point(size, exam.fidelity(copy)))
    return tuple(curve)


def log_spaced(most: int, points: int) -> tuple[int, ...]:
    """Up to ``points`` rising whole numbers from ``LEAST_ROWS`` to ``most``, log-spaced; () when ``most`` is below that."""
    if most < LEAST_ROWS:
        return ()
    return tuple(int(n) for n in np.unique(np.rint(np.geomspace(LEAST_ROWS, most, points)).astype(np.int64)))


def run_attack(
    target: Target,
    strategy: Strategy,
    *,
    name: str,
    surrogate: SurrogateMaker,
    budget: int,
    batch: int = 1,
    exam: Exam | None = None,
    watch: Callable[[int], None] | None = None,
) -> tuple[AttackReport, Loot]:
    """Steal, then report fidelity against queries spent at ``POINTS`` log-spaced sizes.

    ``name``: of the attack; ``surrogate`` makes the copies (``copy_maker`` of the attacks). Without an ``exam`` every fifth row
    learnt is kept from training and fidelity is measured on those: all that a thief can know.
    Raises Invalid (``budget`` or ``batch`` below 1) and what ``steal`` raises.
    """
    if budget < 1 or batch < 1:
        raise Invalid(f"an attack needs a budget and a batch of at least one row, not {budget} and {batch}")
    loot = steal(target, strategy, budget=budget, batch=batch, watch=watch)
    return assess(loot, name=name, surrogate=surrogate, budget=budget, exam=exam), loot


def assess(loot: Loot, *, name: str, surrogate: SurrogateMaker, budget: int, exam: Exam | None = None) -> AttackReport:
    """Train copies on prefixes of what was stolen and measure them, as ``run_attack`` does."""
    exam = exam or Exam()
    measured_on = "held-out rows" if len(exam.x) else "held-out answers"
    training, test = (loot, exam) if len(exam.x) else _split(loot, ATTACKS[name].explains, exam.numbers)
    majority = test.majority if len(test.x) else 0.0
    curve = appraise(training, surrogate, test, log_spaced(training.asked, POINTS)) if len(test.x) else ()
    return AttackReport(
        strategy=name,
        budget=budget,
        queries=loot.asked,
        stopped=loot.stopped,
        reason=loot.reason,
        measured_on=measured_on,
        majority=majority,
        fidelity=curve[-1].fidelity if curve else majority,
        curve=curve,
        own=loot.own,
        measure="R²" if test.numbers else "agreement",
    )


def _split(loot: Loot, explained: bool, numbers: bool) -> tuple[Loot, Exam]:
    """Four fifths to train on, counted as if nothing else had been asked, and every fifth row with its answer as the
    exam."""
    held = np.arange(len(loot.x)) % 5 == 4
    probs = parts(loot.probs, loot.x.shape[1])[0] if explained else loot.probs
    kept = int((~held).sum())
    training = replace(loot, x=loot.x[~held], probs=loot.probs[~held], after=np.arange(1, kept + 1), asked=kept)
    return training, Exam(loot.x[held], probs[held], numbers)


def _why(refusal: ModelkeepError) -> tuple[str, str]:
    return refusal.code, str(refusal)
