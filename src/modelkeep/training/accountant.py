"""How much differential privacy is spent: composition of noisy training runs by their privacy losses.

A neighbour is one row more or less. Of each mechanism the law of the privacy loss log P/Q is put on a grid so that both
probabilities of every cell stay what they are ("connect the dots", Doroshenko et al. 2022): the grid dominates the mechanism,
so that what is computed is never below the truth, but for rounding of floats. Laws are composed by FFT (Koskela et al. 2020),
for a row added and for a row removed; the larger epsilon counts.

- ``Steps``: DP-SGD, the Gaussian mechanism on rows that are sampled by Poisson's coin (Abadi et al. 2016);
- ``Promise``: a mechanism of which only (epsilon, delta) is known, as the worst that it can be: the optimal composition of
  Kairouz, Oh and Viswanath (2015), which is never above the sum of the epsilons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]

NAME = "pld"
"""How statements call this accountant."""
LEAST_DELTA = 1e-9
"""Below this the rounding of floats in an FFT is no longer small against it."""
_FINE = 5e-4
"""What the grid may add to the variance of the loss, as a share of it."""
_NARROWEST, _WIDEST, _CELLS = 1e-9, 1e-3, 1 << 22
_LONGEST = 10**12
"""Steps beyond which nothing is promised."""
_CUT = 1e-4
"""Share of delta that each cut of a tail may take; all are added to delta."""
_HIGHEST = 500.0
"""A privacy loss beyond this is as good as unbounded."""


@dataclass(frozen=True)
class Steps:
    """``steps`` of DP-SGD. ``noise``: standard deviation in units of the clip; ``rate``: chance of each row to be in a step."""

    noise: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        """Raises Invalid."""
        if not (math.isfinite(self.noise) and self.noise > 0.0 and 0.0 < self.rate <= 1.0 and self.steps >= 0):
            raise Invalid("steps of DP-SGD have noise above 0, a sample rate in (0, 1], and are not fewer than 0")


@dataclass(frozen=True)
class Promise:
    """(``epsilon``, ``delta``)-differential privacy of which no more is known."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Raises Invalid."""
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0.0 and 0.0 <= self.delta < 1.0):
            raise Invalid("a promise has a finite epsilon of at least 0 and 0 <= delta < 1")


Spend = Steps | Promise


class _Law(NamedTuple):
    """Probabilities of the losses ``first``, ``first + 1``, ... in cells; ``beyond``: of one that is unbounded."""

    first: int
    mass: Floats
    beyond: float


def epsilon_of(spent: Sequence[Spend], delta: float) -> float:
    """The epsilon that all of ``spent`` on the same data costs together at ``delta``; infinite when there is none.

    Raises Invalid (``delta`` outside 1e-9 ... 1).
    """
    if not LEAST_DELTA <= delta < 1.0:
        raise Invalid(f"delta lies between {LEAST_DELTA:g} and 1, not {delta:g}")
    counted = [one for one in _joined(spent) if not (isinstance(one, Steps) and one.steps == 0) and one != Promise(0.0, 0.0)]
    if not counted:
        return 0.0
    times = [one.steps if isinstance(one, Steps) else 1 for one in counted]
    if sum(times) > _LONGEST:
        return math.inf
    cut = _CUT * delta
    width = _width(counted, times, cut / sum(times))
    if math.isinf(width):
        return math.inf
    pairs = [_laws(one, width, cut / sum(times)) for one in counted]
    found = max(_epsilon([pair[side] for pair in pairs], times, width, delta, cut) for side in (0, 1))
    return found if found <= _HIGHEST else math.inf  # exp() of more is cut off in ``_cross``, which would tell too little


def noise_for(epsilon: float, delta: float, rate: float, steps: int, before: Sequence[Spend] = ()) -> float:
    """The least noise, rounded up to four digits, with which so many steps cost at most ``epsilon``, what was spent ``before``
    on the same data included.

    Raises Invalid (no noise is enough, or the numbers are out of bounds).
    """
    if not 0.0 < epsilon <= _HIGHEST or steps < 1:
        raise Invalid(f"noise is found for an epsilon above 0 and at most {_HIGHEST:g}, and at least one step")

    if before and epsilon_of(before, delta) >= epsilon:
        raise Invalid(f"no noise makes more steps fit epsilon {epsilon:g} at delta {delta:g}: it is spent")

    def fits(noise: float) -> bool:
        return epsilon_of([*before, Steps(noise, rate, steps)], delta) <= epsilon

    high = 1.0
    while not fits(high):
        high *= 2.0
        if high > 1e6:
            raise Invalid(f"no noise makes {steps:,} more steps fit epsilon {epsilon:g} at delta {delta:g}")
    low = high / 2.0
    while high > 0.02 and fits(low):
        high, low = low, low / 2.0
    while high - low > 2e-4 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    unit = 10.0 ** (math.floor(math.log10(high)) - 3)
    return float(f"{math.ceil(high / unit) * unit:.4g}")


