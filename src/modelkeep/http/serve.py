"""A server process: sockets, TLS, signals, and a stop that loses nothing.

Stopping, in order: take no new connection, answer what has begun, examine what waits, sign the audit log's last checkpoint.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop

from modelkeep.errors import Conflict, ModelkeepError, Unavailable
from modelkeep.http.gateway import App
from modelkeep.http.metrics import Metrics
from modelkeep.http.problem import bad_request
from modelkeep.http.protocol import Handler, Server
from modelkeep.workflows.service import Listen, Service
from modelkeep.workflows.watch import Watch, Watchers

_HANDSHAKE_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_LOAD_SECONDS = 120.0
_SWITCH_SECONDS = 0.0005


def run_gateway(service: Service, tell: Callable[[str], None] = lambda _text: None) -> None:
    """Serve until SIGTERM or SIGINT. ``tell``: told the address once predictions are answered.

    Raises Conflict (the address is taken), and before serving whatever keeps the log or the records from being read.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)  # the evidence thread must not hold the interpreter for 5 ms while answers wait
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_gateway(service, tell))


async def _serve_gateway(service: Service, tell: Callable[[str], None]) -> None:
    async with serving(service) as url:
        service.announce(url)
        tell(f"gateway: {url}")
        await stop_signal()
        service.withdraw()


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[str]:
    """Answer predictions within; yields the address. On leaving, stop as this module says. Raises what ``run_gateway`` does."""
    loop = asyncio.get_running_loop()
    service.delivery.loop = loop
    watchers = Watchers(service.loader.watches, lambda done: _hand_back(loop, done))
    try:
        await loop.run_in_executor(None, service.follower.settle, _LOAD_SECONDS)
        service.follower.start()
        watchers.start()
        async with listening(application(service), service.listen) as (host, port), _handing_over(service):
            yield f"{'https' if service.listen.tls else 'http'}://{host}:{port}"
    finally:
        await loop.run_in_executor(None, _close, service, watchers)


def application(service: Service) -> App:
    """The gateway's routes, with its metrics."""
    metrics = Metrics()
    service.recorder.took = metrics.audit.observe
    gateway, now = service.gateway, service.clock.monotonic
    metrics.gauge("modelkeep_lease_seconds", "Seconds left of the admission lease.", lambda: gateway.lease_left(now()))
    metrics.gauge("modelkeep_models_served", "Releases that are served.", lambda: len(gateway.admitted.models))
    metrics.gauge(
        "modelkeep_extraction_alarms",
        "Accounts at the alarm rung, over all releases.",
        lambda: sum(watch.alarms for watch in service.loader.watches()),
    )
    metrics.gauge(
        "modelkeep_extraction_rows_behind",
        "Queries answered and not examined yet.",
        lambda: sum(watch.rows_behind() for watch in service.loader.watches()),
    )
    metrics.gauge("modelkeep_audit_records", "Durable records in this process's audit log.", lambda: service.audit.size)
    metrics.gauge("modelkeep_audit_refusing", "1 while no record can be written.", lambda: float(bool(service.audit.refusal)))
    return App(gateway, metrics, service.clock, releases=service.releases, audits=service.audits)


def _hand_back(loop: asyncio.AbstractEventLoop, done: list[tuple[Watch, dict[str, int]]]) -> None:
    def release() -> None:
        for watch, rows in done:
            for subject, count in rows.items():
                watch.release(subject, count)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the room any more
        loop.call_soon_threadsafe(release)


def _close(service: Service, watchers: Watchers) -> None:
    service.follower.stop()
    if watchers.alive():
        watchers.stop()
    try:
        final = service.audit.stop()
        service.handover(final)
    except ModelkeepError as cause:
        service.report(f"the audit log's last checkpoint was not handed over: {cause}")
    for close in service.closing:
        try:
            close()
        except ModelkeepError as cause:  # the others have something to give back, too
            service.report(f"while stopping: {cause}")


@asynccontextmanager
async def _handing_over(service: Service) -> AsyncIterator[None]:
    """Hand the audit log's checkpoint over now and then, beside everything else."""

    def once() -> None:
        try:
            service.handover(service.audit.publish())
        except ModelkeepError as cause:
            service.report(f"the audit checkpoint was not handed over: {cause}")

    async def forever() -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(None, once)
            await asyncio.sleep(service.handover_seconds)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def listening(handler: Handler, listen: Listen) -> AsyncIterator[tuple[str, int]]:
    """Answer with ``handler`` within; on leaving, drain. Yields host and port. Raises Conflict, Unavailable (cannot listen)."""
    loop = asyncio.get_running_loop()
    server = Server(handler, bad_request, listen, loop)
    bound = _bind(listen)
    secured = listen.tls is not None
    listener = await loop.create_server(
        server,
        sock=bound,
        ssl=listen.tls,
        backlog=1024,
        ssl_handshake_timeout=_HANDSHAKE_SECONDS if secured else None,
        ssl_shutdown_timeout=_CLOSE_SECONDS if secured else None,
    )
    server.start()
    try:
        yield listen.host, bound.getsockname()[1]
    finally:
        listener.close()
        await server.drain(listen.drain_seconds)


def _bind(listen: Listen) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
    except OSError as cause:
        raise Unavailable(f"cannot listen on {listen.host}:{listen.port}: {cause.strerror}") from cause
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as cause:
        bound.close()
        raise Conflict(f"cannot listen on {listen.host}:{listen.port}: {cause.strerror}; choose another port") from cause
    bound.setblocking(False)
    return bound


async def stop_signal() -> None:
    """Return at the first SIGTERM or SIGINT."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
