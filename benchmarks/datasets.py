"""Sealed data sets: rows read in batches from a keep, beside the same rows read by the same code from plain files, in turns.

``python -m benchmarks datasets [-- MIB [ROUNDS [FOLDER]]]``: MiB of each file (128), rounds (7), and where. Before each reading
the file is in the page cache, so that what is measured is work and not the disk. Bar: sealed at 0.8 of plain or faster.
"""

import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from benchmarks import Row, report
from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.tables import Source, batches_of, kind_of
from modelkeep.app.keep import Keep
from modelkeep.core.tables import Table

PASSPHRASE = b"a passphrase of the benchmark"
BATCH = 10_000
COLUMNS = 16
BAR = 0.8


def run(args: list[str]) -> None:
    """``args``: MiB of each file, rounds, folder; all optional."""
    size = (int(args[0]) if args else 128) << 20
    rounds = int(args[1]) if len(args) > 1 else 7
    with tempfile.TemporaryDirectory(dir=args[2] if len(args) > 2 else None, prefix="modelkeep-bench-") as name:
        folder = Path(name)
        Keep.init(folder / "keep", PASSPHRASE)
        keep = Keep.open(folder / "keep", PASSPHRASE)
        rows = [row for kind, write in WRITERS.items() for row in _measure(keep, folder / kind, write, size, rounds)]
    report(f"Sealed data sets: {size >> 20} MiB each, batches of {BATCH:,} rows, median of {rounds} in turns (bar {BAR})", rows)


def _measure(keep: Keep, path: Path, write: Callable[[Path, int], None], size: int, rounds: int) -> list[Row]:
    write(path, size // 8 if path.suffix == ".csv" else size)  # Python's reader of CSV is slow, sealed or not
    ref = keep.data_add_from(path, "bench").ref
    sealed = keep.data(ref)
    readers: dict[str, Callable[[], int]] = {
        "plain, batches": lambda: _plain(path, sealed.columns),
        "sealed, batches": lambda: _count(sealed.batches(BATCH)),
    }
    if path.suffix == ".npz":
        readers["plain, numpy.load"] = lambda: _loaded(path)
    if path.suffix == ".parquet":
        readers["plain, pyarrow alone"] = lambda: _arrow(path)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(rounds + 1):  # the first one fills caches
        for name, read in readers.items():
            begun, spent = time.perf_counter(), time.process_time()
            read()
            times[name].append((time.perf_counter() - begun, time.process_time() - spent))
    plain, found = times["plain, batches"][1:], []
    for name, taken in times.items():
        ratio, low, high = _ratios([one for one, _ in plain], [one for one, _ in taken[1:]])
        row = {
            "file": path.name.replace("-", " "),
            "reader": name,
            "MB/s": round(path.stat().st_size / 1e6 / statistics.median(one for one, _ in taken[1:]), 1),
            "of plain": f"{ratio:.2f}",
            "lowest to highest": f"{low:.2f} to {high:.2f}",
            "of plain, by CPU time": f"{_ratios([one for _, one in plain], [one for _, one in taken[1:]])[0]:.2f}",
        }
        if name.startswith("sealed"):
            row["bar"] = "met" if ratio >= BAR else "missed"
        found.append(row)
    path.unlink()
    return found


def _ratios(plain: list[float], taken: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of how many times as fast as ``plain`` it was, round by round."""
    found = sorted(one / other for one, other in zip(plain, taken, strict=True))
    return statistics.median(found), found[0], found[-1]


def _plain(path: Path, kinds: dict[str, str]) -> int:
    """With the kinds of columns known, as they are of a sealed data set: nothing is read twice to find them."""
    with SourceFile(path) as source:
        return _count(batches_of(Source(kind_of(path), source, kinds).rows(), BATCH))


def _count(batches: Iterator[Table]) -> int:
    return sum(len(batch) for batch in batches)


def _loaded(path: Path) -> int:
    with np.load(path) as found:
        return sum(len(found[name]) for name in found.files)


def _arrow(path: Path) -> int:
    return sum(batch.num_rows for batch in pyarrow.parquet.ParquetFile(path).iter_batches(BATCH, use_threads=False))


def _csv(path: Path, size: int) -> None:
    draw = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"c{number}" for number in range(COLUMNS)])
        while file.tell() < size:
            numbers = draw.standard_normal((2000, COLUMNS - 2)).round(5).tolist()
            whole, words = draw.integers(0, 1000, 2000).tolist(), draw.integers(0, 50, 2000).tolist()
            writer.writerows([*row, one, f"word {word}"] for row, one, word in zip(numbers, whole, words, strict=True))


def _columns(size: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    rows = size // (8 * COLUMNS)
    return {f"c{number}": draw.standard_normal(rows) for number in range(COLUMNS)}


def _parquet(path: Path, size: int, **how: object) -> None:
    found = _columns(size)
    found["word"] = np.array([f"word {number}" for number in range(50)], object)[np.arange(len(found["c0"])) % 50]
    pyarrow.parquet.write_table(pyarrow.table(found), path, row_group_size=100_000, **how)


def _npz(path: Path, size: int) -> None:
    draw = np.random.default_rng(2)
    rows = size // (4 * 784)
    np.savez(path, x=draw.standard_normal((rows, 784), dtype=np.float32), y=np.arange(rows))


def _npz_packed(path: Path, size: int) -> None:
    draw = np.random.default_rng(3)
    rows = size // 784
    np.savez_compressed(path, x=draw.integers(0, 8, (rows, 28, 28), dtype=np.uint8), y=np.arange(rows))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "numbers-and-words.csv": _csv,
    "numbers-and-words.parquet": _parquet,
    "plain-numbers.parquet": lambda path, size: _parquet(path, size, compression="none", use_dictionary=False),
    "stored.npz": _npz,
    "deflated.npz": _npz_packed,
}
