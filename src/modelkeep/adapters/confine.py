"""Run somebody else's program on some bytes without letting it out: no network, no disk, little memory, little time.

This file is also the program that a fresh interpreter runs to lock itself in: it needs the standard library alone. In order:
user, mount, network, process and IPC namespaces of its own (namespaces(7)); every file system read-only and without devices;
the host's processes, sockets in /run and the rest of memory file systems out of sight; a memory file system with the bytes in
it as the only place to write; no capability, no new privilege, resource limits; then the program, with an environment of
constants. If the kernel refuses any of this, the program is not started.

Linux only. Sources: namespaces(7), user_namespaces(7), mount_setattr(2), seccomp(2), getrlimit(2).
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

try:
    from modelkeep.errors import Unavailable
except ImportError:  # in the fresh interpreter, which is given this file and nothing of modelkeep
    Unavailable = RuntimeError  # type: ignore[misc, assignment]

SCRATCH = "/run"
"""Where the program finds its bytes: the host's own sockets are there, and what is mounted over them hides them."""
MAX_OUTPUT = 16 << 20
"""Bytes that a program may say, unless its limits say otherwise. One that says more is stopped."""
_TAIL = 2000
_HIDDEN = ("/dev/shm", "/dev/mqueue")  # noqa: S108  # hidden, not used
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_PROCESSES, _FILES = 64, 256
_CONSTANTS = {
    "PATH": "/usr/bin:/bin",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "LC_ALL": "C.UTF-8",
    "NO_COLOR": "1",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_NEW = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000  # CLONE_NEWUSER | NS | NET | PID | IPC
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 18, 2, 4
_MS_RDONLY, _MS_NOEXEC = 1, 8
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # MOUNT_ATTR_…
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_IO_URING_SETUP, _X32 = 425, 0x40000000
_MACHINES = {
    "x86_64": (0xC000003E, (41, _IO_URING_SETUP, 73, 248, 249, 250, 321, 298)),
    "aarch64": (0xC00000B7, (198, _IO_URING_SETUP, 32, 217, 218, 219, 280, 241)),
}
"""AUDIT_ARCH, and the numbers of what is refused: socket(2), and io_uring, which makes sockets, too; flock(2), which locks
files of the host that can only be read; add_key, request_key and keyctl(2), whose session keyring is the host's; bpf(2) and
perf_event_open(2), which no scanner needs.
"""
_NOBODY = 65534


class Limits(NamedTuple):
    """``memory``: bytes of address space, and of files in memory; ``seconds``: of wall and of processor time; ``output``: bytes
    that it may say."""

    memory: int = 4 << 30
    seconds: float = 120.0
    output: int = MAX_OUTPUT


DEFAULT_LIMITS = Limits()


class Finished(NamedTuple):
    """What became of a program. ``code``: its exit status, 128 + n when signal n ended it; ``problem``: why it was stopped."""

    code: int
    output: bytes
    errors: str
    problem: str = ""


def run_confined(command: list[str], data: memoryview, filename: str, limits: Limits, hidden: Sequence[str] = ()) -> Finished:
    """Run ``command`` (the absolute path of a program, and its arguments) with ``data`` in a file at ``inside(filename)``.

    The bytes are handed over in memory, and memory is all that it can write to. What it started is killed with it. It sees
    the rest of the machine's files as its user does, but for those in the folders ``hidden``.
    Raises Unavailable when the kernel refuses to confine it: then nothing was run.
    """
    refusals, tell = _pipe()
    with refusals:
        with contextlib.ExitStack() as theirs:  # what is theirs alone once they are started
            theirs.callback(os.close, tell)
            memory = _in_memory(data, theirs)
            order = json.dumps([command, filename, len(data), limits, memory, tell, os.getpid(), list(hidden)])
            process = _start(order, (memory, tell))
        finished = _attend(process, limits)
        refusal = refusals.read().decode("utf-8", "replace")
    if refusal:
        raise Unavailable(f"the kernel does not let another program be confined: {refusal}")
    return finished


def inside(filename: str) -> str:
    """The path at which a confined program finds its file."""
    return f"{SCRATCH}/{filename}"


def _pipe() -> tuple[IO[bytes], int]:
    """One to read from, and a descriptor to write to. Raises Unavailable."""
    try:
        told, tell = os.pipe()
    except OSError as cause:
        raise Unavailable(f"cannot talk to another process: {cause.strerror}") from cause
    return os.fdopen(told, "rb"), tell


def _in_memory(data: memoryview, theirs: contextlib.ExitStack) -> int:
    """A descriptor of ``data`` in anonymous memory, which nobody can change; ``theirs`` closes it. Raises Unavailable."""
    try:
        descriptor = os.memfd_create("modelkeep-scan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        theirs.callback(os.close, descriptor)
        view = data.cast("B")
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError as cause:
        raise Unavailable(f"cannot hold a model in memory for another process: {cause.strerror}") from cause
    return descriptor


def _start(order: str, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """A fresh interpreter that locks itself in. Raises Unavailable."""
    try:
        return subprocess.Popen(  # noqa: S603  # ourselves
            [sys.executable, "-I", "-S", "-B", __file__, order],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as cause:
        raise Unavailable(f"cannot start another process: {cause.strerror}") from cause


def _attend(process: subprocess.Popen[bytes], limits: Limits) -> Finished:
    """Wait for a program, but neither longer nor for more than ``limits`` allow. Killing it kills all of it."""
    assert process.stdout is not None
    assert process.stderr is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer, errors = threading.Timer(limits.seconds, stop), [b""]
    drain = threading.Thread(target=_keep_tail, args=(process.stderr, errors), daemon=True)
    try:
        timer.start()
        drain.start()
        output = process.stdout.read(limits.output + 1)
        if len(output) <= limits.output:
            process.wait()
    finally:  # also when somebody interrupts us
        timer.cancel()
        process.kill()
        code = process.wait()
        drain.join()
        process.stdout.close()
        process.stderr.close()
    problem = ""
    if late.is_set():
        problem = f"it did not end within {limits.seconds:g} seconds"
    elif len(output) > limits.output:
        problem = f"it said more than {limits.output >> 20} MiB"
    return Finished(code if code >= 0 else 128 - code, output, errors[0].decode("utf-8", "replace"), problem)


def _keep_tail(stream: IO[bytes], into: list[bytes]) -> None:
    while chunk := stream.read1(65536):  # type: ignore[attr-defined]  # a pipe's BufferedReader has it
        into[0] = (into[0] + chunk)[-_TAIL:]


# -- what follows runs in the fresh interpreter --


def _main(order: str) -> None:
    command, filename, size, (memory, seconds, _), source, tell, parent, hidden = json.loads(order)
    os.set_inheritable(tell, False)  # closed when the program begins: until then, what stands in it is a refusal
    try:
        _die_with(parent)
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")  # where memory ends, it ends for this one first
        _leave_the_host()
        child = _fork()
        if child:
            os.close(tell)  # else it would be held open for as long as the program runs
            os.close(source)
            _exit_like(child)
        _furnish(filename, source, size, memory, hidden)
        child = _fork()
        if child:
            os.close(tell)
            _exit_like(child)
        _renounce(size + memory, memory + 3 * size, seconds)
        os.execve(command[0], command, _CONSTANTS)  # noqa: S606  # confined by now, and without a shell on purpose
    except OSError as cause:
        os.write(tell, f"{cause.filename or 'it'}: {cause.strerror}".encode())
        os._exit(126)


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _leave_the_host() -> None:
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
    _call("unshare", libc.unshare(_NEW))
    # Somebody else than root within: execve then drops every capability, and what is read-only stays so.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {user} 1"), ("gid_map", f"{_NOBODY} {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, "ascii")


def _fork() -> int:
    """Fork; the child dies with its parent."""
    parent, child = os.getpid(), os.fork()
    if not child:
        _die_with(parent)
    return child


def _die_with(parent: int) -> None:
    _call("prctl", ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() not in (parent, 0):  # it is dead already; 0: it is in another process namespace
        os._exit(126)


def _exit_like(child: int) -> None:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _furnish(filename: str, source: int, size: int, memory: int, hidden: Sequence[str]) -> None:
    """Make all there is read-only, and put the bytes where the program finds them."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _attributes("/", _RDONLY | _NOSUID | _NODEV, recursive=True)
    for device in _DEVICES:
        _mount(device, device, None, _MS_BIND)
        _attributes(device, clear=_NODEV)
    try:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
    except PermissionError:  # parts of the host's are masked, as in a container: then it sees none
        _mount("none", "/proc", "tmpfs", _MS_RDONLY)
    for folder in (*filter(os.path.isdir, _HIDDEN), *hidden):
        _mount("none", folder, "tmpfs", _MS_RDONLY)
    _mount("none", SCRATCH, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size + memory},nr_inodes=65536,mode=0700")
    with Path(SCRATCH, filename).open("wb") as made:
        at = 0
        while at < size:
            done = os.sendfile(made.fileno(), source, at, size - at)
            if not done:
                raise OSError(errno.EIO, os.strerror(errno.EIO), filename)
            at += done
    os.close(source)
    os.chdir(SCRATCH)


def _renounce(largest: int, memory: int, seconds: float) -> None:
    """Give up what is left of privilege, and what goes beyond the limits."""
    libc = ctypes.CDLL(None, use_errno=True)
    _call("prctl", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: largest,
        resource.RLIMIT_NPROC: _PROCESSES,
        resource.RLIMIT_NOFILE: _FILES,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (least, least))
    _refuse_calls(libc)


def _refuse_calls(libc: ctypes.CDLL) -> None:
    """No socket at all, nor what no namespace holds back: one does not keep anybody from sockets that are files."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(0, f"system calls of {machine} are not known", "seccomp")
    arch, refused = _MACHINES[machine]
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 13, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO | EACCES, _KILL_PROCESS
    program = (
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, arch),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # seccomp_data.nr
        (above, len(refused) + 1, 0, _X32),
        *((equal, len(refused) - index, 0, number) for index, number in enumerate(refused)),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    _call("seccomp", libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_ulong(ctypes.addressof(header)), 0, 0))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if text is None else text.encode() for text in (source, target, kind, options)]
    libc = ctypes.CDLL(None, use_errno=True)
    _call(target, libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def _attributes(path: str, on: int = 0, clear: int = 0, *, recursive: bool = False) -> None:
    """mount_setattr(2)."""
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", on, clear, 0, 0), 32)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _AT_RECURSIVE if recursive else 0
    number = ctypes.c_long(_SYS_MOUNT_SETATTR)
    _call(path, libc.syscall(number, _AT_FDCWD, path.encode(), flags, attributes, ctypes.c_size_t(32)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _main(sys.argv[1])
