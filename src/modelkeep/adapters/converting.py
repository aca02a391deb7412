"""Convert a pickle of scikit-learn to ONNX: run it, where it can reach nothing, and believe little of what comes out."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from modelkeep.adapters import conversion
from modelkeep.adapters.confine import DEFAULT_LIMITS, Limits, inside, run_confined
from modelkeep.errors import Invalid, NotTrusted

_NAME = "model"
_REASON = 300


class Converted(NamedTuple):
    """What came out. ``values``: what the original answers to the rows, shape (n, k); ``labels``: of classifiers, as text."""

    onnx: bytes
    values: NDArray[np.float64]
    labels: list[str] | None
    versions: dict[str, str]


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    onnx: Annotated[int, Meta(ge=1)]
    values: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 28)]], Meta(min_length=2, max_length=2)]
    labels: Annotated[int, Meta(ge=4)]
    versions: Annotated[dict[Annotated[str, Meta(max_length=60)], Annotated[str, Meta(max_length=60)]], Meta(max_length=20)]


def convert(
    model: memoryview,
    rows: NDArray[np.float64],
    *,
    python: str = "",
    limits: Limits = DEFAULT_LIMITS,
    hidden: Sequence[str] = (),
) -> Converted:
    """Run the pickle ``model`` in a confined interpreter that makes ONNX of it, and asks it ``rows`` (n, d) as float32.

    ``python``: the interpreter that has scikit-learn and skl2onnx, "" = this one. Scan the file first: what is run here can
    read what its user can, but for the folders ``hidden``. Raises Invalid (it cannot be converted), NotTrusted (what came out
    is no answer), Unavailable (the kernel does not let it be confined: then nothing was run).
    """
    if python and not os.access(python, os.X_OK):
        raise Invalid(f"the interpreter {python} is not there, or cannot be run: mend the setting convert.python")
    given = b"".join((len(model).to_bytes(8, "little"), model, np.ascontiguousarray(rows, np.float32).tobytes()))
    command = [
        python or sys.executable,
        "-I",
        "-W",
        "ignore",
        str(Path(conversion.__file__)),
        inside(_NAME),
        str(rows.shape[1]),
    ]
    done = run_confined(command, memoryview(given), _NAME, limits, hidden)
    if done.problem:
        raise Invalid(f"the model could not be converted: {done.problem}, and was stopped")
    if done.code != 0:
        why = _last_words(done.errors) or f"it ended with status {done.code}"
        raise Invalid(f"the model could not be converted: {''.join(c if c.isprintable() else ' ' for c in why)[:_REASON]}")
    return _read(done.output, len(rows))


def _last_words(errors: str) -> str:
    """What an interpreter ended with: the first line of the exception, whose others may be advice; "" when it said nothing."""
    lines = errors.strip().splitlines()
    frames = [at for at, line in enumerate(lines) if line.startswith("  ")]  # how Python shows where it was
    ended = lines[frames[-1] + 1 :] if frames else lines[-1:]
    return (ended or lines[-1:] or [""])[0]


def _read(said: bytes, rows: int) -> Converted:
    """Raises NotTrusted."""
    try:
        at = 8 + int.from_bytes(said[:8], "little")
        head = msgspec.json.decode(said[8:at], type=_Head)
        ends = (at + head.onnx, at + head.onnx + 8 * head.values[0] * head.values[1])
        if ends[1] + head.labels != len(said) or head.values[0] != rows:
            raise ValueError("sizes")
        values = np.frombuffer(said[ends[0] : ends[1]], np.float64).reshape(head.values)
        labels: Any = json.loads(said[ends[1] :])
        if labels is not None:
            labels = msgspec.convert(labels, list[str])
        if not np.isfinite(values).all() or (labels is not None and len(labels) != rows):
            raise ValueError("answers")
    except (ValueError, msgspec.MsgspecError, RecursionError) as cause:
        raise NotTrusted(f"what converted the model gave no answer that can be read ({type(cause).__name__})") from None
    return Converted(said[at : ends[0]], values, labels, head.versions)
