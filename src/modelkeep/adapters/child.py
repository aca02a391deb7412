"""One command as a child that has our terminal, environment and folder; the signals that we get are passed on to it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from modelkeep.errors import Missing, Unavailable

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FROM_THE_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)


class Ended(NamedTuple):
    """How a command ended. ``code``: its exit code, as a shell has it: 128 + n when signal n ended it. ``why``: in words."""

    code: int
    why: str


def program(command: Sequence[str]) -> Path:
    """The file that ``command`` runs, found as a shell finds it. Raises Missing."""
    found = shutil.which(command[0])
    if found is None:
        raise Missing(f"there is no program {command[0][:200]!r} to run")
    return Path(found)


def run(command: Sequence[str], *, quiet: bool) -> Ended:
    """Run ``command`` to its end. ``quiet``: what it prints goes to standard error. Raises Missing, Unavailable."""
    found, waiting = program(command), Signals()
    with waiting:
        try:
            child = subprocess.Popen(  # noqa: S603  # the user's own command, which is what this is for
                list(command), executable=found, stdout=sys.stderr.fileno() if quiet and has_descriptor() else None
            )
        except OSError as cause:
            raise Unavailable(f"cannot run {found}: {cause.strerror}") from cause
        waiting.pass_on_to(child.send_signal)
        code = child.wait()
    if code >= 0:
        return Ended(code, f"the command ended with {code}")
    return Ended(128 - code, f"{_name(-code)} ended the command")


class Signals:
    """Holds signals back until there is a child to pass them on to. What the keyboard sent, the terminal gave it already,
    unless the child has a terminal ``apart``.
    """

    def __init__(self, *, apart: bool = False) -> None:
        self._send: Callable[[int], object] | None = None
        self._apart = apart
        self._early: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in _PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:  # as it is under nohup, for the child too
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on_to(self, send: Callable[[int], object]) -> None:
        """From now on, and what came before it. ``send``: sends the child a signal."""
        self._send = send
        for number in self._early:
            send(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._send is None:
            self._early.append(number)
        elif self._apart or number not in _FROM_THE_KEYBOARD or not _in_the_foreground():
            self._send(number)


def _in_the_foreground() -> bool:
    """Whether a key on the terminal reaches this process and the child alike."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def has_descriptor() -> bool:
    """Whether standard error is a file of the system's, and not of a test's or a notebook's."""
    try:
        sys.stderr.fileno()
    except (OSError, ValueError):
        return False
    return True


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
