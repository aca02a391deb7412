"""Poisoned and mislabelled training data: what is found, what it costs, and what a model does before and after the purge.

``python -m benchmarks poison [-- badnets cleanlabel clean flips tables runs=3 rows=6000 device=cuda data=FOLDER]``. Rows are of
Fashion-MNIST where its folder is given, else of scikit-learn's digits; ``tables`` are Adult and Credit-default. Beside it:
cleanlab on the same out-of-fold probabilities; spectral signatures and activation clustering alone.
"""

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score

from benchmarks import Row, report
from benchmarks._extraction import BESIDE, Data, datasets
from benchmarks._poison import Poisoned, badnets, clean_label, flipped, obeys, patched, right, waved
from modelkeep.training.lab.features import Recipe, train, views
from modelkeep.training.poison.ensemble import Suspicions, inspect
from modelkeep.training.poison.labels import pool, self_confidence

RIVALS = Path(__file__).parents[1] / ".venv" / "rivals" / "lib"
SHARES, CLEAN_SHARE, FLIPS, EXAM = (0.01, 0.02, 0.05), 0.5, 0.05, 5000
PARTS, TABLES = ("badnets", "cleanlabel", "clean", "flips", "tables"), {"adult", "credit"}
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Bench:
    """What the parts share: options, pictures (n, h, w) from 0 to 1 in training and exam."""

    def __init__(self, told: dict[str, str], data: Data) -> None:
        self.device, self.runs = told.get("device", "cpu"), int(told.get("runs", "3"))
        self.repeats, side = int(told.get("repeats", "2")), int(np.sqrt(data.x.shape[1]))
        pictures = (data.x / data.x.max()).reshape(-1, side, side).astype(np.float32)
        exam = min(EXAM, len(pictures) // 3)
        self.rows = min(int(told.get("rows", "6000")), len(pictures) - exam)
        self.recipe = Recipe(epochs=int(told.get("epochs", "6" if len(pictures) > 5000 else "40")))
        self.pool, self.labels = pictures[:-exam], data.y[:-exam]
        self.exam, self.told, self.classes = pictures[-exam:], data.y[-exam:], int(data.y.max()) + 1
        self.name = data.name

    def draw(self, seed: int) -> tuple[NDArray[Any], Ints]:
        """The training rows of a run."""
        chosen = np.random.default_rng([seed, 8]).permutation(len(self.pool))[: self.rows]
        return self.pool[chosen], self.labels[chosen]

    def look(self, x: NDArray[Any], y: Ints, seed: int, folds: int = 3, repeats: int = 1) -> Any:
        """Features, pull and probabilities."""
        return views(x, y, self.classes, folds=folds, repeats=repeats, recipe=self.recipe, seed=seed, device=self.device)

    def again(self, x: NDArray[Any], y: Ints, seed: int) -> Any:
        """A network trained from scratch."""
        return train(x, y, self.classes, recipe=self.recipe, seed=seed + 500, device=self.device)


def _at(scores: Floats, planted: Bools, share: float) -> float:
    """TPR where at most ``share`` of honest rows have a score as large."""
    honest = np.sort(scores[~planted])[::-1]
    return float((scores[planted] > honest[int(share * len(honest))]).mean())


def _said(found: Suspicions, planted: Bools) -> dict[str, float]:
    return {
        "flag_TPR": float(found.flagged[planted].mean()) if planted.any() else float("nan"),
        "flag_FPR": float(found.flagged[~planted].mean()),
    }


# -- triggers --


def _triggered(bench: Bench, attack: Poisoned, trigger: Any, seed: int, case: str, false: float) -> Row:
    """One poisoned training set: found, purged, learnt again; beside it a network that learnt from the rows as they were."""
    never = bench.again(*bench.draw(seed), seed)
    began = time.perf_counter()
    seen = bench.look(attack.x, attack.y, seed)
    trained = time.perf_counter()
    found = inspect(attack.x, attack.y, probabilities=seen.probabilities, features=seen.features, pull=seen.pull, seed=seed)
    spent, planted, kept = time.perf_counter() - trained, attack.planted, ~found.flagged
    after = bench.again(attack.x[kept], attack.y[kept], seed)
    exam = trigger(bench.exam)
    row: Row = {
        "bench": "poison",
        "case": case,
        "seed": seed,
        "target": attack.target,
        **{
            f"TPR_{name}": _at(found.scores[name], planted, false) for name in ("planted", "signature", "activation", "quantum")
        },
        "TPR_combined": _at(found.combined, planted, false),
        **_said(found, planted),
        "obeys_before": obeys(seen.network, exam, bench.told, attack.target),
        "obeys_after": obeys(after, exam, bench.told, attack.target),
        "obeys_never_poisoned": obeys(never, exam, bench.told, attack.target),
        "accuracy_before": right(seen.network, bench.exam, bench.told),
        "accuracy_after": right(after, bench.exam, bench.told),
        "training_s": round(trained - began, 1),
        "inspect_s": round(spent, 1),
    }
    print(row, file=sys.stderr, flush=True)  # the whole takes long
    return row


def _badnets(bench: Bench) -> None:
    rows = []
    for seed in range(bench.runs):
        for share in SHARES:
            attack = badnets(*bench.draw(seed), share, (3 * seed + 1) % bench.classes, seed)
            rows.append(_triggered(bench, attack, patched, seed, f"{bench.name}, BadNets {share:.0%}", 0.01))
    _tell("TPR at 1 % FPR, and of the rows flagged", rows)


def _cleanlabel(bench: Bench) -> None:
    rows = []
    for seed in range(bench.runs):
        attack = clean_label(*bench.draw(seed), CLEAN_SHARE, (3 * seed + 2) % bench.classes, seed)
        rows.append(_triggered(bench, attack, waved, seed, f"{bench.name}, wave under true labels", 0.05))
    _tell("clean-label attack: TPR at 5 % FPR, and of the rows flagged", rows)


def _clean(bench: Bench) -> None:
    """Nothing is planted: what is flagged all the same."""
    rows: list[Row] = []
    for seed in range(bench.runs):
        x, y = bench.draw(seed)
        seen = bench.look(x, y, seed)
        found = inspect(x, y, probabilities=seen.probabilities, features=seen.features, pull=seen.pull, seed=seed)
        shares = {reason: float(rows_.mean()) for reason, rows_ in found.reasons.items()}
        rows.append({"bench": "poison", "case": f"{bench.name}, nothing planted", "seed": seed, **shares})
        print(rows[-1], file=sys.stderr, flush=True)
    _tell("share of honest rows flagged", rows)


# -- wrong labels --


def _flips(bench: Bench) -> None:
    """Labels of pictures."""
    cleanlab, rows = _cleanlab(), []
    for seed in range(bench.runs):
        x, true = bench.draw(seed)
        y, wrong = flipped(true, FLIPS, bench.classes, seed)
        several = bench.look(x, y, seed, repeats=bench.repeats).probabilities
        rows.append(_labels(bench.name, x, y, wrong, several, seed, cleanlab))
    _tell("5 % of labels flipped", rows)


def _tables(bench: Bench, folder: Path | None) -> None:
    """Labels of tables, where their folder is."""
    cleanlab, rows = _cleanlab(), []
    for data in (each for each in datasets(folder, TABLES) if each.name in TABLES):
        for seed in range(bench.runs):
            chosen = np.random.default_rng([seed, 8]).permutation(len(data.x))[: bench.rows]
            x, true = data.x[chosen], data.y[chosen]
            y, wrong = flipped(true, FLIPS, 2, seed)
            several = _tabular(x, y, bench.repeats, seed)
            rows.append(_labels(data.name, x, y, wrong, several, seed, cleanlab) | _limit(x, true, bench.repeats, seed))
    if rows:
        _tell("5 % of labels flipped", rows)


def _tabular(x: Floats, y: Ints, repeats: int, seed: int) -> list[Floats]:
    from modelkeep.adapters.crossfit import FAMILIES, cross_fit

    return [cross_fit(x, y, 2, family=family, repeat=again, seed=seed) for again in range(repeats) for family in FAMILIES]


def _labels(name: str, x: NDArray[Any], y: Ints, wrong: Bools, several: Sequence[Floats], seed: int, cleanlab: Any) -> Row:
    found = inspect(x, y, probabilities=several, seed=seed)
    row: Row = {"bench": "poison", "case": f"{name}, labels flipped", "seed": seed}
    if cleanlab is not None:
        theirs = np.max([_ranked(1.0 - cleanlab(y, several[0], method=how), wrong) for how in _HOW], axis=0)
        row |= {"AUROC_cleanlab": theirs[0], "precision_cleanlab": theirs[1]}
    same, ours = (_ranked(scores, wrong) for scores in (self_confidence(pool(several[:1], y), y), found.combined))
    row |= {"AUROC_same_input": same[0], "precision_same_input": same[1], "AUROC": ours[0], "precision": ours[1]}
    row |= _said(found, wrong)
    print(row, file=sys.stderr, flush=True)
    return row


_HOW = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def _ranked(scores: Floats, wrong: Bools) -> tuple[float, float]:
    """AUROC, and precision at recall 0.5 or more."""
    precision, recall, _ = precision_recall_curve(wrong, scores)
    return float(roc_auc_score(wrong, scores)), float(precision[recall >= 0.5].max())


def _limit(x: Floats, true: Ints, repeats: int, seed: int) -> Row:
    """What nobody could beat if the classes were as uncertain as a model of the true labels says: labels drawn by it, flipped;
    and the share of the true labels that would be flagged.
    """
    several = _tabular(x, true, repeats, seed)
    p, rng = pool(several, true), np.random.default_rng([seed, 9])
    drawn = (rng.random(len(p)) < p[:, 1]).astype(np.int64)
    told, wrong = flipped(drawn, FLIPS, 2, seed + 1)
    best = _ranked(1.0 - p[np.arange(len(p)), told], wrong)
    clean = float(inspect(x, true, probabilities=several, seed=seed).flagged.mean())
    return {"AUROC_limit": best[0], "precision_limit": best[1], "flagged_of_clean": clean}


def _cleanlab() -> Any:
    """Its ``get_label_quality_scores``; None where it is not installed."""
    sys.path.extend(str(place) for place in RIVALS.glob("python3.*/site-packages"))
    try:
        return importlib.import_module("cleanlab.rank").get_label_quality_scores
    except ImportError:
        print("cleanlab is not installed: its columns are left out", file=sys.stderr)
        return None


# -- all --


def _tell(title: str, rows: Sequence[Row]) -> None:
    """Each run as it was, and a row a case: the mean over runs and, in brackets, the worst of them."""
    low = ("TPR", "AUROC", "precision", "accuracy", "flag_TPR")
    means: list[Row] = []
    for case in dict.fromkeys(row["case"] for row in rows):
        many = [row for row in rows if row["case"] == case]
        mean: Row = {"bench": "poison", "case": case, "runs": len(many)}
        for key in (key for key in many[0] if key not in {"bench", "case", "seed", "target"}):
            values = np.array([row[key] for row in many], dtype=np.float64)
            worst = values.min() if key.startswith(low) else values.max()
            mean[key] = f"{values.mean():.4f} ({worst:.4f})"
        means.append(mean)
    report(f"poison: {title}: each run", [{key: _short(value) for key, value in row.items()} for row in rows])
    report(f"poison: {title}: mean (worst) of the runs", means)


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def run(args: list[str]) -> None:
    """Print the figures."""
    import torch

    told = dict(one.split("=", 1) for one in args if "=" in one)
    parts = [one for one in args if "=" not in one] or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if told.get("device", "cpu") == "cpu":
        torch.set_num_threads(int(told.get("threads", "1")))
    folder: Path | None = Path(told.get("data", str(BESIDE)))
    folder = folder if folder is not None and folder.is_dir() else None
    bench = Bench(told, next(iter(datasets(folder, {"fashion"} if folder else {"digits"}))))
    print(f"{bench.name}: {bench.rows:,} rows a run, {bench.runs} runs, on {bench.device}", file=sys.stderr)
    if "badnets" in parts:
        _badnets(bench)
    if "cleanlabel" in parts:
        _cleanlabel(bench)
    if "clean" in parts:
        _clean(bench)
    if "flips" in parts:
        _flips(bench)
    if "tables" in parts:
        _tables(bench, folder)
