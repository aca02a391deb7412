"""This process: keep its memory out of core dumps and other processes, and start others like it."""

import ctypes
import os
import resource
import sys

_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core dumps, no ptrace by processes of the same user. Linux only; elsewhere only the core limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def pipe_with(secret: bytes) -> int:
    """A readable, inheritable descriptor that yields ``secret`` once. At most 64 KiB, the size of a pipe."""
    reader, writer = os.pipe()
    try:
        os.write(writer, secret)
    finally:
        os.close(writer)
    os.set_inheritable(reader, True)
    return reader


def read_pipe(descriptor: int) -> bytes:
    """All that a descriptor yields; it is closed afterwards."""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()
