"""Run a declared step of preparation: Python code that reads one file and writes another, and nothing else.

The code is called with the path of its input and its parameters as ``NAME=VALUE``, and writes what it makes to standard output.
What runs is the very text whose digest is on record, not a file that could be another by then. Input and output are in memory.
"""

import os
import subprocess
import sys
from collections.abc import Mapping

from modelkeep.adapters.confine import Limits, inside, run_confined
from modelkeep.errors import Invalid, TooLarge, Unavailable

MAX_CODE = 100_000
"""Bytes of a step: it is one argument of a program."""
_INPUT = "input"
_SHOWN = 400
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
"""Of a step that is not confined: constants, so that what it makes depends on nothing else, and it is told no secret."""


def run_step(
    code: bytes, name: str, parameters: Mapping[str, str], data: memoryview, limits: Limits, *, confined: bool
) -> bytes:
    """What the step makes of ``data``. ``confined``: without network, disk and other processes.

    Raises Invalid (it is no text, or it failed), TooLarge, Unavailable (the kernel does not confine it).
    """
    if len(code) > MAX_CODE:
        raise TooLarge(f"the step {name} has {len(code):,} bytes, and at most {MAX_CODE:,} are run")
    try:
        text = code.decode()
    except UnicodeDecodeError:
        raise Invalid(f"the step {name} is no Python in UTF-8") from None
    if "\0" in text:
        raise Invalid(f"the step {name} holds a zero byte")
    words = [f"{key}={value}" for key, value in parameters.items()]
    run = _confined if confined else _plain
    code_of, output, errors, problem = run(text, words, data, limits)
    if problem or code_of:
        last = errors.strip().rpartition("\n")[2][:_SHOWN]
        raise Invalid(f"the step {name} failed: {problem or last or f'it ended with {code_of}'}")
    return output


def _confined(text: str, words: list[str], data: memoryview, limits: Limits) -> tuple[int, bytes, str, str]:
    done = run_confined([sys.executable, "-I", "-B", "-c", text, inside(_INPUT), *words], data, _INPUT, limits)
    return done.code, done.output, done.errors, done.problem


def _plain(text: str, words: list[str], data: memoryview, limits: Limits) -> tuple[int, bytes, str, str]:
    descriptor = os.memfd_create("modelkeep-step", os.MFD_CLOEXEC)
    try:
        view = data.cast("B")
        while view:
            view = view[os.write(descriptor, view) :]
        command = [sys.executable, "-I", "-B", "-c", text, f"/proc/self/fd/{descriptor}", *words]
        done = subprocess.run(  # noqa: S603  # code that somebody who may read the data named, and said to run so
            command, pass_fds=[descriptor], stdin=subprocess.DEVNULL, capture_output=True, timeout=limits.seconds, check=False,
            env=_ENVIRONMENT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, b"", "", f"it did not end within {limits.seconds:g} seconds"
    except OSError as cause:
        raise Unavailable(f"cannot run a step: {cause.strerror}") from cause
    finally:
        os.close(descriptor)
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"), ""
