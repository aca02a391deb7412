"""up, control, serve."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import click

from modelkeep.adapters.logs import Log, standard_error, take_over_logging
from modelkeep.adapters.process import end_with, end_with_threads, harden, read_pipe
from modelkeep.adapters.systemd import Notifier
from modelkeep.adapters.tls import Identity
from modelkeep.app.control import open_control
from modelkeep.app.evidence import Worker
from modelkeep.app.gateway import check_grpc, open_gateway, own_certificate
from modelkeep.app.handover import LeafWatch, Opened, RingWatch, decode, encode, open_for, send_leaf, send_ring
from modelkeep.app.owner import NAME as OWNER
from modelkeep.app.owner import run_owner
from modelkeep.app.premises import CA_FILE
from modelkeep.app.processes import Child, address_file, stop_at_once, supervise
from modelkeep.app.sections import LogSettings, TraceSettings
from modelkeep.app.settings import load
from modelkeep.app.workers import MOST_WORKERS, Crew
from modelkeep.cli.context import Context
from modelkeep.cli.sealing import Switch, enter
from modelkeep.core.values import ReleaseRef
from modelkeep.custody.keys import FAMILIES, GATEWAY_FAMILIES
from modelkeep.errors import Invalid, ModelkeepError
from modelkeep.http.control import run_control
from modelkeep.http.observe import AccessLog, Traced
from modelkeep.http.protocol import Handler
from modelkeep.http.serve import Observe, bind, run_gateway
from modelkeep.workflows.service import Service

if TYPE_CHECKING:
    from modelkeep.adapters.traces import Traces

LOCK_PAUSE = 0.1
"""How long the answer of a locked process may take to reach who asked."""
SEALED = click.option("--sealed", is_flag=True, help="Wait without keys until 'modelkeep unseal' gives them.")
WORKERS = click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    metavar="N",
    help="Processes that answer, each on a core; one more keeps their shared state.",
)
PARENT = click.option("--parent", type=int, default=0, hidden=True, help="End when this process, which started it, is gone.")
KEYS_FD = click.option("--keys-fd", type=int, default=-1, hidden=True, help="Descriptor with what the process starts with.")


@click.command(epilog="Example: modelkeep --dir ./keep up")
@click.option(
    "--model", "models", multiple=True, metavar="NAME@VERSION", help="Serve only this release; may be given several times."
)
@WORKERS
@SEALED
@click.pass_obj
def up(ctx: Context, models: tuple[str, ...], workers: int | None, sealed: bool) -> None:
    """Start control and a gateway, each in a process of its own, and keep them running until stopped.

    The gateway gets the key compartments that serving needs over a pipe, and never the passphrase. Where no passphrase is given
    and there is no terminal, it comes up sealed.
    """
    _check_local(ctx, "up")
    systemd, hang_up, log = Notifier(), HangUp(), open_log(ctx, "up")
    switch = enter(ctx, "up", systemd, log, by_hand=sealed)
    if switch is None:
        return
    harden()
    here = ctx.keep.premises
    switch.check = here.check_unlocked
    watch = RingWatch(here, log.tell)
    arguments = [sys.executable, "-m", "modelkeep", "--dir", str(ctx.directory)]
    chosen = [part for ref in models for part in ("--model", str(ReleaseRef.parse(ref)))]
    chosen += [] if workers is None else ["--workers", str(workers)]
    ruling, serving = [*arguments, "control"], [*arguments, "serve", *chosen]
    control_child = Child("control", ruling, encode(open_for(here, FAMILIES)), address_file(ctx.directory, "control"))
    opened = open_for(here, GATEWAY_FAMILIES)
    gateway = Child("gateway", serving, encode(opened), address_file(ctx.directory, "gateway"), follows=True)

    def renew() -> None:
        """Control reads the key ring by itself; either gets the ring of now when it is started again."""
        control_child.secret = encode(open_for(here, FAMILIES))
        nonlocal opened
        opened = Opened(open_for(here, GATEWAY_FAMILIES).keyring, leaves.leaf)
        gateway.secret = encode(opened)
        if gateway.updates is not None:
            send_ring(gateway.updates, opened.keyring)

    def exchange(fresh: Identity) -> None:
        """A gateway has no key of the authority, so its certificate is renewed here."""
        nonlocal opened
        opened = Opened(opened.keyring, fresh)
        gateway.secret = encode(opened)
        if gateway.updates is not None:
            send_leaf(gateway.updates, fresh)

    def look() -> None:
        if switch.asked.is_set():
            _lock(ctx, switch, [gateway, control_child], log)
        systemd.beat()
        watch.look()
        leaves.look()
        hang_up.pass_on([gateway])

    leaves = LeafWatch(here, opened.leaf, exchange, log.tell)
    watch.renew = renew
    try:
        supervise([control_child, gateway], log.tell, look, up=lambda: systemd.ready("serving"))
    except _Locked:
        switch.start_sealed()
    finally:
        systemd.stopping()


class HangUp:
    """SIGHUP, which ends a process that does not expect it: here it is passed on to the children that show certificates."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGHUP, self._take)

    def pass_on(self, children: Sequence[Child]) -> None:
        """To all of ``children`` that run, when one came since."""
        if self._asked:
            self._asked = False
            for child in children:
                if child.process is not None and child.process.poll() is None:
                    child.process.send_signal(signal.SIGHUP)

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


