"""Control's connections: slow headers, headers without end, silence, and what comes between two requests."""

import asyncio
import contextlib

import pytest
import uvicorn

from modelkeep.http import hurried
from modelkeep.http.control import _Server
from modelkeep.http.hurried import MAX_HEAD, UvicornListener
from modelkeep.http.serve import listening
from modelkeep.workflows.service import Listen

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
LARGE = 32 << 20
"""Bytes of another answer: more than the sockets take."""


async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    body = b"ok" if scope["path"] == "/" else bytes(LARGE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def talk(conversation, **bounds):
    """Have ``conversation`` with a server that gives headers a fifth of a second."""

    async def run():
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_keep_alive=600)
        config.load()
        listener = UvicornListener(_Server(config, lambda: None), Listen(port=0, **bounds), asyncio.get_running_loop())
        async with listening(listener) as place, asyncio.timeout(120):
            reader, writer = await asyncio.open_connection(*place, limit=4096)
            with contextlib.closing(writer):
                said = await conversation(reader, writer)
        assert not listener.accepted and not listener.per_address, "a place was not given back"
        return said

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(hurried, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(hurried, "WRITE_SECONDS", 0.4)


async def answered(reader, writer, data):
    writer.write(data)
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET / HTTP/1.1\r\nhost: her"], ids=["silence", "a blank line", "half"])
def test_what_does_not_become_a_request_in_time_is_closed(said):
    async def first(reader, writer):
        writer.write(said)
        return await reader.read()

    async def between(reader, writer):
        await answered(reader, writer, REQUEST)
        writer.write(said or b"\r\n")
        return await reader.read()

    assert talk(first) == b"" and talk(between) == b""


def test_headers_without_end_are_closed():
    async def flood(reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + b"x: " + b"a" * (MAX_HEAD + 1))
        return await reader.read()

    try:
        assert talk(flood) == b""
    except ConnectionResetError:
        return  # closed while more was under way


def test_a_connection_is_kept_and_a_body_may_be_large_and_slow():
    async def kept(reader, writer):
        await answered(reader, writer, REQUEST)
        await asyncio.sleep(0.4)
        await answered(reader, writer, REQUEST)
        writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 4000000\r\n\r\n")
        for _ in range(4):
            writer.write(bytes(1_000_000))
            await asyncio.sleep(0.1)
        await answered(reader, writer, b"")
        await answered(reader, writer, REQUEST)

    talk(kept)


def test_who_does_not_read_an_answer_is_cut_off_and_who_reads_it_slowly_is_not(monkeypatch):
    async def asleep(reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        await asyncio.sleep(2)
        return len(await reader.read())

    async def slow(reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        took = 0
        while part := await reader.read(1 << 20):
            took += len(part)
            await asyncio.sleep(2 * len(part) / LARGE)
        return took

    assert talk(asleep) < LARGE
    monkeypatch.setattr(hurried, "WRITE_SECONDS", 1.2)
    assert talk(slow) > LARGE


def test_one_more_connection_from_an_address_is_closed_and_one_that_ended_makes_room():
    async def heard(place, address):
        """The answer to somebody else who calls from ``address``; b"" when the connection was closed."""
        reader, writer = await asyncio.open_connection(*place, local_addr=(address, 0))
        with contextlib.closing(writer), contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
            writer.write(REQUEST)
            return await reader.readuntil(b"ok")
        return b""

    async def more(reader, writer):
        place = writer.get_extra_info("peername")
        await answered(reader, writer, REQUEST)
        assert await heard(place, "127.0.0.1") == b""
        assert await heard(place, "127.0.0.2")
        writer.close()
        while not await heard(place, "127.0.0.1"):
            await asyncio.sleep(0.01)  # the server has not seen the end of the first yet

    talk(more, max_per_address=1)


def test_an_ipv6_network_is_one_address():
    async def enter():
        listener = UvicornListener(None, Listen(max_per_address=1), asyncio.get_running_loop())
        first = listener.enter("2001:db8::1")
        assert listener.enter("2001:db8::2:1") is None and listener.enter("2001:db8:0:1::1")
        first.leave()
        assert listener.enter("2001:db8::2:1").address == "2001:db8::2:1"

    asyncio.run(enter())
