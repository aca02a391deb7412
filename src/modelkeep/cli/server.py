"""up, control, serve."""

import os
import sys
from collections.abc import Sequence

import click

from modelkeep.adapters.process import harden, read_pipe
from modelkeep.app.control import open_control
from modelkeep.app.gateway import open_gateway
from modelkeep.app.handover import Opened, RingWatch, decode, encode, open_for, send_ring
from modelkeep.app.processes import Child, address_file, supervise
from modelkeep.cli.context import Context
from modelkeep.core.values import ReleaseRef
from modelkeep.custody.keys import FAMILIES, GATEWAY_FAMILIES
from modelkeep.errors import Invalid
from modelkeep.http.control import run_control
from modelkeep.http.serve import run_gateway

KEYS_FD = click.option("--keys-fd", type=int, default=-1, hidden=True, help="Descriptor with what the process starts with.")


@click.command(epilog="Example: modelkeep --dir ./keep up")
@click.option(
    "--model", "models", multiple=True, metavar="NAME@VERSION", help="Serve only this release; may be given several times."
)
@click.pass_obj
def up(ctx: Context, models: tuple[str, ...]) -> None:
    """Start control and a gateway, each in a process of its own, and keep them running until stopped.

    The gateway gets the key compartments that serving needs over a pipe, and never the passphrase.
    """
    _check_local(ctx, "up")
    harden()
    here = ctx.keep.premises
    watch = RingWatch(here, ctx.out.note)
    arguments = [sys.executable, "-m", "modelkeep", "--dir", str(ctx.directory)]
    chosen = [part for ref in models for part in ("--model", str(ReleaseRef.parse(ref)))]
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
@KEYS_FD
@click.option("--updates-fd", type=int, default=-1, hidden=True, help="Descriptor that changed keys come through.")
@click.pass_obj
def serve(ctx: Context, models: tuple[str, ...], tls: str, keys_fd: int, updates_fd: int) -> None:
    """Run the gateway: answers predictions over HTTPS for the releases that the log admits.

    It opens only the key compartments that serving needs: never statement signing, the releases log or session tokens.
    """
    del tls  # one way for now: the choice is there so that scripts can say it
    _check_local(ctx, "serve")
    only = [ReleaseRef.parse(ref) for ref in models]
    service = open_gateway(ctx.directory, _opened(ctx, GATEWAY_FAMILIES, keys_fd), only, ctx.out.note, updates_fd)
    harden()
    run_gateway(service, ctx.out.note)


def _check_local(ctx: Context, what: str) -> None:
    if ctx.server:
        raise Invalid(f"{what} runs where the keep is: leave out --server")
    os.umask(0o077)


def _opened(ctx: Context, families: Sequence[str], keys_fd: int) -> Opened:
    return decode(read_pipe(keys_fd)) if keys_fd >= 0 else open_for(ctx.keep.premises, families)


COMMANDS = (up, control, serve)