class _Locked(Exception):
    """The keys are to go: raised through the supervisor."""


def _lock(ctx: Context, switch: Switch, children: Sequence[Child], log: Log) -> None:
    """Stop ``children``, in order, before they could answer for another second; record it, and go."""
    try:
        for child in children:
            stop_at_once([child])
        _say_locked(switch)
        ctx.keep.act("locked", "up", uid=str(switch.by))
    except ModelkeepError as cause:  # the keys go in any case
        log.report(f"locked, and that could not be logged: {cause}")
    raise _Locked


def _say_locked(switch: Switch) -> None:
    switch.locked.set()
    time.sleep(LOCK_PAUSE)


@click.command(epilog="Example: modelkeep --dir ./keep control")
@SEALED
@KEYS_FD
@PARENT
@click.pass_obj
def control(ctx: Context, sealed: bool, keys_fd: int, parent: int) -> None:
    """Run the control process: admin API, releases log, integrity pass. It holds the signing keys."""
    _check_local(ctx, "control")
    if parent:
        end_with(parent)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to read again
    systemd, log = Notifier({} if keys_fd >= 0 else os.environ), open_log(ctx, "control")  # systemd hears whom it started
    switch = None if keys_fd >= 0 else enter(ctx, "control", systemd, log, by_hand=sealed, lock=lambda: None)
    if keys_fd < 0 and switch is None:
        return
    end_with_threads()
    service = open_control(ctx.directory, _opened(ctx, FAMILIES, keys_fd), log.report)
    if switch is not None:
        switch.check = service.keep.premises.check_unlocked
    harden()  # after TLS is set up: a process that is not dumpable cannot read its own /proc/self/fd unless it is root
    try:
        run_control(service, _telling(log, systemd), systemd.beat)
    finally:
        systemd.stopping()


@click.command(epilog="Example: modelkeep --dir ./keep serve --model credit-risk@1 --tls auto")
@click.option(
    "--model", "models", multiple=True, metavar="NAME@VERSION", help="Serve only this release; may be given several times."
)
@click.option(
    "--tls",
    type=click.Choice(["auto", "files"]),
    default=None,
    help="auto: a certificate from this keep's own authority; files: those that the settings name.",
)
@WORKERS
@SEALED
@KEYS_FD
@PARENT
@click.option("--updates-fd", type=int, default=-1, hidden=True, help="Descriptor that changed keys come through.")
@click.option("--part", default="", hidden=True, help="Be this one of several processes: owner, or worker-NUMBER/WORKERS.")
@click.option("--listen-fd", "sockets", type=int, multiple=True, hidden=True, help="Sockets that workers share: HTTPS, gRPC.")
@click.pass_obj
def serve(  # noqa: PLR0913, PLR0917  # its options
    ctx: Context,
    models: tuple[str, ...],
    tls: str | None,
    sealed: bool,
    workers: int | None,
    keys_fd: int,
    parent: int,
    updates_fd: int,
    part: str,
    sockets: tuple[int, ...],
) -> None:
    """Run the gateway: answers predictions over HTTPS for the releases that the log admits.

    It opens only the key compartments that serving needs: never statement signing, the releases log or session tokens.
    """
    _check_local(ctx, "serve")
    if parent:
        end_with(parent)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until a certificate is shown that can change
    if tls == "files" and own_certificate(ctx.directory, auto=False) is None:
        raise Invalid("--tls files shows the files of gateway.certificate and gateway.key: set both")
    only = [ReleaseRef.parse(ref) for ref in models]
    settings = load(ctx.directory)
    count, worker = workers or settings.gateway.workers, _worker(part, sockets)
    systemd, log = Notifier({} if keys_fd >= 0 else os.environ), open_log(ctx, part.partition("/")[0] or "gateway")
    switch, alone = None, worker is not None or count == 1
    if keys_fd < 0:
        switch = enter(ctx, "serve", systemd, log, by_hand=sealed, lock=(lambda: None) if alone else None, auto=tls == "auto")
        if switch is None:
            return
    opened = _opened(ctx, GATEWAY_FAMILIES, keys_fd)
    if part == OWNER:
        harden()
        run_owner(ctx.directory, opened, log.report, updates_fd)
    elif alone:
        traces = _traces(settings.trace)
        end_with_threads()
        service = open_gateway(ctx.directory, opened, only, log.report, updates_fd, worker, auto=tls == "auto", traces=traces)
        harden()
        shown = "" if settings.gateway.certificate and tls != "auto" else f"  (clients trust {ctx.directory / CA_FILE})"
        tell = _telling(log, systemd, shown) if worker is None else lambda _text: None
        try:
            run_gateway(service, tell, systemd.beat, _observed(service, log, settings.log, traces))
        finally:
            systemd.stopping()
    else:
        harden()
        command = [sys.executable, "-m", "modelkeep", "--dir", str(ctx.directory), "serve"]
        command += [argument for ref in only for argument in ("--model", str(ref))] + (["--tls", tls] if tls else [])
        _run_crew(ctx, command, opened, count, updates_fd, switch, (log, systemd))


