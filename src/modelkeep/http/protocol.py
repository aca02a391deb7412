"""HTTP/1.1 on a socket, strictly and with deadlines: bytes to ``Request``, ``Response`` to bytes.

Parsing and framing are llhttp's (through httptools); this file adds what a public server needs and a framework's server lacks:
deadlines for headers, bodies, idling and slow readers, bounds on everything, and the refusal of every framing that two parsers
could read differently (RFC 9112, sections 5.2, 6.1, 6.3 and 11.2). A connection that broke the protocol is answered once and
closed. Requests of one connection are handled one after another, in order.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import httptools
import msgspec

from modelkeep.access.certificates import client_certificate
from modelkeep.access.limits import address_key
from modelkeep.access.presented import Certificate
from modelkeep.errors import Invalid
from modelkeep.workflows.service import Listen
from modelkeep.workflows.upstream import WAITING

NEVER = float("inf")
_HSTS = b"\r\nstrict-transport-security: max-age=31536000\r\n"
"""On every answer over TLS: a browser that came this way once does not come in the clear again (RFC 6797)."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request, whole. ``headers``: by lower-case name, the last wins where a name stands twice; ``target``: path, query;
    ``certificate``: the one that the client proved in the TLS handshake."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes
    address: str
    certificate: Certificate | None = None


class Response(msgspec.Struct, frozen=True, gc=False):
    """One answer, whole."""

    status: int
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    cache: bytes = b"no-store"


class BadRequest(NamedTuple):
    """Why a request broke the protocol: answered once, then the connection closes."""

    status: int
    code: str
    detail: str


Handler = Callable[[Request], Awaitable[Response]]
Problem = Callable[[BadRequest], Response]
Door = Callable[[bytes, dict[bytes, bytes], Certificate | None, str], Response | None]
"""From method, headers, the client's certificate and its address: why a request is turned away before its body is read."""
Welcome = Callable[[str], bool]
"""From the address: whether a connection may come in at all."""


def open_door(_method: bytes, _headers: dict[bytes, bytes], _certificate: Certificate | None, _address: str) -> None:
    """Turn nobody away."""


class Connection(Protocol):
    """What the sweep and the drain ask of a connection. ``deadline``: loop time after which it is ``overdue``."""

    deadline: float

    def overdue(self) -> None: ...
    def begin_drain(self, grace: float) -> None: ...
    def abort(self) -> None: ...


def everybody(_address: str) -> bool:
    """Let every connection in."""
    return True


class Listener(ABC):
    """Who is at one listener: a connection has a place from its acceptance on, of so many in all and for its address."""

    def __init__(self, bounds: Listen, loop: asyncio.AbstractEventLoop, welcome: Welcome = everybody) -> None:
        self.bounds, self.loop, self._welcome = bounds, loop, welcome
        self.accepted = 0
        self.per_address: dict[str, int] = {}
        self.refused = 0
        self.draining = False

    @abstractmethod
    def connection(self, place: "Place") -> asyncio.Protocol:
        """The protocol of a new connection, which gives ``place`` back at its end."""

    @abstractmethod
    def start(self) -> None:
        """Begin, now that it listens."""

    @abstractmethod
    async def drain(self, seconds: float) -> None:
        """Answer what has begun, then close; after ``seconds`` cut what is left."""

    def enter(self, address: str) -> "Place | None":
        """A place for a connection that was accepted from ``address``; None when there are too many, or when draining."""
        key = address_key(address)
        here = self.per_address.get(key, 0)
        full = self.accepted >= self.bounds.max_connections or here >= self.bounds.max_per_address or self.draining
        if full or not self._welcome(address):
            self.refused += 1
            return None
        self.accepted += 1
        self.per_address[key] = here + 1
        return Place(self, address, key)


