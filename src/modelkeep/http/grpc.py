"""gRPC on HTTP/2, strictly, with deadlines and bounds of the HTTP/1.1 edge: frames to ``GrpcCall``, ``GrpcReply`` to frames.

HTTP/2 itself is the h2 library's; this file adds what gRPC says about it (unary calls only), one handling task for each stream,
and what a public server needs: deadlines for messages, handling and slow readers, a bound on everything that a client can make
us keep, and the end of a connection that sends frames which ask for nothing.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md); RFC 9113.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from modelkeep.access.presented import Certificate
from modelkeep.errors import Invalid
from modelkeep.http.protocol import NEVER, BadRequest, Place, Response, Server, Welcome, certificate_of, everybody
from modelkeep.workflows.service import Listen
from modelkeep.workflows.upstream import WAITING

STREAMS = 64
"""Calls of one connection that may be under way at once."""
IDLE_FRAMES = 1000
"""Frames that ask for nothing (pings, settings, window updates, resets …) that a client may send between two finished calls."""
_WINDOW = 1 << 20
_PREFIX = 5
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_GRPC = b"application/grpc"
_ONCE = frozenset({b"authorization", b"content-type", b"dpop", b"host", b"modelkeep-solution"})


class GrpcCall(NamedTuple):
    """One unary call, whole. ``headers``: its metadata by lower-case name, and its authority as ``host``."""

    path: bytes
    headers: dict[bytes, bytes]
    message: bytes
    address: str
    certificate: Certificate | None = None


class GrpcReply(NamedTuple):
    """One answer, whole. ``status``: a gRPC status code; ``message``: None unless it is 0; ``trailers``: further metadata."""

    status: int
    message: bytes | None = None
    detail: str = ""
    trailers: tuple[tuple[bytes, bytes], ...] = ()


OK, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 4, 8, 12, 13, 14
Answering = Callable[[GrpcCall], Awaitable[GrpcReply]]
GrpcDoor = Callable[[bytes, dict[bytes, bytes], Certificate | None, str], GrpcReply | None]
"""From path, metadata, the client's certificate and address: why a call is turned away before its message is read, or None."""


def refusal(status: int, code: str, detail: str) -> GrpcReply:
    """The answer to a call that failed, with the stable ``code``."""
    return GrpcReply(status, None, detail, ((b"modelkeep-code", code.encode()),))


_TWICE = "the metadata has a credential or a solution twice, or too many entries"
_CROWDED = refusal(UNAVAILABLE, "unavailable", "too many messages are being read at once: ask again in a moment")


class GrpcServer(Server):
    """What all gRPC connections of one listener share."""

    def __init__(
        self,
        answering: Answering,
        door: GrpcDoor,
        bounds: Listen,
        loop: asyncio.AbstractEventLoop,
        welcome: Welcome = everybody,
    ) -> None:
        super().__init__(_no_http, _no_problem, bounds, loop, welcome=welcome)
        self.answering, self.turn_away = answering, door

    def connection(self, place: Place) -> "GrpcConnection":
        """The protocol of a new connection."""
        return GrpcConnection(place, self)


async def _no_http(_request: object) -> Response:
    raise AssertionError("a gRPC connection has no HTTP/1.1 requests")


def _no_problem(refused: BadRequest) -> Response:
    return Response(refused.status)


class _Stream:
    """One call under way. Its states: message → handled → sending."""

    def __init__(self, number: int, path: bytes, headers: dict[bytes, bytes], deadline: float) -> None:
        self.number, self.path, self.headers, self.deadline = number, path, headers, deadline
        self.parts: list[bytes] = []
        self.head, self.size = sum(len(name) + len(value) for name, value in headers.items()), 0
        self.task: asyncio.Task[None] | None = None
        self.unsent = memoryview(b"")
        self.trailers: list[tuple[bytes, bytes]] | None = None


