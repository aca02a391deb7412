"""A gRPC server on a plain socket, in a thread of its own, and a client that sends exactly the frames it is told to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from http_support import Running

from modelkeep.http.grpc import GrpcCall, GrpcReply, GrpcServer, refusal

HEAD = [
    (":method", "POST"), (":scheme", "https"), (":path", "/a"), (":authority", "here"), ("te", "trailers"),
    ("content-type", "application/grpc"),
]  # fmt: skip


def message(data: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


class Echo:
    """Says a message back; ``/slow`` waits for ``go``, ``/broken`` fails, ``/big`` says more than a window."""

    def __init__(self) -> None:
        self.calls: list[GrpcCall] = []
        self.begun, self.go = threading.Event(), threading.Event()

    async def __call__(self, call: GrpcCall) -> GrpcReply:
        import asyncio

        self.calls.append(call)
        self.begun.set()
        if call.path == b"/slow":
            while not self.go.is_set():
                await asyncio.sleep(0.01)
        if call.path == b"/broken":
            raise ZeroDivisionError
        if call.path == b"/refused":
            return refusal(9, "quarantined", "iris@1 is 100% in quarantine: ä")
        body = b"x" * 3_000_000 if call.path == b"/big" else call.message
        return GrpcReply(0, body, trailers=((b"modelkeep-record", b"i/1"),))


def door(path: bytes, _headers: dict[bytes, bytes], _certificate: object, _address: str) -> GrpcReply | None:
    return refusal(12, "missing", "no such method") if path == b"/nothing" else None


class Speaking(Running):
    """A gRPC server that runs; ``stop`` drains it."""

    def __init__(self, **listen) -> None:
        self.echo = Echo()
        super().__init__(**listen)

    def make(self, listen, loop) -> GrpcServer:
        return GrpcServer(self.echo, door, listen, loop)


class Peer:
    """One connection of a client."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()
        self.head: dict[int, dict] = {}
        self.data: dict[int, bytes] = {}
        self.trailers: dict[int, dict] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.goaway: int | None = None
        self.closed, self.unread = False, b""
        self.greedy = True  # windows are opened again as data comes

    def flush(self) -> None:
        with suppress(OSError):  # what the server said before it closed can still be read
            self.socket.sendall(self.h2.data_to_send())

    def call(self, data: bytes | None = b"", path: str = "/a", *, end: bool = True, **more: str) -> int:
        """Begin a call; ``data`` as the DATA frames carry it, None for none. Its stream."""
        number = self.h2.get_next_available_stream_id()
        fields = {**dict(HEAD), ":path": path, **{name.replace("_", "-"): value for name, value in more.items()}}
        self.h2.send_headers(number, list(fields.items()), end_stream=data is None and end)
        self.flush()
        if data is not None:
            self.send(number, data, end=end)
        return number

    def send(self, number: int, data: bytes, *, end: bool = True) -> None:
        rest = data
        while rest or not data:
            part, rest = rest[:16_000], rest[16_000:]
            while self.h2.local_flow_control_window(number) < len(part):
                self.read()
            self.h2.send_data(number, part, end_stream=end and not rest)
            self.flush()
            if not rest:
                return

    def read(self) -> None:
        """Take one part of what the server says."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        self.unread += data
        for event in self.h2.receive_data(self._frames()):
            if isinstance(event, ResponseReceived):
                self.head[event.stream_id] = dict(event.headers)
            elif isinstance(event, DataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                if self.greedy:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, TrailersReceived):
                self.trailers[event.stream_id] = dict(event.headers)
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, StreamReset):
                self.reset[event.stream_id] = event.error_code
        self.flush()

    def _frames(self) -> bytes:
        """What is whole of what came, without GOAWAY: h2 as a client would not go on with its calls after that."""
        whole = b""
        while len(self.unread) >= 9:
            size = 9 + int.from_bytes(self.unread[:3], "big")
            if len(self.unread) < size:
                break
            frame, self.unread = self.unread[:size], self.unread[size:]
            if frame[3] == 7:
                self.goaway = int.from_bytes(frame[13:17], "big")
            else:
                whole += frame
        return whole

    def finish(self, *numbers: int) -> None:
        """Read until these calls are over, one way or the other, or the connection is."""
        while not self.closed and not all(n in self.ended or n in self.reset for n in numbers):
            self.read()

    def until_closed(self) -> None:
        while not self.closed:
            self.read()

    def status(self, number: int) -> int:
        """The gRPC status of a call."""
        self.finish(number)
        return int({**self.head[number], **self.trailers.get(number, {})}["grpc-status"])


@contextmanager
def peer(server: Speaking, timeout: float = 10.0) -> Iterator[Peer]:
    with server.connect(timeout) as connection:
        yield Peer(connection)
