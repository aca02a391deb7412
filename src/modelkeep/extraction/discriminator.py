"""Real or synthetic? A small network in plain numpy, trained when a model is published."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HIDDEN = (64, 32)
MEMBERS = 3
SLICE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Discriminator:
    """``MEMBERS`` networks with two hidden ReLU layers, whose logits are averaged.

    ``weights``: w1 (m, f, 64), b1 (m, 64), w2 (m, 64, 32), b2 (m, 32), w3 (m, 32), b3 (m,).
    """

    weights: tuple[Floats, ...]

    @property
    def inputs(self) -> int:
        """Features that it takes of a row."""
        return int(self.weights[0].shape[1])

    def suspicion(self, features: Floats) -> Floats:
        """Mean log odds that each row of ``features`` (b, f) is synthetic, shape (b,)."""
        w1, b1, w2, b2, w3, b3 = self.weights
        total = np.zeros(len(features))
        for m in range(len(b3)):
            hidden = np.maximum(features @ w1[m] + b1[m], 0.0)
            hidden = np.maximum(hidden @ w2[m] + b2[m], 0.0)
            total += hidden @ w3[m] + b3[m]
        return total / len(b3)


def fit_discriminator(
    real: Floats, synthetic: Floats, rng: np.random.Generator, *, steps: int = 700, batch: int = 256, decay: float = 2e-3
) -> Discriminator:
    """Train on features of real and synthetic rows, balanced in every batch.

    Logistic loss, Adam (Kingma & Ba 2015, algorithm 1) with decoupled weight decay and a learning rate that falls linearly.
    """
    members = [_fit_one(real, synthetic, rng, steps, batch, decay) for _ in range(MEMBERS)]
    return Discriminator(tuple(np.stack(parts).astype(np.float64) for parts in zip(*members, strict=True)))


def _fit_one(
    real: Floats, synthetic: Floats, rng: np.random.Generator, steps: int, batch: int, decay: float
) -> list[NDArray[np.float32]]:
    sizes = (real.shape[1], *HIDDEN)
    weights: list[NDArray[np.float32]] = []
    for fan_in, fan_out in pairwise(sizes):
        weights.append((rng.normal(size=(fan_in, fan_out)) * np.sqrt(2 / fan_in)).astype(np.float32))
        weights.append(np.zeros(fan_out, np.float32))
    weights.append((rng.normal(size=HIDDEN[-1]) / np.sqrt(HIDDEN[-1])).astype(np.float32))
    weights.append(np.zeros((), np.float32))
    pools = (real.astype(np.float32), synthetic.astype(np.float32))
    target = np.repeat(np.array([0.0, 1.0], np.float32), batch // 2)
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    for step in range(1, steps + 1):
        rows = np.concatenate([pool[rng.integers(len(pool), size=batch // 2)] for pool in pools])
        rows += 0.05 * rng.standard_normal(rows.shape, dtype=np.float32)
        rate = 4e-3 * (1 - step / (steps + 1))
        for i, grad in enumerate(_gradient(weights, rows, target)):
            first[i] = 0.9 * first[i] + 0.1 * grad
            second[i] = 0.999 * second[i] + 0.001 * grad * grad
            move = first[i] / (1 - 0.9**step) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
            weights[i] = (weights[i] - rate * (move + decay * 10 * weights[i])).astype(np.float32)
    return weights


def _gradient(
    weights: list[NDArray[np.float32]], rows: NDArray[np.float32], target: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    w1, b1, w2, b2, w3, b3 = weights
    # in slices, each product stays below the size from which BLAS wakes its threads, which costs far more than it saves here
    parts = len(rows) // SLICE if len(rows) % SLICE == 0 else 1
    sliced = rows.reshape(parts, -1, rows.shape[1])
    one = np.maximum(sliced @ w1 + b1, 0)
    two = np.maximum(one @ w2 + b2, 0)
    error = (1 / (1 + np.exp(-np.clip(two @ w3 + b3, -30, 30))) - target.reshape(parts, -1)) / np.float32(len(target))
    back2 = error[:, :, None] * w3 * (two > 0)
    back1 = (back2 @ w2.T) * (one > 0)
    return [
        (sliced.transpose(0, 2, 1) @ back1).sum(axis=0),
        back1.sum(axis=(0, 1)),
        (one.transpose(0, 2, 1) @ back2).sum(axis=0),
        back2.sum(axis=(0, 1)),
        (two * error[:, :, None]).sum(axis=(0, 1)),
        np.asarray(error.sum()),
    ]
