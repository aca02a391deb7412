"""A fuzzer of our HTTP/1.1: valid streams of requests, damaged, through a real socket pair into a live ``Server``.

``Fuzz(seed).run(count)`` raises ``Broken`` with the stream that broke a promise. The promises: no exception reaches the loop;
every request that was seen has one answer, in order, and at most one refusal follows them and closes the connection; h11 does
not read another request, or other fields, where we read one; when the connection is gone nothing is held any more.
"""

import asyncio
import random
import re
import socket

import uvloop
from smuggling import CASES, read_by_h11

from modelkeep.http.problem import bad_request
from modelkeep.http.protocol import HttpConnection, Request, Response, Server
from modelkeep.workflows.service import Listen

BOUNDS = {"max_head": 3000, "max_headers": 24, "max_body": 3000, "max_parts": 40, "max_queue": 6, "max_buffered": 5000}
_QUIET = 8
"""Turns of the loop without a sign of life after which both ends wait for each other."""


ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"expect")


class Broken(AssertionError):
    """A promise was broken: which, by what bytes."""

    def __init__(self, why: str, data: bytes, parts: list[int]) -> None:
        super().__init__(f"{why}\nstream: {data!r}\nsent in parts of: {parts}")


# -- valid streams --

_METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS")
_FIELDS = (
    b"accept: */*",
    b"authorization: Bearer mk_abc",
    b"content-type: application/json",
    b"connection: keep-alive",
    b"connection: close",
    b"expect: 100-continue",
    b"x-empty:",
    b"x-list: a, b;q=0.5",
    b"X-Upper: " + b"v" * 60,
)


def a_request(rng: random.Random) -> bytes:
    """One valid request with or without a body."""
    method = rng.choice(_METHODS)
    target = b"/" + bytes(rng.choices(b"abcxyz/?=&%20._-", k=rng.randrange(12)))
    fields = rng.sample(_FIELDS, rng.randrange(4))
    body = bytes(rng.choices(b'{"inputs":[1,2.5e3]}\r\n\0\xff GET POST', k=rng.choice((0, 1, 3, 40, 900))))
    head = b"%s %s HTTP/1.%d\r\nhost: a" % (method, target, rng.random() < 0.95)
    kind = rng.randrange(3)
    if kind == 0:
        return head + b"".join(b"\r\n" + field for field in fields) + b"\r\n\r\n"
    if kind == 1:
        fields.append(b"content-length: %d" % len(body))
    else:
        fields.append(b"transfer-encoding: chunked")
    rng.shuffle(fields)
    head += b"".join(b"\r\n" + field for field in fields) + b"\r\n\r\n"
    return head + (body if kind == 1 else chunks(rng, body))


def chunks(rng: random.Random, body: bytes) -> bytes:
    """A body in chunks of any size, some with an extension."""
    out, at = [], 0
    while at < len(body):
        size = rng.randrange(1, 1 + max(1, len(body) // rng.choice((1, 3, 30))))
        part = body[at : at + size]
        out.append(b"%x%s\r\n%s\r\n" % (len(part), rng.choice((b"", b"", b";a=b")), part))
        at += size
    return b"".join(out) + b"0\r\n\r\n"


# -- damage --

_TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\x0b", b":", b";", b",", b"+", b"-", b"0x", b"0", b"\r\n\r\n", b"\xff",
    b"content-length: 5\r\n", b"content-length: 0\r\n", b"Content-Length:\t7\r\n", b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding:chunked \r\n", b"connection: close\r\n", b"upgrade: h2c\r\n", b"expect: 100-continue\r\n",
    b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.0", b"HTTP/1.1", b"ffffffffffffffff", b"99999999999999999999",
    b"#", b"\r\n ", b"host: b\r\n", b"0\r\n\r\n",
)  # fmt: skip


def flip(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 1, 2, 8, len(data)))]


def repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    size = rng.choice((1, 2, 16, 200))
    data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 40))


def insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(_TOKENS)


def at_a_line(rng: random.Random, data: bytearray) -> None:
    """A token where a line begins or ends: that is where framing is decided."""
    ends = [found.start() for found in re.finditer(b"\r\n", data)]
    if ends:
        at = rng.choice(ends) + rng.choice((0, 1, 2))
        data[at:at] = rng.choice(_TOKENS)


