"""Second opinions of picklescan and modelaudit, each in a process that is confined (adapters/confine.py).

They are looked for among the packages of one Python interpreter: this one, or another that the settings name, because
modelaudit brings eighty packages along whose versions need not suit a server. They are programs of others that read hostile
bytes, so what they say is read with the same suspicion: an answer counts only if it is whole and of the expected form.
"""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from modelkeep.adapters.confine import DEFAULT_LIMITS, Finished, Limits, inside, run_confined
from modelkeep.core.values import Opinion, OpinionVerdict
from modelkeep.errors import Unavailable

_LONGEST = 300
_PATIENCE = 20.0
"""Seconds in which another interpreter says what is installed in it."""
_NAMES = {
    "onnx": "model.onnx",
    "safetensors": "model.safetensors",
    "pickle": "model.pkl",
    "joblib": "model.joblib",
    "torch-zip": "model.pt",
    "torch-legacy": "model.pt",
    "keras-zip": "model.keras",
    "hdf5": "model.h5",
    "npy": "model.npy",
    "npz": "model.npz",
    "gguf": "model.gguf",
    "tflite": "model.tflite",
    "zip": "model.zip",
}
"""What a file of a format is called where it is read: the tools go by the ending, which must not be for the file to choose."""

_SUMMARY = ("Scanned files", "Infected files", "Suspicious globals", "Dangerous globals")

Answer = tuple[OpinionVerdict, str]


@dataclass(frozen=True)
class Tool:
    """One scanner. ``package``: the distribution that has it; ``formats``: those it knows; ``arguments``: of the interpreter,
    for a path and so many seconds; ``read``: what its exit status and output mean.
    """

    name: str
    package: str
    formats: frozenset[str]
    arguments: Callable[[str, float], list[str]]
    read: Callable[[int, bytes], Answer]


def _picklescan(path: str, _: float) -> list[str]:
    # Its __main__ drops the exit status (1.0.5): its own entry point does not.
    return ["-I", "-c", "import sys; from picklescan.cli import main; sys.exit(main())", "--path", path, "--strict"]


def read_picklescan(code: int, output: bytes) -> Answer:
    """Clean: one or more files scanned whole, and no global that is dangerous or suspicious. Text, as of 1.0."""
    lines = output.decode("utf-8", "replace").splitlines()
    counts = dict(line.split(": ", 1) for line in lines if line.count(": ") == 1)  # the last word is the summary's
    numbers = [counts.get(what, "") for what in _SUMMARY]
    if not all(number.isdecimal() for number in numbers):
        return OpinionVerdict.FAILED, f"exit status {code} and no summary"
    scanned, *against = map(int, numbers)
    if any(against) or code == 1:
        told = [line.partition(": ")[2] for line in lines if line.endswith("FOUND") or "FOUND (" in line]
        return OpinionVerdict.UNCLEAN, "; ".join(told) or f"{max(against)} dangerous globals"
    doubts = [line for line in lines if line.startswith(("WARNING", "ERROR"))]
    if code != 0 or scanned < 1 or doubts:
        return OpinionVerdict.FAILED, doubts[0] if doubts else f"exit status {code} with {scanned} files scanned"
    return OpinionVerdict.CLEAN, ""


def _modelaudit(path: str, seconds: float) -> list[str]:
    given = ("--strict", "--no-cache", "--quiet", "--format", "json", "--timeout", str(max(1, int(seconds))))
    return ["-I", "-m", "modelaudit", "scan", *given, path]


class _Issue(msgspec.Struct):
    message: str = ""
    severity: str = ""


class _Report(msgspec.Struct):
    files_scanned: int
    has_errors: bool
    success: bool
    issues: tuple[_Issue, ...]