class Server(Listener):
    """What all connections of one listener share: bounds, the handler, and the sweep that enforces deadlines."""

    def __init__(
        self,
        handler: Handler,
        problem: Problem,
        bounds: Listen,
        loop: asyncio.AbstractEventLoop,
        door: Door = open_door,
        welcome: Welcome = everybody,
    ) -> None:
        super().__init__(bounds, loop, welcome)
        self.handler, self.problem, self.door = handler, problem, door
        self.connections: set[Connection] = set()
        self.buffered = 0
        self.date = b""
        self._always = _HSTS if bounds.tls else b"\r\n"
        self._timer: asyncio.TimerHandle | None = None

    def connection(self, place: "Place") -> asyncio.Protocol:
        """The protocol of a new connection."""
        return HttpConnection(place, self)

    def start(self) -> None:
        """Begin to enforce deadlines."""
        self._sweep()

    def _sweep(self) -> None:
        """Close what is overdue; four times a second, so that the hot path sets no timers."""
        now = self.loop.time()
        self.date = b"\r\ndate: " + formatdate(usegmt=True).encode() + self._always
        for connection in [c for c in self.connections if c.deadline <= now]:
            connection.overdue()
        self._timer = self.loop.call_later(0.25, self._sweep)

    async def drain(self, seconds: float) -> None:
        """Answer what has begun, then close; after ``seconds`` cut what is left."""
        self.draining = True
        end = self.loop.time() + seconds
        for connection in list(self.connections):
            connection.begin_drain(min(1.0, seconds))
        while self.connections and self.loop.time() < end:
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()


class Place:
    """What one connection takes up, from its acceptance (so also while TLS is agreed) until ``leave``."""

    def __init__(self, listener: Listener, address: str, key: str) -> None:
        self.listener, self.address = listener, address
        self._key, self._held = key, True

    def leave(self) -> None:
        """Give the place back. Idempotent."""
        if self._held:
            self._held = False
            self.listener.accepted -= 1
            left = self.listener.per_address[self._key] - 1
            if left:
                self.listener.per_address[self._key] = left
            else:
                del self.listener.per_address[self._key]


_STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_FIXED = b"\r\nx-content-type-options: nosniff\r\ncontent-type: "
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SMUGGLED = "the request's framing is ambiguous: "


