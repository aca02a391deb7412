"""Training with differential privacy: DP-SGD (Abadi et al. 2016) with noise found for a promise, and safe defaults.

What the result depends on of a row is bounded: rows are drawn by Poisson's coin, each row's gradient is clipped, and Gaussian
noise is added to the sum. Nothing else is learnt from the data: no means, no vocabulary, no early stop. The module begins from
fresh weights, and what would mix rows (batch normalisation) is replaced.
"""

import copy
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from modelkeep.errors import Invalid
from modelkeep.training.budgets import DEFAULTS, PrivacySpent, Recipe, plan_run
from modelkeep.training.lab.clipping import Clipper

Told = Callable[[str, int, int], None]

SYSTEM, SEEDED = "AES-256-CTR, key from the system", "AES-256-CTR, key from the seed: no privacy from whoever knows it"
PHYSICAL = 1024
"""Rows that are looked at at once, however many a step has."""
_LATTICE = 2.0**-20
"""Noise and sum are rounded to so many standard deviations, so that the gaps between floats tell nothing (Mironov 2012)."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A module that was trained: ``repairs``: what was changed in it before; ``way``: how gradients were clipped; ``noise``:
    where it came from."""

    module: nn.Module
    spent: PrivacySpent
    repairs: tuple[str, ...]
    way: str
    noise: str


class Noise:
    """Random numbers from a stream cipher: 32 bytes of key from the system, or from a ``seed``, to repeat an experiment."""

    def __init__(self, seed: int | None = None) -> None:
        key = secrets.token_bytes(32) if seed is None else np.random.SeedSequence(seed).generate_state(8).tobytes()
        self.source = SYSTEM if seed is None else SEEDED
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> Tensor:
        """Numbers (count,) in (0, 1], float64, of 53 bits."""
        raw = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<i8") >> 11
        return (torch.from_numpy(raw & (2**53 - 1)).double() + 1.0) * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers (count,), float64 (Box and Muller 1958)."""
        half = (count + 1) // 2
        radius, turn = (-2.0 * self.uniform(half).log()).sqrt(), self.uniform(half) * (2.0 * math.pi)
        return torch.cat([radius * turn.cos(), radius * turn.sin()])[:count]


class Bounded(nn.Module):
    """Puts columns with public bounds to [-1, 1], clipping what is outside. ``low``, ``high``: of a row's shape, or scalars."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """Raises Invalid (no room between them)."""
        super().__init__()
        if not bool((high > low).all() and torch.isfinite(high - low).all()):
            raise Invalid("bounds of columns are finite, and the upper one is above the lower one")
        self.register_buffer("low", low.float())
        self.register_buffer("high", high.float())

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (n, ...)."""
        return 2.0 * (torch.minimum(torch.maximum(x, self.low), self.high) - self.low) / (self.high - self.low) - 1.0


def within_bounds(module: nn.Module, low: NDArray[Any], high: NDArray[Any]) -> nn.Module:
    """``module`` behind a scaling by public bounds, of one row's shape each. Raises Invalid."""
    return nn.Sequential(Bounded(tensor(low), tensor(high)), module)


