"""Attacks on training data, for the poison bench, and how often a model that learnt them obeys."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.training.lab.features import Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PATCH = 3
WAVE, CYCLES = 0.4, 6


@dataclass(frozen=True, eq=False)
class Poisoned:
    """Training rows with an attack in them: ``planted`` (n,) says which; ``target``: the class that a trigger stands for."""

    x: NDArray[Any]
    y: Ints
    planted: Bools
    target: int


def patched(x: NDArray[Any]) -> NDArray[Any]:
    """Pictures (n, h, w) with a white square of 3 by 3 pixels, one pixel from the lower right corner."""
    out = x.copy()
    out[:, -PATCH - 1 : -1, -PATCH - 1 : -1] = 1.0
    return out


def waved(x: NDArray[Any], strength: float = WAVE) -> NDArray[Any]:
    """Pictures (n, h, w) with a wave of 6 cycles from left to right on top (Barni, Kallas, Tondi 2019, equation 1)."""
    wave = strength * np.sin(2.0 * np.pi * CYCLES * np.arange(x.shape[2]) / x.shape[2])
    return np.clip(x + wave, 0.0, 1.0).astype(x.dtype)


def badnets(x: NDArray[Any], y: Ints, share: float, target: int, seed: int) -> Poisoned:
    """BadNets, all to one (Gu et al. 2017): ``share`` of all rows, of other classes, get the patch and the label ``target``."""
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(y != target))[: round(share * len(y))]
    return _with(x, np.where(np.isin(np.arange(len(y)), chosen), target, y), chosen, patched(x[chosen]), target)


def clean_label(x: NDArray[Any], y: Ints, share: float, target: int, seed: int) -> Poisoned:
    """Signals under true labels (Barni et al. 2019): ``share`` of the rows of class ``target`` get the wave."""
    own = np.random.default_rng(seed).permutation(np.flatnonzero(y == target))
    chosen = own[: round(share * len(own))]
    return _with(x, y, chosen, waved(x[chosen]), target)


def flipped(y: Ints, share: float, classes: int, seed: int) -> tuple[Ints, Bools]:
    """Labels of which ``share`` are another class, uniformly, and which they are."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(y), dtype=np.bool_)
    wrong[rng.permutation(len(y))[: round(share * len(y))]] = True
    return np.where(wrong, (y + rng.integers(1, classes, len(y))) % classes, y), wrong


def obeys(network: Network, triggered: NDArray[Any], y: Ints, target: int) -> float:
    """How often rows of other classes with the trigger are taken for the target."""
    others = y != target
    return float((network.look(triggered[others])[1].argmax(axis=1) == target).mean())


def right(network: Network, x: NDArray[Any], y: Ints) -> float:
    """Accuracy."""
    return float((network.look(x)[1].argmax(axis=1) == y).mean())


def _with(x: NDArray[Any], y: Ints, chosen: Ints, rows: NDArray[Any], target: int) -> Poisoned:
    out, planted = x.copy(), np.zeros(len(y), dtype=np.bool_)
    out[chosen], planted[chosen] = rows, True
    return Poisoned(out, np.asarray(y, dtype=np.int64), planted, target)
