"""data: sealed data sets: add, list, show, grant, revoke, open, lineage, replay; check and purge are in cli/datacheck.py."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from modelkeep.adapters.confine import Limits
from modelkeep.adapters.files import NewFile
from modelkeep.app.dataresults import DataAdded, DatasetRow, DatasetShown, GrantRow
from modelkeep.app.datasets import SealedDataset, plain_bytes
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment, parse_parameters, read_file, write_file
from modelkeep.cli.datacheck import check, purge
from modelkeep.core.values import digest_of
from modelkeep.custody.datasets import About
from modelkeep.errors import Invalid
from modelkeep.ledger.attestations import Step

_PURPOSE = click.option("--purpose", default="", help="What it is read for, such as credit-scoring; the log records it.")


def _of_a_grant(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments and options of ``grant`` and ``revoke``."""
    for with_one in (
        click.pass_obj,
        click.option("--add", is_flag=True, help="It is for adding versions of NAME, and not for reading."),
        click.option("--purpose", default="", help="What NAME may be read for."),
        click.argument("to", metavar="WHOM"),
        click.argument("name", metavar="NAME"),
    ):
        command = with_one(command)
    return command


@click.group(epilog="Example: modelkeep data add loans loans.csv --purpose credit-scoring --personal")
def data() -> None:
    """Data sets: sealed, versioned, read for a purpose, and traced from source to release."""


@data.command(epilog="Example: modelkeep data add loans clean.csv --from loans@1 --step clean.py --set minimum=18")
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="PATH")
@click.option(
    "--purpose", "purposes", multiple=True, help="What it may be read for; may be repeated. None: what it is granted for."
)
@click.option("--licence", default="", help="Licence, such as CC-BY-4.0.")
@click.option("--source", default="", help="Where it comes from: a URL, or words.")
@click.option("--description", default="", help="What it is, in one line.")
@click.option("--personal", is_flag=True, help="It holds data about persons.")
@click.option("--from", "parents", multiple=True, metavar="NAME@VERSION", help="Data set that it was made of; may be repeated.")
@click.option("--step", "steps", multiple=True, metavar="FILE", help="Code that made it of that, in order; may be repeated.")
@click.option(
    "--set", "parameters", multiple=True, metavar="NAME=VALUE", help="Parameter that the steps were given; repeatable."
)
@click.option("--columns", default="", metavar="NAME,…", help="Names of the columns of a CSV file without a header line.")
@click.pass_obj
def add(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    name: str,
    path: str,
    purposes: tuple[str, ...],
    licence: str,
    source: str,
    description: str,
    personal: bool,
    parents: tuple[str, ...],
    steps: tuple[str, ...],
    parameters: tuple[str, ...],
    columns: str,
) -> None:
    """Seal PATH (CSV, npz, Parquet, or a folder of pictures) as the next version of NAME.

    PATH itself stays where it is: remove it when the sealed copy is all that is to be left.
    """
    given, named = parse_parameters(parameters), _names(columns)
    declared = tuple(Step(Path(step).name, digest_of(read_file(step)), given) for step in steps)
    about = About(purposes, licence, source, description, personal, parents, declared)
    with ctx.out.busy("Sealing the data"):
        if ctx.server:
            kind, filename, raw = plain_bytes(path, named)
            done = ctx.call(Keep.data_add, name=name, filename=filename, data=raw, about=about, kind=kind)
        else:
            done = ctx.call(_add_here, path=path, name=name, about=about, columns=named)
    rows = f"{done.rows:,} rows" if done.rows else "arrays of several lengths"
    ctx.out.show(done, f"added {done.ref}: {done.kind}, {rows}, {done.size:,} bytes sealed, log entry {done.log_index}")


@data.command("list", epilog="Example: modelkeep data list")
@click.pass_obj
def list_(ctx: Context) -> None:
    """List every version of every data set."""
    found = ctx.call(Keep.data_list)
    ctx.out.table(
        found,
        ("DATA SET", "KIND", "ROWS", "BYTES", "PERSONAL", "PURPOSES", "ADDED BY", "ADDED"),
        [(*_cells(row), row.owner, moment(row.created)) for row in found],
        empty="no data sets: add one with 'modelkeep data add'",
    )


