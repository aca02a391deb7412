"""Isolated runs: what a command costs to start in a sandbox and to be recorded from one, and what its filter takes of its time.

``python -m benchmarks isolate``. Beside it, in the same run: the bare command, and bubblewrap alone with a root of nothing but
/usr. Milliseconds: the median of ``ROUNDS``, and the quartiles. Work is timed by the command itself, so that it holds no start.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import Row, report
from modelkeep.adapters import isolate, sandbox
from modelkeep.adapters.isolate import Engine
from modelkeep.adapters.limits import Limits
from modelkeep.adapters.sandbox import READ, WRITE, Mount, Sandbox
from modelkeep.app.isolation import Isolate
from modelkeep.app.runs import Plan, record

ROUNDS = 15
LIMITS = Limits(memory=4 << 30, disk=1 << 30, seconds=600)
PYTHON = Path(sys.executable).resolve()
_TIMED = "import time; b = time.perf_counter(); {}; print(time.perf_counter() - b)"
WORK = {
    "system calls: 300,000 of a file's status": "import os; [os.stat('/usr') for _ in range(300_000)]",
    "interpreter: 5,000,000 additions": "sum(range(5_000_000)); [n + 1 for n in range(5_000_000)]",
    "memory: 20 times 32 MiB": "[bytearray(32 << 20) for _ in range(20)]",
    "processes: 200 forks": "import os; [os.waitpid(os.fork() or os._exit(0), 0) for _ in range(200)]",
}


def run(args: list[str]) -> None:
    """No arguments."""
    engine = Engine.find()
    engine.probe()
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("wb") as nowhere:
        room = _room(Path(folder), LIMITS)

        def isolated(*command: str) -> None:
            isolate.run(engine, command, room, out=nowhere.fileno(), err=nowhere.fileno())

        starts: dict[str, Callable[[], object]] = {
            "true, bare": lambda: subprocess.run(["/usr/bin/true"], check=True),
            "true, bubblewrap alone": lambda: subprocess.run([*_least(engine), "/usr/bin/true"], check=True),
            "true, isolated": lambda: isolated("/usr/bin/true"),
            "whether this machine can (asked before each run)": engine.probe,
        }
        rows = [*_milliseconds(starts), *_recorded(Path(folder)), *_work(engine, room)]
    report(f"Isolated runs: milliseconds, median of {ROUNDS}", rows)


def _room(folder: Path, limits: Limits) -> Sandbox:
    mounts = (Mount(WRITE, str(folder), "/written"), Mount(READ, str(PYTHON.parent.parent), str(PYTHON.parent.parent)))
    return Sandbox(mounts, "/written", folder, sandbox.environment(), limits)


def _least(engine: Engine) -> list[str]:
    links = [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    return [engine.path, "--ro-bind", "/usr", "/usr", *links, "--proc", "/proc", "--dev", "/dev", "--unshare-all", "--"]


def _milliseconds(cases: dict[str, Callable[[], object]]) -> Iterator[Row]:
    taken: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does falls on all alike
        for case, work in cases.items():
            begun = time.perf_counter()
            work()
            taken[case].append((time.perf_counter() - begun) * 1e3)
    for case, found in taken.items():
        yield _row(case, found)


def _row(case: str, found: list[float], **more: object) -> Row:
    low, middle, high = statistics.quantiles(found, n=4)
    return {"bench": "isolate", "case": case, "ms": round(middle, 1), "quartiles": f"{low:.1f} to {high:.1f}", **more}


def _recorded(folder: Path) -> Iterator[Row]:
    """The whole of a recorded run of a script that writes its output and ends, from a repository of one file."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "train.py").write_text("open('model.bin', 'w').write('x')\n")
    (tree / ".gitignore").write_text("model.bin\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run([shutil.which("git") or "git", *command], cwd=tree, check=True)

    def recorded(how: Isolate | None) -> None:
        (tree / "model.bin").unlink(missing_ok=True)
        record(Plan((str(PYTHON), "train.py"), outputs=(Path("model.bin"),), isolate=how), lambda code: None)

    with contextlib.chdir(tree):
        cases = {"a recorded run": lambda: recorded(None), "a recorded run, isolated": lambda: recorded(Isolate(LIMITS))}
        yield from _milliseconds(cases)


def _work(engine: Engine, room: Sandbox) -> Iterator[Row]:
    for case, work in WORK.items():
        command = (str(PYTHON), "-I", "-S", "-c", _TIMED.format(work))
        bare, within = [], []
        for _ in range(ROUNDS):
            said = subprocess.run(command, check=True, capture_output=True).stdout
            bare.append(float(said) * 1e3)
            within.append(float(isolate.ask(engine, command, room)) * 1e3)
        yield _row(f"{case}, bare", bare)
        ratios = [one / other for one, other in zip(within, bare, strict=True)]
        yield _row(f"{case}, isolated", within, to_bare=round(statistics.median(ratios), 3))
