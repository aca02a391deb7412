"""What a small network makes of training data: features of its inner layer, and out-of-fold probabilities.

The network is trained here, on the rows as they are, for inspection alone: planted rows show in what it learnt from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BATCH, _LOOK = 128, 4096


@dataclass(frozen=True)
class Recipe:
    """How the network is made and trained: ``width`` units of its inner layer, ``epochs``, peak ``rate`` of Adam (one cycle).

    Rows (n, c, h, w) or (n, h, w) get two convolutions of 16 and 32 maps, pooled, before the inner layer; rows (n, d) one more
    layer of ``width`` units.
    """

    epochs: int = 6
    rate: float = 4e-3
    width: int = 64


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network with the scale of its rows."""

    body: Any
    head: Any
    middle: Any
    spread: Any
    device: str

    def look(self, x: NDArray[Any]) -> tuple[Floats, Floats]:
        """Features (n, width) and probabilities (n, k) of rows. Raises Invalid."""
        features, probabilities = [], []
        with torch.no_grad():
            for rows in _tensor(x).split(_LOOK):
                inner = self.body((rows.to(self.device) - self.middle) / self.spread)
                features.append(inner.cpu())
                probabilities.append(self.head(inner).double().softmax(1).cpu())
        return torch.cat(features).double().numpy(), torch.cat(probabilities).numpy()


@dataclass(frozen=True, eq=False)
class Views:
    """Of rows (n, ...): ``features`` (n, width) of ``network``, which learnt from all of them, after its rectifier;
    ``probabilities`` (n, k) from networks that had not seen the row, one array a repeat; ``pull`` (n,) as the function of that
    name, of pictures.
    """

    features: Floats
    probabilities: tuple[Floats, ...]
    pull: Floats | None
    network: Network


def train(
    x: NDArray[Any], y: Ints, classes: int, *, recipe: Recipe | None = None, seed: int = 0, device: str = "cpu"
) -> Network:
    """A network that learnt labels ``y`` (n,) of rows ``x`` (n, d), (n, h, w) or (n, c, h, w).

    Deterministic for one ``seed``, machine and number of threads. Raises Invalid (fewer than 2 rows, labels that do not fit).
    """
    how, rows = recipe or Recipe(), _tensor(x)
    if len(rows) < 2 or len(y) != len(rows) or int(np.max(y)) >= classes or int(np.min(y)) < 0:
        raise Invalid(f"{len(rows)} rows with {len(y)} labels of {classes} classes cannot be learnt from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, head = _body(rows, how).to(device), nn.Linear(how.width, classes).to(device)
        axes = (0,) if rows.ndim == 2 else (0, 2, 3)
        middle, spread = rows.mean(axes, keepdim=True).to(device), rows.std(axes, keepdim=True).clamp_min(1e-6).to(device)
        scaled, labels = (rows.to(device) - middle) / spread, torch.from_numpy(np.asarray(y, dtype=np.int64)).to(device)
        adam = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=how.rate)
        steps = how.epochs * -(-len(rows) // _BATCH)
        cycle = torch.optim.lr_scheduler.OneCycleLR(adam, how.rate, total_steps=steps)
        for _ in range(how.epochs):
            for some in torch.randperm(len(rows)).to(device).split(_BATCH):
                adam.zero_grad()
                nn.functional.cross_entropy(head(body(scaled[some])), labels[some]).backward()
                adam.step()
                cycle.step()
    return Network(body.eval(), head.eval(), middle, spread, device)


def views(
    x: NDArray[Any],
    y: Ints,
    classes: int,
    *,
    folds: int = 3,
    repeats: int = 1,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Views:
    """Train ``folds`` times ``repeats`` networks on parts of the rows and one on all, and look at every row.

    Raises Invalid (fewer than 2 folds, fewer rows than folds, labels that do not fit).
    """
    whole = train(x, y, classes, recipe=recipe, seed=seed, device=device)
    told = []
    for again in range(repeats):
        probabilities = np.zeros((len(y), classes))
        for number, held in enumerate(stratified(y, folds, seed + again)):
            seen = np.setdiff1d(np.arange(len(y)), held)
            fitted = train(x[seen], y[seen], classes, recipe=recipe, seed=seed + 1000 * (again + 1) + number, device=device)
            probabilities[held] = fitted.look(x[held])[1]
        told.append(probabilities)
    return Views(whole.look(x)[0], tuple(told), pull(whole, x, y, seed=seed) if np.ndim(x) > 2 else None, whole)


def pull(network: Network, x: NDArray[Any], y: Ints, *, carriers: int = 8, seed: int = 0) -> Floats:
    """How far what is fine-grained in a picture drags other pictures to its label (n,): 0 ... 1.

    The difference of each row (h, w) or (c, h, w) to its own mean over 5 by 5 pixels is added to ``carriers`` other rows, of
    other labels, within the range that the data has; told is the mean probability of the row's label. A trigger takes effect
    wherever it is put; what makes an honest row one of its class mostly does not (Gao et al. 2019, "STRIP", superimposes whole
    pictures, which is blind to a trigger that is weaker than the picture). Raises Invalid (no pictures).
    """
    rows = _tensor(x)
    if rows.ndim != 4:
        raise Invalid("only pictures can be laid over each other")
    fine = rows - nn.functional.avg_pool2d(rows, 5, 1, 2, count_include_pad=False)
    low, high, told, asked = float(rows.min()), float(rows.max()), np.zeros(len(y)), np.zeros(len(y))
    for carrier in np.random.default_rng(seed).permutation(len(y))[:carriers]:
        probabilities = network.look((fine + rows[carrier]).clamp(low, high).numpy())[1]
        other = y[carrier] != y
        told += other * probabilities[np.arange(len(y)), y]
        asked += other
    out: Floats = told / np.maximum(asked, 1.0)
    return out


def stratified(y: Ints, folds: int, seed: int) -> Iterator[Ints]:
    """Row numbers of each of ``folds`` parts, every class dealt out evenly. Raises Invalid (fewer than 2, fewer rows)."""
    if not 2 <= folds <= len(y):
        raise Invalid(f"{len(y)} rows cannot be divided into {folds} folds")
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(np.asarray(y)[order], kind="stable")]
    for number in range(folds):
        yield np.sort(order[number::folds])


def _tensor(x: NDArray[Any]) -> Any:
    """Rows as float32 of shape (n, d) or (n, c, h, w)."""
    rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if rows.ndim == 3:
        rows = rows[:, None]
    if rows.ndim not in {2, 4} or not bool(torch.isfinite(rows).all()):
        raise Invalid(f"rows are finite numbers of shape (n, d), (n, h, w) or (n, c, h, w), not {tuple(x.shape)}")
    return rows


def _body(rows: Any, recipe: Recipe) -> Any:
    if rows.ndim == 2:
        return nn.Sequential(
            nn.Linear(rows.shape[1], recipe.width), nn.ReLU(), nn.Linear(recipe.width, recipe.width), nn.ReLU()
        )
    _, channels, high, wide = rows.shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (high // 4) * (wide // 4), recipe.width), nn.ReLU(),
    )  # fmt: skip
