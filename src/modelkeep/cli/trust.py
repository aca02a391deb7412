"""trust show/add/limit/remove/resign: who may sign what."""

import click

from modelkeep.app.keep import Keep
from modelkeep.app.keyresults import TrustChanged
from modelkeep.cli.context import Context, read_file

MAY_SIGN = click.option(
    "--may-sign", multiple=True, metavar="TYPE", help="Statement type, * for all; may be given several times."
)
RELEASES = click.option(
    "--releases", multiple=True, metavar="PATTERN", help="Model names, as in credit-*; may be given several times."
)
REASON = click.option("--reason", default="", help="Why, for the releases log.")


@click.group(epilog="Example: modelkeep trust show")
def trust() -> None:
    """Who may sign what: the identities of the trust root."""


@trust.command("show", epilog="Example: modelkeep trust show")
@click.option("--oms-key", is_flag=True, help="Print the public key of OpenSSF signatures instead, as PEM.")
@click.pass_obj
def trust_show(ctx: Context, oms_key: bool) -> None:
    """Show the identities, what each may sign in which stretch of the log, and where the keys of our own live."""
    if oms_key:
        pem = ctx.call(Keep.oms_key)
        ctx.out.show({"oms_key": pem}, pem.rstrip("\n"))
        return
    found = ctx.call(Keep.trust_show)
    rows = [
        (
            row.name,
            row.state,
            " ".join(row.may_sign),
            " ".join(row.releases),
            f"{row.first} to {'now' if row.until is None else row.until}",
            row.ed25519,
            row.mldsa65,
        )
        for row in found
    ]
    columns = ("IDENTITY", "STATE", "MAY SIGN", "RELEASES", "LOG", "ED25519", "ML-DSA-65")
    ctx.out.table(found, columns, rows, empty="There is no identity.")


@trust.command(
    "add", epilog="Example: modelkeep trust add team-b.toml --releases 'fraud-*' --may-sign release --may-sign sealing"
)
@click.argument("file")
@click.option("--name", default="", help="Which identity of the file, when it names several.")
@MAY_SIGN
@RELEASES
@REASON
@click.pass_obj
def trust_add(ctx: Context, file: str, name: str, may_sign: tuple[str, ...], releases: tuple[str, ...], reason: str) -> None:
    """Let an identity made elsewhere sign, from the next log entry on.

    FILE: an identity file, or the trust.toml of another keep. Without --may-sign it may sign every type, without
    --releases about every release: give both.
    """
    done = ctx.call(
        Keep.trust_add,
        identity=read_file(file),
        name=name,
        may_sign=may_sign or ("*",),
        releases=releases or ("*",),
        reason=reason,
    )
    _show(ctx, done)


@trust.command("limit", epilog="Example: modelkeep trust limit team-b --releases fraud-cards")
@click.argument("name")
@MAY_SIGN
@RELEASES
@REASON
@click.pass_obj
def trust_limit(ctx: Context, name: str, may_sign: tuple[str, ...], releases: tuple[str, ...], reason: str) -> None:
    """Give an identity other rights from the next log entry on; what is not given stays as it is, and so does what it said."""
    _show(ctx, ctx.call(Keep.trust_limit, name=name, may_sign=may_sign, releases=releases, reason=reason))


@trust.command("remove", epilog="Example: modelkeep trust remove team-b --reason 'the team was dissolved'")
@click.argument("name")
@REASON
@click.pass_obj
def trust_remove(ctx: Context, name: str, reason: str) -> None:
    """End an identity: what it signed so far stays, nothing later counts."""
    _show(ctx, ctx.call(Keep.trust_remove, name=name, reason=reason))


@trust.command("resign", epilog="Example: modelkeep trust resign credit-risk@3")
@click.argument("ref", metavar="NAME@VERSION")
@click.pass_obj
def trust_resign(ctx: Context, ref: str) -> None:
    """Sign a release again that fell away with a compromised key. Its body is opened, digested and scanned first."""
    done = ctx.call(Keep.trust_resign, ref=ref)
    ctx.out.show(done, f"{done.ref} is signed again, log entry {done.log_index}; it is {done.state}: promote it to serve it.")


def _show(ctx: Context, done: TrustChanged) -> None:
    if not done.in_force:
        ctx.out.show(done, f"{done.name} signs nothing that counts after log entry {done.log_index}.")
        return
    kinds, names = " ".join(done.may_sign), " ".join(done.releases)
    ctx.out.show(done, f"{done.name} may sign {kinds} about {names}, after log entry {done.log_index}.")


COMMANDS = (trust,)
