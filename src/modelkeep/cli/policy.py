"""attest, approve, policy show/set/history/check/explain."""

import hashlib
from pathlib import Path

import click

from modelkeep.app.keep import Keep
from modelkeep.app.results import PolicyJudged
from modelkeep.cli.context import Context, moment, read_file
from modelkeep.cli.output import EXIT_REFUSED, below
from modelkeep.custody.policies import ADMISSION, DEFAULT, KINDS
from modelkeep.errors import Invalid, Missing, Unavailable
from modelkeep.policy.admission import PROFILES
from modelkeep.workflows.attest import attestable

KIND = click.Choice(KINDS)
BY = click.option("--by", "policy", default="", metavar="PROFILE|FILE", help="Another policy than the one in force.")
AS_PROMOTED = click.option("--as-promoted", is_flag=True, help="Judge a published release as if it were promoted.")


@click.command(epilog="Example: modelkeep attest credit-risk@1 --type privacy dp.json")
@click.argument("about", metavar="SUBJECT")
@click.option("--type", "kind", type=click.Choice(list(attestable())), required=True, help="Type of the statement.")
@click.argument("file", metavar="FILE")
@click.pass_obj
def attest(ctx: Context, about: str, kind: str, file: str) -> None:
    """Log what was found out about SUBJECT, a release or a model file that is to be one: FILE is the statement's JSON.

    It is signed by the keep, in your name. docs/formats/statements.md has the fields of each type.
    """
    predicate = read_file(file)
    if "@" in about and not Path(about).exists():
        done = ctx.call(Keep.attest, ref=about, kind=kind, predicate=predicate)
    else:
        name, digest = Path(about).name, _digest(about)
        done = ctx.call(Keep.attest_file, filename=name, digest=digest, kind=kind, predicate=predicate)
    ctx.out.show(done, f"{done.about} ({done.digest[:19]}): {done.type}, log entry {done.log_index}")


@click.command(epilog="Example: modelkeep approve credit-risk@1 --reason 'read the evaluation'")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reject", "verdict", flag_value="reject", help="Say that it must not be served.")
@click.option("--withdraw", "verdict", flag_value="withdraw", help="Take back what you said before.")
@click.option("--reason", default="", help="Why; it is logged.")
@click.pass_obj
def approve(ctx: Context, ref: str, verdict: str | None, reason: str) -> None:
    """Approve a release that somebody else published, or reject it; your last word counts, and policy asks for it."""
    done = ctx.call(Keep.approve, ref=ref, verdict=verdict or "approve", reason=reason)
    said = "; ".join(
        f"{words} by {', '.join(who)}" for words, who in (("approved", done.by), ("rejected", done.against)) if who
    )
    ctx.out.show(done, f"{done.ref}: {said or 'nobody has a word on it now'} (log entry {done.log_index})")


@click.group(epilog="Example: modelkeep policy explain credit-risk@1")
def policy() -> None:
    """By which rules releases are served, and who may do what."""


@policy.command("show", epilog="Example: modelkeep policy show access > access.cedar")
@click.argument("kind", metavar="KIND", type=KIND, default=ADMISSION)
@click.pass_obj
def policy_show(ctx: Context, kind: str) -> None:
    """Print the policy in force, to read or to begin another from: Cedar text, or the table of the ladder."""
    found = ctx.call(Keep.policy_show, kind=kind)
    ctx.out.show(found, found.text.rstrip())


@policy.command("history", epilog="Example: modelkeep policy history access")
@click.argument("kind", metavar="KIND", type=KIND, default=ADMISSION)
@click.pass_obj
def policy_history(ctx: Context, kind: str) -> None:
    """List every policy that was set, oldest first."""
    found = ctx.call(Keep.policy_history, kind=kind)
    rows = [(moment(row.at), row.name, row.by, row.reason, row.log_index) for row in found]
    ctx.out.table(
        found, ("AT", "POLICY", "BY", "REASON", "LOG"), rows, empty=f"No {kind} policy was ever set: the default holds."
    )


@policy.command("set", epilog="Example: modelkeep policy set admission strict --reason 'audit finding 7'")
@click.argument("kind", metavar="KIND", type=KIND)
@click.argument("chosen", metavar="POLICY")
@click.option("--extend", is_flag=True, help="Add the rules of the file to the access policy that ships.")
@click.option("--reason", default="", help="Why; it is logged.")
@click.pass_obj
def policy_set(ctx: Context, kind: str, chosen: str, extend: bool, reason: str) -> None:
    """Put POLICY in force: open, standard or strict for admission, default for access and the ladder, or a file.

    The file has Cedar text for admission and access, and for the ladder the table of what accounts get (TOML).

    It is validated first and logged; every gateway follows it before this command returns.
    """
    profile, text = _choose(chosen, PROFILES if kind == ADMISSION else (DEFAULT,))
    done = ctx.call(Keep.policy_set, kind=kind, profile=profile, text=text, extend=extend, reason=reason)
    ctx.out.show(done, f"The {done.kind} policy is {done.name} now (log entry {done.log_index})")


@policy.command("check", epilog="Example: modelkeep policy check credit-risk@1 --by strict")
@click.argument("ref", metavar="NAME@VERSION")
@BY
@AS_PROMOTED
@click.pass_context
def policy_check(click_context: click.Context, ref: str, policy: str, as_promoted: bool) -> int:
    """Say in one line whether the admission policy lets a release be served; exit 1 when it does not."""
    ctx: Context = click_context.obj
    found = _judge(ctx, ref, policy, as_promoted)
    ctx.out.show(found, found.summary)
    return 0 if found.admitted else EXIT_REFUSED


@policy.command("explain", epilog="Example: modelkeep policy explain credit-risk@1 --as-promoted")
@click.argument("ref", metavar="NAME@VERSION")
@BY
@AS_PROMOTED
@click.pass_obj
def policy_explain(ctx: Context, ref: str, policy: str, as_promoted: bool) -> None:
    """Show every rule of the admission policy, whether a release satisfies it, and which statement would."""
    found = _judge(ctx, ref, policy, as_promoted)
    lines = [f"{found.ref}, by the {found.policy} policy: {'admitted' if found.admitted else 'not admitted'}"]
    for rule in found.rules:
        lines.append(f"  {'yes' if rule.satisfied else 'NO ':<4} {below(rule.says, 7)}  [{rule.id}]")
        if not rule.satisfied:
            needs = f" (statement: {rule.needs})" if rule.needs else ""
            lines.append(
                f"       → {below(rule.mend, 9)}{needs}" if rule.mend else f"       → {needs.strip() or 'no way is named'}"
            )
    ctx.out.show(found, "\n".join(lines))


def _judge(ctx: Context, ref: str, policy: str, as_promoted: bool) -> PolicyJudged:
    profile, text = _choose(policy, PROFILES) if policy else ("", b"")
    return ctx.call(Keep.policy_explain, ref=ref, profile=profile, text=text, as_promoted=as_promoted)


def _choose(chosen: str, shipped: tuple[str, ...]) -> tuple[str, bytes]:
    """A policy that ships, by its name, or the text of a file. Raises Missing, Invalid (the file is empty)."""
    if chosen in shipped:
        return chosen, b""
    if not Path(chosen).exists():
        raise Missing(f"{chosen} is neither a policy that ships ({', '.join(shipped)}) nor a file")
    text = read_file(chosen)
    if not text.strip():
        raise Invalid(f"{chosen} is empty: it would deny everything")
    return "", text


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise Missing(f"there is no release and no file {path}: name one as NAME@VERSION or by its path") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


COMMANDS = (attest, approve, policy)
