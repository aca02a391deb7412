"""alias set/remove/list/history, metadata set/show, hold add/remove/list, collect."""

import re
import tomllib
from pathlib import Path

import click

from modelkeep.app.keep import Keep
from modelkeep.app.results import AliasMoved, HoldRow, MetadataRow
from modelkeep.cli.context import Context, moment, new_file, read_file
from modelkeep.cli.output import below
from modelkeep.errors import Invalid

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EXPECT = click.option(
    "--expect", type=click.IntRange(0), default=None, help="Version that the alias must mean until now, 0 for none."
)


def seconds(text: str) -> int:
    """A length of time such as 30d, 12h, 45m or 90s. Raises Invalid."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        raise Invalid(f"{text[:40]!r} is no length of time: write it as 30d, 12h, 45m or 90s")
    return int(found[1]) * _UNITS[found[2]]


def read_metadata(path: str) -> tuple[bytes, bytes]:
    """The metadata file, and the model card that it names: a file in its folder or below, nothing else of this machine.

    Raises Missing, Invalid (it leads elsewhere), Unavailable.
    """
    text = read_file(path)
    try:
        card = tomllib.loads(text.decode()).get("card", "")
    except (ValueError, RecursionError):
        card = ""  # the keep says what is wrong with the file
    if not isinstance(card, str) or not card:
        return text, b""
    folder = Path(path).resolve().parent
    found = (folder / card).resolve()
    if not found.is_relative_to(folder) or (found.exists() and not found.is_file()):
        raise Invalid(f"{path} names the model card {card[:80]!r}, which is no file in its folder: put it beside it")
    return text, read_file(str(found))


@click.group(epilog="Example: modelkeep alias set credit-risk champion 3")
def alias() -> None:
    """Second names of versions, such as champion, that gateways answer to."""


@alias.command("set", epilog="Example: modelkeep alias set credit-risk champion 3 --expect 2")
@click.argument("name", metavar="NAME")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", metavar="VERSION", type=click.IntRange(1))
@EXPECT
@click.pass_obj
def alias_set(ctx: Context, name: str, alias_name: str, version: int, expect: int | None) -> None:
    """Let NAME@ALIAS mean NAME@VERSION; gateways follow before this command returns, or once they loaded it."""
    _say_moved(ctx, ctx.call(Keep.alias_set, name=name, alias=alias_name, version=version, expect=expect))


@alias.command("remove", epilog="Example: modelkeep alias remove credit-risk champion")
@click.argument("name", metavar="NAME")
@click.argument("alias_name", metavar="ALIAS")
@EXPECT
@click.pass_obj
def alias_remove(ctx: Context, name: str, alias_name: str, expect: int | None) -> None:
    """Let NAME@ALIAS mean nothing from now on; its history stays in the log."""
    _say_moved(ctx, ctx.call(Keep.alias_remove, name=name, alias=alias_name, expect=expect))


@alias.command("list", epilog="Example: modelkeep alias list credit-risk")
@click.argument("name", metavar="NAME", required=False, default="")
@click.pass_obj
def alias_list(ctx: Context, name: str) -> None:
    """List what the aliases mean now, of NAME or of every model."""
    found = ctx.call(Keep.alias_list, name=name)
    rows = [(f"{a.name}@{a.alias}", a.ref, moment(a.at), a.by, a.log_index) for a in found]
    ctx.out.table(found, ("ALIAS", "RELEASE", "SINCE", "BY", "LOG"), rows, empty="There is no alias.")


@alias.command("history", epilog="Example: modelkeep alias history credit-risk champion")
@click.argument("name", metavar="NAME")
@click.argument("alias_name", metavar="ALIAS")
@click.pass_obj
def alias_history(ctx: Context, name: str, alias_name: str) -> None:
    """Show every move of an alias, oldest first."""
    found = ctx.call(Keep.alias_history, name=name, alias=alias_name)
    rows = [(moment(m.at), m.replaced or "-", m.version or "-", m.by, m.log_index) for m in found]
    ctx.out.table(found, ("AT", "FROM", "TO", "BY", "LOG"), rows, empty="It never meant anything.")


@click.group(epilog="Example: modelkeep metadata set credit-risk@3 card.toml")
def metadata() -> None:
    """What the owner of a release says about it, and its model card."""


@metadata.command("set", epilog="Example: modelkeep metadata set credit-risk@3 card.toml")
@click.argument("ref", metavar="NAME@VERSION")
@click.argument("file", metavar="FILE")
@click.pass_obj
def metadata_set(ctx: Context, ref: str, file: str) -> None:
    """Say what a release is, with the TOML FILE, in place of what was said before; a model card it names is sealed."""
    text, card = read_metadata(file)
    done = ctx.call(Keep.metadata_set, ref=ref, metadata=text, card=card)
    ctx.out.show(done, f"{ref} is described\n{_described(done)}")


@metadata.command("show", epilog="Example: modelkeep metadata show credit-risk@3 --card card.md")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--card", default="", help="Write the model card, unsealed, to this new file; the reading is logged.")
@click.pass_obj
def metadata_show(ctx: Context, ref: str, card: str) -> None:
    """Show what was said about a release, the latest last."""
    found = ctx.call(Keep.metadata_show, ref=ref)
    if card:
        with new_file(card) as write:
            write(ctx.call(Keep.metadata_card, ref=ref))
    text = "\n".join(f"log entry {one.log_index}, {moment(one.at)}, {one.by}\n{_described(one)}" for one in found)
    ctx.out.show(found, text or f"Nobody said anything about {ref} yet.")


@click.group(epilog="Example: modelkeep hold add credit-risk@1 --reason 'case 2031/7'")
def hold() -> None:
    """Holds: while one stands, the sealed model of a release is not collected."""


@hold.command("add", epilog="Example: modelkeep hold add credit-risk@1 --reason 'case 2031/7'")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def hold_add(ctx: Context, ref: str, reason: str) -> None:
    """Keep the sealed model of a release until this hold is removed; several holds may stand on one release."""
    done = ctx.call(Keep.hold_add, ref=ref, reason=reason)
    ctx.out.show(done, f"{done.ref} is held by {done.id}")


@hold.command("remove", epilog="Example: modelkeep hold remove 3f9a1c07 --reason 'case closed'")
@click.argument("hold_id", metavar="HOLD")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def hold_remove(ctx: Context, hold_id: str, reason: str) -> None:
    """Remove one hold, by its id or the first 8 digits of it; others on the same release stay."""
    done = ctx.call(Keep.hold_remove, hold_id=hold_id, reason=reason)
    ctx.out.show(done, f"{done.ref} is no longer held by {done.id}")


@hold.command("list", epilog="Example: modelkeep hold list --removed")
@click.option("--removed", is_flag=True, help="Also those that were removed.")
@click.pass_obj
def hold_list(ctx: Context, removed: bool) -> None:
    """List the holds that stand."""
    found = ctx.call(Keep.hold_list, removed=removed)
    rows = [(h.id[:8], h.ref, moment(h.at), h.by, h.reason, _end(h)) for h in found]
    ctx.out.table(found, ("HOLD", "RELEASE", "SINCE", "BY", "REASON", "REMOVED"), rows, empty="There is no hold.")


@click.command(epilog="Example: modelkeep collect --retired-for 30d --dry-run")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--retired-for", default="", help="Also the models of releases retired so long ago: 30d, 12h.")
@click.pass_obj
def collect(ctx: Context, dry_run: bool, retired_for: str) -> None:
    """Remove sealed models that no release and no hold refers to; every removal is logged.

    What a release refers to is never removed, unless it was retired at least --retired-for ago and nobody holds it.
    """
    with ctx.out.busy("Looking for what nothing refers to"):
        age = seconds(retired_for) if retired_for else None
        done = ctx.call(Keep.collect, dry_run=dry_run, retired_for=age)
    would = "would be " if dry_run else ""
    lines = [
        *(f"{ref} {would}collected: its statements stay, its model goes" for ref in done.releases),
        *(f"{ref} stays: {below(why, 4)}" for ref, why in done.kept.items()),
        *(f"  {body.sealed[:19]}  {body.size:>13,} bytes  {body.why}" for body in done.bodies),
        f"{len(done.bodies)} sealed bodies, {done.size:,} bytes {would}removed",
        *(f"{who} is under way: what nothing names yet was left alone" for who in done.underway),
    ]
    ctx.out.show(done, "\n".join(lines))


def _say_moved(ctx: Context, moved: AliasMoved) -> None:
    meaning = f"is {moved.name}@{moved.version}" if moved.version else "means nothing"
    before = f"{moved.name}@{moved.replaced}" if moved.replaced else "nothing"
    ctx.out.show(moved, f"{moved.name}@{moved.alias} {meaning} (before: {before}; log entry {moved.log_index})")


def _described(one: MetadataRow) -> str:
    said = {
        "owner": one.owner,
        "class": one.classification,
        "licence": one.licence,
        "tags": ", ".join(one.tags),
        "card": one.card,
        "about": one.description,
    }
    return "\n".join(f"  {name:<8} {below(value, 11)}" for name, value in said.items() if value)


def _end(hold_row: HoldRow) -> str:
    return "" if hold_row.standing else hold_row.removed


COMMANDS = (alias, metadata, hold, collect)
