"""A server process: sockets, TLS, signals, and a stop that loses nothing.

Stopping, in order: take no new connection, answer what has begun, examine what waits, sign the audit log's last checkpoint.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import uvloop

import modelkeep
from modelkeep.adapters import ownprocess
from modelkeep.adapters.process import died
from modelkeep.errors import Conflict, ModelkeepError, Unavailable
from modelkeep.http.gateway import App
from modelkeep.http.metrics import Metrics
from modelkeep.http.problem import bad_request
from modelkeep.http.protocol import Handler, Listener, Place, Server
from modelkeep.serving.breaker import State
from modelkeep.serving.series import AuditSeries
from modelkeep.serving.sinks import SinkState
from modelkeep.workflows.predict import Gateway
from modelkeep.workflows.service import Service
from modelkeep.workflows.upstream import RemoteModel
from modelkeep.workflows.watch import Watchers, Watching

Observe = Callable[[Handler], Handler]
_HANDSHAKE_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_LOAD_SECONDS = 120.0
SWITCH_SECONDS = 0.0005
"""A thread gives the interpreter to one that waits after this long: 5 ms, as it is by default, is an answer's whole time."""
_LOOK_SECONDS = 1.0
_FULL_SECONDS = 0.1
_BACKLOG = 1024


def run_gateway(
    service: Service,
    tell: Callable[[str], None] = lambda _text: None,
    beat: Callable[[], None] = lambda: None,
    observe: Observe = lambda handler: handler,
) -> None:
    """Serve until SIGTERM or SIGINT.

    ``tell``: told the address once predictions are answered; ``beat``: called every second; ``observe``: what stands around the
    handler, such as an access log.

    Raises Conflict (the address is taken), before serving whatever keeps the log or the records from being read, and
    Unavailable, after draining, when the audit log failed for good or a part of the server died: the process that is started
    next begins another.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # the collector need not look at what was imported again and again
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_gateway(service, tell, beat, observe))


async def _serve_gateway(service: Service, tell: Callable[[str], None], beat: Callable[[], None], observe: Observe) -> None:
    async with serving(service, observe) as (url, grpc):
        service.announce(url, grpc)
        tell(f"gateway: {url}" + (f" and gRPC on {grpc}" if grpc else ""))
        try:
            await _stopped_or_failed(service, beat)
        finally:
            service.withdraw()


async def _stopped_or_failed(service: Service, beat: Callable[[], None]) -> None:
    """Return at a signal to stop. Raises Unavailable once no record can be written any more."""
    stop = asyncio.create_task(stop_signal())
    try:
        while not (await asyncio.wait({stop}, timeout=_LOOK_SECONDS))[0]:
            beat()
            if failure := service.audit.failure:
                raise Unavailable(failure)
    finally:
        stop.cancel()


@asynccontextmanager
async def serving(service: Service, observe: Observe = lambda handler: handler) -> AsyncIterator[tuple[str, str]]:
    """Answer predictions within; yields the URL, and host:port of gRPC ("" where it is not spoken).

    On leaving, stop as this module says. Raises what ``run_gateway`` does.
    """
    loop = asyncio.get_running_loop()
    service.delivery.loop = loop
    watchers = Watchers(service.loader.watches, lambda done: _hand_back(loop, done))
    try:
        for begin in service.opening:
            begin()
        await loop.run_in_executor(None, service.follower.settle, _LOAD_SECONDS)
        service.follower.start()
        watchers.start()
        metrics = measures(service)
        app = application(service, metrics)
        server = Server(observe(app), bad_request, service.listen, loop, app.door, app.welcome)
        _own_metrics(metrics, server)
        with np.errstate(over="ignore"):  # a sum of squares that overflows is an answer (serving/validate), and no news
            async with (
                listening(server) as (host, port),
                _speaking_grpc(service, app) as grpc,
                _handing_over(service),
                _tallying(service, metrics),
            ):
                yield f"{'https' if service.listen.tls else 'http'}://{host}:{port}", grpc
    finally:
        for served in service.gateway.admitted.models.values():
            if served.remote is not None:
                served.remote.close()
        await loop.run_in_executor(None, _close, service, watchers)


@asynccontextmanager
async def _speaking_grpc(service: Service, app: App) -> AsyncIterator[str]:
    """Answer gRPC within, if that is wanted; yields host:port, or "". On leaving, drain."""
    if service.grpc is None:
        yield ""
        return
    from modelkeep.http.grpc import GrpcServer
    from modelkeep.http.inference import Inference

    inference = Inference(service.gateway, app.metrics, service.clock)
    server = GrpcServer(inference, inference.door, service.grpc, asyncio.get_running_loop(), app.welcome)
    async with listening(server) as (host, port):
        yield f"{host}:{port}"


def application(service: Service, metrics: Metrics) -> App:
    """The gateway's routes."""
    return App(
        service.gateway,
        metrics,
        service.clock,
        releases=service.releases,
        audits=service.audits,
        explainer=service.explainer,
        ready=service.ready,
        tallied=service.tallied,
    )


