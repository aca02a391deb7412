"""cases, case: accounts that act as one."""

import click

from modelkeep.app.caseresults import AlikeRow, CaseFile, CaseRelease
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, moment
from modelkeep.errors import Invalid

_SECOND = 1_000_000_000
_WIDEST = 40
_MOST_HOURS = 48


@click.command(epilog="Example: modelkeep cases")
@click.option("--search", "ref", metavar="NAME@VERSION", default="", help="Search all recorded questions for accounts alike.")
@click.pass_obj
def cases(ctx: Context, ref: str) -> None:
    """List the groups of accounts that are accused of acting as one.

    With --search, look instead for accounts whose questions are alike: groups are found on half of what was asked and tested
    on the other half. It is for investigation, and accuses nobody.
    """
    if ref:
        groups = ctx.call(Keep.alike, ref=ref)
        table = [(one.how, len(one.accounts), _p(one.corrected), f"{one.similarity:.2f}", _who(one)) for one in groups]
        ctx.out.table(groups, ("HOW", "ACCOUNTS", "P", "ALIKE", "WHO"), table, empty=f"No accounts asked {ref} alike.")
        return
    found = ctx.call(Keep.cases)
    rows = [(one.id, one.state, str(one.accounts), one.shared, moment(one.opened), one.note) for one in found]
    ctx.out.table(found, ("CASE", "STATE", "ACCOUNTS", "THEY", "OPENED", "NOTE"), rows, empty="There is no case.")


@click.command(epilog="Example: modelkeep case net-5f0c9ab1d2e37788 --similar")
@click.argument("case_id", metavar="ID")
@click.option("--similar", is_flag=True, help="Compare what the accounts asked, too; reads every recorded question.")
@click.option("--outcome", type=click.Choice(["cleared", "confirmed"]), default=None, help="Decide about the case.")
@click.option("--reason", default="", help="Why it was decided so; it is logged.")
@click.pass_obj
def case(ctx: Context, case_id: str, similar: bool, outcome: str | None, reason: str) -> None:
    """Show the file of a case, or decide about it.

    'cleared' forgets the evidence against the group and gives its members their budgets back; 'confirmed' leaves these
    lowered. Neither disables an account: 'modelkeep review' does.
    """
    if outcome is not None:
        if not reason:
            raise Invalid("say why: --reason")
        done = ctx.call(Keep.case_review, case_id=case_id, outcome=outcome, reason=reason)
        ctx.out.show(done, f"{done.id}: {done.state}")
        return
    if reason:
        raise Invalid("say what was decided: --outcome")
    found = ctx.call(Keep.case, case_id=case_id, similar=similar)
    ctx.out.show(found, "\n".join(_file(found, compared=similar)))


def _file(found: CaseFile, *, compared: bool) -> list[str]:
    head = found.case
    lines = [f"{head.id}: these {head.accounts} accounts act as one ({head.state})", f"They {head.shared}."]
    lines += [f"Decided: {head.note}"] if head.note else []
    for release in found.releases:
        lines += ["", *_release(release)]
    if found.alike:
        lines += ["", "Ask alike, found on half of space and tested on the other (p after correction)"]
        lines += [
            f"  {one.how:<7} p {_p(one.corrected):<8} similarity {one.similarity:.2f}  {_who(one)}" for one in found.alike
        ]
    elif compared:
        lines += ["", "What they asked was compared: no accounts of it asked alike more than others do."]
    lines += ["", "Next", *(f"  {step}" for step in found.steps)] if found.steps else []
    return lines


def _release(one: CaseRelease) -> list[str]:
    lines = [
        f"{one.release}: {one.odds}, accused from 1 : {one.needed:,.0f} at question {one.accused_at}, {one.distinct} by now",
        *([f"  together {one.budget.said}; {one.budget.forecast}"] if one.budget else []),
        f"  {'ACCOUNT':<24} {'ASKED':>7} {'NEW':>7}  {'SINCE':<20} {'UNTIL':<20} ALONE",
    ]
    for row in one.accounts:
        when = [moment(at) if at else "-" for at in (row.first, row.last)]
        alone = f"accused, {row.odds}" if row.alone else row.odds
        lines.append(f"  {row.account:<24} {row.queries:>7} {row.distinct:>7}  {when[0]:<20} {when[1]:<20} {alone}")
    most = max((count for _, count, _ in one.hours), default=1)
    for hour, count, accounts in one.hours[-_MOST_HOURS:]:
        bar = "#" * max(1, round(_WIDEST * count / most))
        lines.append(f"  {moment(hour * _SECOND):<20} {count:>7} answers, {accounts:>4} accounts {bar}")
    return lines


def _who(one: AlikeRow) -> str:
    shown = ", ".join(one.accounts[:8])
    return shown if len(one.accounts) <= 8 else f"{shown} and {len(one.accounts) - 8} more"


def _p(value: float) -> str:
    return f"{value:.1g}"


COMMANDS = (cases, case)
