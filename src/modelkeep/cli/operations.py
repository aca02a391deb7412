"""status, integrity, incident, review."""

import click

from modelkeep.app.keep import Keep
from modelkeep.app.oversight import OUTCOMES
from modelkeep.cli.context import Context, moment
from modelkeep.cli.standing import budget_line
from modelkeep.operations.integrity import IntegrityPass


@click.command(epilog="Example: modelkeep status")
@click.pass_obj
def status(ctx: Context) -> None:
    """What is sealed, served and quarantined; the last integrity pass; open incidents."""
    found = ctx.call(Keep.status)
    lines = [f"Keep {found.origin}, releases log of {found.log_size} entries", "", "Releases"]
    lines += [f"  {r.ref:<24} {r.state}" for r in found.releases] or ["  none"]
    if found.witnessed is not None:
        lines.insert(1, f"Witnesses  a quorum cosigned {found.witnessed} of its entries ('modelkeep witness status')")
    lines += ["", f"Integrity  {_pass(found.integrity)}", "", "Open incidents"]
    lines += [f"  {i.id}  since {moment(i.opened)}: {i.detail}" for i in found.incidents] or ["  none"]
    if found.budgets:
        lines += ["", "Information budgets of which half is spent or more ('modelkeep account list')"]
        lines += [f"  {budget_line(row)}" for row in found.budgets]
    lines += ["", "Gateways"]
    lines += [
        f"  {g.instance}  {g.records:,} record{'s' * (g.records != 1)} handed over, {'running' if g.open else 'stopped'}"
        for g in found.gateways
    ] or ["  none was ever started"]
    ctx.out.show(found, "\n".join(lines))


def _pass(report: IntegrityPass | None) -> str:
    if report is None:
        return "no pass yet: run 'modelkeep integrity'"
    releases = "1 release" if report.checked == 1 else f"{report.checked} releases"
    return f"{moment(report.finished)}: {releases} checked, {len(report.findings) or 'none'} damaged"


@click.command(epilog="Example: modelkeep integrity")
@click.pass_obj
def integrity(ctx: Context) -> None:
    """Check every sealed body now; a damaged release is put into quarantine and an incident opened."""
    found = ctx.call(Keep.integrity)
    ctx.out.show(found, "\n".join([_pass(found), *(f"  {line}" for line in found.findings)]))
    if found.findings:
        raise click.exceptions.Exit(1)


@click.group(epilog="Example: modelkeep incident list")
def incident() -> None:
    """What went wrong and what was done about it."""


@incident.command("list", epilog="Example: modelkeep incident list")
@click.pass_obj
def incident_list(ctx: Context) -> None:
    """List all incidents, open ones first."""
    found = ctx.call(Keep.incidents)
    rows = [(i.id, i.state, moment(i.opened), i.detail, i.note) for i in found]
    ctx.out.table(found, ("INCIDENT", "STATE", "OPENED", "WHAT", "NOTE"), rows, empty="There is no incident.")


@incident.command("resolve", epilog="Example: modelkeep incident resolve integrity:credit-risk@1 --note 'restored'")
@click.argument("incident_id", metavar="ID")
@click.option("--note", required=True, help="What was done; it is logged.")
@click.pass_obj
def incident_resolve(ctx: Context, incident_id: str, note: str) -> None:
    """Close an incident."""
    done = ctx.call(Keep.incident_resolve, incident_id=incident_id, note=note)
    ctx.out.show(done, f"{done.id} is {done.state}")


def _percent(_context: click.Context, _param: click.Parameter, said: str) -> float:
    """A share that is said in percent, such as ``0.5%``; 0 when nothing is said."""
    if not said:
        return 0.0
    try:
        share = float(said.removesuffix("%")) / 100.0 if said.endswith("%") else 0.0
    except ValueError:
        share = 0.0
    if not share > 0.0:
        raise click.BadParameter(f"{said!r} is no share in percent, such as 0.5%")
    return share


@click.command(epilog="Example: modelkeep review alice --outcome cleared --reason 'penetration test, agreed'")
@click.argument("account")
@click.option("--outcome", type=click.Choice(OUTCOMES), required=True, help="The decision.")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.option("--false-alarm", is_flag=True, help="It was accused wrongly: the next calibration must know.")
@click.option(
    "--flips",
    metavar="PERCENT",
    default="",
    callback=_percent,
    help="Deceive by flipping so many labels, such as 0.5%, and not by regions.",
)
@click.pass_obj
def review(ctx: Context, account: str, outcome: str, reason: str, false_alarm: bool, flips: float) -> None:
    """Decide about an account that the extraction evidence accuses.

    'cleared' forgets its evidence so far and lets it ask again; 'confirmed' disables the account; 'deceived' gives it answers
    of which a part is false, marked and recorded as such. Another review takes a decision back; a disabled account is enabled
    with 'modelkeep user enable'.
    """
    done = ctx.call(Keep.review, account=account, outcome=outcome, reason=reason, false_alarm=false_alarm, flips=flips)
    ctx.out.show(done, f"{done.account}: {done.outcome} (log entry {done.log_index})")


COMMANDS = (status, integrity, incident, review)
