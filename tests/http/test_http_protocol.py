"""The protocol over real sockets: what it answers, what it refuses, what it cuts, and that a stop loses nothing."""

import asyncio
import socket
import ssl
import threading
import time

import pytest
from http_support import Running, drain, echo, soon

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key, server_context
from modelkeep.http import serve
from modelkeep.http.protocol import Response

CLOSE = b"connection: close\r\n"


def head(extra: bytes = b"", method: bytes = b"POST", target: bytes = b"/x", version: bytes = b"1.1") -> bytes:
    return method + b" " + target + b" HTTP/" + version + b"\r\nhost: a\r\n" + extra + b"\r\n"


def status(answer: bytes) -> int:
    return int(answer[9:12]) if answer else 0


class Held:
    """Answers as ``echo`` does; what asks for ``/held`` only once it may."""

    def __init__(self):
        self.begun, self.may = threading.Event(), threading.Event()

    async def __call__(self, request):
        if request.target == b"/held":
            self.begun.set()
            while not self.may.is_set():
                await asyncio.sleep(0.005)
        return await echo(request)


def test_answers_keep_the_connection(server):
    with server.connect() as connection:
        for size in (0, 3, 60_000):
            connection.sendall(head(b"content-length: %d\r\n" % size) + b"x" * size)
            answer = connection.recv(1 << 16)
            assert status(answer) == 200 and answer.endswith(b"POST /x %d" % size)
            assert b"connection: close" not in answer


def test_the_answer_says_nothing_about_the_server(server):
    answer = server.ask(head(CLOSE, b"GET"))
    fields = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")[1:]
    names = {field.partition(b":")[0] for field in fields}
    assert names == {b"cache-control", b"x-content-type-options", b"content-type", b"content-length", b"date", b"connection"}


def test_chunked_bodies_arrive_whole(server):
    body = b"".join(b"%x\r\n%s\r\n" % (n, b"y" * n) for n in (1, 10, 1000)) + b"0\r\n\r\n"
    assert server.ask(head(b"transfer-encoding: chunked\r\n" + CLOSE) + body).endswith(b"POST /x 1011")


def test_one_byte_at_a_time(server):
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head(b"content-length: 3\r\n" + CLOSE) + b"abc":
            connection.sendall(bytes([byte]))
        assert drain(connection).endswith(b"POST /x 3")


def test_pipelined_requests_are_answered_in_order(server):
    data = b"".join(head(b"content-length: %d\r\n" % n, target=b"/slow" if n == 0 else b"/x") + b"z" * n for n in range(5))
    answer = server.ask(data + head(CLOSE, b"GET", b"/last"))
    assert [line for line in answer.split(b"\r\n") if line.startswith((b"POST", b"GET"))][-1:] or True
    order = [
        answer.index(b"POST /slow 0"),
        *(answer.index(b"POST /x %d" % n) for n in range(1, 5)),
        answer.index(b"GET /last 0"),
    ]
    assert order == sorted(order) and answer.count(b"HTTP/1.1 200") == 6


def test_what_is_pipelined_waits_at_the_client():
    """While a request is handled no more than the next one is taken in: many large ones would fill the memory."""
    handler = Held()
    server = Running(handler, max_body=4 << 20, write_seconds=60.0)
    one = head(b"content-length: 4000000\r\n", target=b"/held") + bytes(4_000_000)
    sent = 0
    with server.connect(1.0) as connection, pytest.raises(TimeoutError):
        for _ in range(40):
            connection.sendall(one)
            sent += 1
    handler.may.set()
    server.stop()
    assert handler.begun.is_set() and sent <= 6


def test_head_has_no_body(server):
    answer = server.ask(head(CLOSE, b"HEAD"))
    assert answer.endswith(b"\r\n\r\n") and b"content-length: 9\r\n" in answer


def test_expect_continue(server):
    with server.connect() as connection:
        connection.sendall(head(b"content-length: 2\r\nexpect: 100-continue\r\n" + CLOSE))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        assert drain(connection).endswith(b"POST /x 2")


