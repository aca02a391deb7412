"""Ports for servers that cannot choose one themselves."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import IO

_FIRST, _LAST = 20_000, 30_000
"""Below those that Linux gives to whoever asks for any port: nobody takes one of these by chance."""
_HELD: list[IO[bytes]] = []


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and which no other test process is given while this one lives."""
    span = _LAST - _FIRST
    for at in range(span):
        port = _FIRST + (os.getpid() * 97 + len(_HELD) + at) % span
        lock = (Path(tempfile.gettempdir()) / f"modelkeep-test-port-{port}").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _HELD.append(lock)
        return port
    raise AssertionError("no port is free")
