"""up, control, serve."""

import os
import sys
from collections.abc import Sequence

import click

from modelkeep.adapters.process import harden, read_pipe
from modelkeep.app.control import open_control
from modelkeep.app.evidence import Worker
from modelkeep.app.gateway import check_grpc, open_gateway
from modelkeep.app.handover import Opened, RingWatch, decode, encode, open_for, send_ring
from modelkeep.app.owner import NAME as OWNER
from modelkeep.app.owner import run_owner
from modelkeep.app.processes import Child, address_file, supervise
from modelkeep.app.settings import load
from modelkeep.app.workers import MOST_WORKERS, Crew
from modelkeep.cli.context import Context
from modelkeep.core.values import ReleaseRef
from modelkeep.custody.keys import FAMILIES, GATEWAY_FAMILIES
from modelkeep.errors import Invalid
from modelkeep.http.control import run_control
from modelkeep.http.serve import bind, run_gateway

WORKERS = click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    metavar="N",
    help="Processes that answer, each on a core; one more keeps their shared state.",
)
KEYS_FD = click.option("--keys-fd", type=int, default=-1, hidden=True, help="Descriptor with what the process starts with.")


@click.command(epilog="Example: modelkeep --dir ./keep up")
@click.option(
    "--model", "models", multiple=True, metavar="NAME@VERSION", help="Serve only this release; may be given several times."
)
@WORKERS
@click.pass_obj
def up(ctx: Context, models: tuple[str, ...], workers: int | None) -> None:
    """Start control and a gateway, each in a process of its own, and keep them running until stopped.

    The gateway gets the key compartments that serving needs over a pipe, and never the passphrase.
    """
    _check_local(ctx, "up")
    harden()
    here = ctx.keep.premises
    watch = RingWatch(here, ctx.out.note)
    arguments = [sys.executable, "-m", "modelkeep", "--dir", str(ctx.directory)]
    chosen = [part for ref in models for part in ("--model", str(ReleaseRef.parse(ref)))]
    chosen += [] if workers is None else ["--workers", str(workers)]
    ruling, serving = [*arguments, "control"], [*arguments, "serve", *chosen]
    control_child = Child("control", ruling, encode(open_for(here, FAMILIES)), address_file(ctx.directory, "control"))
    gateway = Child(
        "gateway", serving, encode(open_for(here, GATEWAY_FAMILIES)), address_file(ctx.directory, "gateway"), follows=True
    )

    def renew() -> None:
        """Control reads the key ring by itself; either gets the ring of now when it is started again."""
        control_child.secret = encode(open_for(here, FAMILIES))
        opened = open_for(here, GATEWAY_FAMILIES)
        gateway.secret = encode(opened)
        if gateway.updates is not None:
            send_ring(gateway.updates, opened.keyring)

    watch.renew = renew
    supervise([control_child, gateway], ctx.out.note, watch.look)


@click.command(epilog="Example: modelkeep --dir ./keep control")
@KEYS_FD
@click.pass_obj
def control(ctx: Context, keys_fd: int) -> None:
    """Run the control process: admin API, releases log, integrity pass. It holds the signing keys."""
    _check_local(ctx, "control")
    service = open_control(ctx.directory, _opened(ctx, FAMILIES, keys_fd), ctx.out.note)
    harden()  # after TLS is set up: a process that is not dumpable cannot read its own /proc/self/fd unless it is root
    run_control(service, ctx.out.note)


@click.command(epilog="Example: modelkeep --dir ./keep serve --model credit-risk@1 --tls auto")
@click.option(
    "--model", "models", multiple=True, metavar="NAME@VERSION", help="Serve only this release; may be given several times."
)
@click.option(
    "--tls", type=click.Choice(["auto"]), default="auto", show_default=True, help="auto: a certificate from this keep's own CA."
)
@WORKERS
@KEYS_FD
@click.option("--updates-fd", type=int, default=-1, hidden=True, help="Descriptor that changed keys come through.")
@click.option("--part", default="", hidden=True, help="Be this one of several processes: owner, or worker-NUMBER/WORKERS.")
@click.option("--listen-fd", "sockets", type=int, multiple=True, hidden=True, help="Sockets that workers share: HTTPS, gRPC.")
@click.pass_obj
def serve(
    ctx: Context,
    models: tuple[str, ...],
    tls: str,
    workers: int | None,
    keys_fd: int,
    updates_fd: int,
    part: str,
    sockets: tuple[int, ...],
) -> None:
    """Run the gateway: answers predictions over HTTPS for the releases that the log admits.

    It opens only the key compartments that serving needs: never statement signing, the releases log or session tokens.
    """
    del tls  # one way for now: the choice is there so that scripts can say it
    _check_local(ctx, "serve")
    only = [ReleaseRef.parse(ref) for ref in models]
    opened = _opened(ctx, GATEWAY_FAMILIES, keys_fd)
    settings = load(ctx.directory).gateway
    count = workers or settings.workers
    worker = _worker(part, sockets)

    def tell(text: str) -> None:
        ctx.out.note(text if worker is None else f"worker {worker.number}: {text}")

    if part == OWNER:
        harden()
        run_owner(ctx.directory, opened, ctx.out.note, updates_fd)
    elif worker is not None or count == 1:
        service = open_gateway(ctx.directory, opened, only, tell, updates_fd, worker)
        harden()
        run_gateway(service, ctx.out.note if worker is None else lambda _text: None)
    else:
        harden()
        command = [sys.executable, "-m", "modelkeep", "--dir", str(ctx.directory), "serve"]
        command += [argument for ref in only for argument in ("--model", str(ref))]
        check_grpc(settings)
        grpc = bind(settings.host, settings.grpc_port) if settings.grpc_port >= 0 else None
        crew = Crew(ctx.directory, command, opened, bind(settings.host, settings.port), workers=count, grpc=grpc)
        crew.run(ctx.out.note, updates_fd)


def _worker(part: str, sockets: tuple[int, ...]) -> Worker | None:
    if not part.startswith("worker-"):
        return None
    number, _, of = part.removeprefix("worker-").partition("/")
    return Worker(int(number), int(of), *sockets)


def _check_local(ctx: Context, what: str) -> None:
    if ctx.server:
        raise Invalid(f"{what} runs where the keep is: leave out --server")
    os.umask(0o077)


def _opened(ctx: Context, families: Sequence[str], keys_fd: int) -> Opened:
    return decode(read_pipe(keys_fd)) if keys_fd >= 0 else open_for(ctx.keep.premises, families)


COMMANDS = (up, control, serve)