SMUGGLING = {
    "both lengths": b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, other order": b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "length twice, equal": b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
    "length twice, different": b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
    "length as a list": b"content-length: 4, 4\r\n\r\nabcd",
    "length with a sign": b"content-length: +4\r\n\r\nabcd",
    "length empty": b"content-length:\r\n\r\n",
    "length overflowing": b"content-length: 99999999999999999999999\r\n\r\n",
    "folded field": b"x: a\r\n b\r\ncontent-length: 4\r\n\r\nabcd",
    "folded coding": b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"content-length : 4\r\n\r\nabcd",
    "unknown coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "coding with control character": b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunk size in C notation": b"transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk longer than stated": b"transfer-encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
    "chunk with a bare line feed": b"transfer-encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "chunk extension with a line feed": b"transfer-encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    "trailer fields": b"transfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n",
    "host twice": b"host: b\r\n\r\n",
    "nul in a field": b"x: a\0b\r\n\r\n",
    "bare carriage return": b"x: a\rb\r\n\r\n",
    "empty field name": b": x\r\n\r\n",
    "authorization twice": b"authorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_ambiguous_framing_is_refused_and_nothing_after_it_is_read(server, rest):
    answer = server.ask(b"POST /x HTTP/1.1\r\nhost: a\r\n" + rest + head(method=b"GET", target=b"/smuggled"))
    assert status(answer) == 400 and answer.count(b"HTTP/1.1 ") == 1
    assert b"application/problem+json" in answer and b"connection: close" in answer and b"/smuggled" not in answer


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"POST / HTTP/1.1\nhost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", 400),
        (head(b"transfer-encoding: chunked\r\n", version=b"1.0") + b"0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 501),
        (head(b"connection: upgrade\r\nupgrade: h2c\r\n", b"GET"), 501),
        (head(b"expect: 200-ok\r\n"), 417),
        (head(b"content-length: 100000000\r\n"), 413),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (head(b"".join(b"x-%d: y\r\n" % n for n in range(80)), b"GET"), 431),
    ],
    ids=str,
)
def test_what_is_not_spoken_here(server, data, expected):
    answer = server.ask(data)
    assert status(answer) == expected and b"problem+json" in answer


def test_an_endless_header_is_cut_off(server):
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        sent, answer = 0, b""
        connection.settimeout(0.02)
        while not answer and sent < 10_000_000:
            connection.sendall(b"a" * 4096)
            sent += 4096
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        assert status(answer) == 431 and sent < 1_000_000


def test_a_hundred_megabytes_are_refused_and_the_client_sees_why(server):
    with server.connect() as connection:
        connection.sendall(head(b"content-length: 100000000\r\n"))
        answered = []
        thread = threading.Thread(target=lambda: answered.append(connection.recv(1 << 16)))
        thread.start()
        with pytest.raises(OSError), memoryview(bytes(1 << 20)) as part:
            for _ in range(4000):
                connection.sendall(part)
        thread.join()
        assert status(answered[0]) == 413


def test_a_chunked_body_that_grows_too_large(server):
    answer = server.ask(head(b"transfer-encoding: chunked\r\n") + b"8000\r\n" + b"x" * 0x8000 + b"\r\n8001\r\n" + b"x" * 0x8001)
    assert status(answer) == 413


def test_slow_headers_are_cut(hasty):
    began = time.monotonic()
    with hasty.connect() as connection:
        answer = b""
        connection.settimeout(0.05)
        for byte in b"GET / HTTP/1.1\r\n" + b"x" * 1000:
            try:
                connection.sendall(bytes([byte]))
                answer = connection.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                break
            break
    assert status(answer) == 408 and time.monotonic() - began > 0.3  # else 50 s of bytes would have been taken


def test_slow_bodies_are_cut(hasty):
    began = time.monotonic()
    with hasty.connect() as connection:
        connection.sendall(head(b"content-length: 1000\r\n"))
        connection.settimeout(0.05)
        answer = b""
        for _ in range(1000):
            try:
                connection.sendall(b"x")
                answer = connection.recv(1 << 16)
            except TimeoutError:
                continue
            break
    assert status(answer) == 408 and time.monotonic() - began > 0.4


@pytest.mark.parametrize("data", [b"", b"\r\n", head(method=b"GET")], ids=["silent", "blank lines", "idle after a request"])
def test_connections_that_say_nothing_are_closed(hasty, data):
    with hasty.connect() as connection:
        connection.sendall(data)
        drain(connection)  # a timeout if it is kept


def test_blank_lines_do_not_keep_a_connection_alive(hasty):
    with hasty.connect() as connection, pytest.raises(OSError):
        for _ in range(1500):
            connection.sendall(b"\r\n")
            time.sleep(0.02)


def test_a_reader_that_does_not_read_is_cut(hasty):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", hasty.port))
        connection.settimeout(30)
        connection.sendall(head(method=b"GET", target=b"/big"))
        soon(lambda: hasty.server.accepted == 1)
        soon(lambda: hasty.server.accepted == 0)
        assert len(drain(connection)) < 29_000_000


def test_a_handler_that_hangs_is_cut_and_one_that_fails_is_answered(server):
    assert status(server.ask(head(method=b"GET", target=b"/broken"))) == 503
    assert [type(error["exception"]) for error in server.errors] == [ZeroDivisionError]


def test_a_handler_past_its_deadline():
    running = Running(handle_seconds=0.1)
    try:
        assert status(running.ask(head(method=b"GET", target=b"/slow"))) == 503
    finally:
        running.stop()
    assert running.errors == []


def test_too_many_connections_are_closed_at_the_door():
    running = Running(max_connections=3)
    try:
        held = [socket.create_connection(("127.0.0.1", running.port), 30) for _ in range(3)]
        soon(lambda: running.server.accepted == 3)
        assert running.ask(head(CLOSE, b"GET")) == b""
        held.pop().close()
        soon(lambda: running.server.accepted == 2)
        assert status(running.ask(head(CLOSE, b"GET"))) == 200
    finally:
        running.stop()
        for connection in held:
            connection.close()


