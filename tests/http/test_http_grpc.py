"""gRPC on a socket: what a well-behaved client gets, and what the others get."""

import socket
import threading
import time

import pytest
from grpc_support import HEAD, Peer, Speaking, message, peer
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from http_support import QUICK
from hyperframe.frame import ContinuationFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.http.grpc import IDLE_FRAMES, STREAMS, GrpcConnection, timeout_of


def served(**listen):
    running = Speaking(**listen)
    yield running
    running.stop()
    assert [one for one in running.errors if not isinstance(one.get("exception"), ZeroDivisionError)] == []


@pytest.fixture(scope="module")
def server():
    """A server that closes nothing for being slow: what is closed here, is closed for what it sent."""
    yield from served(**{**QUICK, "header_seconds": 60.0, "body_seconds": 60.0, "idle_seconds": 60.0, "write_seconds": 60.0})


@pytest.fixture(scope="module")
def hasty():
    """A server that waits for nobody."""
    yield from served(**QUICK)


@pytest.fixture
def echo(server):
    server.echo.begun.clear()
    server.echo.go.clear()
    server.echo.calls.clear()
    yield server.echo
    server.echo.go.set()


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_unary_call(server, echo):
    with peer(server) as client:
        number = client.call(message(b"hello"), authorization="Bearer k")
        assert client.status(number) == 0
        assert client.head[number] == {":status": "200", "content-type": "application/grpc"}
        assert client.data[number] == message(b"hello")
        assert client.trailers[number] == {"grpc-status": "0", "modelkeep-record": "i/1"}
    (call,) = echo.calls
    assert (call.path, call.message, call.address) == (b"/a", b"hello", "127.0.0.1")
    assert call.headers[b"authorization"] == b"Bearer k"


def test_calls_of_one_connection_do_not_wait_for_each_other(server, echo):
    with peer(server) as client:
        slow = client.call(message(b"1"), "/slow")
        assert echo.begun.wait(60)
        quick = [client.call(message(b"%d" % n)) for n in range(10)]
        client.finish(*quick)
        assert slow not in client.ended and all(client.status(n) == 0 for n in quick)
        echo.go.set()
        assert client.status(slow) == 0


def test_a_refusal_is_a_status_with_its_code_and_a_sentence(server):
    """grpc-message is percent-encoded (PROTOCOL-HTTP2.md, "Responses")."""
    with peer(server) as client:
        number = client.call(message(b""), "/refused")
        assert client.status(number) == 9 and number not in client.data
        assert client.head[number]["modelkeep-code"] == "quarantined"
        assert client.head[number]["grpc-message"] == "iris@1 is 100%25 in quarantine: %C3%A4"


def test_a_call_that_breaks_is_internal_and_says_nothing(server):
    with peer(server) as client:
        number = client.call(message(b""), "/broken")
        assert client.status(number) == 13 and "division" not in str(client.head)
        assert client.status(client.call(message(b"a"))) == 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 3), (None, 3), (b"\0\0\0\0", 3), (b"\0\0\0\0\2a", 3), (b"\0\0\0\0\1ab", 3), (message(b"a") * 2, 3),
        (message(b"a", flag=1), 12), (message(b"a", flag=2), 3), (b"\0\xff\xff\xff\xff", 3),
    ],
)  # fmt: skip
def test_a_call_carries_exactly_one_message(server, echo, data, status):
    with peer(server) as client:
        assert client.status(client.call(data)) == status
    assert echo.calls == []


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"content_type": "application/json"}, "415"),
        ({"content_type": "application/grpcx"}, "415"),
        ({":method": "GET"}, "415"),
    ],
)
def test_what_is_no_grpc_is_415(server, echo, more, status):
    with peer(server) as client:
        number = client.call(message(b"a"), **more)
        client.finish(number)
        assert client.head[number][":status"] == status
    assert echo.calls == []


@pytest.mark.parametrize("kind", ["application/grpc+proto", "application/grpc;x=1"])
def test_other_names_of_grpc(server, kind):
    with peer(server) as client:
        assert client.status(client.call(message(b"a"), content_type=kind)) == 0


