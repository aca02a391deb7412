"""The smuggling corpus: one reading of every stream, which no other parser contradicts, and nothing is held afterwards."""

import re
import socket
import threading
from collections import defaultdict

import pytest
from http_support import PATIENT, QUICK, Running, soon
from smuggling import CASES, END, Case, by_h11

from modelkeep.http.protocol import Request, Response

STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


class Found:
    """What became of all streams, each from an address of its own: raw answers, and the requests that were seen."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.seen: dict[str, list[tuple[bytes, bytes, bytes]]] = defaultdict(list)
        self.running = Running(self._handle, **PATIENT | {"linger_seconds": 0.2}, max_connections=1000)
        self.addresses = {case.name: f"127.0.{1 + at // 250}.{1 + at % 250}" for at, case in enumerate(CASES)}
        threads = [threading.Thread(target=self._send, args=(case,)) for case in CASES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        soon(lambda: not self.running.server.accepted)
        self.left = self.running.server.buffered, self.running.server.per_address, self.running.server.accepted
        self.running.stop()

    async def _handle(self, request: Request) -> Response:
        self.seen[request.address].append((request.method, request.target, request.body))
        return Response(200, b"")

    def _send(self, case: Case) -> None:
        with socket.create_connection(("127.0.0.1", self.running.port), 60, (self.addresses[case.name], 0)) as connection:
            connection.sendall(case.data if case.eof else case.data + END)
            if case.eof:
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while True:
                try:
                    part = connection.recv(1 << 16)
                except ConnectionResetError:
                    break
                if not part:
                    break
                parts.append(part)
            self.answers[case.name] = b"".join(parts)


@pytest.fixture(scope="module")
def found():
    return Found()


def test_the_corpus_is_large_and_every_case_has_a_name_of_its_own():
    assert len(CASES) >= 150 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_stream_has_its_one_reading(found, case):
    statuses = [int(status) for status in STATUS.findall(found.answers[case.name])]
    seen = found.seen[found.addresses[case.name]]
    probe = [] if case.closes else [(b"GET", b"/end", b"")]
    assert (statuses, seen) == ([*case.statuses, *([200] if probe else [])], [*case.seen, *probe])
    if statuses and statuses[-1] >= 400:
        assert b"application/problem+json" in found.answers[case.name] and b"connection: close" in found.answers[case.name]


def test_nothing_is_held_and_nothing_broke(found):
    assert found.left == (0, {}, 0) and found.running.errors == []


REFUSED_THERE = {
    "an empty line before",  # RFC 9112, 2.2: a server should ignore it
    "two spaces before the target",  # RFC 9112, 3: it may be read by words
    "two spaces after the target",
    "RTSP/1.0 with a method of HTTP",
}
"""What h11 refuses and we read, in the one way in which it can be read."""


@pytest.mark.parametrize("case", [case for case in CASES if case.seen or not case.closes], ids=lambda case: case.name)
def test_another_parser_reads_the_same_requests_where_we_read_any(case):
    """h11 shares no code with llhttp. It may read more than we do (we refuse more); never other requests."""
    seen, refused = by_h11(case.data if case.eof else case.data + END)
    ours = [*case.seen, *([] if case.closes else [(b"GET", b"/end", b"")])]
    if case.name in REFUSED_THERE:
        assert (seen, refused) == ([], True)
    else:
        assert seen[: len(ours)] == ours


def dribble(*parts: bytes):
    """Send parts, the last of them again and again, and read what comes."""

    def talk(connection: socket.socket) -> bytes:
        connection.settimeout(0.05)
        got = b""
        for part in [*parts, *[parts[-1]] * 400]:
            try:
                connection.sendall(part)
                got += connection.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                break
            if b"HTTP/1.1 408" in got:
                break
        return got

    return talk


def never_read(data: bytes):
    """Ask for answers and read none of them until the server gives up."""

    def talk(connection: socket.socket) -> bytes:
        connection.settimeout(0.2)
        try:
            for _ in range(4000):
                connection.sendall(data)
        except OSError:
            pass
        soon(lambda: not established(connection))
        return b""

    return talk


def established(connection: socket.socket) -> bool:
    """Whether the other side has not ended the connection, as the kernel has it: nothing is read."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"


HEAD = b"POST /x HTTP/1.1\r\nhost: a\r\n"
SLOW = {
    "a head, line by line": (dribble(HEAD, b"x: y\r\n"), 408),
    "a target, byte by byte": (dribble(b"GET /", b"a"), 408),
    "a counted body": (dribble(HEAD + b"content-length: 1000\r\n\r\n", b"a"), 408),
    "a chunked body, chunk by chunk": (dribble(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n"), 408),
    "a chunk size": (dribble(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"0"), 408),
    "a chunk extension": (dribble(HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"a"), 408),
    "a second request after an answer": (dribble(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\nGET /y", b"y"), 408),
    "answers that are not read": (never_read(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n" * 20), 0),
}


def test_who_is_slow_is_cut():
    """All at once, against deadlines of half a second; nobody keeps a place, or memory."""

    async def handle(request: Request) -> Response:
        return Response(200, b"z" * (200_000 if request.target == b"/big" else 1))

    running, got = Running(handle, **QUICK | {"linger_seconds": 0.1}), {}

    def talk(name: str) -> None:
        with running.connect() as connection:
            if name == "answers that are not read":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            got[name] = SLOW[name][0](connection)

    threads = [threading.Thread(target=talk, args=(name,), daemon=True) for name in SLOW]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    soon(lambda: not running.server.accepted)
    held = running.server.accepted, running.server.buffered, running.server.per_address
    running.stop()
    assert held == (0, 0, {}) and running.errors == []
    last = {name: int((STATUS.findall(data) or [b"0"])[-1]) for name, data in got.items()}
    assert last == {name: status for name, (_, status) in SLOW.items()}
