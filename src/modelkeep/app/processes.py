"""The processes of one keep on one machine: where they say they listen, and the supervisor that ``up`` is."""

import os
import signal
import socket
import subprocess  # nosec: starts only this package's own processes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import msgspec

from modelkeep.adapters.process import pipe_with
from modelkeep.errors import Unavailable

START_SECONDS = 60.0
STOP_SECONDS = 20.0
ASKED_SECONDS, HURRIED_SECONDS = 0.7, 0.3
"""How long children that have to stop at once may take to end by themselves, and to kill their own when asked again."""
_PAUSE = 0.02
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


class Address(msgspec.Struct, frozen=True):
    """Where a process of this keep listens; ``grpc``: host:port, "" where it is not spoken."""

    url: str
    pid: int
    grpc: str = ""


def address_file(directory: Path, role: str) -> Path:
    """The file in which ``control`` or ``gateway`` says where it listens."""
    return directory / "run" / f"{role}.json"


def announce(directory: Path, role: str, url: str, grpc: str = "") -> None:
    """Say that this process listens at ``url``, and speaks gRPC at ``grpc``. Raises Unavailable."""
    path = address_file(directory, role)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(Address(url, os.getpid(), grpc)))
        fresh.replace(path)
    except OSError as cause:
        raise Unavailable(f"cannot write {path}: {cause}") from cause


def withdraw(directory: Path, role: str) -> None:
    """Take back what ``announce`` said, if it still is this process's."""
    found = find(directory, role)
    if found is not None and found.pid == os.getpid():
        address_file(directory, role).unlink(missing_ok=True)


def find(directory: Path, role: str) -> Address | None:
    """Where ``role`` last said it listens; it may be gone since."""
    try:
        return msgspec.json.decode(address_file(directory, role).read_bytes(), type=Address)
    except (OSError, msgspec.MsgspecError):
        return None


class Child:
    """A process that ``up`` keeps running. ``secret`` is handed to it through a pipe at every start.

    ``follows``: it also gets a socket, through which changed keys reach it while it runs; ``shares``: descriptors of ours that
    it gets under the same numbers.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        secret: bytes,
        address: Path,
        *,
        follows: bool = False,
        shares: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.secret = secret
        self.updates: socket.socket | None = None
        self._command = command
        self._address = address
        self._follows, self._shares = follows, tuple(shares)
        self._pause = FIRST_PAUSE
        self._next_start = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        descriptor = pipe_with(self.secret)
        handed, more = [descriptor], list[str]()
        if self._follows:
            if self.updates is not None:
                self.updates.close()
            self.updates, theirs = socket.socketpair()
            self.updates.setblocking(False)  # one that does not read must not hold up the others
            handed.append(theirs.detach())
            more = ["--updates-fd", str(handed[1])]
        try:
            self.process = subprocess.Popen(  # noqa: S603  # our own package, arguments already checked
                [*self._command, "--keys-fd", str(descriptor), "--parent", str(os.getpid()), *more],
                pass_fds=[*handed, *self._shares],
                stdin=subprocess.DEVNULL,
            )
        finally:
            for each in handed:
                os.close(each)

    def address(self) -> Address | None:
        """Where it listens, once it does."""
        try:
            found = msgspec.json.decode(self._address.read_bytes(), type=Address)
        except (OSError, msgspec.MsgspecError):
            return None
        return found if self.process is not None and found.pid == self.process.pid else None

    def revive(self, tell: Callable[[str], None]) -> None:
        """Start it again if it died, after a pause that grows while it keeps dying before it listens."""
        now = time.monotonic()
        if self.process is None or self.process.poll() is None:
            return
        if not self._next_start:
            if self.address() is not None:  # it had come up, so starting it again is worth a try at once
                self._pause = FIRST_PAUSE
            tell(f"{self.name} stopped with exit code {self.process.returncode}; starting it again in {self._pause:.1f} s")
            self._next_start = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif now >= self._next_start:
            self._next_start = 0.0
            self.start()

    def stop(self) -> None:
        """Ask it to finish."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Wait for its end; kill it when that takes too long, or ``hurried`` says so."""
        until = time.monotonic() + seconds
        while self.runs() and not hurried() and time.monotonic() < until:
            time.sleep(_PAUSE)
        if self.process is not None and self.runs():
            self.process.kill()
            self.process.wait()

    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None


def stop_at_once(children: Sequence[Child]) -> None:
    """Stop all of ``children`` together: asked, after ``ASKED_SECONDS`` asked again, and soon after that killed.

    One that has children of its own kills them when it is asked again (``supervise``).
    """
    for child in children:
        child.stop()
    until = time.monotonic() + ASKED_SECONDS
    while any(child.runs() for child in children) and time.monotonic() < until:
        time.sleep(_PAUSE)
    for child in children:
        child.stop()
    for child in children:
        child.wait(max(0.0, until + HURRIED_SECONDS - time.monotonic()))


def supervise(
    children: Sequence[Child],
    tell: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
    *,
    at_once: bool = False,
    up: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Start ``children`` in order, each once the one before it listens, and keep them running until SIGTERM or SIGINT.

    A second SIGTERM means at once: those that have not ended are killed.

    ``look``: called some twenty times a second meanwhile; ``at_once``: start all without waiting, and end the first of them
    after all others; ``up``: called once all listen; ``stop``: before they are asked to finish.
    Raises Unavailable when one of them does not come up.
    """
    stopping: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for child in children:
            child.start()
            if not at_once:
                _wait_until_up(child, stopping, look, tell)
        for child in children if at_once else ():
            _wait_until_up(child, stopping, look, tell)
        if not stopping:
            up()
        while not stopping:
            for child in children:
                child.revive(tell)
            look()
            time.sleep(0.05)
    finally:
        stop()
        for wave in (children[1:], children[:1]) if at_once else [[child] for child in reversed(children)]:
            for child in wave:
                child.stop()
            for child in wave:
                child.wait(STOP_SECONDS, lambda: stopping.count(signal.SIGTERM) > 1)
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_until_up(child: Child, stopping: Sequence[int], look: Callable[[], None], tell: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (found := child.address()) is None and not stopping:
        if child.process is None or child.process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"{child.name} did not start: see what it printed above")
        look()
        time.sleep(0.02)
    if found is not None:
        tell(f"{child.name} {f'listens at {found.url}' if found.url else 'runs'} (process {found.pid})")