def test_what_is_turned_away_is_answered_before_its_message(server, echo):
    with peer(server) as client:
        number = client.call(b"", "/nothing", end=False)
        assert client.status(number) == 12 and client.head[number]["modelkeep-code"] == "missing"
        gzip = client.call(b"", grpc_encoding="gzip", end=False)
        assert client.status(gzip) == 12
        for n in (number, gzip):
            client.finish(n)
        assert client.status(client.call(message(b"a"))) == 0
    assert len(echo.calls) == 1


def test_two_credentials_are_refused(server, echo):
    with peer(server) as client:
        number = client.h2.get_next_available_stream_id()
        client.h2.send_headers(number, [*HEAD, ("authorization", "Bearer a"), ("authorization", "Bearer b")])
        client.flush()
        assert client.status(number) == 3
    assert echo.calls == []


def test_a_message_that_is_too_large(server, echo):
    with peer(server) as client:
        fits = b"a" * QUICK["max_body"]
        assert client.status(client.call(message(fits))) == 0
        number = client.call(b"", end=False)
        try:
            client.send(number, message(fits + b"a"), end=False)
        except Exception:  # it was reset under way
            client.finish(number)
        assert client.status(number) == 8 and client.head[number]["modelkeep-code"] == "too-large"
    assert len(echo.calls) == 1
    wait_for(lambda: server.server.buffered == 0)


def test_a_message_that_comes_too_slowly(hasty):
    with peer(hasty) as client:
        number = client.call(message(b"ab")[:3], end=False)
        assert client.status(number) == 4 and client.head[number]["modelkeep-code"] == "too-slow"
        assert client.status(client.call(message(b"a"))) == 0
    wait_for(lambda: hasty.server.buffered == 0)


def test_the_clients_deadline_ends_the_call(server, echo):
    with peer(server) as client:
        number = client.call(message(b"a"), "/slow", grpc_timeout="100m")
        assert client.status(number) == 4
        assert client.status(client.call(message(b"a"))) == 0


class Swept(GrpcConnection):
    """A connection that the sweep looks at right behind every part that comes, as it does four times a second."""

    def data_received(self, data):
        super().data_received(data)
        if self.deadline <= self._loop.time():
            self.overdue()


def test_a_deadline_that_is_over_before_the_call_begins(monkeypatch):
    """Its task was cancelled before its first step, so nothing answered it, and its bytes were counted for ever."""
    running = Speaking()
    monkeypatch.setattr(running.server, "connection", lambda place: Swept(place, running.server))
    running.echo.go.set()
    try:
        with peer(running) as client:
            for _ in range(3):
                number = client.call(message(b"a" * 1000), grpc_timeout="1n")
                assert client.status(number) in (0, 4)
        wait_for(lambda: running.server.buffered == 0)
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("1H", 3600), ("2M", 120), ("3S", 3), ("250m", 0.25), ("5u", 5e-6), ("7n", 7e-9), ("99999999H", 99999999 * 3600),
        ("", None), ("1", None), ("1s", None), ("-1S", None), ("123456789S", None), ("1S ", None), ("٣S", None),
    ],
)  # fmt: skip
def test_timeouts(said, seconds):
    """Source: PROTOCOL-HTTP2.md, "Timeout": at most eight digits and a unit."""
    assert timeout_of({b"grpc-timeout": said.encode()}) == pytest.approx(float("inf") if seconds is None else seconds)


def test_a_large_answer_goes_as_the_windows_open(server):
    with peer(server) as client:
        number = client.call(message(b"a"), "/big")
        assert client.status(number) == 0 and len(client.data[number]) == 3_000_005


def test_who_does_not_open_the_window_is_cut(hasty):
    with peer(hasty) as client:
        client.greedy = False
        number = client.call(message(b"a"), "/big")
        client.finish(number)
        assert client.reset[number] == ErrorCodes.CANCEL and len(client.data[number]) == 65_535
        client.greedy = True


