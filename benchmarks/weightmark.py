"""Marks in weights: what they cost, what they survive, and how often a key finds one in a model that has none.

``python -m benchmarks weightmark [-- digits fashion claims alone seeds=3 rows=12000 data=FOLDER]``: parts to run (default:
all), ours alone, models of each kind, pictures that the CNN learns from, and a folder with fashion-mnist (by default
``shared/data`` beside the checkout). A cost in accuracy has its 95 % interval, over the same held-out rows. Beside ours, in the
same run: Uchida et al. 2017, "Embedding Watermarks into Deep Neural Networks" (a projection of one layer's mean weights,
trained with a sigmoid loss).
"""

import copy
import gzip
import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from benchmarks import Row, report
from modelkeep.app.weightmarks import mark_model
from modelkeep.formats.onnx_weights import weights_of
from modelkeep.torch import to_onnx
from modelkeep.training.tails import binomial_tail
from modelkeep.training.weightmark import BITS, against, layout_of, plan_of, read

BESIDE = Path(__file__).parents[2] / "shared" / "data"
PARTS = ("digits", "fashion", "claims")
OWNER = "modelkeep bench"
REFERENCE = 1000
TUNING, RATE, PRUNED = 5, 5e-3, 0.9
STRENGTH = 1.0
"""Weight of Uchida's loss beside the model's own. The paper's 0.01 sets too few bits in so few steps."""
MODELS, KEYS = 24, 1000
BITS_BAR, P_BAR, COST_BAR = 0.99, 1e-9, 0.5

