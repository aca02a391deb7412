"""config show/check: the settings in force, where each came from, and all that is wrong with them."""

import click
import msgspec

from modelkeep.app.configuration import problems, rows
from modelkeep.cli.context import Context
from modelkeep.cli.output import EXIT_INVALID
from modelkeep.errors import Invalid


@click.group(epilog="Example: modelkeep config check")
def config() -> None:
    """The settings: one file, the environment over it, and --set over both."""


@config.command("show", epilog="Example: modelkeep config show --origin")
@click.option("--origin", is_flag=True, help="Say where each value came from: --set, a variable, the file, or the default.")
@click.pass_obj
def config_show(ctx: Context, origin: bool) -> None:
    """Show every setting in force; secrets are hidden. Asks for no passphrase."""
    _check_local(ctx, "config show")
    found = rows(ctx.directory)
    columns = ("SETTING", "VALUE", "FROM") if origin else ("SETTING", "VALUE")
    cells = [
        (row.name, msgspec.json.encode(row.value).decode(), *((f"{row.origin} {row.where}".strip(),) if origin else ()))
        for row in found
    ]
    ctx.out.table(found, columns, cells, empty="There is no setting.")


@config.command("check", epilog="Example: modelkeep --set gateway.port=443 config check")
@click.pass_obj
def config_check(ctx: Context) -> int:
    """Say everything that is wrong with the settings at once, and what is weak. Exit code 2 when something is wrong."""
    _check_local(ctx, "config check")
    found = problems(ctx.directory)
    cells = [(each.level, each.setting or "-", each.message) for each in found]
    ctx.out.table(found, ("LEVEL", "SETTING", "WHAT"), cells, empty="The settings are in order.")
    return EXIT_INVALID if any(each.level == "error" for each in found) else 0


def _check_local(ctx: Context, what: str) -> None:
    if ctx.server:
        raise Invalid(f"{what} works on the folder only: leave out --server and run it where the keep is")


COMMANDS = (config,)
