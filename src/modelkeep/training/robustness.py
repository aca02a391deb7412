"""What measurements of robustness are worth: intervals of accuracies, and alarms where it was the attack that was fooled.

Pure: counts and scores in, numbers and words out. ``training/lab`` attacks; ``app/robustness`` puts both together.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.training.tails import beta_quantile, binomial_tail

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CONFIDENCE = 0.95
BLACK_BOX_SHARE = 0.01
"""Of all rows: that black-box attacks break beyond the gradient attacks, before it is an alarm."""
FLAT_SHARE, STILL_SHARE = 0.05, 0.05
"""Of the rows: whose gradient is zero everywhere, or whose loss did not rise in all steps."""
DIFFERENT_SHARE = 0.5
"""Of the rows: that must differ from each other."""
UNBOUNDED_SHARE = 0.05
"""Of the rows: that an attack in the whole box may leave standing."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of examples with its interval (Clopper and Pearson 1934): ``low`` to ``high`` at the ``confidence``."""

    value: float
    low: float
    high: float
    examples: int
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Alarm:
    """A sign that the number is worth nothing: ``name``, a stable word; ``why``, with the numbers that it rests on."""

    name: str
    why: str


def share(hits: int, examples: int, confidence: float = CONFIDENCE) -> Share:
    """So many ``hits`` of ``examples``, two-sided. Raises: ValueError if there are no examples."""
    if examples < 1 or not 0 <= hits <= examples:
        raise ValueError(f"{hits} of {examples} is no share")
    beyond = (1.0 - confidence) / 2
    low, high = lower_bound(hits, examples, 1.0 - beyond), upper_bound(hits, examples, 1.0 - beyond)
    return Share(hits / examples, low, high, examples, confidence)


def lower_bound(hits: int, examples: int, confidence: float) -> float:
    """What the share of hits is not below, one-sided at the ``confidence``: exact (Clopper and Pearson 1934)."""
    return 0.0 if hits == 0 else beta_quantile(1.0 - confidence, hits, examples - hits + 1)


def upper_bound(hits: int, examples: int, confidence: float) -> float:
    """What the share of hits is not above, one-sided."""
    return 1.0 if hits == examples else beta_quantile(confidence, hits + 1, examples - hits)


class Paired(NamedTuple):
    """Two measurements on the same rows: the difference of their shares with its interval, and ``p`` that it is chance
    (McNemar's exact test, two-sided)."""

    difference: float
    low: float
    high: float
    p: float


def paired(one: Mask, other: Mask, confidence: float = CONFIDENCE) -> Paired:
    """How much more often ``one`` holds than ``other``, shape (n,) both.

    The interval is exact, and a little wide: from those of the shares of rows that differ one way and the other, each at half
    of what is left to chance.
    """
    n, more, less = len(one), int((one & ~other).sum()), int((~one & other).sum())
    half = (1.0 + confidence) / 2
    gained, lost = share(more, n, half), share(less, n, half)
    p = min(1.0, 2.0 * binomial_tail(max(more, less), more + less, 0.5)) if more + less else 1.0
    return Paired((more - less) / n, gained.low - lost.high, gained.high - lost.low, p)


def row_alarms(x: Floats, y: Ints) -> list[Alarm]:
    """Whether rows (n, d) with labels (n,) are ones on which any model would stand, or fewer than they seem."""
    found, different = [], len(np.unique(np.column_stack([x, y]), axis=0))
    if len(np.unique(y)) == 1:
        found.append(
            Alarm("one-class", f"all {len(y)} rows are of one class: a model that always answers with it withstands all")
        )
    if different < DIFFERENT_SHARE * len(x):
        found.append(Alarm("repeated-rows", f"only {different} of {len(x)} rows differ: the interval is of that many at most"))
    return found


def parted_alarm(parted: int, examples: int) -> Alarm | None:
    """Whether what fooled the module left the file itself standing. ``parted``: of how many rows, of all ``examples``."""
    if share(parted, examples).low <= BLACK_BOX_SHARE:
        return None
    return Alarm(
        "module-falls-alone",
        f"what fooled the module did not fool the file in {parted} of {examples} rows: its gradients are not those of the file",
    )


def black_box_alarm(broken: int, examples: int) -> Alarm | None:
    """Whether black-box attacks broke rows that gradients left standing. ``broken``: how many, of all ``examples``."""
    found = share(broken, examples)
    if found.low <= BLACK_BOX_SHARE:
        return None
    return Alarm(
        "black-box-beats-gradient",
        f"black-box attacks broke {broken} of {examples} rows that gradient attacks could not: gradients are masked",
    )


def loss_alarms(flat: Mask, still: Mask) -> list[Alarm]:
    """What the losses say of the rows that stood against every gradient attack, shape (n,) both.

    ``flat``: the gradient was zero everywhere, of each loss; ``still``: no loss rose in any step.
    """
    found = []
    if len(flat) and flat.mean() > FLAT_SHARE:
        found.append(Alarm("zero-gradient", f"the gradient is zero everywhere at {flat.sum()} of {len(flat)} rows that stood"))
    if len(still) and still.mean() > STILL_SHARE:
        why = f"the loss of {still.sum()} of {len(still)} rows that stood did not rise in any step"
        found.append(Alarm("loss-does-not-rise", why))
    return found


def unbounded_alarm(standing: int, examples: int) -> Alarm | None:
    """Whether an attack that may go anywhere in the box left rows ``standing``: with other classes in reach none should."""
    if share(standing, examples).low <= UNBOUNDED_SHARE:
        return None
    return Alarm(
        "unbounded-fails",
        f"an attack that may change everything left {standing} of {examples} rows standing: it does not find what is there",
    )


def radius_alarm(standing: Mask, farther: Mask, epsilon: float, larger: float) -> Alarm | None:
    """Whether a larger ball breaks fewer rows. ``standing``, ``farther``: of the same rows, after both attacks, (n,)."""
    found = paired(farther, standing)
    if found.low <= 0:
        return None
    return Alarm(
        "larger-radius-breaks-less",
        f"at epsilon {larger:g} {farther.sum()} of {len(farther)} rows stand, and at {epsilon:g} {standing.sum()}",
    )


def one_step_alarm(broken: int, examples: int) -> Alarm | None:
    """Whether one step breaks rows that many steps left standing. ``broken``: how many, of all ``examples``."""
    if share(broken, examples).low <= BLACK_BOX_SHARE:
        return None
    return Alarm("one-step-beats-many", f"a single step broke {broken} of {examples} rows that many steps could not")
