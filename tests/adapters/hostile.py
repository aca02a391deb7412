"""A server that says exactly what a test wants it to, on a socket of its own, and notes what it was asked."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

Act = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One connection to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: list[bytes]) -> None:
        self._reader, self._writer, self._log = reader, writer, log

    async def question(self) -> bytes:
        """The next request, whole; noted."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        self._log.append(head + await self._reader.readexactly(size))
        return self._log[-1]

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the other side hangs up."""
        while await self._reader.read(1 << 16):
            pass


class Hostile:
    """``act`` is run for each connection, which is closed after it. ``asked``: every request; ``visits``: connections."""

    def __init__(self, act: Act, tls: Any = None) -> None:
        self._act, self._tls = act, tls
        self.asked: list[bytes] = []
        self.visits = self.ended = 0

    async def __aenter__(self) -> "Hostile":
        self._server = await asyncio.start_server(self._visit, "127.0.0.1", 0, ssl=self._tls, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self.visits > self.ended:
            await asyncio.sleep(0.01)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        try:
            await self._act(Visit(reader, writer, self.asked))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.ended += 1


def body_of(question: bytes) -> dict[str, Any]:
    """The JSON of a request."""
    found: dict[str, Any] = json.loads(question.partition(b"\r\n\r\n")[2])
    return found


def answer_to(question: bytes, **more: Any) -> bytes:
    """A true answer to a request of one FP32 row x: p = (0.25, 0.75)."""
    rows = body_of(question)["inputs"][0]["shape"][0]
    outputs = [{"name": "p", "datatype": "FP32", "shape": [rows, 2], "data": [0.25, 0.75] * rows}]
    said = {"model_name": "m", "id": body_of(question)["id"], "outputs": outputs, **more}
    return whole(json.dumps(said).encode())


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
