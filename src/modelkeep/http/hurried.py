"""uvicorn's protocol for control, with what it lacks: a deadline for the headers of a request, and a bound on their size."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 5.0
"""How long a connection may take from its beginning, or from the first byte of its next request, to the end of the headers."""
MAX_HEAD = 1 << 20
"""Bytes that may come before the headers are complete; what is read of a body in one piece with them is among these."""


class Hurried(HttpToolsProtocol):
    """Closes a connection whose next request does not come, whole headers and all, in time."""

    _deadline: asyncio.TimerHandle | None = None
    _head = 0

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

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._relax()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
