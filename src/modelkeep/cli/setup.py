"""init, upgrade, login, logout."""

import time

import click

from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, read_file, read_secret_file
from modelkeep.cli.remote import Remote, Session, load_sessions, save_sessions
from modelkeep.errors import Denied, Invalid
from modelkeep.http.control import LoginAsked, LoginGiven, decode_login, encode_login


@click.command(epilog="Example: modelkeep init ./keep")
@click.argument("directory", metavar="DIR")
@click.option("--admin", default="admin", show_default=True, help="Name of the first account.")
@click.option("--blobs", default="", help="Where sealed models go, such as s3://BUCKET/PREFIX; in DIR if not given.")
@click.option("--records", default="", help="Where records go, such as postgresql://USER@HOST/DATABASE; in DIR if not given.")
@click.option("--model-kek", default="", help="Where model keys are made, as a key URI; in the key ring if not given.")
@click.pass_obj
def init(ctx: Context, directory: str, admin: str, blobs: str, records: str, model_kek: str) -> None:
    """Make a keep in DIR: settings, records, sealed keys, the releases log, an admin and a recovery recipient.

    The admin's one-time password and the recovery identity are printed once and stored nowhere.
    """
    made = Keep.init(directory, ctx.first_passphrase(), admin=admin, blobs=blobs, records=records, model_kek=model_kek)
    ctx.out.show(
        made,
        f"Made a keep in {made.directory} with logs named {made.origin}.\n\n"
        f"One-time password of {made.admin}, to be replaced at the first login:\n    {made.password}\n\n"
        "Recovery identity. Write it down and keep it offline; with it 'modelkeep keys recover' sets a new\n"
        f"passphrase, and whoever has it can open this keep:\n    {made.recovery}\n\n"
        "Neither will be shown again.",
    )


@click.command(epilog="Example: modelkeep --dir ./keep upgrade")
@click.pass_obj
def upgrade(ctx: Context) -> None:
    """Bring a keep to this version: its records, after a backup, to the schema of now, and keys that an earlier one lacked."""
    before, after, backup = Keep.upgrade(ctx.directory)
    made = Keep.complete_keys(ctx.directory, ctx.passphrase)
    result = {"before": before, "after": after, "backup": backup, "keys": made}
    said = f"Records upgraded from schema {before} to {after}; the old ones are in {backup}."
    keys = f"\nMade the key compartment {', '.join(made)}; the key ring has it under the same passphrase." if made else ""
    ctx.out.show(result, (said if backup else f"Records have schema {after} already: nothing to do.") + keys)


@click.command(epilog="Example: modelkeep --server https://localhost:8444 login --user admin --ca keep/tls/ca.pem")
@click.option("--user", required=True, help="Account.")
@click.option("--ca", default="", help="PEM file of the certificate authority to trust for this server.")
@click.option("--password-file", default="", help="File with the password; asked for if not given.")
@click.option("--new-password-file", default="", help="File with the new password, when the current one is one-time.")
@click.option("--code-file", default="", help="File with a one-time or recovery code; asked for if neither file is given.")
@click.pass_obj
def login(ctx: Context, user: str, ca: str, password_file: str, new_password_file: str, code_file: str) -> None:
    """Log in to a control process; later commands with the same --server act as this account."""
    if not ctx.server:
        raise Invalid("login needs --server https://HOST:PORT")
    authority = read_file(ca).decode("utf-8", "replace") if ca else ""
    if ca and not authority.strip():
        raise Invalid(f"{ca} holds no PEM certificate")
    remote = Remote(ctx.server, ca=authority)
    password = read_secret_file(password_file) if password_file else ctx.ask("Password", "--password-file")
    new = read_secret_file(new_password_file) if new_password_file else b""
    given = _log_in(ctx, remote, LoginAsked(user, _text(password), _text(new), _text(_code(ctx, code_file, password_file))))
    sessions = {url: kept for url, kept in load_sessions().items() if kept.expires > time.time()}
    server = ctx.server.rstrip("/")
    sessions[server] = Session(server, user, given.token, given.expires, authority)
    save_sessions(sessions)
    left = int(given.expires - time.time()) // 60
    ctx.out.show({"account": user, "expires": given.expires}, f"Logged in to {server} as {user} for {left} minutes.")


def _log_in(ctx: Context, remote: Remote, asked: LoginAsked) -> LoginGiven:
    try:
        return decode_login(remote.post("/admin/v1/login", encode_login(asked)))
    except Denied as reason:
        if asked.new_password:
            raise
        ctx.out.note(f"{reason}.")
    new = _text(ctx.ask("New password", "--new-password-file", confirm=True))
    return decode_login(
        remote.post("/admin/v1/login", encode_login(LoginAsked(asked.account, asked.password, new, asked.code)))
    )


def _code(ctx: Context, file: str, password_file: str) -> bytes:
    """The second factor. Everybody is asked: the server does not tell who has one."""
    if file:
        return read_secret_file(file)
    if password_file or not ctx.terminal():
        return b""
    return ctx.ask("One-time code (Enter if the account has none)", "--code-file", empty=True)


def _text(password: bytes) -> str:
    try:
        return password.decode()
    except UnicodeDecodeError:  # `from None`: the cause quotes the password
        raise Invalid("the password is not UTF-8 text") from None


@click.command(epilog="Example: modelkeep --server https://localhost:8444 logout")
@click.pass_obj
def logout(ctx: Context) -> None:
    """End the session with a control process: it is revoked there and forgotten here."""
    sessions = load_sessions()
    if sessions.get(ctx.server.rstrip("/")) is None:
        raise Invalid(f"not logged in to {ctx.server or 'any server: name it with --server'}")
    Remote.of_session(ctx.server).post("/admin/v1/logout", b"")
    del sessions[ctx.server.rstrip("/")]
    save_sessions(sessions)
    ctx.out.show({"server": ctx.server}, f"Logged out of {ctx.server}.")


COMMANDS = (init, upgrade, login, logout)
