"""log erase/erasures/archive/archived: what happens to logs as they age. They register in the group of ``cli/logs.py``."""

import datetime

import click

from modelkeep.app.keep import Keep
from modelkeep.app.liferesults import ArchivedRow
from modelkeep.cli.context import Context, moment
from modelkeep.cli.logs import log
from modelkeep.workflows.archive import Removed


@log.command("erase", epilog="Example: modelkeep log erase --subject alice --forget-account")
@click.option("--subject", default="", metavar="NAME", help="The account's name or pseudonym: its audit key is dropped.")
@click.option("--dataset", default="", metavar="NAME", help="The data set: the salt of its digests is dropped.")
@click.option("--forget-account", "forget", is_flag=True, help="Delete the account, too: its pseudonym is nobody's then.")
@click.option("--reason", default="", help="Why; it is logged in public, so name nobody.")
@click.pass_obj
def log_erase(ctx: Context, subject: str, dataset: str, forget: bool, reason: str) -> None:
    """Make what the audit logs say about somebody unreadable for good; every proof still verifies."""
    done = ctx.call(Keep.log_erase, subject=subject, dataset=dataset, forget=forget, reason=reason)
    lines = [f"{done.name}: erased (log entry {done.log_index}){'; the account is forgotten' if done.forgotten else ''}"]
    lines += [f"{name} beside the records still holds what was erased: remove it" for name in done.copies]
    lines.append("Backups made before still hold it: restore one with --erasures and a copy of this log.")
    ctx.out.show(done, "\n".join(lines))


@log.command("erasures", epilog="Example: modelkeep log erasures")
@click.pass_obj
def log_erasures(ctx: Context) -> None:
    """List what was erased: pseudonyms and data sets, with the log entries that say so."""
    found = ctx.call(Keep.log_erasures)
    rows = [(e.log_index, moment(e.at), e.what, e.name, e.actor) for e in found]
    ctx.out.table(found, ("ENTRY", "AT", "WHAT", "NAME", "ACTOR"), rows, empty="Nothing was erased.")


@log.command("archive", epilog="Example: modelkeep log archive --closed-before 2026-01-01 --to /archive --prune everything")
@click.argument("instances", metavar="INSTANCE", nargs=-1)
@click.option(
    "--closed-before", "before", type=click.DateTime(["%Y-%m-%d"]), help="All audit logs that were closed before this day, UTC."
)
@click.option("--to", required=True, metavar="DIR", help="Folder for the copies, one folder for each log.")
@click.option("--prune", type=click.Choice([*map(str, Removed)]), help="Remove this here; 'everything' leaves the checkpoint.")
@click.option("--with-evidence", "evidence", is_flag=True, help="Prune even what the evidence on a served model comes from.")
@click.pass_obj
def log_archive(
    ctx: Context, instances: tuple[str, ...], before: datetime.datetime | None, to: str, prune: str | None, evidence: bool
) -> None:
    """Copy closed audit logs elsewhere, each proven whole, and prune them here if asked to. Never a log that is alive."""
    keep = ctx.local("log archive")
    day = int(before.replace(tzinfo=datetime.UTC).timestamp()) * 1_000_000_000 if before else 0
    found = keep.log_archive(instances=instances, before=day, to=to, prune=prune or "", evidence=evidence)
    ctx.out.table(found, _ARCHIVED, map(_archived, found), empty="No audit log was closed before then.")


@log.command("archived", epilog="Example: modelkeep log archived --at /archive")
@click.option("--at", default="", metavar="DIR", help="The archive: check each log there, whole.")
@click.pass_obj
def log_archived(ctx: Context, at: str) -> None:
    """List the audit logs that were pruned, and check them in their archive."""
    found = ctx.local("log archived").log_archived(at=at)
    ctx.out.table(found, _ARCHIVED, map(_archived, found), empty="No audit log was pruned.")


_ARCHIVED = ("LOG", "RECORDS", "REMOVED HERE", "ENTRY", "WHERE", "CHECKED THERE")


def _archived(row: ArchivedRow) -> tuple[object, ...]:
    return row.instance, row.records, row.removed, row.log_index if row.log_index >= 0 else "-", row.to, row.checked


COMMANDS = (log,)
