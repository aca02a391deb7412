"""Run a command so that it reaches nothing but what it is given: bubblewrap, a seccomp filter, limits, and a root of its own.

Nothing of this machine is in that root unless a ``Mount`` puts it there. The command is another user within user, mount,
process, IPC, host name, control group and (unless it is given the network) network namespaces of its own; it has no capability
and can get none, no terminal, no descriptor of ours but three pipes, and no environment but the one it is given. It dies with
this process, whatever ends that. If the kernel refuses any of this the command is not started.

Linux only. Sources: bwrap(1), namespaces(7), user_namespaces(7), pidfd_open(2).
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from modelkeep.adapters import limits as limiting
from modelkeep.adapters.child import Ended, Signals
from modelkeep.adapters.limits import Group
from modelkeep.adapters.sandbox import BYTES, HOME, MEMORY, SCRATCH, SHARED, USER, Mount, Sandbox, Stream
from modelkeep.errors import Unavailable

_OLDEST = (0, 8)
_CHUNK = 1 << 16
_TAIL = 2000
_TICK = 100
"""Milliseconds between two looks at what the command uses."""
_LOOKS = 1000
_FEEDER = 2  # of the threads
_NAMESPACES = ("user", "pid", "ipc", "uts", "cgroup")


class Engine(NamedTuple):
    """The bubblewrap that is installed. ``name``: with its version."""

    path: str
    name: str

    @classmethod
    def find(cls) -> "Engine":
        """Raises Unavailable: it is not there, too old, or this system is no Linux."""
        path = shutil.which("bwrap")
        if sys.platform != "linux" or path is None:
            raise Unavailable("a run is isolated by bubblewrap on Linux, and there is no 'bwrap' here: install bubblewrap")
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout  # noqa: S603
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as cause:
            raise Unavailable(f"{path} does not answer: {cause}") from cause
        version = re.search(r"(\d+)\.(\d+)(?:\.\d+)*", said)
        if version is None or (int(version[1]), int(version[2])) < _OLDEST:
            raise Unavailable(f"{path} is {said.strip()[:80] or 'unknown'}, and isolation takes bubblewrap 0.8 or later")
        return cls(path, f"bubblewrap {version[0]}")

    def probe(self) -> None:
        """Whether this machine lets a command be isolated at all. Raises Unavailable, saying why not."""
        empty = Sandbox((Mount(MEMORY, "", SCRATCH),), "/", Path("/nonexistent"), {})
        ended = _quietly(self, ("/usr/bin/true",), empty)
        if ended.code:
            raise Unavailable(f"this machine does not let a command be isolated: {ended.why}")


# -- running --


class Finished(NamedTuple):
    """How a command ended, and what held it to its limits: ``limits.CGROUP`` or ``limits.WATCHED``."""

    ended: Ended
    limited_by: str


def run(engine: Engine, command: Sequence[str], sandbox: Sandbox, *, out: int, err: int) -> Finished:
    """Run ``command``, the absolute path of a program *inside* and its arguments, to the end of all that it started.

    ``out``, ``err``: descriptors that what it prints is copied to. Raises Unavailable: then it was not started.
    """
    waiting = Signals(apart=True)
    with waiting, _Launched(engine, command, sandbox, out, err) as launched:
        waiting.pass_on_to(launched.send)
        return Finished(launched.finish(), launched.limited_by)


def ask(engine: Engine, command: Sequence[str], sandbox: Sandbox) -> bytes:
    """What ``command`` prints, when it ends well. Raises Unavailable."""
    with open(os.memfd_create("modelkeep-asked"), "r+b") as said:  # noqa: PTH123  # a descriptor
        ended = _quietly(engine, command, sandbox, said.fileno())
        if ended.code:
            raise Unavailable(f"{command[0]} gives no answer in isolation (exit code {ended.code}): {ended.why}")
        said.seek(0)
        return said.read()


def _quietly(engine: Engine, command: Sequence[str], sandbox: Sandbox, out: int = -1) -> Ended:
    with (
        Path(os.devnull).open("wb") as nowhere,
        _Launched(engine, command, sandbox, nowhere.fileno() if out < 0 else out, nowhere.fileno()) as launched,
    ):
        ended = launched.finish()
        last = launched.said.decode("utf-8", "replace").strip().splitlines()
        return Ended(ended.code, last[-1].removeprefix("bwrap: ")[:200] if ended.code and last else ended.why)


class _Launched:
    """A command in its sandbox, from before it begins until nothing of it is left. Use it as a context.

    ``said``: the end of what was printed to standard error.
    """

    def __init__(self, engine: Engine, command: Sequence[str], sandbox: Sandbox, out: int, err: int) -> None:
        self.said, self.limited_by = b"", limiting.WATCHED
        self._sandbox, self._group, self._pid, self._pidfd = sandbox, Group(sandbox.limits), -1, -1
        self._ours, self._threads, self._failures = contextlib.ExitStack(), list[threading.Thread](), list[BaseException]()
        try:
            self._process, self._status, self._go = self._start(engine, command, out, err)
            self._confine()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "_Launched":
        return self

    def __exit__(self, *_: object) -> None:
        """End all of it. Once its first process has ended, the kernel has ended whatever it started."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            _ended(self._pidfd, None)
            os.close(self._pidfd)
            self._pidfd = -1
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()
        self._ours.close()
        self._group.close()

    def send(self, number: int) -> None:
        """Send the command a signal; not its first process, which has none to hear it but SIGKILL."""
        try:
            children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text("ascii").split()
        except OSError:
            children = []
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)
        if not children and number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def finish(self) -> Ended:
        """Let the command begin, and wait for its end or make it. Raises Unavailable (it never began)."""
        files = ("/", HOME, SCRATCH, SHARED)
        watch = limiting.Watch(self._sandbox.limits, Path(f"/proc/{self._pid}/root"), files, self._sandbox.written)
        self._wait_until_seen(watch)
        self._go.write(b"!")
        exceeded = ""
        while not _ended(self._pidfd, _TICK):
            exceeded = watch.exceeded()
            if exceeded:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                _ended(self._pidfd, None)
                break
        self._process.wait()
        for thread in self._threads:
            thread.join()
        if not exceeded and self._group.ran_out():
            exceeded = f"it used more than {self._sandbox.limits.memory:,} bytes of memory"
        if exceeded:
            return Ended(128 + signal.SIGKILL, f"the command was stopped: {exceeded}")
        code = _exit_code(self._status.read())
        if code is None:
            raise self._refusal()
        return Ended(code, f"the command ended with {code}")

    def _wait_until_seen(self, watch: limiting.Watch) -> None:
        """While it changes its user namespace, the kernel lets nobody but root look. Raises Unavailable when that stays so."""
        for left in range(_LOOKS, -1, -1):
            try:
                return watch.check()
            except Unavailable:
                if not left or _ended(self._pidfd, 2):
                    raise
        return None

    def _start(
        self, engine: Engine, command: Sequence[str], out: int, err: int
    ) -> tuple["subprocess.Popen[bytes]", IO[bytes], IO[bytes]]:
        """bubblewrap, at work on the root; where it says how that went; and what to write to when the command may begin."""
        with contextlib.ExitStack() as theirs:
            status, tell = self._from_it(theirs)
            blocked, go = self._to_it(theirs)
            filtered = _in_memory(self._sandbox.filter(), theirs)
            mounts, known = self._sandbox.all_mounts(), self._sandbox.all_streams()
            streams = [(known[one.target], *self._to_it(theirs)) for one in mounts if one.kind == BYTES]
            options = _options(self._sandbox, mounts, {one.target: descriptor for one, descriptor, _ in streams})
            options += ["--seccomp", str(filtered), "--json-status-fd", str(tell), "--block-fd", str(blocked)]
            said = _in_memory("\0".join([*options, ""]).encode("utf-8", "surrogateescape"), theirs)
            printed, output = self._from_it(theirs)
            failed, errors = self._from_it(theirs)
            given = (tell, blocked, filtered, said, *(descriptor for _, descriptor, _ in streams))
            try:
                process = subprocess.Popen(  # noqa: S603  # the user's own command, in its sandbox
                    [engine.path, "--args", str(said), "--", *command],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd="/", process_group=0,
                    env=self._sandbox.environment, pass_fds=given,
                )  # fmt: skip
            except OSError as cause:
                raise Unavailable(f"cannot run {engine.path}: {cause.strerror}") from cause
        self._in_thread(_copy, printed, out, lambda _: None)
        self._in_thread(_copy, failed, err, self._remember)
        self._in_thread(_feed, [(one, into) for one, _, into in streams], self._failures)
        return process, status, go

    def _confine(self) -> None:
        """Wait until the root is furnished, and set limits. Raises Unavailable."""
        first = self._status.readline()
        if not first:
            raise self._refusal()
        self._pid = int(json.loads(first)["child-pid"])
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as cause:
            raise self._refusal() from cause
        while not self._furnished():
            if _ended(self._pidfd, 2):
                raise self._refusal()
        if self._failures:
            raise self._failures[0]
        if self._group.take(self._pid):
            self.limited_by = limiting.CGROUP
        limiting.restrain(self._pid, self._sandbox.limits)

    def _furnished(self) -> bool:
        """Whether it has changed to its own root, with all that is in it. Until then /usr is missing or is in ours."""
        root = Path(f"/proc/{self._pid}/root")
        try:
            changed = (root / "usr").exists() and root.stat().st_dev != Path("/").stat().st_dev
        except OSError:
            return False
        return changed and not self._threads[_FEEDER].is_alive()

    def _refusal(self) -> Unavailable:
        """bubblewrap's own last words, as one line."""
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None:
            process.wait()
        for thread in self._threads[:2]:
            thread.join()
        lines = self.said.decode("utf-8", "replace").strip().splitlines()
        why = lines[-1].removeprefix("bwrap: ")[:200] if lines else "bubblewrap does not say why"
        return Unavailable(f"the command cannot be isolated here, and was not run: {why}")

    def _remember(self, chunk: bytes) -> None:
        self.said = (self.said + chunk)[-_TAIL:]

    def _in_thread(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _from_it(self, theirs: contextlib.ExitStack) -> tuple[IO[bytes], int]:
        read, write = os.pipe()
        theirs.callback(os.close, write)
        return self._ours.enter_context(os.fdopen(read, "rb", buffering=_CHUNK)), write

    def _to_it(self, theirs: contextlib.ExitStack) -> tuple[int, IO[bytes]]:
        read, write = os.pipe()
        theirs.callback(os.close, read)
        return read, self._ours.enter_context(os.fdopen(write, "wb", buffering=0))


def _options(sandbox: Sandbox, mounts: Sequence[Mount], streams: dict[str, int]) -> list[str]:
    options = [word for name in _NAMESPACES for word in [f"--unshare-{name}"]] + ([] if sandbox.network else ["--unshare-net"])
    options += ["--disable-userns", "--uid", str(USER), "--gid", str(USER), "--hostname", "run", "--cap-drop", "ALL"]
    options += ["--die-with-parent", "--new-session"]
    for one in mounts:
        options += _mount(one, sandbox.limits.memory, streams)
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", sandbox.folder]


def _mount(one: Mount, memory: int, streams: dict[str, int]) -> list[str]:
    match one.kind:
        case "read":
            return ["--ro-bind", one.source, one.target]
        case "write":
            return ["--bind", one.source, one.target]
        case "device":
            return ["--dev-bind", one.source, one.target]
        case "memory":
            return ["--perms", "0700", *(["--size", str(memory)] if memory else []), "--tmpfs", one.target]
        case "link":
            return ["--symlink", one.source, one.target]
        case "bytes":
            return ["--perms", "0444", "--ro-bind-data", str(streams[one.target]), one.target]
        case "hide" if Path(one.source).is_dir():
            return ["--perms", "0555", "--tmpfs", one.target, "--remount-ro", one.target]
        case "hide":
            return ["--ro-bind", "/dev/null", one.target]
        case kind:
            return [f"--{kind}", one.target]


def _in_memory(data: bytes, theirs: contextlib.ExitStack) -> int:
    descriptor = os.memfd_create("modelkeep-isolate", os.MFD_CLOEXEC)
    theirs.callback(os.close, descriptor)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _copy(source: IO[bytes], into: int, keep: Callable[[bytes], None]) -> None:
    """Copy what comes to ``into``; once nobody reads there any more, to nowhere."""
    while chunk := source.read1(_CHUNK):  # type: ignore[attr-defined]  # a BufferedReader has it
        keep(chunk)
        view = memoryview(chunk)
        try:
            while view and into >= 0:
                view = view[os.write(into, view) :]
        except OSError:
            into = -1


def _feed(streams: Sequence[tuple[Stream, IO[bytes]]], failures: list[BaseException]) -> None:
    """Give each file its bytes, in the order in which bubblewrap asks for them; it waits for the end of each."""
    try:
        for one, into in streams:
            for chunk in one.chunks():
                view = memoryview(chunk)
                while view:
                    view = view[into.write(view) :]
            into.close()
    except BrokenPipeError:  # it has given up; why, it says itself
        pass
    except BaseException as cause:  # noqa: BLE001  # raised by whoever waits. Whatever it is: half a file is not what the command may be run on
        failures.append(cause)
    finally:
        for _, into in streams:
            into.close()


def _ended(pidfd: int, milliseconds: int | None) -> bool:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(milliseconds))


def _exit_code(status: bytes) -> int | None:
    """The exit code that bubblewrap reports; None: the command never began."""
    for line in status.splitlines():
        found = json.loads(line)
        if "exit-code" in found:
            return int(found["exit-code"])
    return None
