"""Private training: ``python -m benchmarks privacy [-- overhead accounting utility membership seeds=3 data=FOLDER]``.

Beside it, in the same run: PyTorch without privacy, Opacus with hooks and with ghost clipping, and Opacus's and Google's
accountants (installed into ``.venv/rivals`` by ``make setup``).
"""

import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import Row, report
from benchmarks._extraction import BESIDE, datasets
from benchmarks._privacy_peers import beside, google_pld, opacus_epochs, opacus_prv, opacus_untuned
from modelkeep.training.accountant import Steps, epsilon_of
from modelkeep.training.budgets import PrivacySpent
from modelkeep.training.lab.architectures import by_word
from modelkeep.training.lab.clipping import Clipper
from modelkeep.training.lab.private import Noise, private_step, tensor, train_private
from modelkeep.training.lab.shadows import probabilities, train_plain, train_shadows
from modelkeep.training.membership import area, audit_one_run, caught, confidences, lira

PARTS = ("overhead", "accounting", "utility", "membership")
DELTA = 1e-5
MECHANISMS = (
    (1.0, 0.01, 1000), (2.0, 0.25, 100), (0.8, 0.02, 500), (1.1, 256 / 60_000, 14_000), (4.0, 1.0, 30), (9.477, 0.25, 100),
    (1.0, 1e-3, 20_000), (0.6, 0.005, 2000),
)  # fmt: skip


def run(args: list[str]) -> None:
    """Print the figures."""
    told = dict(arg.split("=", 1) for arg in args if "=" in arg)
    wanted = [arg for arg in args if "=" not in arg] or PARTS
    folder, seeds = Path(told.get("data", str(BESIDE))), int(told.get("seeds", 3))
    torch.set_num_threads(1)
    beside()
    if "overhead" in wanted:
        report("An epoch, against PyTorch without privacy (least of the rounds)", _overhead(int(told.get("rounds", 5))))
    if "accounting" in wanted:
        report("Epsilon by three accountants", _accounting())
    if "utility" in wanted:
        report("Accuracy, mean and range over seeds", _utility(folder, seeds))
    if "membership" in wanted:
        report("Membership inference before and after, and epsilon by audit", _membership(seeds))


def _overhead(rounds: int) -> list[Row]:
    generator, rows = np.random.default_rng(0), []
    cases = (
        ("mlp 64-128-10, 4,096 rows", "mlp:128", (64,), 10, 4096, 256),
        ("mlp 108-256-256-2, 4,096 rows", "mlp:256,256", (108,), 2, 4096, 256),
        ("cnn 16-32 on 28 x 28, 512 rows", "cnn:16,32", (1, 28, 28), 10, 512, 128),
    )
    for name, word, shape, classes, count, batch in cases:
        x, y = generator.normal(size=(count, *shape)).astype(np.float32), generator.integers(0, classes, count)
        ways = {mode: opacus_epochs(by_word(word, shape, classes), x, y, batch, 1.0, mode=mode) for mode in _MODES}
        ways["bare"] = _bare_epochs(by_word(word, shape, classes), x, y, batch)
        ways["ours"] = _our_epochs(by_word(word, shape, classes), x, y, batch)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, epoch in ways.items():
                begun = time.perf_counter()
                epoch()
                if number:  # the first round warms up
                    times[way].append(time.perf_counter() - begun)
        least = {way: min(taken) for way, taken in times.items()}
        rows.append({
            "bench": "privacy", "case": name, "plain ms": round(1e3 * least["plain"], 1),
            **{f"{way} x": round(least[way] / least["plain"], 2) for way in ("hooks", "ghost", "ours")},
            "bare ms": round(1e3 * least["bare"], 1), "ours / bare": round(least["ours"] / least["bare"], 2),
            "met": least["ours"] <= min(least["hooks"], least["ghost"]),
        })  # fmt: skip
    return rows


_MODES = ("plain", "hooks", "ghost")


def _bare_epochs(module: nn.Module, x: np.ndarray, y: np.ndarray, batch: int):
    """PyTorch without privacy and without a loader, which takes longer than a small module: rows by their numbers, as ours."""
    rows, classes = tensor(x), torch.from_numpy(y)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)

    def epoch() -> None:
        for part in torch.randperm(len(rows)).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(rows[part]), classes[part]).backward()
            optimiser.step()

    return epoch


def _our_epochs(module: nn.Module, x: np.ndarray, y: np.ndarray, batch: int):
    plan = PrivacySpent(1.0, DELTA, 1.0, batch / len(x), math.ceil(len(x) / batch), 1.0)
    rows, classes = tensor(x), torch.from_numpy(y)
    clipper, noise = Clipper(module.train(), torch.zeros_like(rows[:2]), 1.0), Noise()
    optimiser = torch.optim.SGD(clipper.parameters, lr=0.05)

    def epoch() -> None:
        for _ in range(plan.steps):
            private_step(clipper, rows, classes, plan, noise)
            optimiser.step()

    return epoch


