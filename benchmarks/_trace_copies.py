"""The copies that thieves of the trace bench train on soft answers, and what they do to them afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.preprocessing import StandardScaler

from modelkeep.adapters.surrogates import TreesNumbers
from modelkeep.extraction.attacks import Surrogate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]
_BATCH = 128
_RATE = 2e-3


class Forest:
    """A random forest that answers with the mean of the answers in its leaves."""

    def __init__(self, seed: int) -> None:
        self._model = RandomForestRegressor(60, max_features=0.4, random_state=seed)

    def fit(self, x: Floats, probs: Floats) -> None:
        """Learn from questions (n, d) and soft answers (n, k)."""
        self._model.fit(x, probs)

    def predict(self, x: Floats) -> Floats:
        """Class probabilities (n, k)."""
        return np.asarray(self._model.predict(x), dtype=np.float64)


class Boosted:
    """Gradient-boosted trees, one ensemble a class, on the answers as numbers."""

    def __init__(self, seed: int) -> None:
        self._model = TreesNumbers(seed=seed)

    def fit(self, x: Floats, probs: Floats) -> None:
        """Learn from questions (n, d) and soft answers (n, k)."""
        self._model.fit(x, probs)

    def predict(self, x: Floats) -> Floats:
        """Class probabilities (n, k)."""
        probs = np.clip(self._model.predict(x), 1e-6, None)
        out: Floats = probs / probs.sum(axis=1, keepdims=True)
        return out


@dataclass
class Network:
    """A network taught by cross-entropy to soft answers, Adam with a rate that falls to nothing. Deterministic on one thread.

    ``hidden``: units of each layer, () = two convolutions and 64 units, for square pictures; ``decay``: L2 on the weights.
    """

    seed: int
    hidden: tuple[int, ...] = (128, 64)
    epochs: int = 200
    decay: float = 0.0

    def fit(self, x: Floats, probs: Floats) -> None:
        """Learn from questions (n, d) and soft answers (n, k)."""
        import torch

        torch.manual_seed(self.seed)
        self._scaler = StandardScaler().fit(x)
        self._module = self._built(x.shape[1], probs.shape[1])
        self._train(x, probs, self.epochs, _RATE)

    def predict(self, x: Floats) -> Floats:
        """Class probabilities (n, k)."""
        import torch

        with torch.no_grad():
            return np.concatenate(
                [self._module(rows).softmax(dim=1).double().numpy() for rows in self._rows(x).split(1024)]
            )  # fmt: skip

    def pruned(self, share: float) -> Network:
        """Without a ``share`` of the weights of each layer, the smallest."""
        import torch

        other = copy.deepcopy(self)
        with torch.no_grad():
            for weights in other._module.parameters():
                if weights.ndim > 1:
                    weights[weights.abs() < weights.abs().quantile(share)] = 0.0
        return other

    def tuned(self, x: Floats, labels: Ints, epochs: int) -> Network:
        """Trained on for some ``epochs``, on labels (n,)."""
        other = copy.deepcopy(self)
        other._train(x, np.eye(other._module[-1].out_features)[labels], epochs, 0.5 * _RATE)
        return other

    def _built(self, columns: int, classes: int) -> Any:
        from torch import nn

        if not self.hidden:
            side = int(np.sqrt(columns))
            return nn.Sequential(
                nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(16 * (side // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, classes),
            )  # fmt: skip
        widths = (columns, *self.hidden)
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def _rows(self, x: Floats) -> Any:
        import torch

        return torch.tensor(self._scaler.transform(x), dtype=torch.float32)

    def _train(self, x: Floats, probs: Floats, epochs: int, rate: float) -> None:
        import torch

        rows, told = self._rows(x), torch.tensor(probs, dtype=torch.float32)
        adam = torch.optim.Adam(self._module.parameters(), lr=rate, weight_decay=self.decay, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
        for _ in range(epochs):
            for some in torch.randperm(len(rows)).split(_BATCH):
                adam.zero_grad()
                torch.nn.functional.cross_entropy(self._module(rows[some]), told[some]).backward()
                adam.step()
            falling.step()


CONVERGED = "perceptron 128-64"
FOREST = "random forest"
CONVOLUTIONS = "convolutional network"
FITTING: dict[str, Callable[[int], Surrogate]] = {
    FOREST: Forest,
    "boosted trees": Boosted,
    CONVERGED: Network,
}
"""Copies that fit the answers."""
WEAK: dict[str, Callable[[int], Surrogate]] = {
    "perceptron 16": lambda seed: Network(seed, (16,)),
    "perceptron 64, stopped early": lambda seed: Network(seed, (64,), epochs=20),
    "perceptron 128-64, decay 0.003": lambda seed: Network(seed, decay=3e-3, epochs=100),
}
"""Copies that are small, stop early, or are held back."""


def copies(pictures: bool) -> dict[str, Callable[[int], Surrogate]]:
    """Every kind of copy, by name; ``pictures``: with a convolutional one, to the end (200 epochs) and stopped after 60."""
    early = {f"{CONVOLUTIONS}, stopped early": lambda seed: Network(seed, (), epochs=60)}
    whole = {CONVOLUTIONS: lambda seed: Network(seed, (), epochs=200)}
    return {**FITTING, **(whole if pictures else {}), **WEAK, **(early if pictures else {})}
