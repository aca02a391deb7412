"""What every route of control does with a request: its body within bounds, its credential, its address, its threads."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request

from modelkeep.access.presented import Presented, Proof
from modelkeep.errors import Invalid, TooLarge, Unauthenticated

SLOWEST = 1 << 20
"""Bytes a second at which a body must at least come, after the first ``PATIENCE`` seconds."""
PATIENCE = 30.0
LOGIN_THREADS = 8
"""How many logins are under way at once; others wait. So a flood of them takes no thread from those who are known."""

P = ParamSpec("P")
R = TypeVar("R")


def token_of(request: Request) -> str:
    """The token of an ``authorization: Bearer …`` header. Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("this needs a session or an API key: send 'Authorization: Bearer …'")
    return token


def presented_of(request: Request) -> Presented:
    """The credential of a request, whichever scheme it came by. Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() not in {"bearer", "dpop"} or not token:
        raise Unauthenticated("this needs a session or an API key: send 'Authorization: Bearer …'")
    if scheme.lower() == "bearer":
        return Presented(token, address_of(request))
    jwt, host = request.headers.get("dpop", ""), request.headers.get("host", "").encode("latin-1")
    proof = Proof(jwt, request.method.encode(), host, request.scope["raw_path"])
    return Presented(token, address_of(request), proof=proof)


def address_of(request: Request) -> str:
    """The network address of whoever asks."""
    return request.client.host if request.client else ""


async def body_of(request: Request, most: int) -> bytes:
    """The whole body. Raises TooLarge, Invalid (it came too slowly, or not whole)."""
    received = bytearray()
    try:
        async with asyncio.timeout(PATIENCE + most / SLOWEST):
            async for chunk in request.stream():
                if len(received) + len(chunk) > most:
                    raise TooLarge(f"the request is larger than {most:,} bytes")
                received += chunk
    except TimeoutError:
        raise Invalid("the request's body came too slowly") from None
    except ClientDisconnect:
        raise Invalid("the client went away before its request had come whole") from None
    return bytes(received)


class Threads:
    """Threads for what must not take those of everybody else: people who are not known yet, or verbs that take long."""

    def __init__(self, most: int = LOGIN_THREADS) -> None:
        self._most = most
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``work`` in one of them."""
        if self._limiter is None:  # it belongs to the event loop that is there at the first use
            self._limiter = anyio.CapacityLimiter(self._most)
        return await run_sync(lambda: work(*args, **kwargs), limiter=self._limiter)