class _Http2(H2Connection):
    """h2, but that a client's GOAWAY ends no call under way: those want their answers (RFC 9113, section 6.8)."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = ErrorCodes.NO_ERROR, frame.last_stream_id
        return [], [event]


class GrpcConnection(asyncio.Protocol):
    """One connection: a table of streams, each with the deadline of what it waits for."""

    def __init__(self, place: Place, server: GrpcServer) -> None:
        self._place, self._server = place, server
        self._bounds, self._loop = server.bounds, server.loop
        self._h2 = _Http2(H2Configuration(client_side=False, header_encoding=False))
        limits = {
            SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: self._bounds.max_head,
            SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
            SettingCodes.ENABLE_PUSH: 0,
        }
        self._h2.local_settings = Settings(client=False, initial_values=limits)
        self._h2.decoder.max_header_list_size = self._bounds.max_head
        self._streams: dict[int, _Stream] = {}
        self._tasks = 0
        self._grace = 0.0
        self._idle_frames = 0
        self._transport: Any = None
        self._certificate: Certificate | None = None
        self._closing = self._leaving = self._writing_paused = False
        self._idle_until = self._stuck_until = NEVER
        self.deadline = NEVER

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
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        self._flush()
        self._idle_until = self._loop.time() + self._bounds.header_seconds
        self._plan()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Forget the connection. A call whose record is under way is finished, its answer goes nowhere."""
        self._closing = True
        self.deadline = NEVER
        for stream in list(self._streams.values()):
            self._forget(stream)
        self._server.connections.discard(self)
        self._place.leave()

    def data_received(self, data: bytes) -> None:
        """Understand what arrived. A connection that breaks HTTP/2 is told so and closed."""
        if self._closing:
            return
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except H2Error:
            self._end()
            return
        if self._idle_frames > IDLE_FRAMES:
            self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)
            self._end()
            return
        self._flush()
        self._plan()

    def eof_received(self) -> bool:
        """The client closed its half: so do we."""
        return False

    def pause_writing(self) -> None:
        """The client reads too slowly: it has ``write_seconds`` to catch up, and until then it is not listened to."""
        self._writing_paused = True
        self._stuck_until = self._loop.time() + self._bounds.write_seconds
        self._transport.pause_reading()
        self._plan()

    def resume_writing(self) -> None:
        """The client caught up."""
        self._writing_paused = False
        if not self._closing:
            self._transport.resume_reading()
            self._send_on()

    # -- what h2 understood --

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._receive(event)
        elif isinstance(event, StreamEnded | TrailersReceived):
            stream = self._streams.get(event.stream_id or 0)
            if isinstance(event, StreamEnded) and stream is not None and stream.task is None and stream.trailers is None:
                self._handle(stream)
        elif isinstance(event, StreamReset):
            self._idle_frames += 1
            if stream := self._streams.get(event.stream_id or 0):
                self._forget(stream)
        else:
            self._idle_frames += 1
            if isinstance(event, WindowUpdated | RemoteSettingsChanged):
                self._send_on()
            elif isinstance(event, ConnectionTerminated):
                self._leaving = True
            elif isinstance(event, PingReceived):
                self._flush()  # answered one by one: what waits for the socket stays small

    def _begin(self, event: RequestReceived) -> None:
        """The metadata of a call is whole: whether its message is read at all is decided here."""
        number, headers, twice = event.stream_id or 0, dict[bytes, bytes](), False
        for name, value in event.headers or ():
            twice = twice or (name in headers and name in _ONCE)
            headers[bytes(name)] = bytes(value)
        headers.setdefault(b"host", headers.get(b":authority", b""))
        if self._leaving or self._tasks >= STREAMS:
            self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        stream = _Stream(number, headers.get(b":path", b""), headers, self._loop.time() + self._bounds.body_seconds)
        self._streams[number] = stream
        self._server.buffered += stream.head  # 64 heads of one connection are as much as many a body
        kind = headers.get(b"content-type", b"")
        if headers[b":method"] != b"POST" or not (kind == _GRPC or kind[:17] in (b"application/grpc+", b"application/grpc;")):
            self._respond(stream, [(b":status", b"415")])
        elif twice or len(headers) > self._bounds.max_headers:
            self._answer(stream, refusal(INVALID, "invalid", _TWICE))
        elif self._server.buffered > self._bounds.max_buffered:
            self._answer(stream, _CROWDED)
        elif headers.get(b"grpc-encoding", b"identity") != b"identity":
            self._answer(stream, refusal(UNIMPLEMENTED, "invalid", "messages are not taken compressed: send them as they are"))
        elif turned_away := self._server.turn_away(stream.path, headers, self._certificate, self._place.address):
            self._answer(stream, turned_away)

    def _receive(self, event: DataReceived) -> None:
        """A part of a message."""
        number, data = event.stream_id or 0, event.data or b""
        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
        if not data:
            self._idle_frames += 1
        stream = self._streams.get(number)
        if stream is None or stream.task is not None or stream.trailers is not None:
            return
        if stream.size + len(data) > self._bounds.max_body + _PREFIX or len(stream.parts) >= self._bounds.max_parts:
            detail = f"the message is larger than {self._bounds.max_body} bytes"
            self._answer(stream, refusal(EXHAUSTED, "too-large", detail))
        elif self._server.buffered + len(data) > self._bounds.max_buffered:
            self._answer(stream, _CROWDED)
        else:
            stream.parts.append(data)
            stream.size += len(data)
            self._server.buffered += len(data)

    # -- answering --

    def _handle(self, stream: _Stream) -> None:
        """The message is whole: hand the call over."""
        body = b"".join(stream.parts)
        stream.parts = []
        if len(body) < _PREFIX or int.from_bytes(body[1:_PREFIX], "big") != len(body) - _PREFIX or body[0] > 1:
            self._answer(stream, refusal(INVALID, "invalid", "the call does not carry exactly one message"))
            return
        if body[0]:
            self._answer(stream, refusal(UNIMPLEMENTED, "invalid", "messages are not taken compressed: send them as they are"))
            return
        deadline = self._loop.time() + min(self._bounds.handle_seconds, timeout_of(stream.headers))
        stream.deadline = NEVER  # until the task has begun: one that is cancelled before does nothing at all, nor cleans up
        call = GrpcCall(stream.path, stream.headers, body[_PREFIX:], self._place.address, self._certificate)
        held = stream.head + stream.size  # counted until the call is done, also when its client has left meanwhile
        stream.head = stream.size = 0
        self._tasks += 1
        stream.task = self._loop.create_task(self._run(stream, call, held, deadline))

    async def _run(self, stream: _Stream, call: GrpcCall, held: int, deadline: float) -> None:
        stream.deadline = deadline
        self._plan()
        reply = refusal(DEADLINE, "unavailable", "the call was not finished in time")
        try:
            reply = await self._server.answering(call)
        except Exception:
            reply = refusal(INTERNAL, "error", "the call failed")
            raise
        finally:
            self._tasks -= 1
            self._server.buffered -= held
            if self._streams.get(stream.number) is stream and not self._closing:
                self._answer(stream, reply)
                self._flush()
                self._plan()

    def _answer(self, stream: _Stream, reply: GrpcReply) -> None:
        """Send an answer; a refusal may come before the message did."""
        if self._gone(stream):
            return
        trailers = [(b"grpc-status", b"%d" % reply.status), *reply.trailers]
        if reply.detail:
            trailers.append((b"grpc-message", quote_from_bytes(reply.detail.encode(), safe=_PLAIN).encode()))
        if reply.message is None:
            self._respond(stream, [(b":status", b"200"), (b"content-type", _GRPC), *trailers])
            return
        self._free(stream)
        self._h2.send_headers(stream.number, [(b":status", b"200"), (b"content-type", _GRPC)])
        stream.unsent = memoryview(b"\0" + len(reply.message).to_bytes(4, "big") + reply.message)
        stream.trailers = trailers
        stream.deadline = self._loop.time() + self._bounds.write_seconds
        self._send(stream)

    def _respond(self, stream: _Stream, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer with headers alone; what still comes of the message is not wanted."""
        if self._gone(stream):
            return
        self._h2.send_headers(stream.number, headers, end_stream=True)
        self._finish(stream)

    def _gone(self, stream: _Stream) -> bool:
        """Whether the client reset the call: h2 knows that before we are told, when it came together with other frames."""
        found = self._h2.streams.get(stream.number)
        if found is not None and not found.closed:
            return False
        self._forget(stream)
        return True

    def _send(self, stream: _Stream) -> None:
        """Send of an answer what the client has room for; its trailers after it."""
        if self._gone(stream):
            return
        while stream.unsent and not self._writing_paused:
            room = min(self._h2.local_flow_control_window(stream.number), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            self._h2.send_data(stream.number, bytes(stream.unsent[:room]))
            stream.unsent = stream.unsent[room:]
            self._flush()
        if not stream.unsent and stream.trailers is not None:
            self._h2.send_headers(stream.number, stream.trailers, end_stream=True)
            self._finish(stream)

    def _send_on(self) -> None:
        """There is room again: go on with every answer that waits for it."""
        for stream in [stream for stream in self._streams.values() if stream.trailers is not None]:
            self._send(stream)
        self._flush()
        self._plan()

    def _finish(self, stream: _Stream) -> None:
        """The answer is sent whole."""
        self._idle_frames = 0
        if not self._h2.streams[stream.number].closed:
            self._h2.reset_stream(stream.number, ErrorCodes.NO_ERROR)  # RFC 9113, section 8.1: no need to send the rest
        self._forget(stream)

    def _free(self, stream: _Stream) -> None:
        self._server.buffered -= stream.head + stream.size
        stream.parts, stream.head, stream.size = [], 0, 0

    def _forget(self, stream: _Stream) -> None:
        self._free(stream)
        self._streams.pop(stream.number, None)
        if stream.task is not None and stream.task in WAITING:  # nothing is recorded yet, and nobody is there to be answered
            stream.task.cancel()
        if not self._streams:
            self._idle_until = self._loop.time() + (self._grace if self._leaving else self._bounds.idle_seconds)

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)

    # -- deadlines and stopping --

    def _plan(self) -> None:
        """Set the deadline for what the connection now waits for."""
        if self._closing:
            return
        if self._writing_paused:
            self.deadline = self._stuck_until
        elif self._streams:
            self.deadline = min(stream.deadline for stream in self._streams.values())
        else:
            self.deadline = self._idle_until

    def overdue(self) -> None:
        """A deadline passed: end the calls that are late, or the connection that waits for nothing."""
        if self._closing or self._writing_paused:
            self.abort()
            return
        now = self._loop.time()
        if not self._streams:
            if not self._leaving:
                self._go_away(ErrorCodes.NO_ERROR)
            self._end()
            return
        for stream in [stream for stream in self._streams.values() if stream.deadline <= now]:
            if self._gone(stream):
                continue
            if stream.trailers is not None:  # a reader that does not read
                self._h2.reset_stream(stream.number, ErrorCodes.CANCEL)
                self._forget(stream)
            elif stream.task is not None:
                stream.deadline = NEVER
                stream.task.cancel()
            else:
                self._answer(stream, refusal(DEADLINE, "too-slow", "the call's message came too slowly"))
        self._flush()
        self._plan()

    def begin_drain(self, grace: float) -> None:
        """Take no new call, and close once those that have begun are answered; an idle connection after ``grace`` seconds."""
        if self._closing:
            return
        self._leaving, self._grace = True, grace
        self._go_away(ErrorCodes.NO_ERROR)
        self._idle_until = self._loop.time() + grace
        self._plan()

    def _go_away(self, code: ErrorCodes) -> None:
        """Say that no further call is taken. Not h2's own word for it, which would end the calls under way as well."""
        frame = GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=code)
        self._flush()
        self._transport.write(frame.serialize())

    def _end(self) -> None:
        """Say what is left to say and close; cut it if the client does not read that."""
        self._flush()
        self._closing = True
        self.deadline = self._loop.time() + self._bounds.linger_seconds
        self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._closing = True
        self.deadline = NEVER
        self._transport.abort()


_PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What ``grpc-message`` leaves as it is: printable ASCII but for the percent sign."""


def timeout_of(headers: dict[bytes, bytes]) -> float:
    """Seconds that the client gives the call (``grpc-timeout``); for ever when it does not say so well."""
    found = _TIMEOUT.match(headers.get(b"grpc-timeout", b""))
    return int(found[1]) * _SECONDS[found[2]] if found else NEVER