Matrices = list[NDArray[np.float64]]
Extra = Callable[[nn.Module], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """Pictures and labels to learn from and to be measured on, and how."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    held_x: torch.Tensor
    held_y: torch.Tensor
    make: Callable[[], nn.Sequential]
    epochs: int
    host: int
    """The layer that carries Uchida's mark, among those with weights."""


def _digits() -> Task:
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    x, y = torch.tensor(bunch.data[order] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[order])
    return Task("digits, MLP 64-128-64-10", x[:1200], y[:1200], x[1200:], y[1200:], _perceptron, 30, 1)


def _perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def _fashion(folder: Path, rows: int) -> Task:
    def pictures(part: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        with gzip.open(folder / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz") as file:
            x = np.frombuffer(file.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 1, 28, 28) / 255.0
        with gzip.open(folder / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz") as file:
            y = np.frombuffer(file.read(8 + count)[8:], np.uint8)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y.astype(np.int64))

    return Task("fashion, CNN 16-32-64", *pictures("train", rows), *pictures("t10k", 10_000), _convolutions, 4, 1)


def _convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def _train(model: nn.Module, task: Task, epochs: int, rate: float, extra: Extra | None = None, masked: bool = False) -> None:
    """Adam. ``extra``: added to the loss; ``masked``: weights that are zero stay so."""
    kept = [w != 0 for w in _layers(model)] if masked else []
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(task.x)).split(64):
            adam.zero_grad()
            loss = cross_entropy(model(task.x[rows]), task.y[rows])
            (loss if extra is None else loss + extra(model)).backward()
            adam.step()
            with torch.no_grad():
                for w, keep in zip(_layers(model), kept, strict=False):
                    w.mul_(keep)


def _layers(model: nn.Module) -> list[torch.Tensor]:
    return [w for w in model.parameters() if w.ndim > 1]


def _matrices(model: nn.Module) -> Matrices:
    return [w.detach().numpy().reshape(len(w), -1).astype(np.float64) for w in _layers(model)]


def _with(model: nn.Module, matrices: Matrices) -> nn.Module:
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for w, matrix in zip(_layers(fresh), matrices, strict=True):
            w.copy_(torch.tensor(matrix.reshape(w.shape)))
    return fresh


def _right(model: nn.Module, task: Task) -> NDArray[np.float64]:
    """1 for each held-out row that is answered rightly, else 0."""
    with torch.no_grad():
        return (model(task.held_x).argmax(dim=1) == task.held_y).double().numpy()


def _accuracy(model: nn.Module, task: Task) -> float:
    return 100.0 * float(_right(model, task).mean())


@dataclass(frozen=True)
class Cost:
    """Points of accuracy that a mark costs, and half the width of the 95 % interval (normal, of paired rows)."""

    points: float
    half: float

    def __str__(self) -> str:
        return f"{self.points:.2f} ± {self.half:.2f}"


def _cost(before: NDArray[np.float64], after: NDArray[np.float64]) -> Cost:
    lost = 100.0 * (before - after)
    return Cost(float(lost.mean()), 1.96 * float(lost.std()) / len(lost) ** 0.5)


def _pruned(model: nn.Module) -> nn.Module:
    """The smallest weights of every layer set to zero."""
    return _with(model, [np.where(np.abs(w) >= np.quantile(np.abs(w), PRUNED), w, 0.0) for w in _matrices(model)])


def _attacked(model: nn.Module, task: Task) -> Iterator[tuple[str, nn.Module]]:
    yield "as released", model
    tuned = copy.deepcopy(model)
    _train(tuned, task, TUNING, RATE)
    yield f"fine-tuned, {TUNING} epochs at {RATE:g}", tuned
    yield f"pruned, {PRUNED:.0%}", _pruned(model)
    yield "fine-tuned, then pruned", _pruned(tuned)
    sparse = _pruned(model)
    _train(sparse, task, TUNING, RATE, masked=True)
    yield "pruned, then fine-tuned", sparse


def _npz(rows: torch.Tensor) -> bytes:
    out = io.BytesIO()
    np.savez(out, x=rows.numpy())
    return out.getvalue()


def _marked(model: nn.Module, task: Task, key: bytes) -> nn.Module:
    """As the command line does it: from an ONNX file to an ONNX file, with rows of the training set."""
    done = mark_model(to_onnx(model, task.x[:4], logits=True), key, OWNER, _npz(task.x[:REFERENCE]))
    return _with(model, [weight.matrix for weight in weights_of(done.model)])


def _key(*words: Any) -> bytes:
    return hashlib.sha256(repr(words).encode()).digest()


def _ours(plain: nn.Module, task: Task, seed: int) -> Iterator[Row]:
    plan = plan_of(_key("owner", seed), OWNER, layout_of(_matrices(plain)))
    before, began = _right(plain, task), time.perf_counter()
    yield {
        "bench": "weightmark", "case": f"{task.name}: no mark; pruned, {PRUNED:.0%}, in brackets", "seed": seed,
        "accuracy_%": f"{100.0 * before.mean():.2f} ({_accuracy(_pruned(plain), task):.2f})",
    }  # fmt: skip
    marked = _marked(plain, task, _key("owner", seed))
    took = time.perf_counter() - began
    for what, model in (*_attacked(marked, task), ("another mark over it", _marked(marked, task, _key("thief", seed)))):
        found, after = read(_matrices(model), plan), _right(model, task)
        cost = _cost(before, after) if what == "as released" else None
        yield _row(task, "modelkeep", what, seed, found.matched, found.p, after, cost, round(took, 1) if cost else "")


class _Uchida:
    """A secret projection of the mean over outputs of one layer's weights, and the bits that it is to show."""

    def __init__(self, task: Task, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        host = _layers(task.make())[task.host]
        self._host, width = task.host, host[0].numel()
        self._projection = torch.randn(BITS, width, generator=rng)
        self._bits = torch.randint(0, 2, (BITS,), generator=rng).float()

    def _shown(self, model: nn.Module) -> torch.Tensor:
        return self._projection @ _layers(model)[self._host].flatten(1).mean(dim=0)

    def loss(self, model: nn.Module) -> torch.Tensor:
        return STRENGTH * binary_cross_entropy_with_logits(self._shown(model), self._bits)

    def matched(self, model: nn.Module) -> int:
        with torch.no_grad():
            return int(((self._shown(model) > 0) == self._bits.bool()).sum())


def _uchida(before: NDArray[np.float64], task: Task, seed: int) -> Iterator[Row]:
    mark, other = _Uchida(task, seed), _Uchida(task, seed + 1000)
    torch.manual_seed(seed)
    model = task.make()
    _train(model, task, task.epochs, 2e-3, mark.loss)
    over = copy.deepcopy(model)
    _train(over, task, TUNING, RATE, other.loss)
    for what, changed in (*_attacked(model, task), ("another mark over it", over)):
        matched, after = mark.matched(changed), _right(changed, task)
        cost = _cost(before, after) if what == "as released" else None
        yield _row(task, "Uchida", what, seed, matched, binomial_tail(matched, BITS, 0.5), after, cost, "")


def _row(
    task: Task, scheme: str, what: str, seed: int, matched: int, p: float, after: NDArray[np.float64], cost: Cost | None,
    took: object,
) -> Row:  # fmt: skip
    met = matched >= BITS_BAR * BITS and p <= P_BAR and (cost is None or cost.points <= COST_BAR)
    return {
        "bench": "weightmark", "case": f"{task.name}: {scheme}, {what}", "seed": seed, "bits": f"{matched}/{BITS}",
        "p": f"{p:.1e}", "accuracy_%": round(100.0 * float(after.mean()), 2), "cost_points": "" if cost is None else str(cost),
        "seconds": took, "bar": "met" if met else "missed",
    }  # fmt: skip


def _survival(task: Task, seeds: int, alone: bool) -> Iterator[Row]:
    for seed in range(seeds):
        torch.manual_seed(seed)
        plain = task.make()
        _train(plain, task, task.epochs, 2e-3)
        yield from _ours(plain, task, seed)
        if not alone:
            yield from _uchida(_right(plain, task), task, seed)


def _claims(task: Task) -> Iterator[Row]:
    """Keys against models that were trained without any: shares of p-values at most so small."""
    models = []
    for seed in range(MODELS):
        torch.manual_seed(500 + seed)
        model = task.make()
        _train(model, task, 5, 2e-3)
        models.append(_matrices(model))
    layout = layout_of(models[0])
    readings = [[read(one, plan) for one in models] for plan in (plan_of(_key("claim", n), OWNER, layout) for n in range(KEYS))]
    p = np.array([one.p for row in readings for one in row])
    for level in (0.1, 0.01, 1e-3, 1e-4):
        share = float((p <= level).mean())
        yield {
            "bench": "weightmark", "case": f"{KEYS} keys against {MODELS} independent models: share of p at most {level:g}",
            "share": f"{share:.2g}", "bar": "met" if share <= level * 1.1 + 2 / len(p) else "missed",
        }  # fmt: skip
    worst = max(max(row, key=lambda one: one.matched).matched for row in readings)
    yield {"bench": "weightmark", "case": f"most bits that any of {len(p)} pairs shows", "bits": f"{worst}/{BITS}"}
    full = [against(type(row[0])(BITS, BITS, binomial_tail(BITS, BITS, 0.5)), row) for row in readings]
    yield {"bench": "weightmark", "case": "p of 64 bits against these models, the largest of all keys", "p": f"{max(full):.1e}"}


def run(args: list[str]) -> None:
    """See the module."""
    wanted = [arg for arg in args if arg in PARTS] or list(PARTS)
    more = dict(arg.split("=", 1) for arg in args if "=" in arg)
    folder, seeds, alone = Path(more.get("data", BESIDE)), int(more.get("seeds", 3)), "alone" in args
    torch.set_num_threads(1)
    parts: list[Iterator[Row]] = []
    if "digits" in wanted:
        parts.append(_survival(_digits(), seeds, alone))
    if "fashion" in wanted and folder.is_dir():
        parts.append(_survival(_fashion(folder, int(more.get("rows", 12_000))), seeds, alone))
    if "claims" in wanted:
        parts.append(_claims(_digits()))
    rows: list[Row] = []
    for row in (row for part in parts for row in part):
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    report("Marks in weights", rows)
