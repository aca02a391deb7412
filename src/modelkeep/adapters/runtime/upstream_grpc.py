"""The way to an upstream server over gRPC: one connection for all calls, bounds on everything, and no second try.

HTTP/2 itself is the h2 library's (extra ``modelkeep[grpc]``). Unary calls only. A call that is cancelled is reset, and one that
breaks the rules ends the connection. Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md); RFC 9113.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    PushedStreamReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes

from modelkeep.adapters.dialling import Callee, Dialled, LinkBounds, dial
from modelkeep.core.ports import Reply
from modelkeep.errors import Unavailable

IDLE_FRAMES = 10_000
"""Frames that belong to no answer (pings, settings, window updates) that a server may send between two answers."""
_PREFIX = 5
_MAX_FIELDS = 128
_LOST = "the connection ended before its answer did"
_WINDOW = 1 << 20


@dataclass
class GrpcLink:
    """``Link`` to the server ``callee``. ``token``: gives the bearer token, "" = none, for every connection that is made.

    A reply's status is the gRPC status code; ``method`` of a request is of no account, its ``headers`` are metadata.
    """

    callee: Callee
    token: Callable[[], str] = lambda: ""
    bounds: LinkBounds = field(default_factory=LinkBounds)
    _current: "_Calls | None" = None
    _dialling: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def request(
        self,
        method: bytes,  # noqa: ARG002  # the port's
        path: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> Reply:
        """Call once. Raises Unavailable, NotTrusted (not the server that was meant)."""
        async with self._dialling:
            connection = self._current
            if connection is None or connection.full:
                connection = self._current = await self._connect()
        return await connection.call(path, headers, body)

    def close(self) -> None:
        """Let go of the connection."""
        if self._current is not None:
            self._current.abort()
            self._current = None

    async def _connect(self) -> "_Calls":
        token, place = self.token(), self.callee.place
        head = [
            (b":method", b"POST"),
            (b":scheme", b"https" if place.secure else b"http"),
            (b":authority", place.authority.encode("ascii")),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        if token:
            head.append((b"authorization", b"Bearer " + token.encode("ascii")))
        return await dial(self.callee, self.bounds, lambda: _Calls(head, self.bounds.max_answer))


class _Call:
    """One call under way."""

    def __init__(self, answered: "asyncio.Future[Reply]") -> None:
        self.answered = answered
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.size = 0


class _Calls(Dialled):
    """One connection, and the calls on it."""

    def __init__(self, head: list[tuple[bytes, bytes]], max_answer: int) -> None:
        """``head``: the header fields that every call has."""
        super().__init__()
        self._head, self._max = head, max_answer
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._calls: dict[int, _Call] = {}
        self._room = asyncio.Event()
        self._idle_frames = self._heard = 0
        self._silent = False

    @property
    def full(self) -> bool:
        """No further call can be made on it."""
        return self.lost or self._silent or self._h2.highest_outbound_stream_id > (1 << 30)

    async def call(self, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Reply:
        """One call and its answer. Raises Unavailable."""
        call = _Call(asyncio.get_running_loop().create_future())
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, [*self._head[:3], (b":path", path.encode("ascii")), *self._head[3:], *headers])
        except H2Error:
            raise Unavailable("it takes no more calls on this connection") from None
        self._calls[number], heard = call, self._heard
        try:
            await self._send(number, call, b"\0" + len(body).to_bytes(4, "big") + body)
            return await call.answered
        finally:
            del self._calls[number]
            self._reset(number, call)
            # Nothing at all came while somebody waited in vain: the other end may be gone, and nobody would say so.
            self._silent = self._silent or (heard == self._heard and not _answered(call))
            if self._silent and not self._calls:
                self.abort()

    async def _send(self, number: int, call: _Call, message: bytes) -> None:
        """Send the message as the server makes room for it; stop when it has answered already."""
        left = memoryview(message)
        while left and not call.answered.done():
            try:
                room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size, len(left))
                if room > 0:
                    self._h2.send_data(number, bytes(left[:room]), end_stream=room == len(left))
                    left = left[room:]
                    self._flush()
                    continue
            except H2Error:
                raise Unavailable(_LOST) from None
            self._room.clear()
            await self._room.wait()

    def _reset(self, number: int, call: _Call) -> None:
        """Tell the server that nobody waits for the answer any more, unless it came."""
        if _answered(call):
            return
        try:
            self._h2.reset_stream(number, ErrorCodes.CANCEL)
            self._flush()
        except H2Error:
            pass  # it is over for the server, too

    def _flush(self) -> None:
        if not self.lost:
            self._transport.write(self._h2.data_to_send())

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        super().connection_made(transport)
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW})
        self._h2.increment_flow_control_window(_WINDOW)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """It is gone, and so is every answer that was not whole."""
        self._end(_LOST)

    def data_received(self, data: bytes) -> None:
        """Understand what arrived."""
        self._heard += 1
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except H2Error:
            self._end("its answer is not well-formed HTTP/2")
            return
        if self._idle_frames > IDLE_FRAMES:
            self._end("it sends frames that belong to no answer")
            return
        self._flush()

    def _take(self, event: Event) -> None:
        call = self._calls.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, ResponseReceived | TrailersReceived):
            self._head_of(call, event)
        elif isinstance(event, DataReceived):
            self._data(call, event)
        elif isinstance(event, StreamEnded):
            if call is not None:
                self._answer(call)
        elif isinstance(event, StreamReset):
            _fail(call, "it broke the call off")
        elif isinstance(event, ConnectionTerminated):
            self._end(_LOST)
        elif isinstance(event, PushedStreamReceived | InformationalResponseReceived):
            _fail(call, "it answers with what no call has")
        else:
            self._idle_frames += 1
            if isinstance(event, WindowUpdated | RemoteSettingsChanged):
                self._room.set()

    def _head_of(self, call: _Call | None, event: ResponseReceived | TrailersReceived) -> None:
        if call is None:
            return
        for name, value in ((bytes(name), bytes(value)) for name, value in event.headers or ()):
            if (name in call.headers and name.startswith(b"grpc-")) or len(call.headers) >= _MAX_FIELDS:
                _fail(call, "its answer has header fields twice, or too many")
            call.headers[name] = value

    def _data(self, call: _Call | None, event: DataReceived) -> None:
        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        data = event.data or b""
        if call is None or not data:
            self._idle_frames += 1
            return
        call.size += len(data)
        if call.size > self._max + _PREFIX or len(call.parts) > 65_536:
            _fail(call, f"its answer is larger than {self._max} bytes")
        else:
            call.parts.append(data)

    def _answer(self, call: _Call) -> None:
        """The call is over: one message, or a status that says why there is none."""
        self._idle_frames = 0
        self._room.set()  # whoever still sends the message need not
        headers, body = call.headers, b"".join(call.parts)
        status = headers.get(b"grpc-status", b"")
        if headers.get(b":status") != b"200" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            http = headers.get(b":status", b"")[:3].decode("ascii", "replace")
            _fail(call, f"it does not speak gRPC: it answers with status {http}")
        elif not status.isdigit() or len(status) > 3:
            _fail(call, "its answer has no gRPC status")
        elif status == b"0" and not _is_one_message(body):
            _fail(call, "its answer is not exactly one message, as it is")
        elif not call.answered.done():
            call.answered.set_result(Reply(int(status), headers, body[_PREFIX:]))

    def _end(self, why: str) -> None:
        """The connection is of no more use."""
        for call in self._calls.values():
            _fail(call, why)
        self._room.set()
        self.abort()


def _answered(call: _Call) -> bool:
    return call.answered.done() and not call.answered.cancelled() and call.answered.exception() is None


def _is_one_message(body: bytes) -> bool:
    """Whether ``body`` is one message with its prefix, not compressed."""
    return len(body) >= _PREFIX and not body[0] and int.from_bytes(body[1:_PREFIX], "big") == len(body) - _PREFIX


def _fail(call: _Call | None, why: str) -> None:
    if call is not None and not call.answered.done():
        call.answered.set_exception(Unavailable(why))
