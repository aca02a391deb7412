"""A server on a real socket, in a thread of its own, and a raw client that sends exactly the bytes it is told to."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modelkeep.http.problem import bad_request
from modelkeep.http.protocol import Request, Response, Server, open_door
from modelkeep.http.serve import listening
from modelkeep.workflows.service import Listen

QUICK = {
    "header_seconds": 0.4,
    "body_seconds": 0.5,
    "idle_seconds": 0.6,
    "write_seconds": 0.5,
    "linger_seconds": 0.5,
    "max_body": 65536,
}


PATIENT = QUICK | {"header_seconds": 60.0, "body_seconds": 60.0, "idle_seconds": 60.0, "write_seconds": 60.0}
"""For whoever is not to be cut: on a loaded machine a client may get no turn for a while."""


async def echo(request: Request) -> Response:
    """Say what was understood of a request."""
    if request.target == b"/slow":
        await asyncio.sleep(0.3)
    if request.target == b"/broken":
        raise ZeroDivisionError
    if request.target == b"/big":
        return Response(200, b"x" * 30_000_000)
    return Response(200, b"%s %s %d" % (request.method, request.target, len(request.body)), b"text/plain")


class Running:
    """A server that runs; ``stop`` drains it."""

    def __init__(self, handler=echo, door=open_door, **listen) -> None:
        self.errors: list[dict] = []
        self._handler, self._door, self._listen = handler, door, Listen(port=0, **listen)
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self._loop.run_until_complete(self._main())
        self._loop.close()

    def make(self, listen: Listen, loop: asyncio.AbstractEventLoop) -> Server:
        return Server(self._handler, bad_request, listen, loop, self._door)

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self.server = self.make(self._listen, self._loop)
        async with listening(self.server) as (_, port):
            self.port = port
            self._ready.set()
            await self._stop.wait()

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_stop()
        self._thread.join(60)
        assert not self._thread.is_alive()

    @contextmanager
    def connect(self, timeout: float = 30.0) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            yield connection

    def ask(self, data: bytes, timeout: float = 30.0) -> bytes:
        """Send bytes and return everything until the server closes."""
        with self.connect(timeout) as connection:
            connection.sendall(data)
            return drain(connection)


def soon(what: Callable[[], bool]) -> None:
    """Wait until ``what``."""
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def drain(connection: socket.socket) -> bytes:
    """Everything until the peer closes."""
    parts = []
    while True:
        try:
            part = connection.recv(1 << 16)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)