def test_who_does_not_read_is_cut(hasty):
    wait_for(lambda: not hasty.server.connections)
    with hasty.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = Peer(connection)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        client.flush()
        for _ in range(8):
            client.call(message(b"a"), "/big")
        wait_for(lambda: any(one._writing_paused for one in hasty.server.connections))
        wait_for(lambda: not hasty.server.connections)


def test_no_more_calls_at_once_than_agreed(server, echo):
    """A client that resets its calls does not get more of them handled than one that waits (CVE-2023-44487)."""
    with peer(server) as client:
        numbers = [client.call(message(b"a"), "/slow") for _ in range(STREAMS)]
        wait_for(lambda: len(echo.calls) == STREAMS)
        for number in numbers:
            client.h2.reset_stream(number)
        client.flush()
        more = [client.call(message(b"a")) for _ in range(5)]
        client.finish(*more)
        assert {client.reset[n] for n in more} == {ErrorCodes.REFUSED_STREAM} and len(echo.calls) == STREAMS
        echo.go.set()
        wait_for(lambda: server.server.buffered == 0)
        assert client.status(client.call(message(b"a"))) == 0


@pytest.mark.parametrize("path", ["/a", "/nothing", "/big"])
def test_a_call_that_is_cancelled_as_it_is_sent_harms_no_other(server, echo, path):
    """Frames that come together are understood together: the reset is known before the call is looked at."""
    with peer(server) as client:
        other = client.call(message(b"1"), "/slow")
        assert echo.begun.wait(60)
        for kind in ("application/grpc", "text/plain"):
            number = client.h2.get_next_available_stream_id()
            client.h2.send_headers(number, [*HEAD[:2], (":path", path), *HEAD[3:-1], ("content-type", kind)])
            client.h2.send_data(number, message(b"a"), end_stream=True)
            client.h2.reset_stream(number)
        client.flush()
        echo.go.set()
        assert client.status(other) == 0
    wait_for(lambda: server.server.buffered == 0)


def test_a_client_that_says_goodbye_gets_the_answers_it_waits_for(server):
    server.echo.begun.clear()
    server.echo.go.clear()
    with peer(server) as client:
        number = client.call(message(b"1"), "/slow")
        assert server.echo.begun.wait(60)
        client.socket.sendall(GoAwayFrame(0).serialize() + PingFrame(0, b"12345678").serialize())
        server.echo.go.set()
        assert client.status(number) == 0 and client.data[number] == message(b"1")
        late = client.call(message(b"2"))
        client.finish(late)
        assert late not in client.ended  # refused, where the connection had not ended before
        assert client.closed or client.reset[late] == ErrorCodes.REFUSED_STREAM