def _run_crew(
    ctx: Context,
    command: Sequence[str],
    opened: Opened,
    workers: int,
    updates: int,
    switch: Switch | None,
    say: tuple[Log, Notifier],
) -> None:
    """Keep several workers running, and what they share. Raises Conflict (a port is taken), Invalid, Unavailable."""
    settings, (log, systemd), hang_up = load(ctx.directory).gateway, say, HangUp()
    check_grpc(settings)
    grpc = bind(settings.host, settings.grpc_port) if settings.grpc_port >= 0 else None
    crew = Crew(ctx.directory, command, opened, bind(settings.host, settings.port), workers=workers, grpc=grpc)

    def look() -> None:
        systemd.beat()
        hang_up.pass_on(crew.workers)
        if switch is not None and switch.asked.is_set():
            stop_at_once(crew.workers)
            stop_at_once([crew.owner])
            _say_locked(switch)
            raise _Locked

    try:
        crew.run(log.tell, updates, look=look, up=lambda: systemd.ready("serving"))
    except _Locked:
        assert switch is not None
        switch.start_sealed()
    finally:
        systemd.stopping()


def _worker(part: str, sockets: tuple[int, ...]) -> Worker | None:
    if not part.startswith("worker-"):
        return None
    number, _, of = part.removeprefix("worker-").partition("/")
    return Worker(int(number), int(of), *sockets)


def open_log(ctx: Context, process: str) -> Log:
    """The log of a server process, which libraries write to as well. Raises Missing (no keep), Invalid, Unavailable."""
    settings = load(ctx.directory).log
    log = standard_error(process, settings.format, settings.level, settings.repeat_seconds)
    take_over_logging(log)
    return log


def _traces(settings: TraceSettings) -> "Traces | None":
    """Where spans come from, when the settings ask for them. Raises Invalid: the extra is not installed."""
    if not settings.endpoint or not settings.share:
        return None
    try:
        from modelkeep.adapters.traces import Traces
    except ModuleNotFoundError as cause:
        raise Invalid(f"trace.endpoint needs 'pip install modelkeep[otel]' ({cause.name} is missing)") from None
    return Traces(settings.endpoint, settings.share)


def _observed(service: Service, log: Log, settings: LogSettings, traces: "Traces | None") -> Observe:
    """What stands around the gateway's handler: nothing, unless the settings ask for it."""

    def observe(handler: Handler) -> Handler:
        if traces is not None:
            handler = Traced(handler, traces, service.gateway.serves)
        if not settings.access:
            return handler
        return AccessLog(
            handler,
            log.event,
            share=settings.access,
            addresses=settings.addresses,
            serves=service.gateway.serves,
            monotonic=service.clock.monotonic,
        )

    return observe


def _telling(log: Log, systemd: Notifier, more: str = "") -> Callable[[str], None]:
    """What a server is given to say that it listens, and ``more`` with it."""

    def tell(text: str) -> None:
        systemd.ready("serving")
        log.tell(text + more)

    return tell


def _check_local(ctx: Context, what: str) -> None:
    if ctx.server:
        raise Invalid(f"{what} runs where the keep is: leave out --server")
    os.umask(0o077)


def _opened(ctx: Context, families: Sequence[str], keys_fd: int) -> Opened:
    return decode(read_pipe(keys_fd)) if keys_fd >= 0 else open_for(ctx.keep.premises, families)


COMMANDS = (up, control, serve)
