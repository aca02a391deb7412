"""Ports for servers that cannot choose one themselves."""

import contextlib
import fcntl
import os
import socket
import tempfile
from pathlib import Path

_FIRST, _LAST = 20_000, 30_000
"""Below those that Linux gives to whoever asks for any port: nobody takes one of these by chance."""
_HELD: list[int] = []


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and which no other test process is given while this one lives."""
    span = _LAST - _FIRST
    for at in range(span):
        port = _FIRST + (os.getpid() * 97 + len(_HELD) + at) % span
        if (lock := _locked(port)) is not None:
            _HELD.append(lock)
            return port
    raise AssertionError("no port is free")


def _locked(port: int) -> int | None:
    """The descriptor of the file that stands for ``port``, locked; None when somebody has it or the port."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        lock = os.open(Path(tempfile.gettempdir()) / f"modelkeep-test-port-{port}", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        stack.pop_all()
        return lock
    return None