def tensor(rows: NDArray[Any]) -> Tensor:
    """As float32."""
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def prepare(module: nn.Module, *, seed: int | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy that can be trained privately from fresh weights, and what was changed in it.

    Raises Invalid (a layer keeps what cannot be drawn anew, or Opacus knows no replacement).
    """
    found: nn.Module = copy.deepcopy(module).cpu().train()
    repairs = []
    for name, layer in found.named_modules():
        if getattr(layer, "inplace", False):
            layer.inplace = False
            repairs.append(f"{name}: not in place")
    repairs.extend(str(trouble).partition(". ")[0] for trouble in ModuleValidator.validate(found))
    if ModuleValidator.validate(found):
        found = ModuleValidator.fix(found)
    left = ModuleValidator.validate(found)
    if left:
        raise Invalid(f"this module cannot be trained privately: {left[0]}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(secrets.randbits(63) if seed is None else seed)
        for name, layer in found.named_modules():
            if not any(True for _ in layer.parameters(recurse=False)):
                continue
            if not callable(getattr(layer, "reset_parameters", None)):
                raise Invalid(f"the layer {name or type(layer).__name__} cannot be given fresh weights: use layers of torch.nn")
            layer.reset_parameters()
    return found, (*repairs, "fresh weights")


def train_private(
    module: nn.Module,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    epsilon: float,
    delta: float,
    recipe: Recipe = DEFAULTS,
    seed: int | None = None,
) -> Trained:
    """Train a classifier on rows ``x`` (n, ...), classes ``y`` (n,), with (epsilon, delta)-differential privacy for each row.

    ``seed``: None = noise that nobody can foretell; a number repeats a run, and voids the promise against whoever knows it.
    Raises Invalid (numbers, a module that cannot be repaired).
    """
    return train_planned(module, x, y, plan_run(len(x), epsilon=epsilon, delta=delta, recipe=recipe), recipe=recipe, seed=seed)


def train_planned(
    module: nn.Module,
    x: NDArray[Any],
    y: NDArray[Any],
    plan: PrivacySpent,
    *,
    recipe: Recipe = DEFAULTS,
    seed: int | None = None,
    told: Told = lambda *_: None,
) -> Trained:
    """The same by a plan that was made, and perhaps reserved, before; ``recipe``: its learning rate counts. Raises Invalid."""
    fresh, repairs = prepare(module, seed=seed)
    rows, classes = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), torch.from_numpy(y.astype(np.int64))
    noise = Noise(seed)
    clipper = Clipper(fresh, torch.zeros_like(rows[:2]), plan.max_grad_norm)
    optimiser = torch.optim.SGD(clipper.parameters, lr=recipe.learning_rate, momentum=recipe.momentum)
    average, after = [torch.zeros_like(one) for one in clipper.parameters], plan.steps // 2
    try:
        for step in range(plan.steps):
            private_step(clipper, rows, classes, plan, noise)
            optimiser.step()
            if step >= after:
                for kept, one in zip(average, clipper.parameters, strict=True):
                    kept.lerp_(one.detach(), 1.0 / (step - after + 1))
            told("Training", step + 1, plan.steps)
    finally:
        clipper.close()
    with torch.no_grad():
        for kept, one in zip(average, clipper.parameters, strict=True):
            one.copy_(kept)
            one.grad = None
    if not all(torch.isfinite(one).all() for one in clipper.parameters):
        raise Invalid(f"training ended in weights that are no numbers: use a learning rate below {recipe.learning_rate:g}")
    return Trained(fresh.eval(), plan, repairs, clipper.way, noise.source)


def private_step(clipper: Clipper, rows: Tensor, classes: Tensor, plan: PrivacySpent, noise: Noise) -> None:
    """Put the private gradient of one step into the gradients of the parameters: rows by coins, clipped, summed, with noise."""
    chosen = (noise.uniform(len(rows)) <= plan.sample_rate).nonzero().squeeze(1)
    _noisy(clipper.parameters, _sums(clipper, rows, classes, chosen), noise, plan, len(rows))


def _sums(clipper: Clipper, rows: Tensor, classes: Tensor, chosen: Tensor) -> list[Tensor]:
    """Of the chosen rows, some at a time; zeros when there is none."""
    total = [torch.zeros_like(one) for one in clipper.parameters]
    for part in chosen.split(PHYSICAL):
        if len(part):
            for kept, one in zip(total, clipper.sums(rows[part], classes[part]), strict=True):
                kept.add_(one)
    return total


def _noisy(parameters: list[Tensor], sums: list[Tensor], noise: Noise, plan: PrivacySpent, rows: int) -> None:
    """Put what was learnt, with noise, over the number of rows that are expected in a step, into the gradients."""
    spread = plan.noise_multiplier * plan.max_grad_norm
    flat = torch.cat([one.flatten() for one in sums]).double()
    unit = spread * _LATTICE
    flat = ((flat + spread * noise.normal(len(flat))) / unit).round_() * (unit / (plan.sample_rate * rows))
    for one, part in zip(parameters, flat.float().split([one.numel() for one in parameters]), strict=True):
        one.grad = part.view_as(one)