def _joined(spent: Sequence[Spend]) -> list[Spend]:
    """Runs with the same noise and rate as one of more steps."""
    steps: dict[tuple[float, float], int] = {}
    for one in spent:
        if isinstance(one, Steps):
            steps[one.noise, one.rate] = steps.get((one.noise, one.rate), 0) + one.steps
    return [*(Steps(*key, count) for key, count in steps.items()), *(one for one in spent if isinstance(one, Promise))]


def _width(spent: Sequence[Spend], times: Sequence[int], cut: float) -> float:
    """Width of a cell: so fine that the grid adds little to the variance of all losses together, and as many cells as there
    may be; infinite when a loss is as good as unbounded."""
    variances, most = [], 0.0
    for one in spent:
        low, high = (-one.epsilon, one.epsilon) if isinstance(one, Promise) else _bounds(one, cut)
        most = max(most, high, -low)
        if most > _HIGHEST:
            return math.inf
        scale = one.epsilon**2 if isinstance(one, Promise) else one.rate**2 * math.expm1(min(1.0 / one.noise**2, 50.0))
        variances.append(min(scale, 1.0))
    whole, width = sum(k * v for k, v in zip(times, variances, strict=True)), _WIDEST
    while width > _NARROWEST:
        added = sum(k * min(0.25 * width**2, math.sqrt(v) * width) for k, v in zip(times, variances, strict=True))
        if added <= _FINE * whole:
            break
        width /= 1.25
    return max(width, 4.0 * most / _CELLS)


def _bounds(one: Steps, cut: float) -> tuple[float, float]:
    """Losses of a removed row outside of which there is at most ``cut``."""
    reach = math.sqrt(2.0 * math.log(1.0 / cut)) * one.noise
    low, high = _loss(one, np.array([-reach, 1.0 + reach]))
    return float(low), float(high)


def _loss(one: Steps, x: Floats) -> Floats:
    """log of the density of (1 - q) N(0, s²) + q N(1, s²) over that of N(0, s²)."""
    without = math.log1p(-one.rate) if one.rate < 1.0 else -math.inf
    with np.errstate(divide="ignore", over="ignore"):
        out: Floats = np.logaddexp(without, math.log(one.rate) + (2.0 * x - 1.0) / (2.0 * np.square(one.noise)))
    return out


def _where(one: Steps, loss: Floats) -> Floats:
    """Where ``_loss`` is that: its inverse; -inf where it never is."""
    inner = np.expm1(loss) + one.rate
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = np.where(inner > 0.0, one.noise**2 * (np.log(inner) - math.log(one.rate)) + 0.5, -np.inf)
    return out


def _laws(one: Spend, width: float, cut: float) -> tuple[_Law, _Law]:
    """The law of the loss when a row is removed, and when one is added."""
    if isinstance(one, Promise):
        up, down = math.ceil(one.epsilon / width - 1e-9), math.ceil(-one.epsilon / width - 1e-9)
        mass = np.zeros(up - down + 1)
        mass[0] += (1.0 - one.delta) / (1.0 + math.exp(one.epsilon))
        mass[-1] += (1.0 - one.delta) / (1.0 + math.exp(-one.epsilon))
        law = _Law(down, mass, one.delta)
        return law, law
    low, high = _bounds(one, cut)
    first, last = math.floor(low / width), math.ceil(high / width)
    edges = np.asarray(np.arange(first, last + 1) * width, dtype=np.float64)
    at = _where(one, edges)
    plain, moved = _masses(at / one.noise), _masses((at - 1.0) / one.noise)
    q, p = one.rate, 1.0 - one.rate
    inside = np.asarray(p * plain.inside + q * moved.inside, dtype=np.float64)
    mixed = _Cells(p * plain.below + q * moved.below, inside, p * plain.above + q * moved.above)
    share = -math.expm1(-width)
    right = np.clip((mixed.inside - plain.inside * np.exp(edges[:-1])) / share, 0.0, mixed.inside)
    removed = np.zeros(len(edges))
    removed[1:] += right
    removed[:-1] += mixed.inside - right
    removed[0] += mixed.below
    right = np.clip((plain.inside - mixed.inside * np.exp(-edges[1:])) / share, 0.0, plain.inside)
    added = np.zeros(len(edges))
    added[:-1] += right
    added[1:] += plain.inside - right
    added[-1] += plain.above
    return _Law(first, removed, mixed.above), _Law(-last, added[::-1], plain.below)


