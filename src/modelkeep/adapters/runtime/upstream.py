"""The way to an upstream server over HTTP/1.1: a few kept connections, bounds on everything, and no second try.

Parsing is llhttp's (through httptools), as at our own door. What an upstream may not do, because two readers could take it in
two ways: answer without a length, answer twice, answer unasked, be compressed, redirect (never followed), or say more than it
was asked for. Any of that ends the connection. Source: RFC 9112, sections 6.3 and 9.2; RFC 9110, section 9.2.2.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools

from modelkeep.adapters.dialling import Callee, Dialled, LinkBounds, dial
from modelkeep.adapters.tracecontext import TRACEPARENT
from modelkeep.core.ports import Reply
from modelkeep.errors import Unavailable

MAX_HEAD, MAX_FIELDS = 64 << 10, 128
_ONCE = frozenset(
    {b"content-length", b"transfer-encoding", b"content-encoding", b"content-type", b"inference-header-content-length"}
)
_TOO_LATE = "the connection ended before its answer did"


@dataclass
class HttpLink:
    """``Link`` to the server ``callee``. ``token``: gives the bearer token, "" = none, for every connection that is made."""

    callee: Callee
    token: Callable[[], str] = lambda: ""
    bounds: LinkBounds = field(default_factory=LinkBounds)
    _idle: deque["_Connection"] = field(default_factory=deque)
    _closed: bool = False
    _sweeping: bool = False

    async def request(self, method: bytes, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> Reply:
        """Ask once, on a kept connection or a new one. Raises Unavailable, NotTrusted (not the server that was meant)."""
        connection = self._kept() or await self._connect()
        parts = [method, b" ", f"{self.callee.place.path}{path}".encode("ascii"), b" HTTP/1.1\r\n", connection.head]
        for name, value in headers:
            parts += [name, b": ", value, b"\r\n"]
        if trace := TRACEPARENT.get():
            parts += [b"traceparent: ", trace, b"\r\n"]
        parts += [b"content-length: %d\r\n\r\n" % len(body), body]
        try:
            reply = await connection.ask(b"".join(parts))
        except BaseException:  # also when whoever asked went away: what is on this connection now belongs to nobody
            connection.abort()
            raise
        if connection.reusable and not self._closed:
            self._keep(connection)
        else:
            connection.abort()
        return reply

    def close(self) -> None:
        """Let go of every connection."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def _keep(self, connection: "_Connection") -> None:
        """Keep a connection for the next question, and let go of it when none comes."""
        loop = asyncio.get_running_loop()
        connection.since = loop.time()
        self._idle.append(connection)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(self.bounds.idle_seconds, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._let_go(loop.time())
        self._sweeping = bool(self._idle)
        if self._idle:
            loop.call_later(self.bounds.idle_seconds, self._sweep, loop)

    def _let_go(self, now: float) -> None:
        """Close what was idle for too long."""
        while self._idle and (self._idle[0].lost or now - self._idle[0].since >= self.bounds.idle_seconds):
            self._idle.popleft().abort()

    def _kept(self) -> "_Connection | None":
        """The connection that was used last, if its server surely still holds it."""
        self._let_go(asyncio.get_running_loop().time())
        while self._idle:
            found = self._idle.pop()
            if not found.lost:
                return found
        return None

    async def _connect(self) -> "_Connection":
        token, place = self.token(), self.callee.place
        head = b"host: %s\r\naccept-encoding: identity\r\n" % place.authority.encode("ascii")
        if token:
            head += b"authorization: Bearer %s\r\n" % token.encode("ascii")
        return await dial(self.callee, self.bounds, lambda: _Connection(head, self.bounds.max_answer))


class _Connection(Dialled):
    """One connection, on which at most one request is under way."""

    def __init__(self, head: bytes, max_answer: int) -> None:
        """``head``: the header fields that every request of it has."""
        super().__init__()
        self.head, self._max = head, max_answer
        self.since = 0.0
        self.reusable = False
        self._waiting: asyncio.Future[Reply] | None = None
        self._parser: Any = None
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = self._head_size = 0
        self._in_head = self._whole = self._keep = False
        self._problem = ""

    async def ask(self, data: bytes) -> Reply:
        """Send one request and wait for its answer. Raises Unavailable."""
        if self.lost:
            raise Unavailable(_TOO_LATE)
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = {}, []
        self._size = self._head_size = 0
        self._in_head, self._whole, self.reusable, self._problem = True, False, False, ""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    # -- asyncio.Protocol --

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """It is gone, and so is an answer that was not whole."""
        self.lost = True
        self._fail(_TOO_LATE)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, which must belong to the one request under way."""
        if self._waiting is None or self._waiting.done():
            self.abort()  # unasked: it would be taken for the answer to whatever is asked next
            return
        if self._in_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._note("it wants to speak another protocol")
        except httptools.HttpParserError:
            self._note("its answer is not well-formed HTTP/1.1")
        if self._in_head and self._head_size > MAX_HEAD + len(data):
            self._note("its answer has a head without end")
        if self._problem:
            self._fail(self._problem)
            self.abort()
        elif self._whole:
            status = self._parser.get_status_code()
            self.reusable = self._keep and not self.lost and self._transport.get_write_buffer_size() == 0
            self._waiting.set_result(Reply(status, self._headers, b"".join(self._body)))

    def _fail(self, why: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Unavailable(why))

    def _note(self, why: str) -> None:
        """Remember what is wrong with the answer, but for what only follows from it."""
        self._problem = self._problem or why

    # -- httptools callbacks: they only take notes --

    def on_message_begin(self) -> None:
        """An answer begins; a second one must not."""
        if self._whole:
            self._note("it answers twice")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        name = name.lower()
        if not self._in_head or len(self._headers) >= MAX_FIELDS or (name in self._headers and name in _ONCE):
            self._note("its answer has header fields twice, too many or behind its body")
            return
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is whole: whether the rest can be understood in one way only is decided here."""
        self._in_head = False
        status, headers = self._parser.get_status_code(), self._headers
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if status < 200 or self._parser.get_http_version() != "1.1":
            self._note(f"it answers with status {status} in HTTP/{self._parser.get_http_version()}")
        elif headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._note("its answer is compressed, which was not asked for")
        elif coding is not None and (coding.lower() != b"chunked" or length is not None):
            self._note("its answer has two lengths")
        elif coding is None and length is None and status not in (204, 304):
            self._note("its answer has no length, so that nobody could see where it is cut off")
        elif length is not None and (not length.isdigit() or len(length) > 15 or int(length) > self._max):
            self._note(f"its answer is larger than {self._max} bytes")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._size += len(body)
        if self._size > self._max or len(self._body) > 65_536:
            self._note(f"its answer is larger than {self._max} bytes")
        elif not self._problem:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._whole = True
        self._keep = self._parser.should_keep_alive()  # the parser forgets it with the message