def number(rng: random.Random, data: bytearray) -> None:
    """Another number in place of one."""
    found = list(re.finditer(rb"[0-9a-f]+", data))
    if found:
        one = rng.choice(found)
        data[one.start() : one.end()] = rng.choice(
            (b"0", b"1", b"00", b"7fffffff", b"80000000", b"ffffffffffffffff", b"10000000000000000", one[0] + b"0", b"-1")
        )


def splice(rng: random.Random, data: bytearray) -> None:
    """The beginning of one stream, the end of another."""
    other = rng.choice(CASES).data or b"\r\n"
    at, to = rng.randrange(len(data) + 1), rng.randrange(len(other))
    data[at:] = other[to:]


def swap(rng: random.Random, data: bytearray) -> None:
    """Two lines change places."""
    lines = bytes(data).split(b"\r\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    data[:] = b"\r\n".join(lines)


DAMAGE = (flip, cut, repeat, insert, at_a_line, at_a_line, number, splice, swap)


def a_stream(rng: random.Random) -> bytes:
    """One to five requests, or a case of the smuggling corpus; most of them damaged, once or several times."""
    if rng.random() < 0.2:
        data = bytearray(rng.choice(CASES).data[:4000])
    else:
        data = bytearray(b"".join(a_request(rng) for _ in range(rng.choice((1, 1, 2, 3, 5)))))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        if data:
            rng.choice(DAMAGE)(rng, data)
    return bytes(data[:20_000])


def in_parts(rng: random.Random, data: bytes) -> list[bytes]:
    """The stream as it arrives: whole, in a few parts, or byte by byte."""
    size = rng.choice((len(data), len(data), 1 + len(data) // 3, 7, 1 if len(data) < 600 else 50))
    return [data[at : at + size] for at in range(0, len(data), max(size, 1))]


# -- the other end --


class Client(asyncio.Protocol):
    """Collects what the server says."""

    def __init__(self) -> None:
        self.got, self.closed = bytearray(), False

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc) -> None:
        self.closed = True


def answers(got: bytes, methods: list[bytes]) -> list[tuple[int, bytes, bool]]:
    """Status, body, and whether it says that the connection closes, of each final answer; strictly, to the last byte."""
    found, at = [], 0
    while at < len(got):
        end = got.index(b"\r\n\r\n", at)
        lines = got[at:end].split(b"\r\n")
        status = int(re.fullmatch(rb"HTTP/1\.1 (\d{3}) [ -~]+", lines[0])[1])
        at = end + 4
        if status == 100:
            continue
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        length = 0 if len(found) < len(methods) and methods[len(found)] == b"HEAD" else int(fields[b"content-length"])
        found.append((status, got[at : at + length], fields.get(b"connection") == b"close"))
        at += length
        if at > len(got):
            raise ValueError("an answer is cut off")
    return found


def _plain(name: bytes, value: bytes) -> bytes:
    """A field's value as h11 shows it: without the white space around it, and codings in small letters."""
    return value.strip().lower() if name == b"transfer-encoding" else value.strip()


class Fuzz:
    """Streams from one seed. ``streams``, ``requests``, ``refusals``: how many there were."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._trouble: list[dict] = []
        self._seen: list[tuple[bytes, bytes, bytes]] = []
        self._fields: list[dict[bytes, bytes]] = []
        self.streams = self.requests = self.refusals = self.agreed = 0

    def run(self, count: int) -> None:
        """Send ``count`` streams. Raises Broken."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._all(count))

    async def _all(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self._trouble.append(context))
        server = Server(self._handle, bad_request, Listen(port=0, **BOUNDS), loop)
        server.start()
        try:
            for _ in range(count):
                data = a_stream(self._rng)
                await self._one(server, data, in_parts(self._rng, data))
                self.streams += 1
        finally:
            await server.drain(0.0)
            await asyncio.sleep(0.05)  # what is cut off is closed before the loop is

    async def _handle(self, request: Request) -> Response:
        self._seen.append((request.method, request.target, request.body))
        self._fields.append(request.headers)
        number = len(self._seen)
        if self._rng.random() < 0.2:
            await asyncio.sleep(0)
        return Response(200, b"%d" % number)

    async def _one(self, server: Server, data: bytes, parts: list[bytes]) -> None:
        sizes = [len(part) for part in parts]
        self._seen, self._fields = [], []
        leave_at = self._rng.randrange(len(parts) + 1) if self._rng.random() < 0.15 else None
        client = await self._connect(server)
        try:
            await self._talk(server, client, parts, leave_at, data)
        finally:
            client.transport.abort()
        await self._gone(server, data, sizes)

    async def _talk(self, server: Server, client: Client, parts: list[bytes], leave_at: int | None, data: bytes) -> None:
        sizes = [len(part) for part in parts]
        for number, part in enumerate(parts):
            if number == leave_at:
                break
            if not client.closed:
                client.transport.write(part)
            await asyncio.sleep(0)
        if leave_at is None:
            await self._settle(client)
            self._check(bytes(client.got), data, sizes)
            if client.got and server.connections and b"connection: close" in client.got and server.buffered:
                raise Broken(f"{server.buffered} bytes are held after the last answer", data, sizes)
        if self._rng.random() < 0.5:
            client.transport.close()

    async def _connect(self, server: Server) -> Client:
        ours, theirs = socket.socketpair()
        place = server.enter("10.0.0.1")
        assert place is not None
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: HttpConnection(place, server), ours)
        _, client = await loop.connect_accepted_socket(Client, theirs)
        return client

    async def _settle(self, client: Client) -> None:
        """Wait until both ends wait for each other."""
        quiet, before = 0, None
        while quiet < _QUIET and not client.closed:
            await asyncio.sleep(0)
            now = len(client.got), len(self._seen)
            quiet, before = (quiet + 1, before) if now == before else (0, now)

    async def _gone(self, server: Server, data: bytes, sizes: list[int]) -> None:
        for _ in range(2000):
            if not server.connections and not server.accepted and not server.buffered:
                break
            await asyncio.sleep(0)
        if server.connections or server.accepted or server.buffered or server.per_address:
            raise Broken(f"held: {server.buffered} bytes, {server.per_address}, {server.connections}", data, sizes)
        if self._trouble:
            raise Broken(f"an exception reached the loop: {self._trouble}", data, sizes)

    def _check(self, got: bytes, data: bytes, sizes: list[int]) -> None:
        seen = self._seen
        try:
            said = answers(got, [method for method, _, _ in seen])
        except (ValueError, TypeError, KeyError) as cause:
            raise Broken(f"what was answered is no HTTP: {cause!r} in {got!r}", data, sizes) from cause
        for number, (method, _, _) in enumerate(seen):
            body = b"" if method == b"HEAD" else b"%d" % (number + 1)
            if number >= len(said) or said[number][:2] != (200, body):
                raise Broken(f"request {number} of {len(seen)} has not its answer: {said}", data, sizes)
        rest = said[len(seen) :]
        if len(rest) > 1 or any(status < 400 or not closes for status, _, closes in rest):
            raise Broken(f"more than one refusal, or one that leaves the connection open: {rest}", data, sizes)
        if any(closes for _, _, closes in said[:-1]):
            raise Broken(f"an answer after the last one: {said}", data, sizes)
        found, refused = read_by_h11(data)
        theirs = [one for one, _ in found]
        both = min(len(theirs), len(seen))
        if theirs[:both] != seen[:both] or (len(theirs) < len(seen) and not refused):
            raise Broken(f"another parser reads other requests: {theirs}, we read {seen}", data, sizes)
        for (_, fields), ours in zip(found, self._fields, strict=False):
            names = [name for name, _ in fields]
            if dict(fields) != {name: _plain(name, value) for name, value in ours.items()}:
                raise Broken(f"another parser reads other fields: {fields}, we read {ours}", data, sizes)
            if twice := [name for name in ONCE if names.count(name) > 1]:
                raise Broken(f"{twice[0]!r} stands twice in a request that was seen: {fields}", data, sizes)
        self.requests += len(seen)
        self.refusals += len(rest)
        self.agreed += both
