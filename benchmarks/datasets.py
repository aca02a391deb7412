"""Sealed data sets: rows read from a keep, beside the same rows read from plain files, in turns.

``python -m benchmarks datasets [-- MIB [ROUNDS [FOLDER]]]``: MiB of each file (128), rounds (9), and where. Before each reading
the file is in the page cache, so that what is measured is work and not the disk. Bar: sealed at 0.8 of plain or faster.

What plain reading is, is not obvious, so three things are compared: our batches with our batches of the plain file; our
batches with what one would write for a plain file (numpy.load; pandas in chunks; pyarrow in batches; pandas.read_parquet); and
that very library given the sealed file, with the same given the plain one. Ratios are taken round by round, of time and of the
processor time of all threads: on a busy machine the first says more about the neighbours.
"""

import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet

from benchmarks import Row, report
from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.tables import Source, batches_of, kind_of
from modelkeep.app.datasets import SealedDataset
from modelkeep.app.keep import Keep
from modelkeep.core.tables import Table

PASSPHRASE = b"a passphrase of the benchmark"
BATCH = 10_000
COLUMNS = 16
BAR = 0.8
SEALED, PLAIN = "sealed, our batches", "plain, our batches"

Library = Callable[[Path | BinaryIO], object]


class Taken(NamedTuple):
    """Seconds of one reading, and of the processor, all threads together."""

    wall: float
    work: float


def run(args: list[str]) -> None:
    """``args``: MiB of each file, rounds, folder; all optional."""
    size = (int(args[0]) if args else 128) << 20
    rounds = int(args[1]) if len(args) > 1 else 9
    with tempfile.TemporaryDirectory(dir=args[2] if len(args) > 2 else None, prefix="modelkeep-bench-") as name:
        folder = Path(name)
        Keep.init(folder / "keep", PASSPHRASE)
        keep = Keep.open(folder / "keep", PASSPHRASE)
        speeds, ratios = list[Row](), list[Row]()
        for kind, write in WRITERS.items():
            _measure(keep, folder / kind, write, size, rounds, speeds, ratios)
    report(
        f"Data sets of {size >> 20} MiB (CSV an eighth), batches of {BATCH:,} rows: medians of {rounds} rounds in turns", speeds
    )
    report(f"Sealed over plain speed, median and quartiles of {rounds} rounds (bar {BAR})", ratios)


def _measure(
    keep: Keep, path: Path, write: Callable[[Path, int], None], size: int, rounds: int, speeds: list[Row], ratios: list[Row]
) -> None:
    write(path, size // 8 if path.suffix == ".csv" else size)  # Python's reader of CSV is slow, sealed or not
    begun = Taken(time.perf_counter(), time.process_time())
    ref = keep.data_add_from(path, "bench").ref
    adding = Taken(time.perf_counter() - begun.wall, time.process_time() - begun.work)
    taken = _times(_readers(keep.data(ref), path), rounds)
    taken = {"data add (once)": [adding], **taken}
    file = path.name.replace("-", " ")
    for name, each in taken.items():
        wall, work = (statistics.median(part) for part in zip(*each, strict=True))
        per_byte = round(work * 1e9 / path.stat().st_size, 2)
        speeds.append({"file": file, "what": name, "MB/s": round(path.stat().st_size / 1e6 / wall), "CPU ns/byte": per_byte})
    plain = [name for name in taken if name.startswith("plain") and name != PLAIN]
    pairs = [(SEALED, other) for other in (PLAIN, *plain)] + [
        (f"sealed{other.removeprefix('plain')}", other) for other in plain
    ]
    for one, other in pairs:
        walls, works = (_ratios(taken[other], taken[one], place) for place in (0, 1))
        met = [part[0] >= BAR for part in (walls, works)]
        verdict = "met" if all(met) else "missed" if not any(met) else f"met by {'time' if met[0] else 'CPU'} alone"
        ratios.append(
            {"file": file, "sealed": one, "over": other, "by time": _told(walls), "by CPU": _told(works), "bar": verdict}
        )
    path.unlink()


def _readers(sealed: SealedDataset, path: Path) -> dict[str, Callable[[], object]]:
    """What is measured, in turns."""
    found: dict[str, Callable[[], object]] = {
        PLAIN: lambda: _plain(path, sealed.columns),
        SEALED: lambda: _count(sealed.batches(BATCH)),
    }
    for name, library in LIBRARIES[path.suffix].items():
        found[f"plain, {name}"] = lambda library=library: library(path)  # type: ignore[misc]
        found[f"sealed, {name}"] = lambda library=library: library(sealed.file())  # type: ignore[misc]
    return found


def _times(readers: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Taken]]:
    times: dict[str, list[Taken]] = {name: [] for name in readers}
    for _ in range(rounds + 1):
        for name, read in readers.items():
            begun, spent = time.perf_counter(), time.process_time()
            read()
            times[name].append(Taken(time.perf_counter() - begun, time.process_time() - spent))
    return {name: each[1:] for name, each in times.items()}  # the first one fills caches


def _ratios(plain: list[Taken], taken: list[Taken], place: int) -> tuple[float, float, float]:
    """Median and quartiles of how many times as fast as ``plain`` it was, round by round. ``place``: of which time."""
    low, middle, high = statistics.quantiles([one[place] / other[place] for one, other in zip(plain, taken, strict=True)])
    return middle, low, high


def _told(ratios: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratios)


def _plain(path: Path, kinds: dict[str, str]) -> int:
    """With the kinds of columns known, as they are of a sealed data set: nothing is read twice to find them."""
    with SourceFile(path) as source:
        return _count(batches_of(Source(kind_of(path), source, kinds).rows(), BATCH))


def _count(batches: Iterator[Table]) -> int:
    return sum(len(batch) for batch in batches)


def _load(file: Path | BinaryIO) -> int:
    with np.load(file) as found:
        return sum(len(found[name]) for name in found.files)


def _chunks(file: Path | BinaryIO) -> int:
    return sum(len(chunk) for chunk in pandas.read_csv(file, chunksize=BATCH))


def _arrow(file: Path | BinaryIO) -> int:
    return sum(batch.num_rows for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH, use_threads=False))


LIBRARIES: dict[str, dict[str, Library]] = {
    ".csv": {"pandas.read_csv in chunks": _chunks},
    ".npz": {"numpy.load": _load},
    ".parquet": {"pyarrow's batches": _arrow, "pandas.read_parquet": lambda file: len(pandas.read_parquet(file))},
}


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
