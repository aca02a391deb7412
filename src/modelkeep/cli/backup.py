"""backup create/verify/restore."""

import click

from modelkeep.app.backups import restore_backup, verify_backup
from modelkeep.cli.context import Context, moment, read_secret_file
from modelkeep.errors import Invalid


@click.group(epilog="Example: modelkeep backup create ../keep.backup")
def backup() -> None:
    """A whole keep in one sealed file, and a keep made of it again."""


@backup.command("create", epilog="Example: modelkeep backup create /mnt/backups/keep-2026-01-31.backup")
@click.argument("out")
@click.pass_obj
def backup_create(ctx: Context, out: str) -> None:
    """Back the keep up to the new file OUT, sealed for its passphrase and its recovery identity. Servers may run."""
    made = ctx.local("backup create").backup_create(out=out)
    outside = f"; {made.outside} sealed bodies are in their own store and not in it" if made.outside else ""
    ctx.out.show(made, f"{made.file}: {made.parts} files, {made.log_size} log entries, {made.size:,} bytes{outside}")


@backup.command("verify", epilog="Example: modelkeep backup verify keep.backup")
@click.argument("file")
@click.option("--identity", default="", metavar="FILE", help="File with the recovery identity, instead of the passphrase.")
@click.pass_obj
def backup_verify(ctx: Context, file: str, identity: str) -> None:
    """Open a backup whole, beside itself, and check everything in it; nothing of it stays."""
    secret = read_secret_file(identity).decode("utf-8", "replace").strip() if identity else ""
    found = verify_backup(file, b"" if secret else ctx.passphrase(), secret)
    said = f"{found.file}: keep {found.origin} at {moment(found.made)}, {found.parts} files, {found.log_size} log entries"
    ctx.out.show(found, f"{said}, {found.logs} logs: whole")


@backup.command("restore", epilog="Example: modelkeep backup restore keep.backup ./keep --erasures ./newest-copy-of-log")
@click.argument("file")
@click.argument("directory", metavar="DIR")
@click.option(
    "--erasures", default="", metavar="DIR", help="A newer copy of this keep's log: what was erased since is erased again."
)
@click.option("--no-later-erasures", "none_later", is_flag=True, help="Nothing was erased after the backup, you say.")
@click.option("--identity", default="", metavar="FILE", help="File with the recovery identity; a new passphrase is set then.")
@click.pass_obj
def backup_restore(ctx: Context, file: str, directory: str, erasures: str, none_later: bool, identity: str) -> None:
    """Make a keep of a backup in DIR, which must not exist or be empty; its releases log is succeeded by another.

    Either --erasures or --no-later-erasures has to be given: a backup still holds what was erased after it was made.
    """
    if bool(erasures) == none_later:
        raise Invalid("what was erased after the backup? --erasures names a newer copy of the log, or say --no-later-erasures")
    secret = read_secret_file(identity).decode("utf-8", "replace").strip() if identity else ""
    word = ctx.first_passphrase() if secret else ctx.passphrase()
    done = restore_backup(file, directory, word, identity=secret, newer=erasures)
    lost = f"; {done.lost} entries that followed are lost" if done.lost else ""
    ctx.out.show(
        done,
        f"Made the keep {done.directory} again, with {done.log_size} log entries{lost}.\n"
        f"Its releases log is {done.log} from now on: hand out trust.toml again. {done.erased} erasures were done again.",
    )


COMMANDS = (backup,)
