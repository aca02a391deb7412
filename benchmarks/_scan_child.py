"""A process of its own for ``benchmarks.scan``: another scanner over a folder, or damage to one format's files.

The first kind runs in the other scanner's environment, and so imports nothing of ours.
"""

import contextlib
import importlib.metadata
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def _picklescan() -> Callable[[Path], str]:
    from picklescan.scanner import scan_file_path

    def judge(path: Path) -> str:
        found = scan_file_path(str(path))
        if found.issues_count or found.infected_files:
            return "flagged"
        return "skipped" if found.scan_err or not found.scanned_files else "clean"

    return judge


def _modelscan() -> Callable[[Path], str]:
    from modelscan.modelscan import ModelScan

    def judge(path: Path) -> str:
        found = ModelScan().scan(str(path))
        if found["summary"]["total_issues"]:
            return "flagged"
        return "skipped" if found["errors"] or not found["summary"]["scanned"]["total_scanned"] else "clean"

    return judge


def _modelaudit() -> Callable[[Path], str]:
    from modelaudit.core import scan_model_directory_or_file

    def judge(path: Path) -> str:
        found = scan_model_directory_or_file(str(path))
        severities = {str(getattr(issue.severity, "value", issue.severity)) for issue in found.issues}
        if severities & {"warning", "critical"}:
            return "flagged"
        return "skipped" if not found.files_scanned or found.has_errors else "clean"

    return judge


PEERS = {"picklescan": _picklescan, "modelscan": _modelscan, "modelaudit": _modelaudit}


def peer(name: str, folder: Path) -> dict[str, object]:
    """Verdict by file name. A scanner that raises has not read the file."""
    judge, verdicts, began = PEERS[name](), {}, time.perf_counter()
    for path in sorted(folder.iterdir()):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                verdicts[path.name] = judge(path)
        except Exception:
            verdicts[path.name] = "skipped"
    return {"version": importlib.metadata.version(name), "verdicts": verdicts, "seconds": time.perf_counter() - began}


def damage(folder: Path, format_id: str, seconds: float) -> dict[str, object]:
    """Random damage, and what hypothesis finds to follow the first bytes of such files."""
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "scan_corpus")]
    from fuzz import LIMIT_BYTES, fuzz, peak
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from modelkeep.custody.scan import scan

    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    before = peak()
    seeds = {name: data for name, data in files.items() if scan(data, name).format == format_id}
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    allowed = held + LIMIT_BYTES + max(map(len, seeds.values())) + (32 << 20)  # for what the allocator keeps
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    heads = sorted({data[:size] for data in seeds.values() for size in (4, 16, 64) if len(data) > size})
    asked = []

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(heads), st.binary(max_size=300))
    def begin_alike(head: bytes, rest: bytes) -> None:
        asked.append(scan(head + rest, "m"))

    begin_alike()
    found = fuzz(lambda data: scan(data, "m").clean, seeds, seconds=seconds, cases=1 << 40, seed=time.time_ns())
    return {
        "seeds": len(seeds),
        "cases": found.cases + len(asked),
        "still_clean": found.clean,
        "slowest_s": round(found.slowest, 3),
        "over_1_s": len(found.slow),
        "grown_mib": (peak() - before) >> 20,
    }


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    print(json.dumps(damage(Path(folder), rest[0], float(rest[1])) if what == "damage" else peer(what, Path(folder))))
