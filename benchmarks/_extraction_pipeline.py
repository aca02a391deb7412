"""One account behind the defence in force, in memory: verdict, rung, model, mark, what the rung leaves of it, evidence."""

from dataclasses import dataclass, field

import numpy as np

from benchmarks._extraction import Floats, Setting, narrow
from modelkeep.extraction.attacks import Strategy
from modelkeep.extraction.guard import Guard, Verdict
from modelkeep.extraction.ladder import DEFAULT, Ladder, Rung, respond
from modelkeep.extraction.perturb import Marker

REQUEST = 16
"""Rows of a request."""
KEY = bytes(range(32))


@dataclass(eq=False)
class Pipeline:
    """``changed``: answers so far whose top-1 was not the model's; ``spent_at``: queries when the budget was spent, None
    before; ``rung``: the highest so far."""

    setting: Setting
    ladder: Ladder = DEFAULT
    changed: int = 0
    spent_at: int | None = None
    rung: Rung = Rung.MARK
    _guard: Guard = field(init=False)
    _marker: Marker = field(init=False)

    def __post_init__(self) -> None:
        self._guard = Guard(self.setting.profile, ladder=self.ladder)
        self._marker = Marker(KEY, self.setting.profile)

    @property
    def verdict(self) -> Verdict:
        """What is held about the account."""
        return self._guard.verdict("thief")

    def ask(self, rows: Floats) -> Floats:
        """Answers (b, k) to the first b of ``rows`` (n, d): all, or those until the alarm refuses. A rung holds from the next
        request on, as evidence is off the path."""
        step = self.ladder.steps[self.verdict.rung]
        if step.refuse:
            return np.empty((0, 0))
        clean, before = np.asarray(self.setting.predict(rows)), self.verdict.queries
        told = respond(step, self._marker.apply(rows, clean))
        self._guard.observe("thief", rows, clean)
        verdict = self.verdict
        self.rung = max(self.rung, verdict.rung)
        if self.spent_at is None and verdict.budget.share >= 1.0:
            self.spent_at = verdict.queries
        answered = told if verdict.alarmed_at is None else told[: verdict.alarmed_at - before]
        self.changed += int((answered.argmax(axis=1) != clean[: len(answered)].argmax(axis=1)).sum())
        return answered


@dataclass(frozen=True, eq=False)
class Stolen:
    """What a thief learnt: ``x`` (n, d), ``probs`` (n, k), in order. ``alarmed``, ``spent``: queries at the alarm and when the
    budget was spent, None where that did not happen; ``changed``: top-1 answers that were not the model's."""

    x: Floats
    probs: Floats
    alarmed: int | None = None
    spent: int | None = None
    changed: int = 0

    @property
    def stop(self) -> int | None:
        """The query that was the last one at the full rate."""
        return min((at for at in (self.alarmed, self.spent) if at is not None), default=None)


def steal(setting: Setting, thief: Strategy, most: int, *, on: bool = True) -> Stolen:
    """Ask the defended model ``most`` rows, past a spent budget, too; ``on`` false: undefended, as if bare."""
    pipeline = Pipeline(setting)
    asked: list[Floats] = []
    told: list[Floats] = []
    count = 0
    while count < most:
        rows = narrow(thief.propose(min(REQUEST, most - count)))
        if not len(rows):
            break
        answers = pipeline.ask(rows) if on else np.asarray(setting.predict(rows))
        if len(answers):
            lesson = thief.feed(rows[: len(answers)], answers)  # some look at top classes only
            asked.append(lesson.x)
            told.append(lesson.probs)
        count += len(answers)
        if len(answers) < len(rows) or (on and pipeline.verdict.alarmed_at):
            break
    return Stolen(np.concatenate(asked), np.concatenate(told), pipeline.verdict.alarmed_at, pipeline.spent_at, pipeline.changed)