def read_modelaudit(code: int, output: bytes) -> Answer:
    """Clean: exit status 0, and a report of one or more files scanned whole in which nothing is worse than a remark."""
    try:
        report = msgspec.json.decode(output, type=_Report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return OpinionVerdict.FAILED, f"exit status {code} and no report"
    against = [issue.message for issue in report.issues if issue.severity not in ("info", "debug")]
    if against or code == 1:
        return OpinionVerdict.UNCLEAN, "; ".join(against) or "it does not say what"
    if code != 0 or report.has_errors or not report.success or report.files_scanned < 1:
        why = "; ".join(issue.message for issue in report.issues)
        return OpinionVerdict.FAILED, why or f"exit status {code} with {report.files_scanned} files scanned"
    return OpinionVerdict.CLEAN, ""


PICKLESCAN = Tool(
    "picklescan", "picklescan", frozenset({"pickle", "torch-zip", "torch-legacy", "npy", "npz"}), _picklescan, read_picklescan
)
MODELAUDIT = Tool("modelaudit", "modelaudit", frozenset(_NAMES), _modelaudit, read_modelaudit)
TOOLS = (PICKLESCAN, MODELAUDIT)


@dataclass(frozen=True)
class OtherScanners:
    """``SecondOpinions`` of the tools that are installed. ``python``: the interpreter that has them, "" = this one."""

    python: str = ""
    limits: Limits = DEFAULT_LIMITS
    candidates: tuple[Tool, ...] = TOOLS

    def tools(self, format_id: str) -> tuple[tuple[str, str], ...]:
        """Name and version of those installed that know the format. An interpreter that does not answer has them in no version,
        so that asking them fails."""
        return tuple((tool.name, version) for tool, version in self._asked(format_id))

    def opinions(self, data: memoryview, format_id: str) -> tuple[Opinion, ...]:
        """What each of them says."""
        return tuple(self._ask(tool, version, data, format_id) for tool, version in self._asked(format_id))

    def _asked(self, format_id: str) -> list[tuple[Tool, str]]:
        knowing = [tool for tool in self.candidates if format_id in tool.formats and format_id in _NAMES]
        versions = _versions(self.python, [tool.package for tool in knowing])
        return [(tool, version) for tool, version in zip(knowing, versions, strict=True) if version]

    def _ask(self, tool: Tool, version: str, data: memoryview, format_id: str) -> Opinion:
        name, seconds = _NAMES[format_id], self.limits.seconds
        command = [self.python or sys.executable, *tool.arguments(inside(name), seconds)]
        try:
            finished = run_confined(command, data, name, self.limits)
        except Unavailable as cause:
            return Opinion(tool.name, version, OpinionVerdict.FAILED, _one_line(f"it was not run: {cause}"))
        verdict, detail = _judge(tool, finished)
        return Opinion(tool.name, version, verdict, _one_line(detail))


def _judge(tool: Tool, finished: Finished) -> Answer:
    if finished.problem:
        return OpinionVerdict.FAILED, f"{finished.problem}, and was stopped"
    if finished.code > 128:
        return OpinionVerdict.FAILED, f"it was ended by signal {finished.code - 128}"
    verdict, detail = tool.read(finished.code, finished.output)
    last = finished.errors.strip().rpartition("\n")[2]
    if verdict is OpinionVerdict.FAILED and last:
        detail = f"{detail}: {last}"
    return verdict, detail


def _one_line(text: str) -> str:
    """Other people's words, as one printable line of bounded length."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(plain.split())[:_LONGEST]


def _versions(python: str, packages: Sequence[str]) -> list[str]:
    """The version of each package, "" where it is not installed, "?" where the interpreter does not say."""
    if not packages:
        return []
    if not python:
        return [_version(package) for package in packages]
    code = (
        "import sys; from importlib.metadata import distributions as d; "
        "v = {x.name.lower(): x.version for x in reversed(list(d()))}; print('\\n'.join(v.get(n, '-') for n in sys.argv[1:]))"
    )
    try:
        asked = subprocess.run(  # noqa: S603  # the interpreter that the settings name
            [python, "-I", "-c", code, *packages],
            capture_output=True,
            timeout=_PATIENCE,
            check=True,
            env={},
            text=True,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ["?"] * len(packages)
    found = asked.stdout.split()
    return ["" if one == "-" else one for one in found] if len(found) == len(packages) else ["?"] * len(packages)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
