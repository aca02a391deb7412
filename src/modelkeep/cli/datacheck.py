"""data check, data purge: what is wrong with a data set, and the data set without it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from modelkeep.app.datachecks import (
    Check,
    DataChecked,
    DataSet,
    check_data,
    purge_file,
    purge_sealed,
    read_data,
    read_fetched,
    read_quarantine,
    read_sealed,
)
from modelkeep.app.keep import Keep
from modelkeep.app.labelled import is_sealed
from modelkeep.app.suspicions import suspicions
from modelkeep.cli.context import Context, new_file, read_file
from modelkeep.cli.labelled import purpose_option
from modelkeep.cli.output import EXIT_REFUSED
from modelkeep.errors import Invalid
from modelkeep.training.findings import Asked, Level, counted
from modelkeep.training.schema import Schema, decode

_SIGNS = {Level.ERROR: "error  ", Level.WARNING: "warning", Level.NOTE: "note   "}


@click.command(epilog="Example: modelkeep data check loans.csv --label default --against test.csv --report check.html")
@click.argument("source", metavar="FILE|NAME@VERSION")
@click.option("--label", default="", metavar="COLUMN", help="Column that is predicted; 'y' where a file is x and y.")
@click.option("--against", default="", metavar="TEST", help="Test set, file or sealed, whose rows must not be in it.")
@click.option("--schema", default="", metavar="SCHEMA", help="File of a schema that the rows must follow.")
@click.option("--pin", default="", metavar="SCHEMA", help="New file for the schema that the rows follow.")
@click.option("--personal", multiple=True, metavar="COLUMN", help="Column that is meant to hold personal data; repeatable.")
@click.option("--report", default="", metavar="PAGE", help="New HTML file with what was found, and plots.")
@click.option("--quarantine", default="", metavar="ROWS", help="New file with the rows in question, for data purge.")
@click.option("--origin", default="", metavar="COLUMN", help="Column that says where a row comes from; no feature.")
@click.option("--quick", is_flag=True, help="Do not look for planted and mislabelled rows, which takes models and minutes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="What is drawn at random is drawn by it.")
@purpose_option
@click.pass_obj
def check(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    source: str,
    label: str,
    against: str,
    schema: str,
    pin: str,
    personal: Sequence[str],
    report: str,
    quarantine: str,
    origin: str,
    quick: bool,
    seed: int,
    purpose: str,
) -> None:
    """Look for what is wrong with a data set: CSV, npz, Parquet, a folder with a folder of pictures a class, or a sealed one.

    Rows that break a schema, personal data, copies, rows of the test set, columns that tell the label or name rows, and rows
    that look planted or mislabelled. No value of a column that seems personal is printed. Exit code 1: something is to be
    mended, or declared.
    """
    if schema and pin:
        raise Invalid("--schema is followed and --pin is written: check first, then pin")
    asked = Asked(label, frozenset(personal), _schema(schema), seed, origin)
    with ExitStack() as stack:
        page, rows, pinned = (stack.enter_context(new_file(one)) if one else None for one in (report, quarantine, pin))
        with ctx.out.busy("Checking the data"):
            other = _read(ctx, against, purpose) if against else None
            done = check_data(_read(ctx, source, purpose), asked, against=other)
        if not quick:
            with ctx.out.busy("Looking for planted and mislabelled rows"):
                done = suspicions(done, asked)
        with ctx.out.busy("Writing"):
            for write, made in ((page, Check.page), (rows, Check.quarantine)):
                if write:
                    write(made(done))
            if pinned:
                pinned(done.pinned(asked.declared))
    found = done.result()
    ctx.out.show(found, _told(found, {"report": report, "rows in question": quarantine, "schema": pin}))
    if not found.clean:
        raise click.exceptions.Exit(EXIT_REFUSED)


@click.command(epilog="Example: modelkeep data purge loans.csv --quarantine rows.json --out clean.csv")
@click.argument("source", metavar="FILE|NAME@VERSION")
@click.option("--quarantine", required=True, metavar="ROWS", help="File that data check wrote; strike out what is to stay.")
@click.option("--out", default="", metavar="CLEAN", help="New file, or folder of pictures, for what is left of FILE.")
@purpose_option
@click.pass_obj
def purge(ctx: Context, source: str, quarantine: str, out: str, purpose: str) -> None:
    """Leave the rows in quarantine out of a data set, which itself stays as it is.

    Of a file, what is left is written in its own format; every other line of a CSV file stays as it is, byte for byte. Of a
    sealed data set, what is left becomes its next version, which the log says was made of this one.
    """
    rows = read_quarantine(read_file(quarantine))
    sealed = is_sealed(source)
    if sealed == bool(out):
        raise Invalid("--out names the file for what is left of a file; of a sealed data set the next version is made")
    with ctx.out.busy("Leaving rows out"):
        if sealed:
            done = purge_sealed(ctx.local("purging a sealed data set"), source, rows, purpose=purpose)
        else:
            done = purge_file(source, rows, out)
    why = "".join(f"\n  {counted(count, 'row')}: {reason}" for reason, count in done.reasons.items())
    text = f"{done.out}: {counted(done.rows, 'row')}, {done.after}; {done.removed:,} left out of {Path(source).name}"
    ctx.out.show(done, text + why)


def _read(ctx: Context, source: str, purpose: str) -> DataSet:
    if is_sealed(source):
        if not ctx.server:
            return read_sealed(ctx.keep, source, purpose=purpose)
        about = ctx.call(Keep.data_show, dataset=source).row
        return read_fetched(ctx.call(Keep.data_fetch, dataset=source, purpose=purpose), personal=about.personal)
    return read_data(source)


def _schema(path: str) -> Schema | None:
    return decode(read_file(path)) if path else None


def _told(found: DataChecked, files: dict[str, str]) -> str:
    lines = [f"{found.data}: {counted(found.rows, 'row')}, {counted(found.columns, 'column')}, {found.digest}"]
    lines += [f"  {_SIGNS[one.level]}  {one.check:<10}  {one.said}" for one in found.findings]
    lines += [f"{what}: {path}" for what, path in files.items() if path]
    counts = {level: sum(one.level is level for one in found.findings) for level in (Level.ERROR, Level.WARNING)}
    lines.append(
        "nothing to mend" + f", {counted(counts[Level.WARNING], 'warning')}" * bool(counts[Level.WARNING])
        if found.clean
        else f"{counts[Level.ERROR]} to mend or to declare, {counted(counts[Level.WARNING], 'warning')}"
    )
    return "\n".join(lines)