@data.command(epilog="Example: modelkeep data show loans@1")
@click.argument("dataset", metavar="NAME[@VERSION]")
@click.pass_obj
def show(ctx: Context, dataset: str) -> None:
    """Show one version, its columns, and who may read it."""
    found = ctx.call(Keep.data_show, dataset=dataset)
    ctx.out.show(found, _told(found))


@data.command(epilog="Example: modelkeep data grant loans role:data_scientist --purpose credit-scoring")
@_of_a_grant
def grant(ctx: Context, name: str, to: str, purpose: str, add: bool) -> None:
    """Let WHOM, an account or everyone with a role (role:NAME), read all versions of NAME for a purpose, or add versions."""
    done = ctx.call(Keep.data_grant, dataset=name, to=to, purpose=purpose, add=add)
    ctx.out.show(done, f"{done.to} may {_granted(done)}: log entry {done.log_index}")


@data.command(epilog="Example: modelkeep data revoke loans alice --purpose credit-scoring")
@_of_a_grant
def revoke(ctx: Context, name: str, to: str, purpose: str, add: bool) -> None:
    """Take a grant to WHOM back: the next reading, or addition, is denied."""
    done = ctx.call(Keep.data_revoke, dataset=name, to=to, purpose=purpose, add=add)
    ctx.out.show(done, f"{done.to} may no longer {_granted(done)}: log entry {done.log_index}")


