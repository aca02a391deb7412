"""intel import/show/check: known vulnerabilities of the packages that models came from."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import click

from modelkeep.app.intelresults import DependenciesChecked, SnapshotRow
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment, read_file
from modelkeep.errors import Invalid, Missing, Unavailable

ENVIRONMENT = "installed.json"
_LONGEST = 120
_SHOWN = 12
_LIST = """
import importlib.metadata, json
def one(found):
    about, direct = found.metadata, found.read_text("direct_url.json")
    name, version = (about["Name"], about["Version"]) if about else (None, None)
    return {"metadata": {"name": name, "version": version}, "direct_url": json.loads(direct) if direct else None}
print(json.dumps({"installed": [one(found) for found in importlib.metadata.distributions()]}))
"""
"""What ``pip inspect`` reports, in short, for an environment that may have no pip."""


@click.group(epilog="Example: modelkeep intel import all.zip")
def intel() -> None:
    """Known vulnerabilities of the packages that models came from, and indicators of who copies models."""


@intel.command("import", epilog="Example: modelkeep intel import all.zip")
@click.argument("file", metavar="FILE")
@click.option("--older", is_flag=True, help="Also a snapshot that is older than the one in force.")
@click.pass_obj
def intel_import(ctx: Context, file: str, older: bool) -> None:
    """Read an advisory snapshot, the all.zip of OSV's ecosystem PyPI, and put it in force."""
    with ctx.out.busy("Reading the advisories"):
        done = ctx.call(Keep.intel_import, snapshot=read_file(file), older=older)
    ctx.out.show(done, _snapshot(done))


@intel.command("show", epilog="Example: modelkeep intel show")
@click.pass_obj
def intel_show(ctx: Context) -> None:
    """Show which advisory snapshot is in force, and how old it is; exit code 1 when it is too old."""
    found = ctx.call(Keep.intel_show)
    ctx.out.show(found, _snapshot(found))
    if found.stale:
        raise click.exceptions.Exit(1)


def _snapshot(one: SnapshotRow) -> str:
    days = "1 day old" if one.age_days == 1 else f"{one.age_days} days old"
    return "\n".join(
        (
            f"{one.source}, {days}{': TOO OLD, import a newer one' if one.stale else ''}",
            f"  newest record  {moment(one.newest)}",
            f"  imported       {moment(one.imported)} (log entry {one.log_index})",
            f"  digest         {one.snapshot}",
            f"  advisories     {one.advisories} ({one.withdrawn} withdrawn), on packages: {one.packages}",
            f"  passed over    {one.others} (other ecosystems)",
        )
    )


@intel.command("check", epilog="Example: modelkeep intel check credit-risk@1 --lock requirements.txt")
@click.argument("ref", metavar="NAME@VERSION", required=False, default="")
@click.option("--lock", "locks", multiple=True, metavar="FILE", help="Lock file with the packages; may be given again.")
@click.option("--python", default="", metavar="PATH", help="The packages that this Python interpreter has.")
@click.option("--all", "everything", is_flag=True, help="Every release that is neither retired nor collected.")
@click.pass_obj
def intel_check(ctx: Context, ref: str, locks: tuple[str, ...], python: str, everything: bool) -> None:
    """Hold packages against the advisory snapshot; exit code 1 unless all were audited and none is vulnerable.

    With NAME@VERSION what was found is logged as a statement about its model; the packages are those of its training run unless
    --lock or --python name others. Without, it is only printed.
    """
    given = read_locks(locks) | ({ENVIRONMENT: list_packages(python)} if python else {})
    if everything and (ref or given):
        raise Invalid("--all checks what is known of every release: leave out NAME@VERSION, --lock and --python")
    if not (everything or ref or given):
        raise Invalid("name a release, lock files with --lock, an interpreter with --python, or --all")
    if everything:
        found = ctx.call(Keep.intel_check_all)
    elif ref:
        found = (ctx.call(Keep.intel_check, ref=ref, locks=given or None),)
    else:
        found = (ctx.call(Keep.intel_audit, locks=given),)
    text = "\n".join(line for one in found for line in _lines(one)) or "There is no release to check."
    ctx.out.show(found if everything else found[0], text)
    if not all(one.clean for one in found):
        raise click.exceptions.Exit(1)


