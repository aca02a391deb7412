"""The scanner: attacks it catches and alarms it raises, beside other scanners on the same files; each parser under damage.

``python -m benchmarks scan [-- SECONDS]``: SECONDS of damage in all, shared by the formats; 300 by default.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks import Row, report
from benchmarks._peers import NoPeer, python_of
from modelkeep.custody.scan import SCANNED_FORMATS, scan

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "scan_corpus"))

SECONDS = 300.0
SUFFIXES = {
    "pickle": "pkl", "joblib": "joblib", "torch-zip": "pt", "torch-legacy": "pt", "keras-zip": "keras", "hdf5": "h5",
    "npy": "npy", "npz": "npz", "gguf": "gguf", "onnx": "onnx", "safetensors": "safetensors", "zip": "zip",
}  # fmt: skip
PEERS = ("picklescan", "modelscan", "modelaudit")


def run(args: list[str]) -> None:
    """Print the tables. ``args``: seconds of damage."""
    seconds = float(args[0]) if args else SECONDS
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))
        rows = [_ours(Path(folder)), *(_peer(peer, Path(folder)) for peer in PEERS)]
        report("scanners on the corpus: attacks that are not clean, harmless files that are", rows)
        report(
            "each parser under damage",
            [_damage(name, Path(folder), seconds / len(SCANNED_FORMATS)) for name in SCANNED_FORMATS],
        )


def _write(folder: Path) -> None:
    """The corpus as files, with the suffixes that other scanners go by."""
    from corpus import benign, malicious

    for kind, files in (("bad", malicious()), ("good", benign())):
        for number, data in enumerate(files.values()):
            suffix = SUFFIXES.get(scan(data, "m").format, "bin")
            (folder / f"{kind}-{number:03}.{suffix}").write_bytes(data)


def _row(case: str, verdicts: dict[str, str], seconds: float) -> Row:
    """``verdicts``: flagged, skipped (unread, or failed) or clean, by file."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for name, verdict in verdicts.items():
        counts[name.split("-")[0], verdict] += 1
    bad, good = (sum(n for (kind, _), n in counts.items() if kind == which) for which in ("bad", "good"))
    return {
        "bench": "scan",
        "case": case,
        "attacks": bad,
        "flagged": counts["bad", "flagged"],
        "not_read": counts["bad", "skipped"],
        "missed": counts["bad", "clean"],
        "harmless": good,
        "clean": counts["good", "clean"],
        "unread": counts["good", "skipped"],
        "alarms": counts["good", "flagged"],
        "seconds": round(seconds, 1),
    }


def _ours(folder: Path) -> Row:
    began = time.perf_counter()
    verdicts = {
        path.name: "clean" if scan(path.read_bytes(), path.name).clean else "flagged" for path in sorted(folder.iterdir())
    }
    return _row("modelkeep", verdicts, time.perf_counter() - began)


def _peer(peer: str, folder: Path) -> Row:
    try:
        child = Path(__file__).with_name("_scan_child.py")
        command = [python_of(peer), str(child), peer, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    except (NoPeer, subprocess.TimeoutExpired) as cause:
        return {"bench": "scan", "case": f"{peer}: {str(cause)[:60]}"}
    if done.returncode:
        return {"bench": "scan", "case": f"{peer} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:80]}"}
    found = json.loads(done.stdout.splitlines()[-1])
    return _row(f"{peer} {found['version']}", found["verdicts"], found["seconds"])


def _damage(name: str, folder: Path, seconds: float) -> Row:
    """In a process of its own, so that its peak of memory is of this parser alone, and a limit holds it."""
    child = Path(__file__).with_name("_scan_child.py")
    command = [sys.executable, str(child), "damage", str(folder), name, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"bench": "scan", "case": f"{name}: CRASHED, {lines[-1][:100]}"}
    return {"bench": "scan", "case": name, **json.loads(done.stdout.splitlines()[-1])}
