"""calibrate."""

import datetime

import click

from modelkeep.app.calibrationresults import CalibrationDone
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, read_file

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command(epilog="Example: modelkeep calibrate credit-risk@1 --everyone --since 2026-10-01 --dry-run")
@click.argument("ref", metavar="REF")
@click.option(
    "--tool", "tools", multiple=True, metavar="FILE", help="npz file: rows (array 'x') as a declared tool sends them."
)
@click.option("--account", "accounts", multiple=True, metavar="NAME", help="Whose recorded queries are a declared tool's.")
@click.option("--everyone", is_flag=True, help="All accounts' recorded queries, but of the accused and of confirmed thieves.")
@click.option("--since", type=_DAY, help="Recorded queries from this day on, UTC.")
@click.option("--until", type=_DAY, help="Recorded queries before this day, UTC.")
@click.option("--afresh", is_flag=True, help="Begin from the bounds of the profile; alone: go back to them.")
@click.option("--dry-run", is_flag=True, help="Tell what it would cost, and log nothing.")
@click.option("--reason", default="", help="Why; it is logged.")
@click.pass_obj
def calibrate(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    ref: str,
    tools: tuple[str, ...],
    accounts: tuple[str, ...],
    everyone: bool,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    afresh: bool,
    dry_run: bool,
    reason: str,
) -> None:
    """Widen what counts as honest on REF by declared tools and real accounts, and tell what it costs.

    The new bounds are signed and logged; gateways judge by them within a second, and all evidence restarts.
    """
    with ctx.out.busy("Reading what was asked and fitting the bounds"):
        done = ctx.call(
            Keep.calibrate,
            ref=ref,
            tools=tuple(read_file(path) for path in tools),
            accounts=accounts,
            everyone=everyone,
            period=(_nanoseconds(since), _nanoseconds(until)),
            afresh=afresh,
            dry_run=dry_run,
            reason=reason,
        )
    ctx.out.show(done, _tell(done, tools))


def _nanoseconds(day: datetime.datetime | None) -> int:
    return 0 if day is None else int(day.replace(tzinfo=datetime.UTC).timestamp()) * 1_000_000_000


def _tell(done: CalibrationDone, files: tuple[str, ...]) -> str:
    """``files``: of the tools, as they were named."""
    logged = "nothing was logged" if done.log_index < 0 else f"log entry {done.log_index}"
    over = [f"the tool {file} ({_count(tool.rows, 'row')})" for file, tool in zip(files, done.tools, strict=True)]
    if done.accounts or done.short or done.left_out or not over:
        over.append(f"{_count(done.accounts, 'account')} with {done.rows:,} recorded queries")
    lines = [f"{done.ref}: calibrated over {', '.join(over)} ({logged})"]
    if done.short:
        lines.append(f"Too few distinct queries ({done.smallest} are needed): {', '.join(done.short)}")
    if done.left_out:
        lines.append(f"Left out, accused, confirmed as thieves, or in a case that nobody cleared: {', '.join(done.left_out)}")
    lines += [f"{name} sets {count} of the bounds" for name, count in sorted(done.widest.items())]
    lines += ["", "How often an event may happen to an honest account, from the commonest to the rarest"]
    for row in done.scores:
        was, now = ("  ".join(f"{bound:.4f}" for bound in side) for side in (row.before, row.after))
        lines.append(f"  {row.score:<14} {was}  →  {now}" if was != now else f"  {row.score:<14} {was}  as before")
    lines += ["", "Far-out questions among an account's, and distinct questions to the alarm"]
    lines += [f"  {row.share:>4.0%}  {_queries(row.before)}  →  {_queries(row.after)}" for row in done.costs]
    lines.append(f"  found within 500: {done.smallest_share[0]:.0%} and more  →  {done.smallest_share[1]:.0%} and more")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _queries(count: int) -> str:
    return f"{count:>6}" if count else " never"


COMMANDS = (calibrate,)