def measures(service: Service) -> Metrics:
    """What the gateway counts."""
    metrics = Metrics()
    service.recorder.took = metrics.audit.observe
    gateway, now = service.gateway, service.clock.monotonic
    metrics.gauge(
        "modelkeep_lease_seconds", "Seconds left of the admission lease.", lambda: gateway.lease_left(now()), over="min"
    )
    metrics.gauge("modelkeep_models_served", "Releases that are served.", lambda: len(gateway.admitted.models), over="min")
    limits = gateway.limits
    metrics.gauge("modelkeep_requests_in_flight", "Predictions that are being made.", lambda: limits.in_flight)
    metrics.gauge("modelkeep_limits_counted", "1 while limits can be counted.", lambda: float(not limits.trouble()), over="min")
    metrics.gauge(
        "modelkeep_extraction_alarms",
        "Accounts at the alarm rung, over all releases.",
        lambda: sum(watch.alarms for watch in service.loader.watches()),
        over="max",
    )
    metrics.gauge(
        "modelkeep_extraction_withheld",
        "Accounts that are not accused because the evidence of many rises together, over all releases.",
        lambda: sum(watch.withheld for watch in service.loader.watches()),
        over="max",
    )
    metrics.gauge(
        "modelkeep_extraction_rows_behind",
        "Queries answered and not examined yet.",
        lambda: sum(watch.rows_behind() for watch in service.loader.watches()),
    )
    metrics.gauge("modelkeep_audit_records", "Durable records in this process's audit log.", lambda: service.audit.size)
    metrics.gauge(
        "modelkeep_audit_refusing", "1 while no record can be written.", lambda: float(bool(service.audit.refusal)), over="max"
    )
    metrics.gauge(
        "modelkeep_tls_certificate_expiration_timestamp_seconds",
        "When the certificate that is shown ends, Unix seconds.",
        service.certificate_end,
        over="min",
    )
    _sink_metrics(metrics, service.audit)
    _upstream_metrics(metrics, gateway)
    return metrics


def _own_metrics(metrics: Metrics, server: Server) -> None:
    """What every server is asked about: its build, its process (named as Prometheus' own clients do), its connections."""
    metrics.readings(
        "modelkeep_build_info", "1, by version of modelkeep.", "version", lambda: [(modelkeep.__version__, 1.0)], over="max"
    )
    metrics.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", ownprocess.resident_bytes)
    metrics.gauge("process_open_fds", "Number of open file descriptors.", ownprocess.open_files)
    metrics.gauge("process_max_fds", "Maximum number of open file descriptors.", ownprocess.most_files, over="min")
    metrics.gauge(
        "process_start_time_seconds", "Start time of the process since unix epoch in seconds.", ownprocess.started, over="min"
    )
    metrics.gauge(
        "process_cpu_seconds_total", "User and system CPU time spent in seconds.", ownprocess.cpu_seconds, counter=True
    )
    metrics.gauge(
        "modelkeep_connections", "Connections held now, those that still agree on TLS among them.", lambda: server.accepted
    )
    metrics.gauge(
        "modelkeep_connections_refused_total", "Connections closed at the door: too many.", lambda: server.refused, counter=True
    )


def _sink_metrics(metrics: Metrics, audit: AuditSeries) -> None:
    def series(name: str, words: str, read: Callable[[SinkState], float], *, counter: bool = False, over: str = "sum") -> None:
        rows = lambda: [(sink.name, float(read(sink))) for sink in audit.sinks()]  # noqa: E731
        metrics.readings(f"modelkeep_audit_sink_{name}", words, "sink", rows, counter=counter, over=over)

    series("accepted", "Records of this process's audit log that the sink has accepted.", lambda sink: sink.accepted)
    series("failed_total", "Calls of the sink that failed.", lambda sink: sink.failed, counter=True)
    series("lost_total", "Records of older logs that were gone before the sink had them.", lambda sink: sink.lost, counter=True)
    series("lag_seconds", "Age of the oldest record that the sink has not accepted.", lambda sink: sink.lag, over="max")
    series("up", "1 while the sink is well.", lambda sink: sink.state == "ok", over="min")
    metrics.gauge(
        "modelkeep_audit_break_glass",
        "1 while answers leave without required audit sinks.",
        lambda: float(bool(audit.waiving)),
        over="max",
    )


