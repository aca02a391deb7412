"""log verify/show/prove/check."""

import click

from modelkeep.app.keep import Keep
from modelkeep.app.offline import Access, check_proof_file, check_proof_with_key, verify_source
from modelkeep.app.results import LogChecked
from modelkeep.cli.context import Context, moment, read_file, read_secret_file, write_file
from modelkeep.cli.progress import bar
from modelkeep.errors import Invalid


@click.group(epilog="Example: modelkeep log verify")
def log() -> None:
    """The releases log and the audit logs."""


@log.command("verify", epilog="Example: modelkeep log verify https://models.acme.eu/log/ --trust trust.toml --kept seen")
@click.argument("source", default="", metavar="[DIR|URL]")
@click.option("--offline", default="", metavar="DIR", help="The same as naming DIR.")
@click.option("--trust", default="", help="trust.toml to believe; of a folder, the one in it or beside it if not given.")
@click.option("--vkey", default="", help="Instead of --trust: the verifier key of the one log that is there.")
@click.option("--kept", default="", help="File with the last checkpoint seen; refuses a log that does not continue it.")
@click.option("--token-file", default="", help="File with an auditor's token, to read a gateway's audit logs too.")
@click.option("--ca", default="", help="PEM file of the certificate authority to trust for the address.")
@click.pass_obj
def log_verify(ctx: Context, source: str, offline: str, trust: str, vkey: str, kept: str, token_file: str, ca: str) -> None:
    """Check every log whole, from its static files: signatures, every entry, every tile, and the audit checkpoints.

    Without DIR or URL, the logs of this keep. DIR is a copy of a keep, of its log folder, or of one log; URL is where a gateway
    (at /log/) or any web server serves one of these. Neither needs a keep or a passphrase.
    """
    source = source or offline
    if not source and (trust or vkey or kept or token_file or ca):
        raise Invalid("--trust, --vkey, --kept, --token-file and --ca are for a DIR or URL: name one")
    if source:
        access = Access(read_secret_file(token_file).decode(errors="replace") if token_file else "", ca)
        with bar() as told:
            checked = verify_source(source, trust=trust, vkey=vkey, kept=kept, access=access, progress=told)
    else:
        checked = ctx.call(Keep.log_verify)
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


@log.command("prove", epilog="Example: modelkeep log prove credit-risk@1 > proof.txt")
@click.argument("ref", default="", metavar="[NAME@VERSION]")
@click.option("--entry", type=click.IntRange(0), help="Prove this entry of the releases log.")
@click.option("--record", default="", metavar="INSTANCE/INDEX", help="Prove an audit record, by its receipt.")
@click.option("--consistency", type=click.IntRange(0), metavar="OLD", help="Prove that the log goes on from OLD entries.")
@click.option("--out", default="", help="New file for the proof; standard output if not given.")
@click.pass_obj
def log_prove(ctx: Context, ref: str, entry: int | None, record: str, consistency: int | None, out: str) -> None:
    """Prove that a release's statement is in the log, to someone who has only the public keys.

    Or that any entry is, or an audit record; or that the releases log only grew since it had OLD entries.
    """
    asked = [ref, record, *("x" for number in (entry, consistency) if number is not None)]
    if sum(map(bool, asked)) != 1:
        raise Invalid("name one thing to prove: NAME@VERSION, --entry, --record or --consistency")
    if ref:
        what, proof = ref, ctx.call(Keep.log_prove, ref=ref)
    elif record:
        what, proof = f"audit record {record}", ctx.call(Keep.log_prove_record, record=record)
    elif entry is not None:
        what, proof = f"entry {entry}", ctx.call(Keep.log_prove_entry, entry=entry)
    else:
        assert consistency is not None
        what, proof = f"growth since {consistency} entries", ctx.call(Keep.log_prove_consistency, old=consistency)
    if not out:
        click.echo(proof.decode(), nl=False)
        return
    write_file(out, proof, mode=0o644)
    ctx.out.show({"file": out}, f"Proof of {what} written to {out}")


@log.command("check", epilog="Example: modelkeep log check proof.txt --trust trust.toml")
@click.argument("proof")
@click.option("--trust", default="", help="trust.toml with the public keys to believe.")
@click.option("--vkey", default="", help="Instead of --trust: the verifier key of the log.")
@click.option("--kept", default="", help="File with the checkpoint that a consistency proof begins at.")
@click.pass_obj
def log_check(ctx: Context, proof: str, trust: str, vkey: str, kept: str) -> None:
    """Check a proof made by 'log prove', with the public keys only."""
    if bool(trust) == bool(vkey):
        raise Invalid("name whom to believe: a trust.toml with --trust, or one key with --vkey")
    known = read_file(kept) if kept else b""
    if trust:
        found = check_proof_file(read_file(proof), read_file(trust), kept=known)
    else:
        found = check_proof_with_key(read_file(proof), vkey, kept=known)
    if isinstance(found, LogChecked):
        ctx.out.show(found, f"{found.origin}: {found.detail}, {found.size} by now: proven")
        return
    by = f" by {found.actor}" if found.actor else ""
    ctx.out.show(found, f"{found.about}: {found.type}{by}, entry {found.index}: proven")


COMMANDS = (log,)
