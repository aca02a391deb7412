"""keys list/passwd/recover: the key ring of the keep."""

import click

from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, read_secret_file


@click.group(epilog="Example: modelkeep keys list")
def keys() -> None:
    """The key ring: one sealed compartment per purpose."""


@keys.command("list", epilog="Example: modelkeep keys list")
@click.pass_obj
def keys_list(ctx: Context) -> None:
    """List the key families and the states of their versions."""
    found = ctx.local("keys list").keys_list()
    rows = [(f.family, f.purpose, ", ".join(f.versions)) for f in found]
    ctx.out.table(found, ("FAMILY", "PURPOSE", "VERSIONS"), rows, empty="There is no key.")


@keys.command("passwd", epilog="Example: modelkeep --dir ./keep keys passwd")
@click.option("--new-passphrase-file", default="", help="File with the new passphrase; asked for if not given.")
@click.pass_obj
def keys_passwd(ctx: Context, new_passphrase_file: str) -> None:
    """Change the passphrase of every compartment. Repeat it if it was cut off: it goes on where it stopped."""
    keep = ctx.local("keys passwd")
    new = ctx.new_passphrase("New passphrase", new_passphrase_file, "--new-passphrase-file")
    changed = keep.keys_passwd(new)
    ctx.out.show({"families": changed}, f"{len(changed)} compartments have the new passphrase; the keys are the same.")


@keys.command("recover", epilog="Example: modelkeep --dir ./keep keys recover --identity-file recovery.txt")
@click.option("--identity-file", default="", help="File with the recovery identity that init printed; asked for if not given.")
@click.option("--new-passphrase-file", default="", help="File with the new passphrase; asked for if not given.")
@click.pass_obj
def keys_recover(ctx: Context, identity_file: str, new_passphrase_file: str) -> None:
    """Set a new passphrase with the recovery identity, when the old one is lost."""
    identity = read_secret_file(identity_file) if identity_file else ctx.ask("Recovery identity", "--identity-file")
    new = ctx.new_passphrase("New passphrase", new_passphrase_file, "--new-passphrase-file")
    changed = Keep.keys_recover(ctx.directory, identity.decode("ascii", "replace").strip(), new)
    ctx.out.show({"families": changed}, f"{len(changed)} compartments have the new passphrase.")


COMMANDS = (keys,)