def _upstream_metrics(metrics: Metrics, gateway: Gateway) -> None:
    def series(name: str, words: str, read: Callable[[RemoteModel], float], *, counter: bool = False) -> None:
        def rows() -> list[tuple[str, float]]:
            models = sorted(gateway.admitted.models.items())
            return [(str(ref), float(read(one.remote))) for ref, one in models if isinstance(one.remote, RemoteModel)]

        metrics.readings(
            f"modelkeep_upstream_{name}", words, "release", rows, counter=counter, over="sum" if counter else "max"
        )

    series("breaker", "0 while the upstream is asked, 1 while one request sees, 2 while it is left alone.", _breaker)
    series("answers_total", "Answers of the upstream that could be used.", lambda one: one.readings.answers, counter=True)
    series("failures_total", "Questions that it gave no such answer to.", lambda one: one.readings.failures, counter=True)
    series("seconds_total", "Time that those answers took together.", lambda one: one.readings.seconds, counter=True)


def _breaker(one: RemoteModel) -> float:
    return {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0}[one.state()]


def _hand_back(loop: asyncio.AbstractEventLoop, done: list[tuple[Watching, dict[str, int]]]) -> None:
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
            if final := service.audit.roll():
                service.handover(final)
            service.handover(service.audit.publish())
        except ModelkeepError as cause:
            service.report(f"the audit checkpoint was not handed over: {cause}")

    async def forever() -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(None, once)
            await asyncio.sleep(service.handover_seconds)

    async with beside("the handing over of audit checkpoints", forever()):
        yield


@asynccontextmanager
async def _tallying(service: Service, metrics: Metrics) -> AsyncIterator[None]:
    """Leave this process's counts with those of others now and then, beside everything else."""

    async def forever() -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            with contextlib.suppress(Unavailable):
                await asyncio.get_running_loop().run_in_executor(None, service.tally, metrics.series())

    if service.tallied is None:
        yield
        return
    async with beside("the sharing of counts", forever()):
        yield


@asynccontextmanager
async def beside(what: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do ``work``, which never ends, beside what is done within. Raises Unavailable when it died of an error nobody foresaw:
    what is done within is cut off then, for a server without one of its parts must be started anew."""
    within, task, inside = asyncio.current_task(), asyncio.create_task(work), True
    assert within is not None

    def ended(_task: asyncio.Task[None]) -> None:
        if inside:
            within.cancel()

    task.add_done_callback(ended)
    try:
        yield
    finally:
        inside = False
        if task.done():
            within.uncancel()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            failure = task.exception()
            raise Unavailable(died(what, failure) if failure else f"{what} has ended") from failure


@asynccontextmanager
async def listening(server: Listener) -> AsyncIterator[tuple[str, int]]:
    """Let ``server`` answer within; on leaving, drain. Yields host and port. Raises Conflict, and Unavailable:
    it cannot listen, or takes no connection any more."""
    listen = server.bounds
    bound = socket.socket(fileno=listen.descriptor) if listen.descriptor >= 0 else bind(listen.host, listen.port)
    server.start()
    try:
        async with beside("the taking of connections", _accept(bound, server)):
            yield listen.host, bound.getsockname()[1]
    finally:
        bound.close()
        await server.drain(listen.drain_seconds)


async def _accept(bound: socket.socket, server: Listener) -> None:
    """Take connections for ever. Each is counted before TLS is agreed on it, so that silent ones cannot pile up uncounted."""
    opening: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                connection, peer = await server.loop.sock_accept(bound)
            except OSError:  # gone before it was taken, or no more open files: those in wait are taken later
                await asyncio.sleep(_FULL_SECONDS)
                continue
            place = server.enter(peer[0])
            if place is None:
                connection.close()
                await asyncio.sleep(0)  # accepting what waits does not: a flood at the door would be all that is done
                continue
            task = asyncio.create_task(_open(connection, place))
            opening.add(task)
            task.add_done_callback(opening.discard)
    finally:
        for task in opening:
            task.cancel()


async def _open(connection: socket.socket, place: Place) -> None:
    """Agree on TLS and hand the connection to its protocol, which gives the place back at its end."""
    tls = place.listener.bounds.tls
    begun = False
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await place.listener.loop.connect_accepted_socket(
            lambda: place.listener.connection(place),
            connection,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if tls else None,
            ssl_shutdown_timeout=_CLOSE_SECONDS if tls else None,
        )
        begun = True
    except OSError:  # the client left, or spoke no TLS 1.3 that we know: ssl.SSLError and TimeoutError are OSErrors
        pass
    finally:
        if not begun:
            place.leave()
            connection.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises Conflict (the address is taken), Unavailable (cannot listen there)."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
    except (OSError, ValueError) as cause:  # ValueError: a name that no name can be, such as one with an empty label
        why = cause.strerror if isinstance(cause, OSError) else "that is no host"
        raise Unavailable(f"cannot listen on {host}:{port}: {why}") from cause
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as cause:
        bound.close()
        raise Conflict(f"cannot listen on {host}:{port}: {cause.strerror}; choose another port") from cause
    bound.listen(_BACKLOG)
    bound.setblocking(False)
    return bound


async def stop_signal() -> None:
    """Return at the first SIGTERM or SIGINT."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
