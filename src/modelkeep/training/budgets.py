"""Privacy budgets of data sets: what runs on them cost together, and whether one more fits.

A model that is private with epsilon says little when a hundred were trained on the same rows: the losses add up. So each data
set has a ledger of runs, and a budget; a run is reserved before it begins, and refused when the sum would be above the budget.
"""

import math
from dataclasses import dataclass, replace

import msgspec

from modelkeep.core.values import Digest
from modelkeep.errors import Denied, Invalid
from modelkeep.training.accountant import LEAST_DELTA, NAME, Spend, Steps, epsilon_of, noise_for

_EPOCHS, _FEWEST, _MOST = 13.0, 15.0, 40.0
_BATCHES, _LEAST_BATCH = 8, 1024
_LARGEST = 1e30
"""Beyond, the float32 of models overflows."""


class Recipe(msgspec.Struct, frozen=True):
    """How a private run learns. ``epochs``: how often each row is used, ``batch``: rows expected in a step; 0 = few epochs, the
    fewer the smaller epsilon is, and large batches, which is what noise leaves most accuracy with. ``clip``: most that a row's
    gradient is long; by default nearly every one is longer, so that no clip need be tuned on the data. ``learning_rate`` and
    ``momentum``: of stochastic gradient descent.
    """

    epochs: float = 0.0
    batch: int = 0
    clip: float = 0.1
    learning_rate: float = 8.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Raises Invalid."""
        numbers = (self.epochs, self.batch, self.clip, self.learning_rate, self.momentum)
        positive = self.clip > 0.0 and self.learning_rate > 0.0
        if not (all(0.0 <= one <= _LARGEST for one in numbers) and positive and self.momentum < 1.0):
            raise Invalid(
                "epochs and batch are not negative, clip and learning rate above 0, momentum in [0, 1), "
                f"and none above {_LARGEST:g}"
            )


DEFAULTS = Recipe()


class PrivacySpent(msgspec.Struct, frozen=True):
    """What a run of DP-SGD costs: ``noise_multiplier`` in units of ``max_grad_norm``; ``sample_rate``: chance of each row to be
    in one of ``steps``."""

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    accountant: str = NAME

    @property
    def spend(self) -> Steps:
        """For the accountant. Raises Invalid."""
        if self.steps < 1 or not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0.0):
            raise Invalid("a run makes one step or more, with a finite clip above 0")
        return Steps(self.noise_multiplier, self.sample_rate, self.steps)


class Budget(msgspec.Struct, frozen=True):
    """The most that all runs on a data set may cost together: a finite ``epsilon`` at ``delta``."""

    epsilon: float
    delta: float

    def checked(self) -> "Budget":
        """This one. Raises Invalid."""
        if not (math.isfinite(self.epsilon) and self.epsilon > 0.0):
            raise Invalid("a budget has a finite epsilon above 0")
        epsilon_of([], self.delta)
        return self


@dataclass(frozen=True)
class Charge:
    """A run on a data set, as the log says. ``index``: of the entry; ``run``: 32 hex digits; ``dataset``, ``digest``: the data,
    as ``Salted`` has it; ``delta``: at which its own epsilon is told; ``settled``: how many steps were run is known;
    ``models``: digests of what came out of it."""

    index: int
    run: str
    actor: str
    at: int
    dataset: str
    digest: Digest
    spend: Spend
    delta: float
    clip: float = 0.0
    settled: bool = False
    models: tuple[Digest, ...] = ()

    @property
    def epsilon(self) -> float:
        """Of this run alone."""
        return epsilon_of([self.spend], max(self.delta, LEAST_DELTA)) if isinstance(self.spend, Steps) else self.spend.epsilon

    def pays_for(self, model: Digest, actor: str) -> bool:
        """Whether this is the run of ``model``: who reserved it says so, and no other came out of it."""
        return actor == self.actor and self.models in ((), (model,))

    def after(self, steps: int) -> "Charge":
        """The same once it is known that only so many steps were run. Raises Invalid (more than were reserved)."""
        if not isinstance(self.spend, Steps) or not 0 <= steps <= self.spend.steps:
            raise Invalid(f"the run {self.run} did not reserve {steps:,} steps")
        return replace(self, spend=replace(self.spend, steps=steps), settled=True)


@dataclass(frozen=True)
class Ledger:
    """All that is known of one data set: the ``budget`` in force, None = none was set, and what was charged, oldest first."""

    name: str
    budget: Budget | None = None
    charges: tuple[Charge, ...] = ()

    def told_at(self, delta: float) -> float:
        """The delta at which a total is told: of the budget, or where there is none, this one."""
        return self.budget.delta if self.budget else delta

    def total(self, delta: float, *more: Spend) -> float:
        """What every charge, and ``more``, cost together at ``delta``. Raises Invalid (``delta``)."""
        return epsilon_of([*(one.spend for one in self.charges), *more], delta)

    def check(self, plan: PrivacySpent) -> None:
        """Check that one more run fits. Raises Denied, saying what would."""
        if self.budget is None:
            return
        budget = self.budget
        whole = self.total(budget.delta, plan.spend)
        if whole > budget.epsilon:
            spent = self.total(budget.delta)
            runs = "1 run has" if len(self.charges) == 1 else f"{len(self.charges)} runs have"
            raise Denied(
                f"this run would bring the data set {self.name} to epsilon {whole:.4g} of {budget.epsilon:g} at delta "
                f"{budget.delta:g}: {runs} spent {spent:.4g}, and {self._left(plan)}"
            )

    def _left(self, plan: PrivacySpent) -> str:
        assert self.budget is not None
        before = [one.spend for one in self.charges]
        try:
            noise = noise_for(self.budget.epsilon, self.budget.delta, plan.sample_rate, plan.steps, before)
        except Invalid:
            return "nothing more fits"
        epsilon = epsilon_of([Steps(noise, plan.sample_rate, plan.steps)], plan.delta)
        return f"one of epsilon {math.floor(epsilon * 1e3) / 1e3:g} at delta {plan.delta:g} would fit"


def ledger_name(dataset: str) -> str:
    """Which ledger data called ``dataset`` is charged to: versions (``loans@3``) and files (``loans/a.csv``) of a data set
    share one, for they are about the same people."""
    return dataset.partition("/")[0].partition("@")[0]


def plan_run(rows: int, *, epsilon: float, delta: float, recipe: Recipe = DEFAULTS) -> PrivacySpent:
    """A run on so many ``rows`` that costs at most ``epsilon`` at ``delta``: the least noise that does. Raises Invalid."""
    if rows < 1:
        raise Invalid("a run needs rows")
    if delta >= 1.0 / rows:
        raise Invalid(f"delta {delta:g} would let a run give away one row of {rows:,} whole: use less than {1.0 / rows:.1g}")
    rate = min(rows, recipe.batch or max(_LEAST_BATCH, rows // _BATCHES)) / rows
    epochs = recipe.epochs or min(max(_EPOCHS * epsilon, _FEWEST), _MOST)
    steps = max(1, math.ceil(epochs / rate))
    noise = noise_for(epsilon, delta, rate, steps)
    return PrivacySpent(epsilon_of([Steps(noise, rate, steps)], delta), delta, noise, rate, steps, recipe.clip)
