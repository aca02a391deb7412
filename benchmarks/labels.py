"""Label-only thieves: ``python -m benchmarks labels -- [DATA/VICTIM…] [runs=N] [data=FOLDER] ["copy=NAME"…]``."""

import sys
from pathlib import Path

from benchmarks import report
from benchmarks._trace_labels import SETTINGS, labels


def run(args: list[str]) -> None:
    """Print the figures."""
    told = [arg.partition("=") for arg in args]
    given = {name: value for name, sign, value in told if sign and name != "copy"}
    wanted = tuple(name for name, sign, _ in told if not sign) or SETTINGS
    folder = Path(given["data"]) if "data" in given else None
    copies = tuple(value for name, _, value in told if name == "copy")
    rows = []
    for row in labels(folder, runs=int(given.get("runs", 3)), wanted=wanted, only=copies):
        print(row, file=sys.stderr, flush=True)  # the whole takes long
        rows.append(row)
    report("Labels alone: corrected p of copies of an account whose labels are flipped", rows)
