"""harden: a classifier that holds against small changes of its rows, measured before and after."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import msgspec

from modelkeep.app.hardening import Plan, Rules, harden_file, leads, parse_rules, statement_of
from modelkeep.app.hardeningresults import ModelHardened, Standing
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, new_file, read_file, write_file
from modelkeep.cli.labelled import ROWS, label_option, purpose_option, read_labelled
from modelkeep.cli.progress import bar
from modelkeep.core import page
from modelkeep.ledger.attestations import Measure

_COUNT = click.IntRange(min=1)
_PLAN = Plan()


@click.command(
    epilog="Example: modelkeep harden model.onnx --data train.npz --epsilon 0.1 --low 0 --high 1 --out hardened.onnx --log"
)
@click.argument("model", metavar="MODEL")
@click.option("--data", required=True, help=f"Rows and their classes, from 0: {ROWS}.")
@label_option
@purpose_option
@click.option("--out", required=True, help="New ONNX file with the hardened model.")
@click.option("--method", type=click.Choice(["pgd", "trades"]), default=_PLAN.method, show_default=True, help="Of training.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), default=_PLAN.norm, show_default=True, help="Of the changes.")
@click.option("--epsilon", type=click.FloatRange(min=0.0), default=_PLAN.epsilon, show_default=True, help="Their largest size.")
@click.option("--low", type=float, help="Least value of every column that an attacker can give; none if not given.")
@click.option("--high", type=float, help="Greatest value of every column; none if not given.")
@click.option("--rules", default="", metavar="FILE", help="JSON: what the columns of a table have to keep under attack.")
@click.option("--epochs", type=_COUNT, default=_PLAN.epochs, show_default=True, help="Passes over the rows.")
@click.option("--batch", type=_COUNT, default=_PLAN.batch, show_default=True, help="Rows a step, of all processes together.")
@click.option("--rate", type=float, default=_PLAN.rate, show_default=True, help="Largest learning rate.")
@click.option("--steps", type=_COUNT, default=_PLAN.steps, show_default=True, help="Of the attack that is trained against.")
@click.option("--beta", type=float, default=_PLAN.beta, show_default=True, help="Weight of robustness in TRADES.")
@click.option(
    "--awp", "shift", type=float, default=_PLAN.shift, show_default=True, help="Size of weight perturbation; 0: none."
)
@click.option("--smoothing", type=float, default=_PLAN.smoothing, show_default=True, help="Of the labels.")
@click.option("--widen", type=float, default=_PLAN.widen, show_default=True, help="Times epsilon to train against.")
@click.option("--held", type=float, default=_PLAN.held, show_default=True, help="Share of the rows to measure on.")
@click.option("--seed", type=click.IntRange(min=0), default=_PLAN.seed, show_default=True, help="Of split and training.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to train; the GPU if there is one.")
@click.option("--report", default="", metavar="FILE", help="New HTML file about the training.")
@click.option("--log", "logged", is_flag=True, help="Have the keep sign and log a hardening statement about the new file.")
@click.pass_obj
def harden(  # click hands over one argument an option
    ctx: Context, /, *, model: str, data: str, label: str, purpose: str, out: str, report: str, logged: bool, **given: Any
) -> None:
    """Train MODEL, an ONNX classifier, on the neighbours of its rows that it gets most wrong.

    Its accuracy is measured before and after, plain and under attack, on rows that had no part in it. Start it with torchrun to
    train in several processes.
    """
    plan = _plan(given)
    from modelkeep.torch import to_onnx

    source, rows = read_file(model), read_labelled(ctx, data, label, purpose)
    if not leads():
        harden_file(source, rows, plan, lambda *_given, **_more: b"")
        return
    with new_file(out, mode=0o644) as write, new_file(report, mode=0o644) if report else nullcontext(_nothing) as tell:
        with bar() as told:
            done = harden_file(source, rows, plan, to_onnx, told)
        write(done.model)
        tell(_page(done, Path(out).name))
    if logged:
        done = msgspec.structs.replace(done, log_index=_log(ctx, done, out))
    ctx.out.show(msgspec.structs.replace(done, model=b""), _tell(done, out, report))


def _log(ctx: Context, done: ModelHardened, out: str) -> int:
    """Have the keep say so. When it cannot, what it was to say stays in a file: training may have taken hours."""
    said = statement_of(done)
    try:
        about: dict[str, Any] = {"filename": Path(out).name, "digest": done.digest, "kind": "hardening", "predicate": said}
        return ctx.call(Keep.attest_file, **about).log_index
    except BaseException:  # whatever it is, somebody's patience included
        kept = f"{out}.hardening.json"
        write_file(kept, said)
        ctx.out.note(f"modelkeep: {out} is made; when this is mended: modelkeep attest {out} --type hardening {kept}")
        raise


def _plan(given: dict[str, Any]) -> Plan:
    rules = given.pop("rules")
    said = {name: value for name, value in given.items() if value is not None}
    return Plan(**said, rules=parse_rules(read_file(rules)) if rules else Rules())


def _nothing(_data: bytes) -> None:
    """Where no report is asked for."""


def _tell(done: ModelHardened, out: str, report: str) -> str:
    attack = done.predicate["attack"]
    under = f"under attack, {attack['norm']} {attack['epsilon']:g}"
    measured = (("clean", done.before.clean, done.after.clean), (under, done.before.robust, done.after.robust))
    lines = [
        f"{out}: {done.predicate['method']}, epoch {done.best} of {len(done.history)}, in {done.seconds:,.0f} s",
        f"Accuracy on {done.rows[2]:,} rows that had no part in it, with 95 % intervals",
        *(f"  {what:28}{_said(before)}  ->  {_said(after)}" for what, before, after in measured),
        f"Log entry {done.log_index} says so" if done.log_index >= 0 else "Nothing was logged: --log has the keep say so",
        *([f"Report: {report}"] if report else []),
    ]
    return "\n".join(lines)


def _said(one: Measure) -> str:
    return f"{one.value:6.1%} ({one.low:.1%} to {one.high:.1%})"


def _page(done: ModelHardened, name: str) -> bytes:
    attack, said = done.predicate["attack"], done.predicate
    shown = {"clean": "clean", "robust": f"{attack['norm']} {attack['epsilon']:g}"}
    history = {
        label: [(float(one.epoch), value) for one in done.history if (value := getattr(one, field)) is not None]
        for field, label in shown.items()
    }
    about = {
        "file": f"{name}, {done.digest}",
        "made from": said["source"],
        "method": said["method"],
        "attack": f"{attack['name']}, {attack['norm']}, epsilon {attack['epsilon']:g}, {attack['steps']} steps",
        "rows": "{:,} learnt from, {:,} chosen by, {:,} measured on".format(*done.rows),
        "seed": said["seed"],
        "code": said["code"],
        **said["versions"],
        **said["parameters"],
    }
    measured = [("before", done.before), ("after", done.after)]
    return page.page(
        f"Hardening of {name}",
        [
            page.heading("On rows that had no part in it"),
            page.bars([one for when, it in measured for one in _bars(when, it)], caption="Accuracy, with 95 % intervals"),
            page.paragraph(_CAVEAT, soft=True),
            page.heading("Training"),
            page.lines(history, x="epoch", y="accuracy", caption="On the rows that the epoch is chosen by"),
            page.lines({"loss": [(float(one.epoch), one.loss) for one in done.history]}, x="epoch", y="loss", caption="Loss"),
            page.heading("How it was made"),
            page.facts(about),
        ],
    )


def _bars(when: str, standing: Standing) -> list[page.Bar]:
    named = (("clean", standing.clean), ("under attack", standing.robust))
    return [page.Bar(f"{when}, {what}", one.value, one.low, one.high) for what, one in named]


_CAVEAT = (
    "Accuracy under attack is what this attack left: an upper bound of what a better one leaves. "
    "Measure the file with 'modelkeep evaluate' before you rely on it."
)

COMMANDS = (harden,)
