"""user add/role/disable/list and key issue/rotate/revoke/list."""

from collections.abc import Callable
from functools import partial

import click

from modelkeep.app.keep import Keep
from modelkeep.app.results import KeyIssued
from modelkeep.cli.certificates import named
from modelkeep.cli.context import Context, moment, new_file


@click.group(epilog="Example: modelkeep user add alice --role analyst")
def user() -> None:
    """Accounts and their roles."""


@user.command("add", epilog="Example: modelkeep user add alice --role analyst")
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    help="A role of the access policy, such as analyst; may be given several times.",
)
@click.pass_obj
def user_add(ctx: Context, name: str, roles: tuple[str, ...]) -> None:
    """Add an account; its one-time password is printed once."""
    made = ctx.call(Keep.user_add, name=name, roles=roles)
    ctx.out.show(made, f"{made.name} ({', '.join(made.roles)})\nOne-time password, shown once: {made.password}")


@user.command("role", epilog="Example: modelkeep user role alice --role ml_engineer --role analyst")
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, help="All roles from now on.")
@click.pass_obj
def user_role(ctx: Context, name: str, roles: tuple[str, ...]) -> None:
    """Set the roles of an account."""
    changed = ctx.call(Keep.user_role, name=name, roles=roles)
    ctx.out.show(changed, f"{changed.name}: {', '.join(changed.roles)}")


@user.command("disable", epilog="Example: modelkeep user disable alice")
@click.argument("name")
@click.pass_obj
def user_disable(ctx: Context, name: str) -> None:
    """Disable an account: its keys and sessions stop working before this command returns."""
    changed = ctx.call(Keep.user_disable, name=name)
    ctx.out.show(changed, f"{changed.name} is disabled")


@user.command("enable", epilog="Example: modelkeep user enable alice")
@click.argument("name")
@click.pass_obj
def user_enable(ctx: Context, name: str) -> None:
    """Enable a disabled account again; its sessions stay ended, its keys work again."""
    changed = ctx.call(Keep.user_enable, name=name)
    ctx.out.show(changed, f"{changed.name} is enabled")


@user.command("list", epilog="Example: modelkeep user list")
@click.pass_obj
def user_list(ctx: Context) -> None:
    """List the accounts."""
    found = ctx.call(Keep.user_list)
    rows = [(u.name, ", ".join(u.roles), "disabled" if u.disabled else "active", u.subject, moment(u.created)) for u in found]
    ctx.out.table(found, ("ACCOUNT", "ROLES", "STATE", "PSEUDONYM", "CREATED"), rows, empty="There is no account.")


@click.group(epilog="Example: modelkeep key issue alice --model credit-risk")
def key() -> None:
    """API keys of accounts."""


@key.command("issue", epilog="Example: modelkeep key issue alice --model credit-risk --quota 5000")
@click.argument("account")
@click.option("--quota", type=click.IntRange(1), default=None, help="Rows; limits.key_requests if not given.")
@click.option("--days", type=click.IntRange(1, 3650), default=None, help="Days until it expires; limits.key_days if not given.")
@click.option("--model", "models", multiple=True, help="Model it is for; may be given several times; all if not given.")
@click.option(
    "--action", "actions", multiple=True, help="Action it is for, such as predict; all of its account's if not given."
)
@click.option("--certificate", default="", help="Client certificate without which it opens nothing: PEM file or sha256:HEX.")
@click.option("--out", default="", help="Write the key to this new file instead of printing it.")
@click.pass_obj
def key_issue(
    ctx: Context,
    account: str,
    quota: int | None,
    days: int | None,
    models: tuple[str, ...],
    actions: tuple[str, ...],
    certificate: str,
    out: str,
) -> None:
    """Issue an API key; it is shown once and stored only as its hash."""
    bound = named(certificate) if certificate else ""
    issue = partial(ctx.call, Keep.key_issue, account=account, quota=quota, days=days, models=models, actions=actions)
    _show_once(ctx, partial(issue, certificate=bound), out)


@key.command("rotate", epilog="Example: modelkeep key rotate 3f9a1c07 --overlap 3600")
@click.argument("key_id", metavar="ID")
@click.option("--overlap", type=click.IntRange(0, 604_800), default=3600, show_default=True, help="Seconds the old one works.")
@click.option("--out", default="", help="Write the key to this new file instead of printing it.")
@click.pass_obj
def key_rotate(ctx: Context, key_id: str, overlap: int, out: str) -> None:
    """Issue a successor of a key; the old one works for the overlap only."""
    _show_once(ctx, partial(ctx.call, Keep.key_rotate, key_id=key_id, overlap=overlap), out)


@key.command("revoke", epilog="Example: modelkeep key revoke 3f9a1c07")
@click.argument("key_id", metavar="ID")
@click.pass_obj
def key_revoke(ctx: Context, key_id: str) -> None:
    """Revoke a key: it stops working before this command returns."""
    changed = ctx.call(Keep.key_revoke, key_id=key_id)
    ctx.out.show(changed, f"key {changed.id} of {changed.account} is revoked")


@key.command("list", epilog="Example: modelkeep key list")
@click.pass_obj
def key_list(ctx: Context) -> None:
    """List the API keys, without their secrets."""
    found = ctx.call(Keep.key_list)
    rows = [
        (
            k.id,
            k.account,
            k.state,
            f"{k.used}/{k.quota}",
            ", ".join(k.models) or "all",
            ", ".join(k.actions) or "all",
            moment(k.last_used),
            moment(k.expires),
        )
        for k in found
    ]
    heads = ("KEY", "ACCOUNT", "STATE", "USED", "MODELS", "ACTIONS", "LAST USED", "EXPIRES")
    ctx.out.table(found, heads, rows, empty="There is no API key.")


def _show_once(ctx: Context, issue: Callable[[], KeyIssued], out: str) -> None:
    """Issue a key and show it, or write it to ``out``: a key that nobody could be told would be one that nobody revokes."""
    if not out:
        issued = issue()
        text = f"{issued.token}\nKey {issued.id} of {issued.account}: {_terms(issued)}. It will not be shown again."
        ctx.out.show(issued, text)
        return
    with new_file(out, room=4096) as write:
        issued = issue()
        write(issued.token.encode() + b"\n")
    result = {"id": issued.id, "account": issued.account, "file": out, "expires": issued.expires, "quota": issued.quota}
    ctx.out.show(result, f"Key {issued.id} of {issued.account} written to {out}: {_terms(issued)}.")


def _terms(issued: KeyIssued) -> str:
    return f"{issued.quota:,} rows, until {moment(issued.expires)}"


COMMANDS = (user, key)