def _accounting() -> list[Row]:
    rows = []
    for noise, rate, steps in MECHANISMS:
        took = []
        found = []
        for ask in (
            lambda *given: epsilon_of([Steps(*given)], DELTA),
            lambda *given: google_pld(*given, DELTA, 1e-5 if given[1] < 0.002 else 1e-4),
            lambda *given: opacus_prv(*given, DELTA),
        ):
            begun = time.perf_counter()
            found.append(ask(noise, rate, steps))
            took.append(time.perf_counter() - begun)
        ours, google, prv = found
        rows.append({
            "bench": "privacy", "case": f"noise {noise:g}, rate {rate:.4g}, {steps:,} steps", "ours": round(ours, 5),
            "dp-accounting": round(google, 5), "opacus prv": round(prv, 5), "apart %": round(100 * abs(ours / google - 1), 3),
            "ours s": round(took[0], 3), "dp-accounting s": round(took[1], 3), "met": abs(ours / google - 1) <= 0.01,
        })  # fmt: skip
    return rows


def _utility(folder: Path, seeds: int) -> list[Row]:
    rows = []
    for data in datasets(folder, {"digits", "adult"}):
        low, high, most = _public(data.name)
        word = "mlp:64"
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(data.x))[:most]
            x, y = 2.0 * (np.clip(data.x[order], low, high) - low) / (high - low) - 1.0, data.y[order]
            cut = int(0.75 * len(x))
            classes = int(data.y.max()) + 1

            def made(word=word, shape=x.shape[1:], classes=classes, seed=seed) -> nn.Module:
                torch.manual_seed(seed)
                return by_word(word, shape, classes)

            plain = train_plain(made(), x[:cut], y[:cut], epochs=30 if len(x) < 10_000 else 4, seed=seed)
            models = {"no privacy": plain}
            for epsilon in (1.0, 3.0):
                done = train_private(made(), x[:cut], y[:cut], epsilon=epsilon, delta=DELTA, seed=seed)
                models[f"ours, {epsilon:g}"] = done.module
                models[f"Opacus untuned, {epsilon:g}"] = opacus_untuned(made(), x[:cut], y[:cut], epsilon, DELTA)
            for name, model in models.items():
                found.setdefault(name, []).append(float((probabilities(model.eval(), x[cut:]).argmax(1) == y[cut:]).mean()))
        rows += [_spread(f"{data.name} {word}: {name}", values) for name, values in found.items()]
    return rows


def _public(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Bounds that are known without looking at the rows, and how many rows are used."""
    if name == "digits":
        return np.zeros(64), np.full(64, 16.0), 10_000
    high = np.ones(108)  # words as one column each; age, weight in the census, years of school, gain, loss, hours a week
    high[[0, 10, 27, 63, 64, 65]] = 100, 1e6, 16, 20_000, 5000, 100
    return np.zeros(108), high, 20_000


def _spread(case: str, values: list[float]) -> Row:
    return {
        "bench": "privacy", "case": case, "accuracy": round(statistics.mean(values), 4),
        "least": round(min(values), 4), "most": round(max(values), 4), "seeds": len(values),
    }  # fmt: skip


def _membership(seeds: int) -> list[Row]:
    """Digits: half of 1,200 rows by coins, a tenth of all labels replaced (canaries); 16 shadow models."""
    data, rows = next(datasets(None, {"digits"})), []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(data.x))[:1200]
        x, y = data.x[order] / 8.0 - 1.0, data.y[order].copy()
        canaries = generator.random(len(x)) < 0.1
        y[canaries] = (y[canaries] + generator.integers(1, 10, canaries.sum())) % 10
        inside = generator.random(len(x)) < 0.5

        def made(seed: int = seed) -> nn.Module:
            torch.manual_seed(seed)
            return by_word("mlp:64", (64,), 10)

        shadows = train_shadows(made, x, y, 16, seed=1000 * (seed + 1))
        known = np.stack([confidences(one, y) for one in shadows.answers])
        models: dict[str, tuple[nn.Module, float]] = {
            "no privacy": (train_plain(made(), x[inside], y[inside], epochs=100, seed=seed), math.inf)
        }
        for epsilon in (8.0, 3.0, 1.0):
            done = train_private(made(), x[inside], y[inside], epsilon=epsilon, delta=DELTA, seed=seed)
            models[f"epsilon {epsilon:g}"] = done.module, done.spent.epsilon
        for name, (model, promised) in models.items():
            scores = confidences(probabilities(model.eval(), x), y)
            ratios = lira(scores, known, shadows.inside)
            by = area(ratios[inside], ratios[~inside])
            audits = [audit_one_run(each[part], inside[part], DELTA) for each in (scores, ratios)
                      for part in (np.ones(len(x), dtype=bool), canaries)]  # fmt: skip
            bound = max(one.epsilon for one in audits)
            rows.append({
                "bench": "privacy", "case": f"{name}, seed {seed}",
                "loss AUC": round(area(scores[inside], scores[~inside]).value, 3), "LiRA AUC": round(by.value, 3),
                "low": round(by.low, 3), "high": round(by.high, 3),
                "caught at 1 %": round(caught(ratios[inside], ratios[~inside], 0.01).value, 3),
                "epsilon found": round(bound, 3), "promised": round(promised, 3) if math.isfinite(promised) else "none",
                "met": bound <= promised,
            })  # fmt: skip
    return rows
