"""A Unix socket in the keep's ``run`` folder, through which its owner speaks to its processes: one JSON line each way.

The folder is 0700 and the socket 0600; besides, the kernel says who is at the other end, and only the owner and root are heard.
Nothing of it leaves the machine: from afar, come over ssh.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from modelkeep.errors import Denied, Invalid, Missing, Unavailable

MAX_LINE = 1 << 14
SECONDS = 5.0
"""How long the other end may take to say its line."""
ANSWER_SECONDS = 120.0
"""How long an answer may take: Argon2id, an HSM and the log's disk stand behind it."""
_LONGEST = 100
_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int


Handler = Callable[[dict[str, Any], Peer], dict[str, Any]]


class LocalSocket:
    """Listens at ``<folder>/<name>.sock`` and answers with ``handle``, one after another, in a thread. ``close`` it."""

    def __init__(self, folder: Path, name: str, handle: Handler) -> None:
        """Raises Unavailable. Make it before the process hardens itself: a long path needs /proc/self/fd."""
        self.path = folder / f"{name}.sock"
        self.handle = handle
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                with _address(self.path) as address:
                    self._listener.bind(address)
            finally:
                os.umask(before)
            self._listener.listen(8)
        except OSError as cause:
            raise Unavailable(f"cannot listen at {self.path}: {cause.strerror or cause}") from cause
        self._thread = threading.Thread(target=self._run, name="local", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and take the socket away. Idempotent."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):  # whoever left early gets no answer
                connection.settimeout(SECONDS)
                connection.sendall(msgspec.json.encode(self._answer(connection)) + b"\n")

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (os.geteuid(), 0):
            return {"code": Denied.code, "message": "only the owner of this keep and root are heard here"}
        try:
            asked = msgspec.json.decode(_line(connection), type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # what came may be a secret: it is not repeated
            return {"code": Invalid.code, "message": "what came is no JSON object"}
        return self.handle(asked, Peer(pid, uid))


def ask(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Say ``question`` to the process that listens at ``path``; its answer.

    Raises Missing (nobody listens there any more), Unavailable (it does not answer), Denied.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(ANSWER_SECONDS)
        try:
            with _address(path) as address:
                end.connect(address)
            _, uid, _ = _UCRED.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid not in (path.parent.stat().st_uid, os.geteuid(), 0):
                raise Denied(f"the process that listens at {path} is of another user: it gets no secret")
            end.sendall(msgspec.json.encode(question) + b"\n")
            return msgspec.json.decode(_line(end), type=dict[str, Any])
        except (FileNotFoundError, ConnectionRefusedError) as cause:
            raise Missing(f"nobody listens at {path}: {cause.strerror}") from cause
        except OSError as cause:
            raise Unavailable(f"nobody answers at {path}: {cause.strerror or cause}") from cause
        except msgspec.MsgspecError as cause:
            raise Unavailable(f"the process at {path} ended before it answered") from cause


def _line(end: socket.socket) -> bytes:
    received = bytearray()
    while b"\n" not in received and len(received) <= MAX_LINE:
        part = end.recv(4096)
        if not part:
            break
        received += part
    return bytes(received.partition(b"\n")[0]) if len(received) <= MAX_LINE else b""


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """What bind and connect take: the path, or a short one to the same folder where the path is too long for them."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
