"""Adversarial training beside that of the Adversarial Robustness Toolbox (ART), under the same attack of somebody else.

``python -m benchmarks hardening [-- digits fashion seeds=3 device=cuda data=FOLDER seconds=20 rows=60000 examined=2000]``:
parts to run (default: all), models of each kind, where the CNN is trained, a folder with ``fashion-mnist`` (by default
``shared/data`` beside the checkout), the time that a training of the CNN may take, the pictures that it learns from and that it
is measured on. Needs ART 1.20 (in ``.venv/rivals``, or installed) and the package pyautoattack: APGD-CE and targeted APGD, 100
steps each, on rows that nobody learnt from.

Within a seed all models have the same architecture and begin with the same weights. On ``digits`` time is that of the processor
(one thread), and ART has twice the time that it needs to come to rest; on ``fashion`` time is the clock's, ours is spent first,
and ART goes on until it has had at least as much.
"""

import contextlib
import copy
import gzip
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import Row, report
from modelkeep.training.lab.adversarial import Recipe, harden
from modelkeep.training.lab.constraints import Threat

BESIDE = Path(__file__).parents[2] / "shared" / "data"
RIVALS = Path(__file__).parents[1] / ".venv" / "rivals" / "lib"
PARTS = ("digits", "fashion")
EPSILON, STEPS, BETA = 0.1, 7, 6.0
"""Of all: radius; of ART: steps of its attack (its default), and the weight of its TRADES, that of the paper."""
GAIN, SHARE, COST = 0.05, 0.3, 0.01
"""Bars: robust accuracy above ART's, time beside its, and clean accuracy below the undefended model's."""
CHUNK = 6000
DIGITS = Recipe(method="pgd", epochs=120, batch=64, rate=1e-2, steps=5, smoothing=0.1, widen=1.4)
FASHION = Recipe(method="pgd", batch=512, rate=3e-3, steps=5, smoothing=0.1, widen=1.1, average=0.995)

Learnt = tuple[nn.Module, float]


@dataclass(frozen=True, eq=False)
class Task:
    """Rows to learn from and rows to be measured on, and an untrained model for them."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    make: Callable[[], nn.Module]
    clock: Callable[[], float]

    def begin(self, seed: int) -> nn.Module:
        """With weights of that seed."""
        torch.manual_seed(seed)
        return self.make().to(self.x.device)


THREAT = Threat("linf", EPSILON, 0.0, 1.0)


def _digits() -> Task:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    x, y = torch.tensor(bunch.data[order] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[order])
    return Task(x[:1200], y[:1200], x[1200:], y[1200:], _perceptron, time.process_time)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def _fashion(folder: Path, rows: int, examined: int, device: str) -> Task:
    def pictures(part: str, count: int) -> tuple[Tensor, Tensor]:
        with gzip.open(folder / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz") as file:
            x = np.frombuffer(file.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 1, 28, 28) / 255.0
        with gzip.open(folder / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz") as file:
            y = np.frombuffer(file.read(8 + count)[8:], np.uint8)
        return torch.tensor(x, dtype=torch.float32, device=device), torch.tensor(y.astype(np.int64), device=device)

    return Task(*pictures("train", rows), *pictures("t10k", examined), _convolutions, time.perf_counter)


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class _Whole(nn.Module):
    """Hides the layers of a model, of which ART's TRADES would take the first for the last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _timed(task: Task, work: Callable[[], nn.Module]) -> Learnt:
    _wait(task)
    before = task.clock()
    made = work()
    _wait(task)
    return made, task.clock() - before


def _wait(task: Task) -> None:
    if task.x.device.type == "cuda":
        torch.cuda.synchronize()


def _plain(task: Task, seed: int, epochs: int) -> Learnt:
    """Adam, no attack."""

    def work() -> nn.Module:
        model = task.begin(seed)
        adam = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(task.x)).to(task.x.device).split(64 if len(task.x) < 5000 else 512):
                adam.zero_grad()
                cross_entropy(model(task.x[rows]), task.y[rows]).backward()
                adam.step()
        return model

    return _timed(task, work)


