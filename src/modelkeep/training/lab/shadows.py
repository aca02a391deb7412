"""Shadow models: trained as an attacker would train them, without privacy, to learn what members look like."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shadows:
    """``answers`` (m, n, k): probabilities by each shadow model; ``inside`` (m, n): whether it was trained on the row."""

    answers: Floats
    inside: NDArray[np.bool_]


def train_plain(module: nn.Module, x: NDArray[Any], y: NDArray[Any], *, epochs: int = 60, seed: int = 0) -> nn.Module:
    """``module`` after so many epochs of Adam on rows ``x`` (n, ...) with classes ``y`` (n,), without any privacy."""
    rows, classes = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), torch.from_numpy(y.astype(np.int64))
    adam, order = torch.optim.Adam(module.parameters(), lr=2e-3), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(rows), generator=order).split(64):
            adam.zero_grad()
            functional.cross_entropy(module(rows[part]), classes[part]).backward()
            adam.step()
    return module.eval()


def probabilities(module: nn.Module, x: NDArray[Any]) -> Floats:
    """Of every row, (n, k)."""
    with torch.no_grad():
        found: Floats = torch.softmax(module(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))), 1).double().numpy()
    return found


def train_shadows(
    make: Callable[[], nn.Module], x: NDArray[Any], y: NDArray[Any], count: int, *, seed: int = 0,
    told: Callable[[str, int, int], None] = lambda *_: None,
) -> Shadows:  # fmt: skip
    """``count`` models by ``make``, each trained on a random half of the rows; every row is in half of the models."""
    generator = np.random.default_rng(seed)
    halves = np.argsort(generator.random((count, len(x))), axis=0) < count // 2
    answers = []
    for number, half in enumerate(halves):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            module = make()
        answers.append(probabilities(train_plain(module, x[half], y[half], seed=seed + number), x))
        told("Training shadow models", number + 1, count)
    return Shadows(np.stack(answers), halves)
