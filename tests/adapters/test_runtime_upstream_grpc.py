"""The way to an upstream over gRPC, against one that lies, stalls and breaks off."""

import asyncio
import struct
from contextlib import asynccontextmanager

import numpy as np
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset

from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.dialling import Callee, LinkBounds
from modelkeep.adapters.runtime.upstream_grpc import GrpcLink
from modelkeep.core.values import TensorSpec
from modelkeep.errors import Unavailable
from modelkeep.formats.upstream import Upstream, parse_url
from modelkeep.serving.breaker import Thresholds
from modelkeep.serving.protobuf import fields, write_bytes, write_text, write_varints
from modelkeep.workflows.upstream import Patience, RemoteModel

FEEDS = {"x": np.array([[1.0, 2.0]], np.float32)}
ENDS = {"inputs": (TensorSpec("x", "FP32", (-1, 2)),), "outputs": (TensorSpec("p", "FP32", (-1, 2)),)}
HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
FINE = [(b"grpc-status", b"0")]


class Peer(asyncio.Protocol):
    """One connection to a gRPC server that does ``act(peer, stream, message)`` for each call."""

    def __init__(self, server, act):
        self.server, self.act = server, act
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.heads, self.bodies = {}, {}

    def connection_made(self, transport):
        self.transport = transport
        self.server.visits.append(self)
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self.heads[event.stream_id], self.bodies[event.stream_id] = dict(event.headers), b""
            elif isinstance(event, DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.server.asked.append((self.heads[event.stream_id], self.bodies[event.stream_id]))
                self.act(self, event.stream_id, self.bodies[event.stream_id][5:])
            elif isinstance(event, StreamReset):
                self.server.reset.set()
        self.flush()

    def connection_lost(self, exc):
        self.server.reset.set()

    def answer(self, stream, body, trailers=FINE, head=HEAD):
        self.h2.send_headers(stream, head)
        at = 0
        while at < len(body) and (room := min(16_384, self.h2.local_flow_control_window(stream))):
            self.h2.send_data(stream, body[at : at + room])
            at += room
        if at >= len(body):
            self.h2.send_headers(stream, trailers, end_stream=True)


class Server:
    def __init__(self):
        self.visits, self.asked, self.reset = [], [], asyncio.Event()


@asynccontextmanager
async def against(act, *, seconds=5.0):
    server = Server()
    listening = await asyncio.get_running_loop().create_server(lambda: Peer(server, act), "127.0.0.1", 0)
    url = f"grpc://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    model = RemoteModel(
        Upstream(url=url, model="m", **ENDS),
        lambda: GrpcLink(Callee(parse_url(url)), lambda: "s3cret", LinkBounds(max_answer=100_000)),
        SystemClock(),
        SystemEntropy(),
        patience=Patience(seconds, 8, 64),
        thresholds=Thresholds(failures=50),
    )
    try:
        yield model, server
    finally:
        model.close()
        for visit in server.visits:
            visit.transport.abort()
        listening.close()


def run(story):
    asyncio.run(asyncio.wait_for(story, 30))


def true_answer(message, **more):
    said = {number: bytes(value) for number, _, value in fields(memoryview(message))}
    rows = len(said[7]) // 8
    tensor = write_text(1, "p") + write_text(2, "FP32") + write_bytes(3, write_varints(np.array([rows, 2], np.uint64)))
    request_id = more.get("request_id", said[3].decode())
    return write_text(3, request_id) + write_bytes(5, tensor) + write_bytes(6, struct.pack("<2f", 0.25, 0.75) * rows)


def prefixed(message, flag=0):
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def honest(peer, stream, message):
    peer.answer(stream, prefixed(true_answer(message)))


