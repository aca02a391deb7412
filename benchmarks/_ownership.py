"""Models of the ownership bench: what is served, what others trained on their own, and what thieves make of it."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]

BATCH = 128
QUERIES = 2000
FLIPS = 0.005
"""Of DAWN: share of answers with a wrong label."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How models of a data set are trained: ``kind`` is ``mlp`` or ``cnn``; ``epochs`` from scratch; ``rate``: of Adam."""

    kind: str
    epochs: int
    rate: float = 2e-3
    widths: tuple[int, int] = (64, 32)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows: ``train`` of the owner; ``theirs`` of everybody else; ``reference`` of the owner, for probes; ``exam``."""

    train: tuple[Floats, Ints]
    theirs: tuple[Floats, Ints]
    reference: tuple[Floats, Ints]
    exam: tuple[Floats, Ints]


@dataclass(frozen=True, eq=False)
class Model:
    """A torch module with the scale of its rows."""

    module: Any
    mean: Floats
    scale: Floats
    picture: bool

    def tensor(self, x: Floats) -> Any:
        """Rows as the module takes them."""
        import torch

        rows = ((x - self.mean) / self.scale).astype(np.float32)
        side = int(np.sqrt(x.shape[1]))
        return torch.from_numpy(rows.reshape(-1, 1, side, side) if self.picture else rows)

    def __call__(self, x: Floats) -> Floats:
        """Probabilities (n, k)."""
        import torch

        with torch.no_grad():
            parts = [self.module(self.tensor(x[at : at + 2048])).softmax(1) for at in range(0, len(x), 2048)]
        return torch.cat(parts).numpy().astype(np.float64)


def new_model(recipe: Recipe, x: Floats, classes: int, seed: int, widths: tuple[int, int] | None = None) -> Model:
    """An untrained model for rows like ``x``."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    one, two = widths or recipe.widths
    if recipe.kind == "cnn":
        first = (int(np.sqrt(x.shape[1])) - 5) // 2 + 1
        last = (first - 3) // 2 + 1
        module = nn.Sequential(
            nn.Conv2d(1, one, 5, stride=2), nn.ReLU(), nn.Conv2d(one, two, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(two * last**2, 64), nn.ReLU(), nn.Linear(64, classes),
        )  # fmt: skip
        return Model(module, np.zeros(1), np.ones(1), True)
    module = nn.Sequential(nn.Linear(x.shape[1], one), nn.ReLU(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, classes))
    return Model(module, x.mean(axis=0), np.full(1, x.std() + 1e-9), False)


def train(model: Model, x: Floats, y: NDArray[Any], epochs: int, rate: float) -> Model:
    """Train on labels (n,) or on probabilities (n, k)."""
    import torch

    rows = model.tensor(x)
    told = torch.from_numpy(np.asarray(y)) if np.asarray(y).ndim == 1 else torch.from_numpy(np.asarray(y, dtype=np.float32))
    adam = torch.optim.Adam(model.module.parameters(), lr=rate)
    for _ in range(epochs):
        for some in torch.randperm(len(rows)).split(BATCH):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(model.module(rows[some]), told[some]).backward()
            adam.step()
    return model


def fresh(recipe: Recipe, x: Floats, y: NDArray[Any], seed: int, classes: int, widths: tuple[int, int] | None = None) -> Model:
    """A model trained from scratch."""
    return train(new_model(recipe, x, classes, seed, widths), x, y, recipe.epochs, recipe.rate)


def copied(model: Model) -> Model:
    """The same weights, apart from the model's."""
    return Model(deepcopy(model.module), model.mean, model.scale, model.picture)


def pruned(model: Model, share: float) -> Model:
    """Without the smallest ``share`` of each weight matrix."""
    import torch

    other = copied(model)
    with torch.no_grad():
        for weights in other.module.parameters():
            if weights.ndim > 1:
                least = weights.abs().flatten().kthvalue(max(1, int(share * weights.numel()))).values
                weights[weights.abs() <= least] = 0.0
    return other


def suspects(model: Model, recipe: Recipe, split: Split, seed: int, classes: int) -> Iterator[tuple[str, Model]]:
    """What thieves make of a model: they hold rows of their own, and of the model its weights or its answers."""
    x, y = split.theirs
    rng = np.random.default_rng([seed, 5])
    yield "fine-tuned 5 epochs", train(copied(model), x, y, 5, 1e-3)
    yield "pruned 80 %", pruned(model, 0.8)
    yield "pruned 80 %, fine-tuned", train(pruned(model, 0.8), x, y, 2, 1e-3)
    soft = model(x)
    yield "distilled, soft", fresh(recipe, x, soft, 1000 + seed, classes)
    yield "distilled, hard", fresh(recipe, x, soft.argmax(axis=1), 2000 + seed, classes)
    asked = rng.permutation(len(x))[:QUERIES]
    few = _longer(recipe, len(x) / len(asked))
    yield "extracted, 2,000 soft", fresh(few, x[asked], soft[asked], 3000 + seed, classes)
    yield "extracted, 2,000 hard", fresh(few, x[asked], soft[asked].argmax(axis=1), 4000 + seed, classes)


def dawn(model: Model, recipe: Recipe, split: Split, seed: int, classes: int) -> tuple[int, int]:
    """DAWN (Szyller et al. 2021): how many of the false labels a copy by 2,000 labels repeats, and of how many."""
    rng = np.random.default_rng([seed, 6])
    x = split.theirs[0]
    asked = rng.permutation(len(x))[:QUERIES]
    told = model(x[asked]).argmax(axis=1)
    flipped = rng.permutation(len(asked))[: max(1, round(FLIPS * len(asked)))]
    told[flipped] = (told[flipped] + rng.integers(1, classes, size=len(flipped))) % classes
    copy = fresh(_longer(recipe, len(x) / len(asked)), x[asked], told, 5000 + seed, classes)
    return int((copy(x[asked][flipped]).argmax(axis=1) == told[flipped]).sum()), len(flipped)


def _longer(recipe: Recipe, times: float) -> Recipe:
    """As many steps over fewer rows."""
    return replace(recipe, epochs=max(recipe.epochs, round(recipe.epochs * min(times, 4.0))))
