"""mfa enrol/confirm/show/require/reset, session list/revoke, step-up approve."""

import io

import click

from modelkeep.app.keep import Keep
from modelkeep.app.results import FactorEnrolled
from modelkeep.cli.context import Context, moment, read_secret_file
from modelkeep.cli.remote import session_account
from modelkeep.errors import Invalid


@click.group(epilog="Example: modelkeep --server https://localhost:8444 mfa enrol")
def mfa() -> None:
    """Second factors: one-time codes of an authenticator app, recovery codes, passkeys."""


@mfa.command("enrol", epilog="Example: modelkeep --server https://localhost:8444 mfa enrol")
@click.option("--code-file", default="", help="File with a code of the factor in force, when there is one.")
@click.pass_obj
def mfa_enrol(ctx: Context, code_file: str) -> None:
    """Begin with one-time codes for the account that is logged in; on a terminal, confirm them at once."""
    code = _code(code_file)
    begun = ctx.call(Keep.mfa_enrol, account=_me(ctx), code=code)
    ctx.out.show(begun, f"{_picture(begun.uri)}{begun.uri}\nSecret, shown once: {begun.secret}")
    if ctx.out.json or not ctx.terminal():
        ctx.out.note("give a code of it with 'modelkeep mfa confirm' to put it in force")
        return
    said = ctx.ask("Code that the app shows", "modelkeep mfa confirm").decode()
    _show_enrolled(ctx, ctx.call(Keep.mfa_confirm, account=begun.account, code=said))


@mfa.command("confirm", epilog="Example: modelkeep --server https://localhost:8444 mfa confirm 123456")
@click.argument("code")
@click.pass_obj
def mfa_confirm(ctx: Context, code: str) -> None:
    """Put the codes in force that enrol gave: recovery codes are shown once, every session of the account ends."""
    _show_enrolled(ctx, ctx.call(Keep.mfa_confirm, account=_me(ctx), code=code))


@mfa.command("show", epilog="Example: modelkeep mfa show alice")
@click.argument("account")
@click.pass_obj
def mfa_show(ctx: Context, account: str) -> None:
    """Show the second factors of an account."""
    found = ctx.call(Keep.mfa_show, account=account)
    kinds = [
        *(["one-time codes"] if found.codes else []),
        *([f"{found.recovery} recovery codes"] if found.recovery else []),
        *(f"passkey {label}" for label in found.passkeys),
    ]
    ctx.out.show(found, f"{account}: {', '.join(kinds) or 'none'}{' (required)' if found.required else ''}")


@mfa.command("require", epilog="Example: modelkeep mfa require alice")
@click.argument("account")
@click.option("--off", is_flag=True, help="Leave the account free to use none.")
@click.pass_obj
def mfa_require(ctx: Context, account: str, off: bool) -> None:
    """Have an account use a second factor: a session without one may do nothing but add one."""
    changed = ctx.call(Keep.mfa_require, account=account, required=not off)
    ctx.out.show(changed, f"{account} {'need not' if off else 'must'} use a second factor")


@mfa.command("reset", epilog="Example: modelkeep mfa reset alice")
@click.argument("account")
@click.pass_obj
def mfa_reset(ctx: Context, account: str) -> None:
    """Drop every second factor of an account that lost them; its sessions end."""
    changed = ctx.call(Keep.mfa_reset, account=account)
    ctx.out.show(changed, f"{account} has no second factor any more")


@click.group(epilog="Example: modelkeep session list --account alice")
def session() -> None:
    """Sessions of accounts."""


@session.command("list", epilog="Example: modelkeep session list --account alice")
@click.option("--account", default="", help="Of this account; of all if not given.")
@click.pass_obj
def session_list(ctx: Context, account: str) -> None:
    """List the sessions that have not expired."""
    found = ctx.call(Keep.session_list, account=account)
    rows = [
        (
            s.id,
            s.account,
            s.state,
            f"{s.used}/{s.max_requests}",
            ", ".join(s.models) or "all",
            ", ".join(s.operations) or "all",
            "+".join(s.amr),
            moment(s.expires),
        )
        for s in found
    ]
    heads = ("SESSION", "ACCOUNT", "STATE", "USED", "MODELS", "OPERATIONS", "PROVEN BY", "EXPIRES")
    ctx.out.table(found, heads, rows, empty="There is no session.")


@session.command("revoke", epilog="Example: modelkeep session revoke alice --id 6f1d9c0e8a7b4c3d2e1f0a9b8c7d6e5f")
@click.argument("account")
@click.option("--id", "session_id", default="", help="This session; all of the account if not given.")
@click.pass_obj
def session_revoke(ctx: Context, account: str, session_id: str) -> None:
    """End sessions of an account, and the refresh tokens that they came with, before this command returns."""
    ended = ctx.call(Keep.session_revoke, account=account, session_id=session_id)
    ctx.out.show(ended, f"{len(ended)} session{'' if len(ended) == 1 else 's'} of {account} ended")


@click.group("step-up", epilog="Example: modelkeep step-up approve batch-jobs")
def step_up() -> None:
    """Let accounts go on that were asked for a second factor."""


@step_up.command("approve", epilog="Example: modelkeep step-up approve batch-jobs")
@click.argument("account")
@click.option("--code-file", default="", help="File with a code of your own second factor; asked for if not given.")
@click.pass_obj
def step_up_approve(ctx: Context, account: str, code_file: str) -> None:
    """Let an account go on, its API keys too: they have no second factor of their own."""
    code = _code(code_file)
    if ctx.server and not code:
        code = ctx.ask("One-time code", "--code-file").decode()
    done = ctx.call(Keep.step_up_approve, account=account, code=code)
    ctx.out.show(done, f"{account} may go on, as of {moment(done.at)}")


def _me(ctx: Context) -> str:
    if not ctx.server:
        raise Invalid("a second factor belongs to an account: log in with --server, and use it here, too")
    return session_account(ctx.server)


def _code(file: str) -> str:
    return read_secret_file(file).decode("utf-8", "replace") if file else ""


def _show_enrolled(ctx: Context, done: FactorEnrolled) -> None:
    codes = "\n".join(f"    {code}" for code in done.recovery)
    words = (
        f"Logins of {done.account} need a code from now on; log in again.\nRecovery codes, each good once, shown once:\n{codes}"
    )
    ctx.out.show(done, words)


def _picture(uri: str) -> str:
    """The URI as a QR code in text, when the library for it is there."""
    try:
        import segno
    except ImportError:
        return ""
    drawn = io.StringIO()
    segno.make(uri, error="m").terminal(drawn, compact=True)
    return drawn.getvalue() + "\n"


COMMANDS = (mfa, session, step_up)
