"""Control's connections: slow headers, headers without end, silence, and what comes between two requests."""

import asyncio

import pytest
import uvicorn

from modelkeep.http import hurried
from modelkeep.http.hurried import MAX_HEAD, Hurried

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def talk(conversation):
    """Have ``conversation`` with a server that gives headers a fifth of a second."""

    async def run():
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", http=Hurried, ws="none", timeout_keep_alive=600)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        try:
            async with asyncio.timeout(30):
                return await conversation(reader, writer)
        finally:
            writer.close()
            server.servers[0].close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(hurried, "HEADER_SECONDS", 0.2)


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
