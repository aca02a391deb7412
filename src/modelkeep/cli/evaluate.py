"""evaluate: how a model stands up to attacks, noise and corruption."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from modelkeep.app.keep import Keep
from modelkeep.app.labelled import is_sealed
from modelkeep.app.robustness import ATTACKS, Asked, evaluate, opened_release, predicates, with_logged
from modelkeep.app.robustnesspage import report
from modelkeep.app.robustnessresults import Evaluated
from modelkeep.cli.context import Context, new_file, read_file
from modelkeep.cli.labelled import ROWS, label_option, purpose_option, read_labelled
from modelkeep.cli.output import below
from modelkeep.cli.progress import bar
from modelkeep.errors import Invalid
from modelkeep.training.robustness import Share


@click.command("evaluate", epilog="Example: modelkeep evaluate model.onnx --data test.npz --epsilon 0.1 --report page.html")
@click.argument("model", metavar="MODEL")
@click.option("--data", "test", required=True, metavar="DATA", help=f"Test rows and labels: {ROWS}.")
@label_option
@purpose_option
@click.option("--name", "called", default="", metavar="NAME", help="What statements call the data; the name of its file.")
@click.option("--attack", default="apgd,fab,square", show_default=True, help=f"Any of {', '.join(ATTACKS)}, with commas.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf", show_default=True, help="Norm of the ball.")
@click.option("--epsilon", type=float, default=0.1, show_default=True, help="Radius of the ball, in units of the input.")
@click.option("--steps", default=100, show_default=True, help="Steps of gradient attacks.")
@click.option("--restarts", default=1, show_default=True, help="Random points that each gradient attack begins at.")
@click.option("--queries", default=1000, show_default=True, help="Answers that Square asks for of each row.")
@click.option("--rows", default=1000, show_default=True, help="Rows at most; more are drawn from.")
@click.option("--seed", default=0, show_default=True, help="Of everything that is random.")
@click.option("--low", type=float, help="Lowest value that an input can have; the lowest of the data.")
@click.option("--high", type=float, help="Highest value that an input can have; the highest of the data.")
@click.option("--smoothing", default=0.0, metavar="SIGMA", help="Certify by randomized smoothing with noise of this size.")
@click.option("--draws", default=1000, show_default=True, help="Noisy copies of each row for smoothing.")
@click.option("--bounds", is_flag=True, help="Certify by interval bounds, too (linf, small networks).")
@click.option("--corruptions", is_flag=True, help="Measure noise and corruptions, too.")
@click.option("--report", "page", default="", metavar="FILE", help="New file for a report in HTML.")
@click.option("--log", "logged", is_flag=True, help="Sign and log what was found, one statement of each attack.")
@click.pass_obj
def evaluate_(ctx: Context, /, model: str, called: str, attack: str, page: str, logged: bool, **given: Any) -> None:
    """Attack MODEL, a release of this keep or an ONNX file, and tell how accurate it stays, with intervals.

    Attacks run one after the other, each on the rows that are left. Alarms tell when it is not the model that withstands.
    """
    test, label, purpose = (given.pop(name) for name in ("test", "label", "purpose"))
    asked = Asked(attacks=tuple(part.strip() for part in attack.split(",") if part.strip()), **given)
    asked.check()
    if is_sealed(test) and called:
        raise Invalid("--name is for files: statements call a sealed data set by its own name")
    with new_file(page) if page else nullcontext(lambda _data: None) as write:
        rows = read_labelled(ctx, test, label, purpose)
        release = "@" in model and not Path(model).exists()
        name, data = _release(ctx, model) if release else (Path(model).name, read_file(model))
        called = called or (rows.name if rows.sealed else Path(test).stem)
        with bar(shown=not ctx.out.json) as told:
            found = evaluate(name, data, rows, asked, called=called, told=told)
        if logged:
            found = with_logged(found, [_log(ctx, release, name, found, said) for said in predicates(found)])
        write(report(found))
    ctx.out.show(found, _tell(found))


def _release(ctx: Context, ref: str) -> tuple[str, bytes]:
    """``NAME@VERSION`` and the model file; from a server it comes as an export, which takes that permission and is logged."""
    if ctx.server:
        exported = ctx.call(Keep.export, ref=ref)
        return exported.ref, exported.model
    named = str(ctx.keep.ref(ref))
    return named, opened_release(ctx.keep.premises, named)


def _log(ctx: Context, release: bool, name: str, found: Evaluated, said: bytes) -> int:
    if release:
        return ctx.call(Keep.attest, ref=name, kind="evaluation", predicate=said).log_index
    return ctx.call(Keep.attest_file, filename=name, digest=found.digest, kind="evaluation", predicate=said).log_index


def _tell(found: Evaluated) -> str:
    said = [f"{found.model}: {found.norm}, epsilon {found.epsilon:g}, {found.clean.examples} rows, {found.seconds:.1f} s"]
    said.append(_line("clean", found.clean))
    for one in found.attacks:
        how = f"{one.knowledge}, {one.steps} {'queries' if one.name == 'square' else 'steps'}, broke {one.broken}"
        said.append(f"{_line(f'after {one.name}', one.accuracy)}  {how}")
    for held in found.certified:
        method = f"{held.method} {held.norm} {held.epsilon:g}"
        said.append(_line(f"certified, {method}", held.accuracy))
    for harm in found.corrupted:
        lost = f"lost {harm.lost[0]:.1%} ({harm.lost[1]:.1%} to {harm.lost[2]:.1%})"
        said.append(f"{_line(f'{harm.name} {harm.severity}', harm.accuracy)}  {lost}")
    if found.black_box:
        said.append(f"black box only: {found.black_box}. Who has more than its answers may break more.")
    said += [f"ALARM {one.name}: {below(one.why, 2)}: do not trust these numbers" for one in found.alarms]
    if found.logged:
        said.append(f"log entries {found.logged[0]} to {found.logged[-1]}")
    return "\n".join(said)


def _line(what: str, one: Share) -> str:
    return f"  {what:34} {one.value:6.1%}  ({one.low:.1%} to {one.high:.1%})"


COMMANDS = (evaluate_,)
