"""log erase/erasures: what happens to logs as they age. They register in the group of ``cli/logs.py``."""

import click

from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment
from modelkeep.cli.logs import log


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
    lines.append("Backups made before hold it until they are restored with this log or an export of 'log erasures'.")
    ctx.out.show(done, "\n".join(lines))


@log.command("erasures", epilog="Example: modelkeep log erasures")
@click.pass_obj
def log_erasures(ctx: Context) -> None:
    """List what was erased: pseudonyms and data sets, with the log entries that say so."""
    found = ctx.call(Keep.log_erasures)
    rows = [(e.log_index, moment(e.at), e.what, e.name, e.actor) for e in found]
    ctx.out.table(found, ("ENTRY", "AT", "WHAT", "NAME", "ACTOR"), rows, empty="Nothing was erased.")


COMMANDS = (log,)
