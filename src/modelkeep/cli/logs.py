"""log verify/show/prove/check."""

import click

from modelkeep.app.keep import Keep
from modelkeep.app.offline import check_proof_file, verify_folder
from modelkeep.app.results import LogChecked
from modelkeep.cli.context import Context, moment, read_file, write_file


@click.group(epilog="Example: modelkeep log verify")
def log() -> None:
    """The releases log and the audit logs."""


@log.command("verify", epilog="Example: modelkeep log verify --offline ./copied-logs --trust trust.toml")
@click.option("--offline", default="", metavar="DIR", help="Check a copy of the logs in DIR, with no keep and no passphrase.")
@click.option("--trust", default="", help="trust.toml to believe; with --offline the one in DIR or beside it if not given.")
@click.pass_obj
def log_verify(ctx: Context, offline: str, trust: str) -> None:
    """Check every log whole, from its static files: signatures, every entry, every tile, and the audit checkpoints."""
    checked = verify_folder(offline, trust) if offline else ctx.call(Keep.log_verify)
    ctx.out.table(checked, ("LOG", "ENTRIES", "ROOT", "CHECKED"), map(_row, checked), empty="There is no log.")


def _row(one: LogChecked) -> tuple[object, ...]:
    return one.origin, one.size, one.root[:16], one.detail


@log.command("show", epilog="Example: modelkeep log show --last 20")
@click.option("--last", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many entries.")
@click.pass_obj
def log_show(ctx: Context, last: int) -> None:
    """Show the latest entries of the releases log."""
    found = ctx.call(Keep.log_show, last=last)
    rows = [(s.index, moment(s.at), s.type, s.actor, s.about, s.summary) for s in found]
    ctx.out.table(found, ("ENTRY", "AT", "TYPE", "ACTOR", "ABOUT", "WHAT"), rows, empty="The log is empty.")


@log.command("prove", epilog="Example: modelkeep log prove credit-risk@1 --out proof.json")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--out", default="", help="New file for the proof; standard output if not given.")
@click.pass_obj
def log_prove(ctx: Context, ref: str, out: str) -> None:
    """Prove that a release's statement is in the log, to someone who has only the public keys."""
    proof = ctx.call(Keep.log_prove, ref=ref)
    if not out:
        click.echo(proof.decode())
        return
    write_file(out, proof, mode=0o644)
    ctx.out.show({"file": out}, f"Proof of {ref} written to {out}")


@log.command("check", epilog="Example: modelkeep log check proof.json --trust trust.toml")
@click.argument("proof")
@click.option("--trust", required=True, help="trust.toml with the public keys to believe.")
@click.pass_obj
def log_check(ctx: Context, proof: str, trust: str) -> None:
    """Check a proof made by 'log prove', with the public keys only."""
    found = check_proof_file(read_file(proof), read_file(trust))
    ctx.out.show(found, f"{found.about}: {found.type} by {found.actor}, entry {found.index}: proven")


COMMANDS = (log,)
