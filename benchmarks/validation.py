"""Ranges learnt from reference data: how many honest rows each tolerance calls unusual, which strange ones, at what cost.

``python -m benchmarks validation [-- DATA]``: DATA is a folder with adult, credit-default, elec2 and fashion-mnist (by default
``shared/data`` beside the checkout, where it is); without it only scikit-learn's digits and breast_cancer are measured.
"""

import csv
import gzip
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from benchmarks import Row, report
from modelkeep.serving.ranges import RangeCheck, learn_ranges

Rows = NDArray[np.float64]
BESIDE = Path(__file__).parents[2] / "shared" / "data"
TOLERANCES = (0.0, 0.25, 0.5, 1.0, 2.0)
REFERENCE = (200, 500, 2000)
DRAWS = 3
_CODES = (1, 3, 5, 6, 7, 8, 9, 13)
"""Columns of adult that are words."""


def _csv(path: Path, head: bool) -> list[list[str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.reader(file))[int(head) :]


def _adult(path: Path) -> Rows:
    """Words as numbers, in the order of the alphabet."""
    rows = [row for row in _csv(path, False) if len(row) == 15]
    columns = []
    for at in range(14):
        words = [row[at].strip() for row in rows]
        known = {word: number for number, word in enumerate(sorted(set(words)))}
        columns.append([float(known[word]) if at in _CODES else float(word) for word in words])
    return np.array(columns).T


def _one_hot(rows: Rows) -> Rows:
    """Words as one column each, numbers standardised: what most models take."""
    columns = []
    for at in range(rows.shape[1]):
        column = rows[:, at]
        columns += [(column == value) * 1.0 for value in np.unique(column)] if at in _CODES else [
            (column - column.mean()) / column.std()
        ]  # fmt: skip
    return np.stack(columns, axis=1)


def _sets(folder: Path) -> dict[str, tuple[Rows, bool]]:
    """Rows by name, and whether they are in the order of time (then the reference comes first)."""
    found = {"digits": (load_digits().data, False), "breast_cancer": (load_breast_cancer().data, False)}
    if not folder.is_dir():
        return found
    adult = _adult(folder / "adult" / "adult-train.csv.gz")
    credit = np.array([row[1:24] for row in _csv(folder / "credit-default" / "UCI_Credit_Card.csv.gz", True)], dtype=np.float64)
    elec = np.array([row[:6] for row in _csv(folder / "elec2" / "elec.csv.gz", True)], dtype=np.float64)
    with gzip.open(folder / "fashion-mnist" / "t10k-images-idx3-ubyte.gz") as file:
        fashion = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 784).astype(np.float64)
    more = {"adult": adult, "adult, one-hot": _one_hot(adult), "credit-default": credit, "fashion-mnist": fashion}
    return found | {name: (rows, False) for name, rows in more.items()} | {"elec2, in time": (elec, True)}


def _draws(rows: Rows, ordered: bool, size: int) -> list[tuple[Rows, Rows]]:
    """(reference, held-out honest rows), three times."""
    found = []
    for draw in range(DRAWS):
        if ordered:
            at = draw * 12_000
            found.append((rows[at : at + size], rows[at + size : at + size + 5000]))
        else:
            order = np.random.default_rng(draw).permutation(len(rows))
            found.append((rows[order[:size]], rows[order[size : size + 5000]]))
    return found


def _share(check: RangeCheck, rows: Rows) -> float:
    """Percent of rows that are unusual."""
    narrow = rows.astype(np.float32)
    return 100.0 * float(np.mean([check.outside(narrow[at : at + 1]) is not None for at in range(len(narrow))]))


def _honest(name: str, rows: Rows, ordered: bool, size: int) -> Row:
    draws = [(learn_ranges(reference), reference, held) for reference, held in _draws(rows, ordered, size)]
    row: Row = {"bench": "validation", "case": name, "reference": size, "sets": len(draws[0][0].columns)}
    for tolerance in TOLERANCES:
        shares = [_share(RangeCheck(ranges, tolerance, np.dtype(np.float32)), held[:2000]) for ranges, _, held in draws]
        row[f"at {tolerance:g}"] = round(float(np.mean(shares)), 2)
    ranges, reference, _ = draws[0]
    check, rng = RangeCheck(ranges, 1.0, np.dtype(np.float32)), np.random.default_rng(1)
    shape = (300, reference.shape[1])
    row["noise"] = round(_share(check, rng.normal(reference.mean(axis=0), 3 * reference.std(axis=0) + 1e-9, shape)), 1)
    row["box"] = round(_share(check, rng.uniform(reference.min(axis=0), reference.max(axis=0), shape)), 1)
    return row


def _cost(features: int, sets: int) -> Row:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, features))
    reference[:, :sets] = rng.integers(0, 3, (500, sets))
    check = RangeCheck(learn_ranges(reference), 1.0, np.dtype(np.float32))
    row = reference[:1].astype(np.float32)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        for _ in range(100):
            check.outside(row)
        times.append((time.perf_counter() - began) * 1e4)
    return {
        "bench": "validation",
        "case": f"one row of {features} numbers, {sets} of them sets",
        "p50_us": round(float(np.median(times)), 2),
    }


def run(args: list[str]) -> None:
    """Print the figures."""
    folder = Path(args[0]) if args else BESIDE
    rows = [
        _honest(name, data, ordered, size)
        for size in REFERENCE
        for name, (data, ordered) in _sets(folder).items()
        if size <= 0.7 * len(data)
    ]
    where = "the data folder and scikit-learn" if folder.is_dir() else "scikit-learn alone"
    report(
        f"percent of held-out honest rows that are unusual, by tolerance, and of strange rows at 1 ({where}); "
        "noise: three deviations about the mean; box: uniform within the range",
        rows,
    )
    report("cost of the check", [_cost(64, 0), _cost(64, 8), _cost(64, 64), _cost(784, 0)])


if __name__ == "__main__":
    run([])
