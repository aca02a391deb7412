"""account list/explain/allow: what the extraction defence holds about accounts."""

import click

from modelkeep.app.accountresults import AccountExplained, BudgetRow, Standing
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment


@click.group(epilog="Example: modelkeep account explain alice")
def account() -> None:
    """What the extraction defence holds about accounts."""


@account.command("list", epilog="Example: modelkeep account list")
@click.pass_obj
def account_list(ctx: Context) -> None:
    """List accounts whose answers are coarser or fewer than usual, and those that have spent half of their budget, the
    strictest first; networks and hours of sign-up, too, whose accounts have together.
    """
    found = ctx.call(Keep.account_list)
    rows = [(r.account, r.release, r.rung, r.told, _learnt(r.budget), "; ".join(r.cautions)) for r in found]
    head = ("ACCOUNT", "RELEASE", "RUNG", "TOLD", "LEARNT", "CAUTIONS")
    ctx.out.table(found, head, rows, empty="Every account gets usual answers.")


@account.command("explain", epilog="Example: modelkeep account explain alice --ref credit-risk@1")
@click.argument("account_name", metavar="ACCOUNT")
@click.option("--ref", default="", metavar="NAME@VERSION", help="With this release; with each that it asked if not given.")
@click.pass_obj
def account_explain(ctx: Context, account_name: str, ref: str) -> None:
    """Show on which rung an account is, the odds and the budget behind it, how it got there, and a forecast.

    Its recorded questions are judged again, so a gateway's last second may be missing.
    """
    found = ctx.call(Keep.account_explain, account=account_name, release=ref)
    ctx.out.show(found, _explained(found))


@account.command("allow", epilog="Example: modelkeep account allow alice --times 5 --days 30 --reason 'contract 7'")
@click.argument("account_name", metavar="ACCOUNT|CLUSTER")
@click.option(
    "--times", type=float, required=True, help="How many times the usual budget, at most 1000; 1 takes a larger one back."
)
@click.option("--days", type=int, required=True, help="For so many days from now, at most 366.")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def account_allow(ctx: Context, account_name: str, times: float, days: int, reason: str) -> None:
    """Give an account with a second factor a larger information budget; recording and evidence go on as they are.

    CLUSTER, such as net-5f0c9ab1d2e37788, is what 'account list' and 'account explain' name: the accounts of a network, or of
    an hour of sign-up, may then learn so many times the usual together.
    """
    done = ctx.call(Keep.account_allow, account=account_name, times=times, days=days, reason=reason)
    said = f"{done.account} may learn {done.factor:g} times the usual until {moment(done.until)} (log entry {done.log_index})"
    ctx.out.show(done, said)


def _explained(found: AccountExplained) -> str:
    lines = [f"{found.account}: {'it asked nothing that is watched' if not found.standings else ''}".rstrip(": ")]
    if found.factor != 1.0:
        lines.append(
            f"  its budget is {found.factor:g} times the usual" + (f", until {moment(found.until)}" if found.until else "")
        )
    lines += [f"  review  {each}" for each in found.reviews]
    lines += [f"  caution  {each}" for each in found.cautions]
    for one in found.standings:
        lines += _standing(one)
        lines += [f"  shared    {budget_line(row)}" for row in found.shared if row.release == one.release]
    return "\n".join(lines)


def _learnt(row: BudgetRow | None) -> str:
    return "" if row is None else f"{row.said}; {row.forecast}"


def budget_line(row: BudgetRow) -> str:
    """One budget in a line."""
    who = f"{row.name} ({len(row.accounts)} accounts together)" if row.accounts else row.name
    return f"{who} on {row.release}: {_learnt(row)}"


def _standing(one: Standing) -> list[str]:
    lines = [
        "",
        f"{one.release}: {one.rung} ({one.told})",
        f"  evidence  {one.odds} ({one.queries:,} questions, {one.effective:,} distinct)",
        f"  budget    {one.said}",
        f"  forecast  {one.forecast}",
    ]
    lines += [f"  case      {case} lowers its budget: modelkeep case {case}" for case in one.cases]
    if one.drifting:
        lines.append("  drift     others' evidence rises with its, so it leads no further: modelkeep status")
    for move in one.history:
        why = f"odds {move.odds}, {move.share:.0%} of the budget (record {move.record})"
        lines.append(f"  {moment(move.at)}  {move.before} → {move.after}: {why}")
    return lines


COMMANDS = (account,)
