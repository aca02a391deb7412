"""This process: keep its memory out of core dumps and other processes, and start others like it."""

import ctypes
import os
import resource
import signal
import sys
import threading
import traceback

from modelkeep.errors import Unavailable

EXIT_UNAVAILABLE = 3
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def open_standard_streams() -> bool:
    """Have descriptors 0 to 2 be something, so that no file that is opened later is taken for one and printed into.

    Returns whether standard output was open.
    """
    shown = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest one that is free is this
    for name, number, how in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, how, closefd=False))
    return shown


def no_core_dumps() -> None:
    """From now on this process, and whatever it starts, leaves no core dump: one would hold its keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def harden() -> None:
    """No core dumps, no ptrace by processes of the same user (Linux only), and as many open files as this user may have.

    The last because connections are files: whoever opens many must not keep the logs from being written. And as
    ``end_with_threads`` says.
    """
    end_with_threads()
    no_core_dumps()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    no_tracing()


def end_with_threads() -> None:
    """From now on a thread that dies on an error nobody foresaw takes this process with it.

    A server without one of its watchers must be started anew: call this before the first of them is started.
    """
    threading.excepthook = _end


def died(what: str, failure: BaseException) -> str:
    """That ``what`` died of ``failure``, and where, without the values that a traceback could quote."""
    places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(failure.__traceback__)[-3:]]
    return f"{what} died of {type(failure).__name__} in {' > '.join(places)}"


def no_tracing() -> None:
    """From now on no process of the same user may look into this one's memory (Linux only); whatever it starts may be."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with(parent: int) -> None:
    """Be asked to end (SIGTERM) when the process ``parent``, which started this one, is gone (Linux only).

    Else a supervisor that was killed would leave servers behind that nobody knows of, and that no ``lock`` reaches.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it went before it could be watched
            os.kill(os.getpid(), signal.SIGTERM)


def _end(failure: threading.ExceptHookArgs) -> None:
    """Say which thread died of what, and leave at once."""
    if failure.exc_value is None or failure.exc_type is SystemExit:
        return
    thread = failure.thread.name if failure.thread else "unknown"
    sys.stderr.write(f"modelkeep: error: {died(f'thread {thread}', failure.exc_value)}\n")
    sys.stderr.flush()
    os._exit(EXIT_UNAVAILABLE)


def pipe_with(secret: bytes) -> int:
    """A readable, inheritable descriptor that yields ``secret``, of any size, and is backed by no disk. Raises Unavailable.

    Not a pipe, which would wait for its reader after 64 KiB.
    """
    try:
        descriptor = os.memfd_create("modelkeep", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(secret)
    except OSError as cause:
        raise Unavailable(f"cannot hold the keys in memory for another process: {cause.strerror}") from cause
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.set_inheritable(descriptor, True)
    return descriptor


def read_pipe(descriptor: int) -> bytes:
    """All that a descriptor yields; it is closed afterwards."""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()
