"""What a Python interpreter says about itself: its version, its platform, and every distribution that it would import."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelkeep.errors import Invalid, Missing, Unavailable

PATIENCE = 120.0
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?")
_ENV = re.compile(r"#!\s*\S*/env\s+(?:-S\s+)?(\S+)")
_ASK = """
import sys
if sys.path and not sys.path[0]:
    del sys.path[0]
import json, platform, re
from importlib.metadata import distributions
found = {}
for one in distributions():
    name = one.metadata["Name"] if one.metadata else None
    if name:
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), str(one.version))
kind = platform.python_implementation()
version = platform.python_version()
print("\\n" + json.dumps([version if kind == "CPython" else kind + " " + version, platform.platform(), found]))
"""


class Installed(msgspec.Struct, frozen=True, array_like=True):
    """``python``: its version; ``packages``: version by normalised name (PEP 503), the first on its path of each."""

    python: str
    platform: str
    packages: dict[str, str]


def interpreter(command: Sequence[str], found: Path) -> Path | None:
    """The Python that ``command`` runs in: the program ``found`` itself, or the one that its first line names; else None."""
    if _PYTHON.fullmatch(Path(command[0]).name) or _PYTHON.fullmatch(found.name):
        return found
    try:
        with found.open("rb") as stream:
            line = stream.readline(512).decode("utf-8", "replace")
    except OSError:
        return None
    if not line.startswith("#!"):
        return None
    by_env = _ENV.match(line)
    named = by_env[1] if by_env else line[2:].split()[0] if line[2:].split() else ""
    where = shutil.which(named)
    return Path(where) if where and _PYTHON.fullmatch(Path(named).name) else None


def installed(python: Path | str) -> Installed:
    """Ask an interpreter, with the environment that the command gets. Raises Missing, Invalid (no Python), Unavailable."""
    where = shutil.which(str(python))
    if where is None:
        raise Missing(f"there is no interpreter {python}")
    try:
        asked = subprocess.run(  # noqa: S603  # the interpreter that is about to run the user's command anyway
            question(where), capture_output=True, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise Unavailable(f"{where} does not say what is installed: {cause}") from cause
    return parse(asked.stdout, where, asked.stderr)


def question(python: str) -> list[str]:
    """The command by which an interpreter says what is installed."""
    return [python, "-c", _ASK]


def parse(answer: bytes, python: Path | str, errors: bytes = b"") -> Installed:
    """What an interpreter answered. Raises Invalid."""
    try:
        return msgspec.json.decode(answer.rstrip().rpartition(b"\n")[2], type=Installed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        said = errors.decode("utf-8", "replace").strip().splitlines()
        raise Invalid(f"{python} is no Python that can say what is installed: {said[-1][:200] if said else cause}") from cause