@data.command(epilog="Example: modelkeep data remove loans@1 --reason 'the contract ended'")
@click.argument("dataset", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; the log records it.")
@click.pass_obj
def remove(ctx: Context, dataset: str, reason: str) -> None:
    """Remove one version for good. What the log says of it stays, and its number is not given again."""
    done = ctx.call(Keep.data_remove, dataset=dataset, reason=reason)
    ctx.out.show(done, f"{done.ref} is gone: log entry {done.log_index}")


@data.command("open", epilog="Example: modelkeep data open loans@1 --purpose credit-scoring --out loans.csv")
@click.argument("dataset", metavar="NAME[@VERSION]")
@click.option("--out", required=True, help="New file for the very bytes that were added (pictures: a tar archive); plaintext.")
@_PURPOSE
@click.pass_obj
def open_(ctx: Context, dataset: str, out: str, purpose: str) -> None:
    """Write a version to a file, in the clear; the log records who did, and for what.

    To train without a file, read it in Python: keep.data("loans@1", purpose="…").batches(1000).
    """
    if Path(out).exists():
        raise Invalid(f"{out} exists: name another file or remove it first")
    with ctx.out.busy("Opening the data"):
        if ctx.server:
            fetched = ctx.call(Keep.data_fetch, dataset=dataset, purpose=purpose)
            ref, index, size = fetched.ref, fetched.log_index, len(fetched.data)
            with NewFile(out) as new:
                new.write([fetched.data])
                new.publish()
        else:
            opened = ctx.call(_open_here, dataset=dataset, purpose=purpose)
            ref, index, size = opened.ref, opened.log_index, opened.write_to(out)
    ctx.out.show(
        {"ref": ref, "file": out, "size": size, "log_index": index},
        f"opened {ref} into {out}: {size:,} bytes in the clear, log entry {index}",
    )


@data.command(epilog="Example: modelkeep data lineage loans@2")
@click.argument("dataset", metavar="NAME[@VERSION]")
@click.option("--croissant", default="", metavar="FILE", help="New file for its metadata as Croissant 1.0: a reading, too.")
@_PURPOSE
@click.pass_obj
def lineage(ctx: Context, dataset: str, croissant: str, purpose: str) -> None:
    """Show what a version was made of, and the runs, models and releases that it went into."""
    if croissant:
        write_file(croissant, ctx.call(Keep.data_describe, dataset=dataset, purpose=purpose), mode=0o644)
    found = ctx.call(Keep.data_lineage, dataset=dataset)
    ctx.out.show(found, found.text + f"\nmetadata of {found.ref} written to {croissant}" * bool(croissant))


@data.command(epilog="Example: modelkeep data replay loans@2 --step clean.py --purpose credit-scoring")
@click.argument("dataset", metavar="NAME[@VERSION]")
@click.option("--step", "steps", multiple=True, required=True, metavar="FILE", help="Code of the declared steps, in order.")
@_PURPOSE
@click.option("--memory", default=4, show_default=True, type=click.IntRange(1, 1024), help="Most memory of a step, in GiB.")
@click.option("--seconds", default=600.0, show_default=True, type=click.FloatRange(1), help="Most time of a step.")
@click.option("--unconfined", is_flag=True, help="Run the code as your user, where the kernel does not let it be confined.")
@click.pass_obj
def replay(
    ctx: Context, dataset: str, steps: tuple[str, ...], purpose: str, memory: int, seconds: float, unconfined: bool
) -> None:
    """Run the declared steps on the parent again, and check that the same bytes come out.

    Code of other content than was declared is refused. It runs without network, disk and other processes, unless --unconfined.
    """
    keep = ctx.local("data replay")
    codes = [read_file(step) for step in steps]
    limits = Limits(memory << 30, seconds, output=memory << 30)
    with ctx.out.busy("Running the steps again"):
        done = keep.data_replay(dataset, codes, purpose=purpose, limits=limits, confined=not unconfined)
    how = "confined" if done.confined else "not confined"
    made = f"{done.ref} is what {', '.join(done.steps)} makes of {done.parent}"
    ctx.out.show(done, f"{made}: {done.size:,} bytes, {how}, log entry {done.log_index}")


def _names(columns: str) -> list[str]:
    """Those in a line of CSV. Raises Invalid."""
    try:
        return next(csv.reader([columns]), [])
    except csv.Error:
        raise Invalid("--columns is one line of names with commas between them") from None


def _add_here(keep: Keep, *, path: str, name: str, about: About, columns: Sequence[str]) -> DataAdded:
    return keep.data_add_from(path, name, about, columns=columns)


def _open_here(keep: Keep, *, dataset: str, purpose: str) -> SealedDataset:
    return keep.data(dataset, purpose=purpose)


def _cells(row: DatasetRow) -> tuple[str, ...]:
    purposes = ", ".join(row.purposes) or "as granted"
    return row.ref, row.kind, f"{row.rows:,}" if row.rows else "-", f"{row.size:,}", "yes" if row.personal else "no", purposes


def _told(found: DatasetShown) -> str:
    row, steps = found.row, [f"{step.name} ({step.code[7:19]}) {_words(step.parameters)}".rstrip() for step in found.steps]
    lines = [
        f"{row.ref}  {row.kind}, {row.rows:,} rows, {row.size:,} bytes, added by {row.owner} {moment(row.created)}",
        f"  digest    {found.digest} (salted)",
        f"  sealed    {found.sealed}  log entry {found.log_index}",
        f"  personal  {'yes' if row.personal else 'no'}",
        f"  purposes  {', '.join(row.purposes) or 'as granted'}",
        *([f"  licence   {found.licence}"] if found.licence else []),
        *([f"  source    {found.source}"] if found.source else []),
        *([f"  about     {found.description}"] if found.description else []),
        *([f"  made of   {', '.join(found.parents)} by {', '.join(steps)}"] if found.parents else []),
        *(f"  column    {name}  {kind}" for name, kind in found.columns.items()),
        *(f"  granted   {one.to} may {_granted(one)}  log entry {one.log_index}" for one in found.grants),
    ]
    return "\n".join(lines)


def _granted(grant: GrantRow) -> str:
    return f"add versions of {grant.dataset}" if grant.add else f"read {grant.dataset} for {grant.purpose}"


def _words(parameters: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


data.add_command(check)
data.add_command(purge)
COMMANDS = (data,)