def test_calls_share_a_connection_and_carry_what_they_must():
    async def story():
        async with against(honest) as (model, server):
            found = await asyncio.gather(*(model.infer(FEEDS) for _ in range(20)))
            assert all(one["p"].tolist() == [[0.25, 0.75]] for one in found)
            assert len(server.visits) == 1
            head = server.asked[0][0]
            assert head[b":path"] == b"/inference.GRPCInferenceService/ModelInfer" and head[b":method"] == b"POST"
            assert head[b"authorization"] == b"Bearer s3cret" and head[b"te"] == b"trailers"
            large = {"x": np.ones((4000, 2), np.float32)}  # larger than a frame, and its answer, too
            assert (await model.infer(large))["p"].shape == (4000, 2)

    run(story())


def says(body, trailers=FINE, head=HEAD):
    return lambda peer, stream, message: peer.answer(stream, body(message), trailers, head)


def resets(peer, stream, _message):
    peer.h2.reset_stream(stream, 2)


def hangs_up(peer, _stream, _message):
    peer.transport.close()


def leaves(peer, _stream, _message):
    peer.h2.close_connection()


def garbage(peer, _stream, _message):
    peer.transport.write(b"\x00\x00\x01\x03\x00\x00\x00\x00\x00\x00")  # RST_STREAM of the wrong size


def floods(peer, _stream, _message):
    for _ in range(12_000):
        peer.h2.ping(b"12345678")


LIES = {
    "another-id": (says(lambda m: prefixed(true_answer(m, request_id="0"))), "another request"),
    "two-messages": (says(lambda m: prefixed(true_answer(m)) * 2), "not exactly one message"),
    "no-message": (says(lambda m: b""), "not exactly one message"),
    "compressed": (says(lambda m: prefixed(true_answer(m), 1)), "not exactly one message"),
    "cut": (says(lambda m: prefixed(true_answer(m))[:-1]), "not exactly one message"),
    "no-status": (says(lambda m: prefixed(true_answer(m)), [(b"x", b"y")]), "no gRPC status"),
    "status-twice": (says(lambda m: prefixed(true_answer(m)), [*FINE, (b"grpc-status", b"13")]), "twice"),
    "odd-status": (says(lambda m: b"", [(b"grpc-status", b"-1")]), "no gRPC status"),
    "broken": (says(lambda m: b"", [(b"grpc-status", b"13"), (b"grpc-message", b"boom")]), "status 13: boom"),
    "huge": (says(lambda m: prefixed(b"\0" * 200_000)), "larger than 100000 bytes"),
    "no-grpc": (says(lambda m: b"<html>", FINE, [(b":status", b"404"), (b"content-type", b"text/html")]), "not speak gRPC"),
    "resets": (resets, "broke the call off"),
    "hangs-up": (hangs_up, "ended before its answer did"),
    "leaves": (leaves, "ended before its answer did"),
    "garbage": (garbage, "not well-formed HTTP/2"),
    "floods": (floods, "belong to no answer"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_over_grpc_is_unavailable(name):
    act, why = LIES[name]

    async def story():
        async with against(act) as (model, server):
            with pytest.raises(Unavailable, match=why):
                await model.infer(FEEDS)
            assert len(server.asked) == 1  # and it is not sent a second time
            with pytest.raises(Unavailable):
                await model.infer(FEEDS)

    run(story())


def test_silence_ends_with_the_time_and_its_connection_is_not_used_again():
    async def story():
        async with against(lambda *_: None, seconds=0.8) as (model, server):
            for _ in range(3):
                with pytest.raises(Unavailable, match=r"within 0\.8 s"):
                    await model.infer(FEEDS)
            assert len(server.visits) == 3 - 1  # of the first, the settings came while somebody waited

    run(story())


def test_who_goes_away_takes_the_call_along():
    async def story():
        async with against(lambda *_: None) as (model, server):
            asking = asyncio.ensure_future(model.infer(FEEDS))
            while not server.asked:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.wait([asking])
            await server.reset.wait()
            assert asking.cancelled() and model.readings.failures == 0

    run(story())