def _ours(task: Task, seed: int, recipe: Recipe) -> Learnt:
    chosen = replace(recipe, seed=seed)
    return _timed(task, lambda: harden(task.begin(seed), (task.x, task.y), THREAT, chosen).module)


def _art(task: Task, seed: int, method: str, batch: int, rate: float, enough: Callable[[int, float], bool]) -> Learnt:
    """ART's trainer, until ``enough`` of passes over the rows and of time."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    model = _Whole(task.begin(seed))
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    shape, kind = tuple(task.x.shape[1:]), "gpu" if task.x.device.type == "cuda" else "cpu"
    about: dict[str, Any] = {"optimizer": adam, "clip_values": (0.0, 1.0), "device_type": kind}
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **about)
    size: dict[str, Any] = {"eps": EPSILON, "eps_step": EPSILON / 4, "max_iter": STEPS}
    if method == "madry":
        trainer: Any = AdversarialTrainerMadryPGD(classifier, nb_epochs=1, batch_size=batch, **size)
        trainer.attack.set_params(verbose=False)
    else:
        attack = ProjectedGradientDescent(classifier, num_random_init=1, batch_size=batch, verbose=False, **size)
        trainer = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=BETA)
    x, y = task.x.cpu().numpy(), task.y.cpu().numpy()
    np.random.seed(seed)

    def work() -> nn.Module:
        before, passes = task.clock(), 0
        while True:
            for rows in np.array_split(np.random.permutation(len(x)), max(1, len(x) // CHUNK)):
                with contextlib.redirect_stderr(io.StringIO()):  # its bars
                    trainer.fit(x[rows], y[rows], batch_size=batch, nb_epochs=1)
                if len(x) > CHUNK and enough(passes, task.clock() - before):
                    return model
            passes += 1
            if enough(passes, task.clock() - before):
                return model

    return _timed(task, work)


def _standing(task: Task, model: nn.Module) -> tuple[float, float]:
    """Clean accuracy, and under APGD-CE and targeted APGD of pyautoattack."""
    from pyautoattack import AutoAttack

    model = copy.deepcopy(model).eval()
    device = task.x.device
    attack = AutoAttack(model, norm="Linf", eps=EPSILON, version="custom", attacks=["apgd-ce", "apgd-t"], seed=0, device=device)
    attack.apgd.n_restarts = 1
    found, *_ = attack.run_standard_evaluation(task.held_x, task.held_y, batch_size=1000)
    with torch.no_grad():
        clean, robust = ((model(rows).argmax(dim=1) == task.held_y).float().mean() for rows in (task.held_x, found))
    return float(clean), float(robust)


def _contest(name: str, task: Task, sides: dict[str, Callable[[int], Learnt]], seeds: int) -> Iterator[Row]:
    for seed in range(seeds):
        for side, learn in sides.items():
            model, seconds = learn(seed)
            clean, robust = _standing(task, model)
            yield {"bench": "hardening", "case": f"{name}: {side}", "seed": seed, "clean": round(clean, 4),
                   "robust": round(robust, 4), "seconds": round(seconds, 2)}  # fmt: skip


def _on_digits(seeds: int) -> Iterator[Row]:
    task = _digits()
    sides: dict[str, Callable[[int], Learnt]] = {"undefended": lambda seed: _plain(task, seed, 30)}
    sides["ours"] = lambda seed: _ours(task, seed, DIGITS)
    for batch, rate in ((128, 1e-3), (128, 5e-3), (64, 1e-2)):
        sides[f"ART Madry, batch {batch}, Adam {rate:g}"] = lambda seed, batch=batch, rate=rate: _art(
            task, seed, "madry", batch, rate, lambda passes, _time: passes >= 100
        )
    yield from _contest("digits", task, sides, seeds)


def _on_fashion(task: Task, seeds: int, seconds: float) -> Iterator[Row]:
    spent: dict[int, float] = {}
    for method in ("pgd", "trades"):  # what is compiled and allocated once is not counted
        harden(task.begin(0), (task.x[:4096], task.y[:4096]), THREAT, replace(FASHION, method=method, epochs=1))
    _, once = _ours(task, 0, replace(FASHION, epochs=3))
    epochs = max(3, round(seconds / (once / 3) / 1.15))  # in the three the steps of the attack are fewer

    def ours(seed: int, method: str) -> Learnt:
        found = _ours(task, seed, replace(FASHION, method=method, epochs=epochs))
        spent[seed] = max(spent.get(seed, 0.0), found[1])
        return found

    sides: dict[str, Callable[[int], Learnt]] = {"undefended": lambda seed: _plain(task, seed, 8)}
    for method in ("pgd", "trades"):
        sides[f"ours, {method}, {epochs} epochs"] = lambda seed, method=method: ours(seed, method)
    for method in ("madry", "trades"):
        sides[f"ART {method}, batch {FASHION.batch}, Adam 0.001"] = lambda seed, method=method: _art(
            task, seed, method, FASHION.batch, 1e-3, lambda _passes, had: had >= spent[seed]
        )
    yield from _contest("fashion", task, sides, seeds)


def _bars(rows: list[Row]) -> Iterator[Row]:
    """Means over the seeds, and whether the bars are held."""

    def mean(case: str, what: str) -> float:
        return float(np.mean([float(str(row[what])) for row in rows if row["case"] == case]))

    cases = list(dict.fromkeys(str(row["case"]) for row in rows))
    for part in PARTS:
        mine = [case for case in cases if case.startswith(f"{part}: ours")]
        arts = [case for case in cases if case.startswith(f"{part}: ART")]
        for case in [case for case in cases if case.startswith(part)]:
            found = sorted(float(str(row["robust"])) for row in rows if row["case"] == case)
            yield {"bench": "hardening", "case": f"mean of {len(found)}: {case}", "clean": round(mean(case, "clean"), 4),
                   "robust": round(mean(case, "robust"), 4), "range": f"{found[0]:.4f} to {found[-1]:.4f}",
                   "seconds": round(mean(case, "seconds"), 2)}  # fmt: skip
        if not mine or not arts:
            continue
        best = max(mine, key=lambda case: mean(case, "robust"))
        for art in arts:
            ahead = mean(best, "robust") - mean(art, "robust")
            share = mean(best, "seconds") / mean(art, "seconds")
            said = f"{ahead:+.4f} robust, {share:.0%} of its time"
            held = ahead >= GAIN and share <= SHARE if part == "digits" else ahead > 0
            yield {
                "bench": "hardening",
                "case": f"{best} beside{art.removeprefix(part + ':')}",
                "range": said,
                "bar": "held" if held else "missed",
            }
        lost = mean(f"{part}: undefended", "clean") - mean(best, "clean")
        if part == "digits":
            held = lost <= COST
            yield {"bench": "hardening", "case": f"{best} beside undefended", "range": f"{-lost:+.4f} clean",
                   "bar": "held" if held else "missed"}  # fmt: skip


def run(args: list[str]) -> None:
    """See the module."""
    wanted = [arg for arg in args if arg in PARTS] or list(PARTS)
    more = dict(arg.split("=", 1) for arg in args if "=" in arg)
    folder, seeds, device = Path(more.get("data", BESIDE)), int(more.get("seeds", 3)), more.get("device", "cpu")
    sys.path += [str(one) for one in RIVALS.glob("python3.*/site-packages")]  # after our own packages
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    parts: list[Iterator[Row]] = []
    if "digits" in wanted:
        parts.append(_on_digits(seeds))
    if "fashion" in wanted and folder.is_dir():
        task = _fashion(folder, int(more.get("rows", 60_000)), int(more.get("examined", 2000)), device)
        parts.append(_on_fashion(task, seeds, float(more.get("seconds", 20))))
    rows: list[Row] = []
    for row in (row for part in parts for row in part):
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    report("Adversarial training", [*rows, *_bars(rows)])
