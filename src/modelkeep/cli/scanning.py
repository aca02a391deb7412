"""scan: judge files on disk, or the models of releases again."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
import msgspec
from rich.table import Table

from modelkeep.app.keep import Keep
from modelkeep.app.scanning import open_scanner, scan_paths
from modelkeep.app.scanresults import CLEAN, UNCLEAN, UNREADABLE, FileScan, Rescanned, ScanReport, StaleScan
from modelkeep.app.settings import parse
from modelkeep.cli.context import Context
from modelkeep.cli.output import EXIT_REFUSED, EXIT_UNAVAILABLE, plain
from modelkeep.cli.progress import bar
from modelkeep.cli.sarif import sarif as as_sarif
from modelkeep.core.values import Opinion
from modelkeep.errors import Invalid, ModelkeepError
from modelkeep.ledger.predicates import Finding

_SHOWN = 20
"""Findings of one file that are listed for a person; --json and --sarif have them all."""


@click.command(epilog="Example: modelkeep scan downloads/ --sarif > scan.sarif")
@click.argument("paths", metavar="PATHS", nargs=-1)
@click.option("--sarif", is_flag=True, help="Print SARIF 2.1.0 instead of a table.")
@click.option(
    "--opinions",
    type=click.Choice(["auto", "off", "require"]),
    default=None,
    help="As the setting scan.opinions, for PATHS.",
)
@click.option(
    "--release", "releases", multiple=True, metavar="NAME@VERSION", help="Judge this release's model again; repeatable."
)
@click.option("--stale", is_flag=True, help="Judge every model again that older rules or scanners judged.")
@click.pass_obj
def scan(ctx: Context, paths: Sequence[str], sarif: bool, opinions: str | None, releases: Sequence[str], stale: bool) -> None:
    """Scan files, and all that is in folders, without running anything; no keep is needed.

    A file is clean only if everything in it was understood and allowed. With --release or --stale the sealed models of a keep
    are judged by the rules and scanners of now: the verdict is signed and logged, and what is bad is put into quarantine.
    Exit code: 0 all clean, 1 something is not, 3 something could not be read or judged.
    """
    if sum(map(bool, (paths, releases, stale))) != 1:
        raise Invalid("name files or folders to scan, or --release, or --stale: one of them")
    if paths:
        _scan_files(ctx, paths, opinions, sarif=sarif)
        return
    if sarif or opinions:
        raise Invalid("--sarif and --opinions go with files: releases are judged as the settings of their keep say")
    _scan_releases(ctx, list(releases) if releases else ctx.call(Keep.stale_scans))


def _scan_files(ctx: Context, paths: Sequence[str], opinions: str | None, *, sarif: bool) -> None:
    # Never the settings of a folder: it may be the very one that was downloaded, and they name an interpreter to run.
    settings = parse({}, os.environ, "the environment").scan
    if opinions:
        settings = msgspec.convert({**msgspec.structs.asdict(settings), "opinions": opinions}, type(settings))
    with _telling(ctx) as watch:
        report = scan_paths(paths, open_scanner(settings), watch)
    if sarif:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(as_sarif(report)), indent=2).decode() + "\n")
    elif ctx.out.json:
        ctx.out.show(report, "")
    else:
        _show_files(ctx, report)
    _end([file.verdict for file in report.files])


@contextmanager
def _telling(ctx: Context) -> Iterator[Callable[[str], object]]:
    """Say which file is read, on a terminal."""
    with ctx.out.busy("Scanning") as status:
        yield lambda path: status.update(plain(f"Scanning {path}"))


def _show_files(ctx: Context, report: ScanReport) -> None:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("FILE", "VERDICT", "FORMAT", "FINDING", "WHAT TO DO"):
        grid.add_column(column, overflow="fold")
    for file in report.files:
        for row in _file_rows(file):
            grid.add_row(*(plain(cell.replace("\n", "\\n")) for cell in row))
    ctx.out.console.print(grid, soft_wrap=False)
    counts = {word: sum(file.verdict == word for file in report.files) for word in (CLEAN, UNCLEAN, UNREADABLE)}
    ctx.out.note(
        f"{counts[CLEAN]} clean, {counts[UNCLEAN]} not clean, {counts[UNREADABLE]} unreadable; "
        f"rules {report.rules_version}{_asked(report)}"
    )


def _file_rows(file: FileScan) -> Iterator[tuple[str, str, str, str, str]]:
    """A line for each finding; the first has the file."""
    heads = [(file.path, file.verdict, file.format), *[("", "", "")] * len(file.findings)]
    if file.verdict == UNREADABLE:
        yield *heads[0], "", file.problem
    elif not file.findings:
        yield *heads[0], "", _agree(file.opinions)
    for head, finding in zip(heads, file.findings[:_SHOWN], strict=False):
        yield *head, f"{finding.rule}: {finding.where}", finding.message
    if len(file.findings) > _SHOWN:
        yield "", "", "", "", f"and {len(file.findings) - _SHOWN} more: --json has them all"


def _agree(opinions: Sequence[Opinion]) -> str:
    return f"{', '.join(opinion.tool for opinion in opinions)} agree" if opinions else ""


def _asked(report: ScanReport) -> str:
    asked = sorted({f"{opinion.tool} {opinion.version}" for file in report.files for opinion in file.opinions})
    return f"; also asked: {', '.join(asked)}" if asked else "; no second opinion"


def _scan_releases(ctx: Context, found: Sequence[str | StaleScan]) -> None:
    done: list[Rescanned] = []
    with bar(shown=not ctx.out.json) as progress:
        for at, one in enumerate(found):
            progress("Scanning releases", at, len(found))
            done.append(_judge(ctx, one))
    rows = [(r.ref, r.outcome, r.rules_version, r.log_index if r.log_index >= 0 else "-", _why(r)) for r in done]
    empty = "Every model that stands was judged by the rules and scanners of now."
    ctx.out.table(done, ("RELEASE", "VERDICT", "RULES", "LOG", "WHY"), rows, empty=empty)
    _end([one.outcome for one in done])


def _judge(ctx: Context, one: str | StaleScan) -> Rescanned:
    """One verdict. Of many, one that cannot be read is a line like any other; one that was asked for raises why."""
    if isinstance(one, str):
        return ctx.call(Keep.rescan, ref=one)
    try:
        return ctx.call(Keep.rescan, ref=one.ref)
    except ModelkeepError as problem:
        return Rescanned(one.ref, one.model_digest, UNREADABLE, "", "", (), (), -1, (), problem=str(problem))


def _why(done: Rescanned) -> str:
    if done.problem or not done.findings:
        return done.problem
    taken = f"; in quarantine: {', '.join(done.quarantined)}" if done.quarantined else ""
    more = f" (and {len(done.findings) - 1} more)" if len(done.findings) > 1 else ""
    return f"{_short(done.findings[0])}{more}{taken}"


def _short(finding: Finding) -> str:
    return f"{finding.rule} at {finding.where}: {finding.message}"


def _end(verdicts: Sequence[str]) -> None:
    """Leave with what the worst of the verdicts means."""
    if UNCLEAN in verdicts:
        raise click.exceptions.Exit(EXIT_REFUSED)
    if any(verdict != CLEAN for verdict in verdicts):
        raise click.exceptions.Exit(EXIT_UNAVAILABLE)


COMMANDS = (scan,)