def test_stopping_answers_what_has_begun_and_closes_the_rest():
    handler = Held()
    running = Running(handler, header_seconds=60.0, body_seconds=60.0, idle_seconds=60.0, drain_seconds=60.0)
    with running.connect() as busy, running.connect() as idle, running.connect() as half:
        half.sendall(head(b"content-length: 4\r\n") + b"ab")
        busy.sendall(head(method=b"GET", target=b"/held"))
        soon(lambda: running.server.accepted == 3 and running.server.buffered == 2 and handler.begun.is_set())
        running.begin_stop()
        assert drain(idle) == b""
        half.sendall(b"cd")
        handler.may.set()
        assert drain(busy).endswith(b"GET /held 0")
        assert drain(half).endswith(b"POST /x 4")
        running.stop()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", running.port), 1)
    assert running.errors == []


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    now, key = time.time_ns(), make_authority_key()
    return server_context(issue(key, authority_certificate(key, "keep.example", now), ["127.0.0.1"], now))


def ask_at_the_door(method, headers, _certificate, _address):
    """Turn away who posts without a name."""
    return Response(401, b"who?") if method == b"POST" and b"authorization" not in headers else None


def test_a_request_turned_away_at_the_door_is_answered_before_its_body_comes():
    running = Running(door=ask_at_the_door, body_seconds=30.0, linger_seconds=0.3)
    try:
        with running.connect(20.0) as connection:
            connection.sendall(head(b"content-length: 4000000\r\n") + b"x")
            answer = drain(connection)
            assert status(answer) == 401 and b"connection: close" in answer
        with running.connect(20.0) as connection:
            connection.sendall(head(b"content-length: 4000000\r\nexpect: 100-continue\r\n"))
            assert status(drain(connection)) == 401
        assert running.server.buffered == 0
        both = head(b"authorization: me\r\ncontent-length: 2\r\n") + b"ok" + head(b"content-length: 2\r\n") + b"no"
        answer = running.ask(both)
        assert answer.index(b"POST /x 2") < answer.index(b"HTTP/1.1 401")
    finally:
        running.stop()
    assert running.errors == []


def test_all_bodies_together_are_bounded():
    running = Running(max_buffered=100_000, max_body=80_000, linger_seconds=0.3)
    half = head(b"content-length: 80000\r\n") + b"x" * 60_000
    try:
        with running.connect() as first:
            first.sendall(half)
            soon(lambda: running.server.buffered == 60_000)
            answer = running.ask(half)
            assert status(answer) == 503 and b"retry-after: 1" in answer
            assert running.server.buffered == 60_000
            first.sendall(b"x" * 20_000 + head(CLOSE, b"GET"))
            answer = drain(first)
            assert b"POST /x 80000" in answer and answer.endswith(b"GET /x 0")
        with running.connect() as gone:
            gone.sendall(half)
            soon(lambda: running.server.buffered == 60_000)
        soon(lambda: running.server.buffered == 0)
        assert status(running.ask(head(CLOSE + b"content-length: 80000\r\n") + b"x" * 80_000)) == 200
        soon(lambda: running.server.buffered == 0)
    finally:
        running.stop()
    assert running.errors == []


def test_silent_connections_count_before_tls_is_agreed(monkeypatch, tls):
    """They used to be counted once TLS was agreed, so that any number of them could be held open."""
    monkeypatch.setattr(serve, "_HANDSHAKE_SECONDS", 60.0)
    running = Running(tls=tls, max_per_address=2, max_connections=8)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        silent = [socket.create_connection(("127.0.0.1", running.port), 30) for _ in range(2)]
        silent[1].sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS at all: out at once
        assert drain(silent[1])[:1] in (b"", b"\x15")
        silent[1].close()
        soon(lambda: running.server.accepted == 1)
        silent.append(socket.create_connection(("127.0.0.1", running.port), 30))
        soon(lambda: running.server.accepted == 2)
        assert running.ask(b"") == b"" and running.server.refused == 1
        silent[0].close()
        soon(lambda: running.server.accepted == 1)
        monkeypatch.setattr(serve, "_HANDSHAKE_SECONDS", 0.3)
        silent.append(socket.create_connection(("127.0.0.1", running.port), 30))
        assert drain(silent[-1]) == b"", "it was not closed"
        silent[2].close()
        soon(lambda: running.server.per_address == {} and running.server.accepted == 0)
        monkeypatch.setattr(serve, "_HANDSHAKE_SECONDS", 60.0)
        with running.connect() as plain, trusting.wrap_socket(plain) as secure:
            assert running.server.accepted == 1
            secure.sendall(head(CLOSE, b"GET"))
            assert status(secure.recv(1000)) == 200
    finally:
        for connection in silent:
            connection.close()
        running.stop()
    assert running.errors == []


def test_stopping_leaves_no_half_open_handshake(monkeypatch, tls):
    monkeypatch.setattr(serve, "_HANDSHAKE_SECONDS", 600.0)
    running = Running(tls=tls, drain_seconds=600.0)
    with running.connect() as silent:
        soon(lambda: running.server.accepted == 1)
        running.stop()  # it waits for a minute at most
        assert drain(silent) == b""
    assert running.server.accepted == 0 and running.errors == []
