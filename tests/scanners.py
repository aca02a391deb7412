"""Scanners for tests: the environment in which the real ones are, fakes that misbehave, and files to judge."""

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np

from modelkeep.adapters.confine import Limits
from modelkeep.adapters.scanners import OtherScanners, Tool, read_modelaudit
from modelkeep.formats import safetensors

REAL = str(Path(sys.prefix) / "scanners" / "bin" / "python")
"""The interpreter of tools/setup.sh that has modelaudit, and picklescan from the environment around it."""
BRIEF = Limits(memory=1 << 30, seconds=20.0)


class Harmful:
    """Unpickled, it would run ``true``. Nobody does."""

    def __reduce__(self):
        return os.system, ("true",)


def torch_zip(value):
    """A PyTorch archive as far as scanners care."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(value, 2))
        archive.writestr("m/version", "3\n")
    return made.getvalue()


def arrays(value):
    """An npz file with ``value`` in it."""
    made = io.BytesIO()
    np.savez(made, x=value)
    return made.getvalue()


FILES = {
    "plain pickle": ("pickle", pickle.dumps({"weights": [0.5, 1.5]}, 4)),
    "harmful pickle": ("pickle", pickle.dumps(Harmful(), 4)),
    "plain torch": ("torch-zip", torch_zip({"weights": [0.5, 1.5]})),
    "harmful torch": ("torch-zip", torch_zip(Harmful())),
    "plain arrays": ("npz", arrays(np.ones(4))),
    "weights": ("safetensors", safetensors.dump({"w": np.ones((3, 3), np.float32)})),
    "broken pickle": ("pickle", b"\x80\x04 this is none"),
}


def fake(code: str, *, name: str = "fake", package: str = "click") -> Tool:
    """A scanner that is some Python code, with the version of an installed package; it says what modelaudit would."""
    return Tool(name, package, frozenset({"pickle"}), lambda path, seconds: ["-I", "-c", code, path], read_modelaudit)


def asked(*tools: Tool, limits: Limits = BRIEF) -> OtherScanners:
    """Second opinions of these tools."""
    return OtherScanners(limits=limits, candidates=tools)


def report(*messages: str, severity: str = "critical", scanned: int = 1, success: bool = True, errors: bool = False) -> str:
    """Code that prints what modelaudit does."""
    issues = [{"message": message, "severity": severity} for message in messages]
    said = {"files_scanned": scanned, "has_errors": errors, "success": success, "issues": issues}
    return f"import json; print(json.dumps({said!r}))"