class HttpConnection(asyncio.Protocol):
    """One connection. Its states: idle → head → body → (queued, handled) → idle; or refused → lingering → closed."""

    def __init__(self, place: Place, server: Server) -> None:
        self._place, self._server = place, server
        self._bounds = server.bounds
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[Request, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._certificate: Certificate | None = None
        self._refusal: Response | None = None
        self._closing = self._idle = False
        self._paused = self._writing_paused = False
        self.deadline = NEVER
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._field_size = self._head_size = self._body_size = 0
        self._old = False
        self._in_message = self._in_body = False

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = transport
        if self._server.draining:
            self.abort()
            return
        try:
            self._certificate = certificate_of(transport)
        except Invalid:  # nobody can say whose it is: the client learns no more than from any failed handshake
            self.abort()
            return
        self._server.connections.add(self)
        self.deadline = self._loop.time() + self._bounds.header_seconds

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Forget the connection. A request already handed over is finished (its record stands), its answer goes nowhere."""
        self._closing = True
        self.deadline = NEVER
        if self._task is not None and self._task in WAITING:  # nothing is recorded yet, and nobody is there to be answered
            self._task.cancel()
        self._drop_body()
        self._free(sum(len(request.body) for request, _ in self._queue))
        self._queue.clear()
        self._server.connections.discard(self)
        self._place.leave()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived. After a refusal everything is dropped."""
        if self._closing or self._refusal is not None:
            return
        if self._idle:
            self._idle = False
            self.deadline = self._loop.time() + self._bounds.header_seconds
        if self._in_message and not self._in_body:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(501, "invalid", "neither CONNECT nor a protocol upgrade is offered here")
        except httptools.HttpParserError as cause:
            self._refuse(400, "invalid", f"the request is not well-formed HTTP/1.1: {str(cause)[:120]}")
        if self._in_message and not self._in_body and self._head_size > self._bounds.max_head:
            self._refuse_head()
        self._next()
        if self._queue and not self._paused and not self._closing:  # a whole request waits: no more until it has its turn
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client closed its half: so do we. What it asked and was not answered yet still has its record."""
        return False

    def pause_writing(self) -> None:
        """The client reads too slowly: it has ``write_seconds`` to catch up."""
        self._writing_paused = True
        self.deadline = self._loop.time() + self._bounds.write_seconds

    def resume_writing(self) -> None:
        """The client caught up."""
        self._writing_paused = False
        self._rest()
        self._next()

    # -- httptools callbacks: they only take notes; a refusal stops them --

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self._queue) >= self._bounds.max_queue:
            self._refuse(400, "too-large", f"more than {self._bounds.max_queue} requests are pipelined")
        self._target, self._headers = b"", {}
        self._field_size = self._head_size = 0
        self._in_message, self._in_body = True, False

    def on_url(self, url: bytes) -> None:
        """The request target, whole or in parts."""
        self._target += url
        self._field_size += len(url)
        if self._field_size > self._bounds.max_head:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        name = name.lower()
        self._field_size += len(name) + len(value)
        if self._in_body:
            self._refuse(400, "invalid", "trailer fields are not taken")
        elif len(self._headers) >= self._bounds.max_headers or self._field_size > self._bounds.max_head:
            self._refuse_head()
        elif name in self._headers and name in _ONCE:
            self._refuse(400, "invalid", f"{_SMUGGLED}{name.decode()} stands twice")
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is whole: everything about the framing is decided here."""
        self._in_body = True
        self.deadline = self._loop.time() + self._bounds.body_seconds
        version = self._parser.get_http_version()
        self._old = version != "1.1"
        if self._refusal is None:
            door, address = self._server.door, self._place.address
            self._refusal = door(self._parser.get_method(), self._headers, self._certificate, address)
        self._check_framing(self._headers, version)

    def _check_framing(self, headers: dict[bytes, bytes], version: str) -> None:
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if version not in {"1.1", "1.0"}:
            self._refuse(505, "invalid", "only HTTP/1.1 and HTTP/1.0 are spoken here")
        elif self._parser.get_method() not in _METHODS:  # llhttp also reads those of RTSP, ICE and WebDAV
            self._refuse(501, "invalid", f"only the methods {_METHOD_NAMES} are understood here")
        elif b"#" in self._target:
            self._refuse(400, "invalid", "a request target has no fragment")
        elif b"host" not in headers and version == "1.1":
            self._refuse(400, "invalid", "the host header is missing")
        elif coding is not None and (coding.lower() != b"chunked" or version == "1.0" or length is not None):
            self._refuse(
                400, "invalid", _SMUGGLED + "transfer-encoding may only be chunked, in HTTP/1.1, without content-length"
            )
        elif length is not None and int(length) > self._bounds.max_body:
            self._refuse_body()
        elif b"upgrade" in headers:
            self._refuse(501, "invalid", "no protocol upgrade is offered here")
        elif (expected := headers.get(b"expect")) is not None:
            if expected.lower() != b"100-continue":
                self._refuse(417, "invalid", "only 'expect: 100-continue' is understood")
            elif self._refusal is None and not self._closing and self._task is None and not self._queue:
                self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._refusal is not None:
            return
        if self._body_size + len(body) > self._bounds.max_body or len(self._body) >= self._bounds.max_parts:
            self._refuse_body()
        elif self._server.buffered + len(body) > self._bounds.max_buffered:
            self._refuse(503, "unavailable", "too many request bodies are being read at once: ask again in a moment")
        else:
            self._body.append(body)
            self._body_size += len(body)
            self._server.buffered += len(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_message = self._in_body = False
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse(501, "invalid", "CONNECT is not offered here")
        if self._refusal is not None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._body_size = [], 0
        request = Request(method, self._target, self._headers, body, self._place.address, self._certificate)
        self._queue.append((request, not self._old and self._parser.should_keep_alive()))

    # -- answering --

    def _refuse_head(self) -> None:
        bounds = self._bounds
        self._refuse(
            431, "too-large", f"the request's head has more than {bounds.max_headers} fields or {bounds.max_head} bytes"
        )

    def _refuse_body(self) -> None:
        self._refuse(413, "too-large", f"the request's body is larger than {self._bounds.max_body} bytes")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if self._refusal is None:
            self._refusal = self._server.problem(BadRequest(status, code, detail))
            self._drop_body()

    def _drop_body(self) -> None:
        """Forget what came of a body that nobody will read."""
        self._free(self._body_size)
        self._body, self._body_size = [], 0

    def _free(self, size: int) -> None:
        self._server.buffered -= size

    def _next(self) -> None:
        """Handle the next whole request; or, when all before it are answered, the refusal."""
        if self._task is not None or self._closing or self._writing_paused:
            return
        if self._queue:
            request, keep = self._queue.popleft()
            self.deadline = NEVER  # until the task has begun: one that is cancelled before does nothing at all, nor cleans up
            self._task = self._loop.create_task(self._handle(request, keep))
        elif self._refusal is not None:
            self._linger(self._refusal)

    async def _handle(self, request: Request, keep: bool) -> None:
        self.deadline = self._loop.time() + self._bounds.handle_seconds
        response = _BROKEN
        try:
            response = await self._server.handler(request)
        finally:  # a handler that raises, or that was cut at its deadline, still answers and closes
            self._task = None
            self._free(len(request.body))
            if not self._closing:
                self._answer(request, response, keep and not self._server.draining and response is not _BROKEN)

    def _answer(self, request: Request, response: Response, keep: bool) -> None:
        self._write(response, keep, head_only=request.method == b"HEAD")
        if not keep:
            self._closing = True
            self.deadline = self._loop.time() + self._bounds.linger_seconds
            self._transport.close()
            return
        if self._paused and not self._queue:
            self._paused = False
            self._transport.resume_reading()
        self._rest()
        self._next()

    def _rest(self) -> None:
        """Set the deadline for what the connection now waits for."""
        if self._writing_paused or self._task is not None:
            return
        bounds = self._bounds
        self._idle = not self._in_message
        wait = bounds.idle_seconds if self._idle else bounds.body_seconds if self._in_body else bounds.header_seconds
        self.deadline = self._loop.time() + wait

    def _write(self, response: Response, keep: bool, *, head_only: bool = False) -> None:
        parts = [_STATUS_LINE[response.status], b"cache-control: ", response.cache, _FIXED, response.content_type]
        parts += [b"\r\ncontent-length: %d" % len(response.body), self._server.date]
        for name, value in response.headers:
            parts += [name, b": ", value, b"\r\n"]
        parts.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
        if not head_only:
            parts.append(response.body)
        self._transport.write(b"".join(parts))

    def _linger(self, response: Response) -> None:
        """Answer for the last time, then read and drop for a moment, so that a client that still sends gets to see it."""
        self._closing = True
        self._write(response, keep=False)
        self.deadline = self._loop.time() + self._bounds.linger_seconds

    # -- deadlines and stopping --

    def overdue(self) -> None:
        """The deadline passed: say so if a request was under way, close otherwise."""
        if self._closing or self._writing_paused:
            self.abort()
        elif self._task is not None:
            self._task.cancel()
        elif not self._in_message:
            self.abort()
        else:
            what = "body" if self._in_body else "headers"
            self._refuse(408, "too-slow", f"the request's {what} came too slowly")
            self._next()

    def begin_drain(self, grace: float) -> None:
        """Close once what has begun is answered; an idle connection after ``grace`` seconds."""
        if self._task is None and not self._queue and not self._in_message:
            self.deadline = min(self.deadline, self._loop.time() + grace)

    def abort(self) -> None:
        """Cut the connection."""
        self._closing = True
        self.deadline = NEVER
        self._transport.abort()


def certificate_of(transport: asyncio.BaseTransport) -> Certificate | None:
    """The certificate that the client proved in the TLS handshake, if any. Raises Invalid (it cannot be read)."""
    tls = transport.get_extra_info("ssl_object")
    der = None if tls is None else tls.getpeercert(True)
    return client_certificate(der) if der else None


_BROKEN = Response(
    503,
    b'{"type":"urn:x-modelkeep:error:unavailable","title":"Not available now","status":503,'
    b'"detail":"the request was not finished","code":"unavailable","error":"the request was not finished"}',
    b"application/problem+json",
)
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"QUERY"})
_METHOD_NAMES = ", ".join(sorted(method.decode() for method in _METHODS))
_ONCE = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"content-type",
        b"expect",
        b"dpop",
        b"inference-header-content-length",
        b"modelkeep-solution",
    }
)
