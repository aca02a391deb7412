"""account list/explain/allow: what the extraction defence holds about accounts."""

import click

from modelkeep.app.accountresults import AccountExplained, Standing
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment


@click.group(epilog="Example: modelkeep account explain alice")
def account() -> None:
    """What the extraction defence holds about accounts."""


@account.command("list", epilog="Example: modelkeep account list")
@click.pass_obj
def account_list(ctx: Context) -> None:
    """List accounts whose answers are coarser or fewer than usual, the strictest first."""
    found = ctx.call(Keep.account_list)
    rows = [(r.account, r.release, r.rung, r.told, "; ".join(r.cautions)) for r in found]
    ctx.out.table(found, ("ACCOUNT", "RELEASE", "RUNG", "TOLD", "CAUTIONS"), rows, empty="Every account gets usual answers.")


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
@click.argument("account_name", metavar="ACCOUNT")
@click.option("--times", type=float, required=True, help="How many times the usual budget; 1 takes a larger one back.")
@click.option("--days", type=int, required=True, help="For so many days from now.")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def account_allow(ctx: Context, account_name: str, times: float, days: int, reason: str) -> None:
    """Give an account with a second factor a larger information budget; recording and evidence go on as they are."""
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
    return "\n".join(lines)


def _copy(one: Standing) -> str:
    """How good a copy is that learnt as much."""
    if one.measure == "R²":
        return f"; a simple copy would explain {one.fidelity:.0%} of the variance of the answers (R²)"
    return f"; a simple copy would agree on {one.fidelity:.0%}" if one.measure else ""


def _standing(one: Standing) -> list[str]:
    lines = [
        "",
        f"{one.release}: {one.rung} ({one.told})",
        f"  evidence  {one.odds} ({one.queries:,} questions, {one.effective:,} distinct)",
        f"  budget    {one.learnt:,.0f} of {one.limit:,.0f} natural questions{_copy(one)}",
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