class _Cells(NamedTuple):
    """Probabilities below, in the cells between, and above some edges."""

    below: float
    inside: Floats
    above: float


def _masses(edges: Floats) -> _Cells:
    """Of the standard normal between ascending ``edges``, exact in both tails."""
    tail = np.array([0.5 * math.erfc(one) for one in (np.abs(edges) / math.sqrt(2.0)).tolist()])
    left = edges < 0.0
    a, b = tail[:-1], tail[1:]
    inside = np.where(left[1:], b - a, np.where(left[:-1], 1.0 - a - b, a - b))
    return _Cells(float(tail[0] if left[0] else 1.0 - tail[0]), inside, float(1.0 - tail[-1] if left[-1] else tail[-1]))


def _epsilon(laws: Sequence[_Law], times: Sequence[int], width: float, delta: float, cut: float) -> float:
    """Of independent losses, each so many times."""
    beyond = -math.expm1(sum(k * math.log1p(-law.beyond) for law, k in zip(laws, times, strict=True)))
    room = delta - beyond - 2.0 * cut
    if room <= 0.0:
        return math.inf
    low, high = _window(laws, times, cut)
    cells = 1 << (high - low + 1).bit_length()
    if cells > 8 * _CELLS:
        return math.inf
    spectrum = np.ones(cells // 2 + 1, dtype=np.complex128)
    for law, k in zip(laws, times, strict=True):
        ring = np.zeros(cells)
        np.add.at(ring, (law.first + np.arange(len(law.mass))) % cells, law.mass)
        spectrum *= np.fft.rfft(ring) ** k
    ring = np.clip(np.fft.irfft(spectrum, cells), 0.0, None)
    return _cross(np.roll(ring, -(low % cells)), low, width, room)


def _cross(mass: Floats, low: int, width: float, room: float) -> float:
    """The epsilon >= 0 at which sum over losses l > epsilon of p (1 - exp(epsilon - l)) is ``room``."""
    skip = max(0, -low)
    mass, losses = mass[skip:], (low + skip + np.arange(len(mass) - skip)) * width
    if not len(mass):
        return 0.0
    whole = np.cumsum(mass[::-1])[::-1]
    lowered = np.cumsum((mass * np.exp(-np.minimum(losses, 700.0)))[::-1])[::-1]
    above = np.append(whole[1:], 0.0) - np.exp(np.minimum(losses, 700.0)) * np.append(lowered[1:], 0.0)
    at = int(np.argmax(above <= room))  # ``above`` is the sum at each loss, descending, and 0 at the last
    if at == 0:
        start = 0.0 if losses[0] >= 0.0 else float(losses[0])
        return float(max(start, math.log(max(whole[0] - room, 1e-300) / lowered[0]), 0.0)) if lowered[0] > 0.0 else 0.0
    return float(min(losses[at], math.log(max(whole[at] - room, 1e-300) / lowered[at])))


def _window(laws: Sequence[_Law], times: Sequence[int], cut: float) -> tuple[int, int]:
    """Cells outside of which the sum lies with a probability of at most ``cut`` on each side, by Chernoff's bound."""
    need = math.log(1.0 / cut)
    means = [float(law.mass @ (law.first + np.arange(len(law.mass)))) for law in laws]
    squares = [float(law.mass @ (law.first + np.arange(len(law.mass))) ** 2.0) for law in laws]
    spread = math.sqrt(sum(k * max(s - m * m, 1e-12) for k, m, s in zip(times, means, squares, strict=True)))
    scale = math.sqrt(2.0 * need) / spread
    most = sum(k * (law.first + len(law.mass) - 1) for law, k in zip(laws, times, strict=True))
    least = sum(k * law.first for law, k in zip(laws, times, strict=True))
    high, low = float(most), float(least)
    for tilt in (scale * factor for factor in (0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)):
        up = sum(k * _log_moment(law, tilt) for law, k in zip(laws, times, strict=True))
        down = sum(k * _log_moment(law, -tilt) for law, k in zip(laws, times, strict=True))
        high, low = min(high, (up + need) / tilt), max(low, -(down + need) / tilt)
    return math.floor(low), math.ceil(high)


def _log_moment(law: _Law, tilt: float) -> float:
    """log of the mean of exp(tilt · loss), in cells, over the bounded losses."""
    held = law.mass > 0.0  # the cell that is highest may be empty, and all the others too small beside it
    exponents = tilt * (law.first + np.flatnonzero(held))
    top = float(exponents.max())
    return top + math.log(float(law.mass[held] @ np.exp(exponents - top)))
