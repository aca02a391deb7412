"""uvicorn's protocol for control, with what it lacks: places at the door, and deadlines for headers and for slow readers."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelkeep.http.protocol import Listener, Place
from modelkeep.workflows.service import Listen

HEADER_SECONDS = 5.0
"""How long a connection may take from its beginning, or from the first byte of its next request, to the end of the headers."""
MAX_HEAD = 1 << 20
"""Bytes that may come before the headers are complete; what is read of a body in one piece with them is among these."""
WRITE_SECONDS = 10.0
"""A client that takes nothing of an answer for so long is cut off."""


class Hurried(HttpToolsProtocol):
    """Closes a connection whose next request does not come, whole headers and all, in time, or whose answer is not read."""

    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _head = 0

    def __init__(self, place: Place, served: uvicorn.Server) -> None:
        super().__init__(served.config, served.server_state, app_state={})
        self._place = place

    def connection_made(self, transport: Any) -> None:
        """A client came."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Something came; between two requests it begins the next."""
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if self._deadline is None and (cycle is None or cycle.response_complete):
            self._expect()
        if self._deadline is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.transport.close()
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The headers are there; bodies have deadlines of their own (``door.body_of``)."""
        self._relax()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer comes."""
        super().pause_writing()
        self._await_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client caught up."""
        self._caught_up()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._relax()
        self._caught_up()
        super().connection_lost(exc)
        self._place.leave()

    def _expect(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _await_reader(self, unread: int) -> None:
        self._reading = self.loop.call_later(WRITE_SECONDS, self._look_at_reader, unread)

    def _look_at_reader(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread < before:  # a large answer on a thin line
            self._await_reader(unread)
        else:
            self.transport.abort()

    def _caught_up(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


class UvicornListener(Listener):
    """Takes connections for ``served``, which answers them and has no sockets of its own."""

    def __init__(self, served: uvicorn.Server, bounds: Listen, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(bounds, loop)
        self._served = served

    def connection(self, place: Place) -> Hurried:
        """The protocol of a new connection."""
        return Hurried(place, self._served)

    def start(self) -> None:
        """Nothing: each connection has timers of its own."""

    async def drain(self, seconds: float) -> None:  # noqa: ARG002  # uvicorn's configuration says how long
        """Answer what has begun, then close."""
        self.draining = True
        await self._served.shutdown()
