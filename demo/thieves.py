"""Three thieves and one patient copyist: what each steals through the gateway, and what it would get with no defence."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from demo.clients import Connect
from demo.findings import ThiefRow
from demo.train import Array, Victim
from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.errors import ModelkeepError
from modelkeep.extraction.attacks import Knowledge, make_strategy
from modelkeep.workflows.attack import AttackReport, Exam, Loot, Target, assess, steal

SEED_ROWS = 40
"""Natural rows that a thief owns: someone with plenty of data would train a model instead of stealing one."""


@dataclass(frozen=True)
class Plot:
    """One plan: account, attack, model, how many queries it means to spend, and the natural rows it owns (n, d)."""

    name: str
    attack: str
    victim: Victim
    budget: int
    rows: Array
    batch: int = 1
    seed: int = 11

    def portable(self) -> "Plot":
        """This plan for another process: without the open onnxruntime session, which none can inherit."""
        return replace(self, victim=replace(self.victim))


def plots(tumour: Victim, digits: Victim) -> tuple[Plot, ...]:
    """The three thieves of the story."""
    return (
        Plot("thief-line", "line-search", digits, 1_000, few_rows(digits)),
        Plot("thief-jacobian", "jacobian", digits, 1_000, few_rows(digits)),
        Plot("thief-knockoff", "knockoff", tumour, 1_000, few_rows(tumour)),
    )


def patient(victim: Victim, budget: int) -> Plot:
    """The copyist: owns plenty of natural rows, asks those and nothing else, so that no observer can object."""
    owned = np.concatenate([victim.loose, victim.train])
    return Plot("copyist", "in-distribution", victim, budget, owned, batch=8)


def few_rows(victim: Victim, seed: int = 11) -> Array:
    """The few natural rows of a thief."""
    return victim.loose[np.random.default_rng(seed).choice(len(victim.loose), SEED_ROWS, replace=False)]


def surrogate() -> MlpSurrogate:
    """The copy every thief trains."""
    return MlpSurrogate((64,))


def attack(plot: Plot, target: Target, *, watch: Callable[[int], None] | None = None) -> Loot:
    """Carry the plan out against ``target``; the same code with and without a defence."""
    everything = np.concatenate([plot.victim.loose, plot.rows])  # what values are valid is documented; rows are what is scarce
    known = replace(Knowledge.of(plot.rows), lower=everything.min(axis=0), upper=everything.max(axis=0))
    strategy = make_strategy(plot.attack, known, seed=plot.seed, surrogate=surrogate)
    return steal(target, strategy, budget=plot.budget, batch=plot.batch, watch=watch)


def measure(plot: Plot, loot: Loot) -> AttackReport:
    """How good a copy the loot makes, by the number of answers."""
    exam = Exam.by(plot.victim.bare, plot.victim.exam)
    return assess(loot, name=plot.attack, surrogate=surrogate, budget=plot.budget, exam=exam)


def undefended(plot: Plot) -> AttackReport:
    """The same attack in memory against the bare model, with its whole budget."""
    return measure(plot, attack(plot, plot.victim.bare))


@dataclass
class Thief:
    """One attack at work over HTTPS. ``answered`` may be read while it runs."""

    plot: Plot
    pace: float = 0.03
    answered: int = 0
    error: str = ""
    loot: Loot | None = None

    @property
    def name(self) -> str:
        """Its account."""
        return self.plot.name

    @property
    def state(self) -> str:
        """A word or two for the live table."""
        if self.error:
            return "failed"
        if self.loot is None:
            return "asking"
        return {"review-required": "stopped by the alarm", "budget": "done"}.get(self.loot.stopped, self.loot.stopped)

    def saw(self, answered: int) -> None:
        """Count, and take a breath: a thief that hurries meets the rate limit before the evidence."""
        self.answered = answered
        time.sleep(self.pace)

    def run(self, connect: Connect) -> None:
        """Steal until stopped; never raises what the gateway says."""
        try:
            with connect(self.name, self.plot.victim) as target:
                self.loot = attack(self.plot, target, watch=self.saw)
        except ModelkeepError as error:
            self.error = f"{error.code}: {error}"

    def row(self, found: AttackReport | None, bare: AttackReport) -> ThiefRow:
        """What the thief ``found`` through the gateway, beside what the same attack gets from the ``bare`` model."""
        return ThiefRow(
            name=self.name,
            attack=self.plot.attack,
            model=self.plot.victim.name,
            queries=found.queries if found else self.answered,
            stopped=found.stopped if found else self.error,
            budget=self.plot.budget,
            reached=found.fidelity if found else bare.majority,
            undefended=bare.fidelity,
            majority=bare.majority,
            curve=tuple((point.queries, point.fidelity) for point in found.curve) if found else (),
            undefended_curve=tuple((point.queries, point.fidelity) for point in bare.curve),
        )


def copy_of(x: Array, probs: Array) -> MlpSurrogate:
    """A patient copyist's model: trained to convergence on everything one account was answered."""
    copy = MlpSurrogate((128, 64), updates=1_200)
    copy.fit(x, probs)
    return copy
