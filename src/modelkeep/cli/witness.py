"""witness init/show/run: cosign the logs of others. witness status/ask: who cosigned the log of this keep."""

import os
from pathlib import Path

import click

from modelkeep.adapters.process import harden
from modelkeep.adapters.tls import Identity, server_context
from modelkeep.app.keep import Keep
from modelkeep.app.witness import WitnessFolder
from modelkeep.app.witnessresults import WitnessReport, WitnessSaw
from modelkeep.cli.context import Context, moment, read_file, read_secret_file
from modelkeep.errors import Invalid
from modelkeep.http.witness import run_witness
from modelkeep.workflows.service import Listen


@click.group(epilog="Example: modelkeep witness init ./witness --name witness.example.com/acme")
def witness() -> None:
    """Witnesses: they cosign a log only while it continues what they saw before, so that nobody can rewrite it unseen."""


@witness.command("init", epilog="Example: modelkeep witness init ./witness --name witness.example.com/acme")
@click.argument("directory")
@click.option("--name", required=True, help="Name of the witness, best an address of yours without https://")
@click.pass_obj
def witness_init(ctx: Context, directory: str, name: str) -> None:
    """Make a witness in DIRECTORY. It needs no keep. Give one of its verifier keys to those whose logs it is to cosign."""
    made = WitnessFolder.make(Path(directory), name).made()
    text = f"Witness {made.name} made in {made.directory}. Its verifier keys; choose one, the longer one is post-quantum:"
    ctx.out.show(made, "\n".join([text, *made.vkeys]))


@witness.command("show", epilog="Example: modelkeep witness show ./witness")
@click.argument("directory")
@click.pass_obj
def witness_show(ctx: Context, directory: str) -> None:
    """Show the verifier keys of the witness in DIRECTORY and the last checkpoint it cosigned of each log."""
    folder = WitnessFolder.open(Path(directory))
    made, saw = folder.made(), folder.saw()
    lines = [f"Witness {made.name}", *made.vkeys, "", "Cosigned"]
    lines += [_saw(one) for one in saw] or ["  nothing yet"]
    ctx.out.show({"witness": made, "logs": saw}, "\n".join(lines))


def _saw(one: WitnessSaw) -> str:
    if one.problem:
        return f"  {one.problem}"
    evidence = f"; refused what contradicts it: logs/{one.folder}/refused" if one.refused else ""
    return f"  {one.origin}  {one.size} entries, root {one.root[:16]}, {moment(one.at)}{evidence}"


@witness.command(
    "run", epilog="Example: modelkeep witness run ./witness --log keep.acme.eu/releases+1a2b3c4d+AbC... --listen 0.0.0.0:8450"
)
@click.argument("directory")
@click.option(
    "--log", "logs", multiple=True, metavar="VKEY", help="Verifier key of a log to cosign; may be given several times."
)
@click.option(
    "--listen",
    default="127.0.0.1:8450",
    show_default=True,
    metavar="HOST:PORT",
    help="Address to listen on; port 0 takes a free one.",
)
@click.option(
    "--tls-chain", default="", metavar="FILE", help="Certificate chain, PEM, to speak HTTPS; plain HTTP if not given."
)
@click.option("--tls-key", default="", metavar="FILE", help="Its private key, PEM.")
@click.pass_obj
def witness_run(ctx: Context, directory: str, logs: tuple[str, ...], listen: str, tls_chain: str, tls_key: str) -> None:
    """Run the witness in DIRECTORY until stopped: POST /add-checkpoint as in C2SP tlog-witness.

    What it answers is signed and public, and so is what it is asked: plain HTTP loses nothing but privacy.
    """
    os.umask(0o077)
    address = _address(listen)
    if bool(tls_chain) != bool(tls_key):
        raise Invalid("--tls-chain and --tls-key come together")
    tls = server_context(Identity(read_file(tls_chain), read_secret_file(tls_key))) if tls_chain else None
    folder = WitnessFolder.open(Path(directory))
    with folder.running(logs) as running:
        harden()
        run_witness(running, Listen(host=address[0], port=address[1], tls=tls), ctx.out.note)


@witness.command("status", epilog="Example: modelkeep witness status")
@click.pass_obj
def witness_status(ctx: Context) -> None:
    """Show who cosigned the releases log of this keep, how far, and what a quorum covers."""
    _show(ctx, ctx.call(Keep.witnesses))


@witness.command("ask", epilog="Example: modelkeep witness ask")
@click.pass_obj
def witness_ask(ctx: Context) -> None:
    """Ask the witnesses that have not cosigned the newest checkpoint of this keep's log. Control does so by itself."""
    found = ctx.call(Keep.witness_ask)
    _show(ctx, found)
    if (found.quorum and found.witnessed < found.log_size) or any(row.contradicts for row in found.witnesses):
        raise click.exceptions.Exit(1)


def _show(ctx: Context, found: WitnessReport) -> None:
    lines = [f"Log {found.origin} of {found.log_size} entries. Its verifier key, for witnesses:", found.vkey, ""]
    if not found.quorum:
        lines.append("No witness is asked for: name a policy file in the setting witness.policy")
    else:
        by = f", by {', '.join(found.names)}" if found.names else ""
        lines.append(f"Quorum {found.quorum}: {found.witnessed} entries witnessed{by}")
    for row in found.witnesses:
        last = f"{row.size} entries, {moment(row.at)}" if row.at else "nothing yet"
        lines.append(f"  {row.name:<16} {last}" + (f"; {row.problem}" if row.problem else ""))
    ctx.out.show(found, "\n".join(lines))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise Invalid(f"{text[:80]!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


COMMANDS = (witness,)
