"""The listeners of a process that is sealed: it lives, is not ready, and answers everything else that it is sealed.

They are closed once the keys are there, and the real servers take their ports. Without the key ring there is no certificate of
this keep's authority; so unless a certificate of one's own is set, a throwaway one is shown that no client should trust.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import uvloop

from modelkeep.app.processes import announce, withdraw
from modelkeep.app.unsealing import Unsealing
from modelkeep.errors import Conflict, Sealed
from modelkeep.http.problem import bad_request, problem
from modelkeep.http.protocol import Request, Response, Server
from modelkeep.http.serve import listening, stop_signal
from modelkeep.workflows.service import Listen

LIVE = (b"/v2/health/live", b"/health")
_LOOK_SECONDS = 0.05
_PATIENCE = 5.0
_LIVES = Response(200, b'{"live":true}')
_SEALED = problem(Sealed("this keep is sealed: its owner has to unseal it first, with 'modelkeep unseal'"))


async def answer(request: Request) -> Response:
    """The answer of a sealed process to ``request``."""
    if request.target.partition(b"?")[0] in LIVE and request.method in (b"GET", b"HEAD"):
        return _LIVES
    return _SEALED


def run_sealed(
    unsealing: Unsealing,
    listeners: Sequence[tuple[str, Listen]],
    tell: Callable[[str], None],
    ready: Callable[[], None] = lambda: None,
    beat: Callable[[], None] = lambda: None,
) -> bool:
    """Listen until the keys are there (true), or until SIGTERM or SIGINT (false).

    ``listeners``: role and bounds of each; ``ready``: called once they all listen; ``beat``: again and again meanwhile. Raises
    Conflict (a port is taken), Unavailable.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(unsealing, listeners, tell, ready, beat))


async def _run(
    unsealing: Unsealing,
    listeners: Sequence[tuple[str, Listen]],
    tell: Callable[[str], None],
    ready: Callable[[], None],
    beat: Callable[[], None],
) -> bool:
    loop = asyncio.get_running_loop()
    stop = asyncio.ensure_future(stop_signal())
    directory, announced = unsealing.here.directory, list[str]()
    async with contextlib.AsyncExitStack() as open_ports:
        for role, bounds in listeners:
            server = Server(answer, bad_request, bounds, loop)
            host, port = await open_ports.enter_async_context(_patiently(server))
            url = f"{'https' if bounds.tls else 'http'}://{host}:{port}"
            announce(directory, role, url)
            announced.append(role)
            tell(f"{role}: {url} is sealed, and waits for 'modelkeep unseal'")
        ready()
        try:
            return await _opened(unsealing, stop, beat)
        finally:
            stop.cancel()
            for role in announced:
                withdraw(directory, role)


@contextlib.asynccontextmanager
async def _patiently(server: Server) -> AsyncIterator[tuple[str, int]]:
    """``listening``, for whoever takes the place of processes that were told to end just now."""
    until = server.loop.time() + _PATIENCE
    while True:
        try:
            async with listening(server) as place:
                yield place
                return
        except Conflict:
            if server.loop.time() >= until:
                raise
        await asyncio.sleep(_LOOK_SECONDS)


async def _opened(unsealing: Unsealing, stop: asyncio.Future[None], beat: Callable[[], None]) -> bool:
    loop, retry = asyncio.get_running_loop(), unsealing.settings.unseal.retry_seconds
    asking: asyncio.Future[bool] | None = None
    next_try = loop.time() if unsealing.automatic else float("inf")
    with ThreadPoolExecutor(1, "provider") as pool:
        while not unsealing.opened.is_set():
            if stop.done():
                return False
            if asking is None and loop.time() >= next_try:
                asking = loop.run_in_executor(pool, unsealing.ask_provider)
            if asking is not None and asking.done():
                asking.result()
                asking, next_try = None, loop.time() + retry
            beat()
            await asyncio.sleep(_LOOK_SECONDS)
    return True