def flood(client, frames: bytes) -> None:
    try:
        for _ in range(4 * IDLE_FRAMES // 100):
            client.socket.sendall(frames * 100)
    except OSError:
        pass
    client.until_closed()


@pytest.mark.parametrize("what", ["pings", "settings", "resets", "empty data", "window updates"])
def test_frames_that_ask_for_nothing_end_the_connection(server, what):
    with peer(server) as client:
        client.finish()
        if what == "resets":
            try:
                for _ in range(2 * IDLE_FRAMES):
                    client.h2.reset_stream(client.call(b"", end=False))
                    client.flush()
            except Exception:
                pass
            client.until_closed()
        elif what == "empty data":
            number = client.call(b"", end=False)
            flood(client, b"\0\0\0\0\0" + number.to_bytes(4, "big"))
        elif what == "window updates":
            flood(client, b"\0\0\4\x08\0\0\0\0\0\0\0\0\1")
        else:
            flood(client, PingFrame(0, b"12345678").serialize() if what == "pings" else SettingsFrame(0).serialize())
        assert client.goaway in (ErrorCodes.ENHANCE_YOUR_CALM, None)  # None: cut while it still sent
    wait_for(lambda: not server.server.connections)
    with peer(server) as client:
        assert client.status(client.call(message(b"a"))) == 0


def test_a_polite_client_may_ping(server):
    with peer(server) as client:
        for _ in range(3):
            for _ in range(IDLE_FRAMES // 2):
                client.h2.ping(b"12345678")
            client.flush()
            assert client.status(client.call(message(b"a"))) == 0


def test_headers_without_end(server):
    with peer(server) as client:
        frame = HeadersFrame(1, client.h2.encoder.encode(HEAD))
        client.socket.sendall(frame.serialize())
        try:
            for n in range(200):
                field = client.h2.encoder.encode([(f"x-{n}", "a" * 8000)])
                client.socket.sendall(ContinuationFrame(1, field).serialize())
        except OSError:
            pass
        client.until_closed()
    wait_for(lambda: not server.server.connections)


def test_metadata_that_is_too_large(server):
    with peer(server) as client:
        client.call(message(b"a"), x_long="a" * (17 << 10))
        client.until_closed()
    assert not any(b"x-long" in call.headers for call in server.echo.calls)


def test_a_connection_that_says_nothing_is_closed(hasty):
    with hasty.connect() as silent, peer(hasty) as idle:
        idle.until_closed()
        assert idle.goaway == ErrorCodes.NO_ERROR
        while silent.recv(4096):
            pass


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense" + b"\xff" * 40,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + RstStreamFrame(1).serialize(),
    ],
    ids=["http/1.1", "tls", "no frame", "reset of nothing"],
)  # fmt: skip
def test_what_is_no_http_2_closes_the_connection(hasty, sent):
    with hasty.connect() as connection:
        connection.sendall(sent)
        while connection.recv(4096):
            pass


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_end_in_an_answer_or_a_close(server, data, at):
    with peer(server) as client:
        client.h2.send_headers(1, HEAD)
        good = client.h2.data_to_send() + b"\0\0\6\0\1\0\0\0\1" + message(b"a")
        at = min(at, len(good))
        try:
            client.socket.sendall(good[:at] + data + good[at:])
            client.socket.shutdown(socket.SHUT_WR)
            while client.socket.recv(65536):
                pass
        except OSError:
            pass
    assert [one for one in server.errors if not isinstance(one.get("exception"), ZeroDivisionError)] == []


def test_metadata_that_waits_for_its_message_counts_as_a_body_does():
    """A connection has 64 calls under way: their metadata alone was more than all bodies together may be."""
    running = Speaking(max_buffered=100_000)
    try:
        with peer(running) as client:
            waiting = [client.call(None, end=False, more="x" * 12_000) for _ in range(12)]
            client.finish(*waiting[8:])
            assert [client.status(number) for number in waiting[8:]] == [14] * 4
            assert running.server.buffered <= 100_000 and not set(waiting[:8]) & client.ended
            for number in waiting[:8]:
                client.send(number, message(b"a"))
            running.echo.go.set()
            assert [client.status(number) for number in waiting[:8]] == [0] * 8
        wait_for(lambda: running.server.buffered == 0)
    finally:
        running.stop()


def test_too_many_connections_from_one_address_are_closed_at_the_door():
    running = Speaking(**{**QUICK, "idle_seconds": 30.0}, max_per_address=2)
    try:
        with peer(running) as one, peer(running) as two, running.connect() as three:
            assert one.status(one.call(message(b"a"))) == 0 == two.status(two.call(message(b"a")))
            assert three.recv(10) == b""
    finally:
        running.stop()


def test_stopping_answers_what_has_begun_and_takes_no_more():
    running = Speaking(**{**QUICK, "handle_seconds": 20.0, "idle_seconds": 30.0})
    with peer(running) as client, peer(running) as idle:
        assert idle.status(idle.call(message(b"a"))) == 0
        number = client.call(message(b"last"), "/slow")
        assert running.echo.begun.wait(60)
        running.begin_stop()
        while client.goaway is None:
            client.read()
        threading.Timer(0.2, running.echo.go.set).start()
        assert client.status(number) == 0 and client.data[number] == message(b"last")
        client.until_closed()
        idle.until_closed()
        assert idle.goaway == ErrorCodes.NO_ERROR
    running.stop()
    assert running.errors == []