def _lines(one: DependenciesChecked) -> Iterable[str]:
    what = one.ref or "these packages"
    where = f" (log entry {one.log_index})" if one.log_index is not None else ""
    age = f"snapshot {one.age_days} days old" if one.age_days >= 0 else "no snapshot"
    yield f"{what}: {'clean' if one.clean else 'NOT CLEAN'}, {one.audited} of {one.packages} packages audited, {age}{where}"
    yield from (f"  because {reason}" for reason in one.reasons)
    for found in one.advisories:
        score = f" {found.score:.1f}" if found.score >= 0 else ""
        fixed = f", mended in {', '.join(found.fixed)}" if found.fixed else ""
        yield f"  {found.severity + score:<13} {found.package} {found.version}  {found.id}{fixed}"
    yield from (f"  not audited   {each[:_LONGEST]}" for each in one.unaudited[:_SHOWN])
    if len(one.unaudited) > _SHOWN:
        yield f"  not audited   and {len(one.unaudited) - _SHOWN} more, which --json lists"


def read_locks(paths: Iterable[str]) -> dict[str, bytes]:
    """Lock files by their names; by their paths where two have the same. Raises Missing, Unavailable."""
    found: dict[str, bytes] = {}
    for path in paths:
        name = Path(path).name
        found[path if name in found else name] = read_file(path)
    return found


def list_packages(python: str) -> bytes:
    """What an interpreter has installed, as ``pip inspect`` reports it. Raises Missing, Invalid, Unavailable.

    The interpreter runs with the user's rights, in isolated mode and without the keep's environment; so does whatever its own
    site-packages start with.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    try:
        ran = subprocess.run(  # noqa: S603  # the interpreter that the user names
            [python, "-I", "-c", _LIST], capture_output=True, timeout=60, check=False, env=kept
        )
    except FileNotFoundError:
        raise Missing(f"there is no interpreter {python}") from None
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise Unavailable(f"{python} could not be asked for its packages: {cause}") from cause
    try:
        json.loads(ran.stdout)
    except (ValueError, RecursionError) as cause:
        raise Invalid(f"{python} is no Python interpreter that can list its packages") from cause
    return ran.stdout


@intel.command("indicate", epilog="Example: modelkeep intel indicate bundle.json --source misp")
@click.argument("file", metavar="FILE")
@click.option("--source", required=True, help="Whose indicators these are; they replace the earlier ones of this source.")
@click.pass_obj
def intel_indicate(ctx: Context, file: str, source: str) -> None:
    """Put indicators in force, from a STIX 2.1 bundle or a CSV file: addresses, User-Agents, questions of known surrogates.

    An account that matches has a smaller information budget and stands higher in 'account list'; a match alone accuses nobody.
    """
    done = ctx.call(Keep.intel_indicate, data=read_file(file), source=source)
    beside = f"{done.over} are over already, {done.passed_over} objects say what is not understood"
    ctx.out.show(done, f"{done.source}: {done.in_force} indicators in force (log entry {done.log_index}); {beside}")


@intel.command("forget", epilog="Example: modelkeep intel forget misp")
@click.argument("source", metavar="SOURCE")
@click.pass_obj
def intel_forget(ctx: Context, source: str) -> None:
    """Take all indicators of a source out of force; budgets that they lowered are as before."""
    done = ctx.call(Keep.intel_forget, source=source)
    ctx.out.show(done, f"{done.source}: no indicator is in force any more (log entry {done.log_index})")


@intel.command("indicators", epilog="Example: modelkeep intel indicators")
@click.pass_obj
def intel_indicators(ctx: Context) -> None:
    """List the indicators in force, where they are from, and until when they hold."""
    found = ctx.call(Keep.intel_indicators)
    rows = [(r.kind, r.value, r.source, r.id, moment(r.until), "yes" if r.holds else "no") for r in found]
    ctx.out.table(found, ("KIND", "VALUE", "SOURCE", "ID", "UNTIL", "HOLDS"), rows, empty="There is no indicator.")


COMMANDS = (intel,)
