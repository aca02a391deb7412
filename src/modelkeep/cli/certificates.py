"""cert add/remove/list."""

import re
from pathlib import Path

import click

from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment, read_file
from modelkeep.errors import Invalid

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----")


@click.group(epilog="Example: modelkeep cert add alice client.pem")
def cert() -> None:
    """Client certificates that speak for accounts."""


@cert.command("add", epilog="Example: modelkeep cert add alice uri:spiffe://acme.eu/scoring --model credit-risk")
@click.argument("account")
@click.argument("certificate")
@click.option("--quota", type=click.IntRange(1), default=None, help="Rows in all; limits.key_requests if not given.")
@click.option("--days", type=click.IntRange(1, 3650), default=None, help="Days until it ends; limits.key_days if not given.")
@click.option("--model", "models", multiple=True, help="Model it is for; may be given several times; all if not given.")
@click.pass_obj
def cert_add(
    ctx: Context, account: str, certificate: str, quota: int | None, days: int | None, models: tuple[str, ...]
) -> None:
    """Let a client certificate speak for an account: a PEM file, sha256:HEX, uri:URI or dns:NAME."""
    about = named(certificate)
    made = ctx.call(Keep.cert_add, account=account, certificate=about, quota=quota, days=days, models=models)
    ctx.out.show(made, f"{made.name} speaks for {made.account}: {made.quota:,} rows, until {moment(made.expires)}")


@cert.command("remove", epilog="Example: modelkeep cert remove uri:spiffe://acme.eu/scoring")
@click.argument("certificate")
@click.pass_obj
def cert_remove(ctx: Context, certificate: str) -> None:
    """Let a certificate speak for nobody: it stops working before this command returns."""
    removed = ctx.call(Keep.cert_remove, certificate=named(certificate))
    ctx.out.show(removed, f"{removed.name} speaks for {removed.account} no more")


@cert.command("list", epilog="Example: modelkeep cert list")
@click.pass_obj
def cert_list(ctx: Context) -> None:
    """List the certificates that speak for accounts."""
    found = ctx.call(Keep.cert_list)
    rows = [(c.name, c.account, f"{c.quota}", ", ".join(c.models) or "all", moment(c.expires)) for c in found]
    ctx.out.table(found, ("CERTIFICATE", "ACCOUNT", "QUOTA", "MODELS", "ENDS"), rows, empty="None speaks for anybody.")


def named(text: str) -> str:
    """What is to be sent of a certificate: a file is read, a name stays.

    Raises Invalid for a file without a certificate: it may be a secret named by mistake, so nothing of it is sent or shown.
    """
    if text.startswith(("sha256:", "uri:", "dns:")) and not Path(text).exists():
        return text
    found = _CERTIFICATE.search(read_file(text))
    if found is None:
        raise Invalid(
            f"{text} holds no certificate in PEM: name a certificate's file, sha256:<64 hex digits>, uri:<URI> or dns:<name>"
        )
    return found[0].decode("ascii") + "\n"


COMMANDS = (cert,)
