"""APGD of ours beside pyautoattack's: how many rows stand after the same number of steps, and how long it took.

``python -m benchmarks robustness [-- digits fashion seeds=3 steps=100 rows=300 data=FOLDER]``: parts to run (default: both),
models of each kind, steps, rows of Fashion-MNIST, and a folder with fashion-mnist (by default ``shared/data`` beside the
checkout). Both attack the same module, one after the other, on one thread; CE, then targeted DLR (nine targets) on what is
left, as AutoAttack does. Each is warmed up before its time is taken.
"""

import gzip
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from sklearn.datasets import load_digits
from torch import nn

from benchmarks import Row, report
from modelkeep.training.lab.attacks.apgd import Plan
from modelkeep.training.lab.attacks.cascade import attack, ball_of, frozen

BESIDE = Path(__file__).parents[2] / "shared" / "data"
PARTS = ("digits", "fashion")
BALLS = {"digits": (("linf", 0.1), ("l2", 0.6)), "fashion": (("linf", 0.03), ("l2", 0.5))}
DIFFERENCE_BAR, TIME_BAR = 0.5, 1.0
Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


def run(args: list[str]) -> None:
    """See the module."""
    options = {key: value for key, _, value in (arg.partition("=") for arg in args if "=" in arg)}
    parts = [arg for arg in args if arg in PARTS] or list(PARTS)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for part in parts:
        for seed in range(int(options.get("seeds", "3"))):
            module, x, y = _digits(seed) if part == "digits" else _fashion(seed, Path(options.get("data", BESIDE)))
            x, y = _right(module, x, y)
            count = len(x) if part == "digits" else int(options.get("rows", "300"))
            for norm, epsilon in BALLS[part]:
                rows.append(
                    _compare(part, seed, module, (x[:count], y[:count]), norm, epsilon, int(options.get("steps", "100")))
                )
                print(rows[-1], file=sys.stderr)
    report("APGD-CE, then APGD-T: of the rows that are answered rightly", [*rows, *_judged(rows)])


def _compare(part: str, seed: int, module: nn.Module, data: Arrays, norm: str, epsilon: float, steps: int) -> Row:
    x, y = data
    wide = x.reshape(len(x), -1).shape[1]
    ball = ball_of(module, norm, epsilon, np.zeros(wide, np.float32), np.ones(wide, np.float32))
    plan = Plan(steps, seed=seed)

    def ours(count: int, plan: Plan) -> float:
        out = attack(module, x[:count], y[:count], ball, ("apgd-ce", "apgd-t"), plan)
        return 1.0 - float(np.any(list(out.broken.values()), axis=0).mean())

    def theirs(count: int, plan: Plan) -> float:
        how = {"n_iter": plan.steps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "seed": seed}
        rows, labels = torch.from_numpy(x[:count]), torch.from_numpy(y[:count])
        with frozen(module):
            for one in (APGDAttack(module, loss="ce", **how), APGDAttack_targeted(module, **how)):
                moved = one.perturb(rows, labels)
                with torch.no_grad():
                    stand = module(moved).argmax(dim=1) == labels
                if not stand.any():
                    return 0.0
                rows, labels = rows[stand], labels[stand]
        return len(rows) / count

    (a, mine), (b, other) = _timed(ours, len(x), plan), _timed(theirs, len(x), plan)
    return {
        "bench": "robustness", "case": f"{part} {norm} {epsilon:g}, model {seed}", "rows": len(x), "steps": steps,
        "ours": round(a, 4), "pyautoattack": round(b, 4), "difference_points": round(100 * (a - b), 2),
        "ours_s": round(mine, 2), "pyautoattack_s": round(other, 2), "time_ratio": round(mine / other, 2),
    }  # fmt: skip


def _timed(measure: Callable[[int, Plan], float], count: int, plan: Plan) -> tuple[float, float]:
    """What it found, and its processor time, which others on the machine do not change."""
    measure(16, Plan(2, seed=plan.seed))
    begun = time.process_time()
    found = measure(count, plan)
    return found, time.process_time() - begun


def _judged(rows: list[Row]) -> list[Row]:
    found = []
    for part in dict.fromkeys(str(row["case"]).split(",")[0] for row in rows):
        own = [row for row in rows if str(row["case"]).startswith(part + ",")]
        difference = [float(str(row["difference_points"])) for row in own]
        ratio = [float(str(row["time_ratio"])) for row in own]
        weaker, slower = max(difference), float(np.median(ratio))
        verdict = f"{'met' if weaker <= DIFFERENCE_BAR else 'MISSED'} and {'met' if slower <= TIME_BAR else 'MISSED'}"
        found.append(
            {
                "bench": "robustness", "case": f"{part}: bars", "difference_points": f"{min(difference):g} to {weaker:g}",
                "time_ratio": f"{min(ratio):g} to {max(ratio):g}", "bars": f"{verdict} (0.5 points, time ratio 1)",
            }
        )  # fmt: skip
    return found


class _Flat(nn.Module):
    """Takes flat rows, as attacks give them."""

    kind = torch.float32

    def __init__(self, shape: tuple[int, ...], *layers: nn.Module) -> None:
        super().__init__()
        self.shape, self.stack = shape, nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.stack(x.reshape(len(x), *self.shape))


def _trained(module: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], epochs: int, seed: int) -> nn.Module:
    adam, order = torch.optim.Adam(module.parameters(), lr=2e-3), torch.Generator().manual_seed(seed)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=order).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(module(inputs[some]), labels[some]).backward()
            adam.step()
    return module.eval()


def _digits(seed: int) -> tuple[nn.Module, NDArray[np.float32], NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    chosen = np.random.default_rng(seed).permutation(len(x))
    train, test = chosen[:1200], chosen[1200:]
    torch.manual_seed(seed)
    module = _Flat((64,), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return _trained(module, x[train], y[train], 30, seed), x[test], y[test]


def _fashion(seed: int, folder: Path) -> tuple[nn.Module, NDArray[np.float32], NDArray[np.int64]]:
    def pictures(part: str, count: int) -> Arrays:
        with gzip.open(folder / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz") as file:
            x = np.frombuffer(file.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 784) / np.float32(255)
        with gzip.open(folder / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz") as file:
            return x, np.frombuffer(file.read(8 + count)[8:], np.uint8).astype(np.int64)

    torch.manual_seed(seed)
    module = _Flat(
        (1, 28, 28), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    module = _trained(module, *pictures("train", 6000), 3, seed)
    return module, *pictures("t10k", 2000)


def _right(module: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> Arrays:
    """The rows that are answered rightly, so that both attack the same."""
    with torch.no_grad():
        right = (module(torch.from_numpy(x)).argmax(dim=1) == torch.from_numpy(y)).numpy()
    return x[right], y[right]
