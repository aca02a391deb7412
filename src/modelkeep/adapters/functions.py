"""A Python function as a suspect: it runs in a process of its own, which has the rows and nothing of a keep."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import Digest, digest_of
from modelkeep.errors import Invalid, Missing, Unavailable

Rows = NDArray[np.float64]

SECONDS = 600
_RUNNER = """
import importlib.util, io, os, sys
import numpy
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
spec = importlib.util.spec_from_file_location("suspect", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["suspect"] = module
spec.loader.exec_module(module)
rows = numpy.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
answers = numpy.asarray(getattr(module, sys.argv[2])(rows), dtype=float)
told = io.BytesIO()
numpy.save(told, answers, allow_pickle=False)
out.write(told.getvalue())
out.close()
"""


class FunctionTarget:
    """``FILE.py:NAME``, called with rows (n, d); it must give class probabilities (n, k). What it prints goes to standard
    error; the environment has nothing named MODELKEEP_…; it may do whatever else its user may."""

    def __init__(self, named: str) -> None:
        """Raises Missing (no such file), Invalid (no function's name)."""
        file, _, name = named.rpartition(":")
        if not name.isidentifier() or not file:
            raise Invalid(f"{named[:120]!r} names no function: expected FILE.py:NAME")
        try:
            self.digest: Digest = digest_of(Path(file).read_bytes())
        except OSError as cause:
            raise Missing(f"cannot read {file}: {cause.strerror}") from cause
        self._file, self._name = file, name

    def predict(self, x: Rows) -> Rows:
        """Class probabilities (n, k) for rows (n, d). Raises Invalid (it failed, or answers something else), Unavailable."""
        sent = io.BytesIO()
        np.save(sent, x, allow_pickle=False)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
        try:
            done = subprocess.run(  # noqa: S603  # the user's own code, which is what this is for
                [sys.executable, "-c", _RUNNER, self._file, self._name],
                input=sent.getvalue(),
                capture_output=True,
                timeout=SECONDS,
                env=environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as cause:
            raise Unavailable(f"{self._file}:{self._name} did not answer within {SECONDS} s") from cause
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
            raise Invalid(f"{self._file}:{self._name} failed: {said or f'it ended with {done.returncode}'}")
        try:
            answers = np.load(io.BytesIO(done.stdout), allow_pickle=False)
        except (ValueError, EOFError, OSError) as cause:
            raise Invalid(f"{self._file}:{self._name} gave no array of numbers") from cause
        return np.asarray(answers, dtype=np.float64)
