"""privacy train, privacy audit, privacy ledger, privacy budget and privacy return."""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from modelkeep.app.keep import Keep
from modelkeep.app.labelled import Labelled, check_alike, is_sealed
from modelkeep.app.privacyresults import MembershipAudit, PrivacyLedger, PrivateModel
from modelkeep.app.privatetraining import (
    Attack,
    PrivatelyTrained,
    PrivateTask,
    Rows,
    audit_membership,
    check_task,
    report,
    tell_audit,
    train_private_model,
)
from modelkeep.cli.context import Context, moment, new_file, read_file
from modelkeep.cli.labelled import ROWS, label_option, purpose_option, read_labelled
from modelkeep.cli.progress import bar
from modelkeep.errors import Invalid, ModelkeepError
from modelkeep.torch import to_onnx
from modelkeep.training.budgets import Recipe, ledger_name, plan_run

_RECIPE = Recipe()


@click.group(epilog="Example: modelkeep privacy train mlp:64 --data loans.npz --epsilon 3 --delta 1e-5 --out loans.onnx")
def privacy() -> None:
    """Train with differential privacy, within a budget for each data set, and audit what models tell of their training data."""


@privacy.command(
    "train",
    epilog="Example: modelkeep privacy train mlp:64 --data loans.npz --dataset loans --epsilon 3 --delta 1e-5 --out loans.onnx",
)
@click.argument("architecture", metavar="ARCHITECTURE")
@click.option("--data", required=True, metavar="DATA", help=f"Rows and classes, from 0 on: {ROWS}.")
@label_option
@purpose_option
@click.option("--dataset", default="", metavar="NAME",
              help="Charge the run to this data set, and log what came of it.  [default: sealed --data]")  # fmt: skip
@click.option(
    "--epsilon", required=True, type=click.FloatRange(0.0, min_open=True), help="The promise: smaller is more private."
)
@click.option("--delta", required=True, type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
              help="Of the promise; far below one over the number of rows.")  # fmt: skip
@click.option("--out", required=True, metavar="FILE", help="New ONNX file.")
@click.option("--report", "page", default="", metavar="FILE", help="New HTML page about the run.")
@click.option("--test", default="", metavar="DATA", help="Other rows, as --data, to measure the model on.")
@click.option("--bounds", default="", metavar="LOW:HIGH|FILE",
              help="Public bounds of the columns, or an npz file with low and high: rows are scaled by them.")  # fmt: skip
@click.option("--classes", type=click.IntRange(0), default=0, help="How many the task has.  [default: as the labels say]")
@click.option("--epochs", type=click.FloatRange(0.0), default=0.0, help="How often each row is used.  [default: 15 to 40]")
@click.option("--batch", type=click.IntRange(0), default=0, help="Rows expected in a step.  [default: an eighth, or 1,024]")
@click.option("--clip", type=click.FloatRange(0.0, min_open=True), default=_RECIPE.clip, show_default=True,
              help="Longest gradient of a row.")  # fmt: skip
@click.option("--learning-rate", type=click.FloatRange(0.0, min_open=True), default=_RECIPE.learning_rate, show_default=True,
              help="Of a gradient that was clipped.")  # fmt: skip
@click.option("--canaries", type=click.IntRange(0), default=0, help="Rows to audit the run by; they get a wrong class.")
@click.option("--seed", type=click.IntRange(0), default=None,
              help="Repeat an experiment: no privacy from whoever knows it.")  # fmt: skip
@click.pass_obj
def train(ctx: Context, /, **given: Any) -> None:
    """Train a classifier whose every training row is protected by (epsilon, delta)-differential privacy.

    ARCHITECTURE is linear, mlp:WIDTHS, cnn:CHANNELS or an ONNX file, whose layers are taken and whose weights are not: training
    begins from fresh ones. With --dataset the run is charged to the data set's budget before it begins, and refused when all
    runs on it would cost more together.
    """
    asked = _Asked(**given)
    with new_file(asked.out, mode=0o644) as write, asked.page_file() as write_page:
        done = asked.run(ctx, write)
        write_page(report(done))
    ctx.out.show(done, _tell(done))


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``privacy train``, by the names of its options."""

    architecture: str
    data: str
    label: str
    purpose: str
    dataset: str
    epsilon: float
    delta: float
    out: str
    page: str
    test: str
    bounds: str
    classes: int
    epochs: float
    batch: int
    clip: float
    learning_rate: float
    canaries: int
    seed: int | None

    @contextlib.contextmanager
    def page_file(self) -> Iterator[Any]:
        """What writes the report, or nothing where none was asked for."""
        if not self.page:
            yield lambda _data: None
            return
        with new_file(self.page, mode=0o644) as write:
            yield write

    def run(self, ctx: Context, write: Any) -> PrivateModel:
        """Reserve, train, write the model, and log what it is. Raises Denied (the budget), Invalid, Missing, Unavailable."""
        if (self.dataset or is_sealed(self.data)) and self.seed is not None:
            raise Invalid("noise from a seed can be foretold, so that no such run is logged as private: leave out --seed")
        data = read_labelled(ctx, self.data, self.label, self.purpose)
        dataset, rows = self._charged(data), Rows.of(data, self.classes)
        test = self._test(ctx, data, rows.classes) if self.test else None
        recipe = Recipe(self.epochs, self.batch, self.clip, self.learning_rate)
        plan = plan_run(len(rows.x), epsilon=self.epsilon, delta=self.delta, recipe=recipe)
        layers = read_file(self.architecture) if Path(self.architecture).exists() else self.architecture
        bounds = _bounds(self.bounds, rows.x.shape[1:]) if self.bounds else None
        task = PrivateTask(layers, rows, plan, recipe, bounds, self.canaries, self.seed)
        check_task(task)  # a run that cannot begin is not charged
        if not dataset:
            ctx.out.note("no data set was named: this run is charged to no budget, and nothing is logged")
            done = self._trained(ctx, task, test, _Steps())
            write(done.onnx)
            return done.told
        made = ctx.call(Keep.privacy_reserve, dataset=dataset, digest=str(data.digest), plan=plan)
        if made.ledger.budget < 0.0:
            ctx.out.note(f"no budget is set for {made.ledger.name}: what is spent is counted, and not bounded")
        steps = _Steps()
        try:
            done = self._trained(ctx, task, test, steps)
            write(done.onnx)
        except BaseException as cause:
            self._give_back(ctx, made.run, steps.made, cause)
            raise
        logged = ctx.call(Keep.privacy_record, run=made.run, filename=Path(self.out).name, digest=done.told.digest)
        (ledger,) = ctx.call(Keep.privacy_ledger, dataset=dataset)
        return msgspec.structs.replace(done.told, run=made.run, ledger=ledger, logged=logged)

    def _charged(self, data: Labelled) -> str:
        """The data set that pays, "" for none. Raises Invalid: a sealed one pays for itself."""
        if not data.sealed:
            return self.dataset
        if self.dataset not in {"", data.name, ledger_name(data.name)}:
            raise Invalid(f"the data is {data.name}, which is charged under its own name: leave out --dataset")
        return data.name

    def _test(self, ctx: Context, data: Labelled, classes: int) -> Rows:
        found = read_labelled(ctx, self.test, self.label, self.purpose)
        check_alike(data, found)
        return Rows.of(found, classes)

    def _trained(self, ctx: Context, task: PrivateTask, test: Rows | None, steps: "_Steps") -> PrivatelyTrained:
        with bar(shown=not ctx.out.json) as progress:

            def told(what: str, done: int, total: int) -> None:
                steps.made = done
                progress(what, done, total)

            return train_private_model(task, test, to_onnx, file=Path(self.out).name, told=told)

    @staticmethod
    def _give_back(ctx: Context, run: str, made: int, cause: BaseException) -> None:
        """Charge the steps that were made; where even that fails, the run stays charged whole."""
        try:
            ctx.call(Keep.privacy_settle, run=run, steps=made, reason=f"cut off: {type(cause).__name__}")
        except ModelkeepError as failed:
            ctx.out.note(f"the run {run} stays charged whole until 'modelkeep privacy return {run}': {failed}")


@dataclass
class _Steps:
    """How many were made."""

    made: int = 0


def _bounds(said: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Lower and upper bounds that fit rows of this shape. Raises Invalid, Missing, Unavailable."""
    low, sign, high = said.partition(":")
    with contextlib.suppress(ValueError):
        if sign:
            return np.array(float(low)), np.array(float(high))
    try:
        with np.load(io.BytesIO(read_file(said)), allow_pickle=False) as arrays:
            found = np.asarray(arrays["low"], dtype=np.float64), np.asarray(arrays["high"], dtype=np.float64)
        for one in found:
            np.broadcast_to(one, shape)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as cause:
        raise Invalid(f"{said} has no arrays low and high that fit rows of shape {shape}: {cause}") from cause
    return found


def _tell(done: PrivateModel) -> str:
    rows = [
        f"{done.file}: ({done.epsilon:.4g}, {done.delta:g})-differentially private for each of {done.rows:,} rows.",
        f"  noise      {done.noise_multiplier:g} x the clip of {done.max_grad_norm:g}, {done.noise}",
        f"  steps      {done.steps:,}, each row in a step with probability {done.sample_rate:.4g}; {done.way}",
        f"  before     {'; '.join(done.repairs)}",
    ]
    if done.accuracy is not None:
        rows.append(f"  accuracy   {done.accuracy.value:.4f} ({done.accuracy.low:.4f} to {done.accuracy.high:.4f})")
    if done.audit is not None:
        found = done.audit
        rows.append(
            f"  audit      epsilon is at least {found.epsilon:.3g} of the promised {done.epsilon:.4g}: {found.correct} of "
            f"{found.guesses} guesses about {found.canaries} canaries were right"
        )
    if done.ledger is not None and done.logged is not None:
        rows.append(f"  data set   {_spent(done.ledger)}; log entry {done.logged.log_index}")
    return "\n".join(rows)


def _spent(ledger: PrivacyLedger) -> str:
    limit = f"of {ledger.budget:g}" if ledger.budget >= 0.0 else "and no budget is set"
    return f"{ledger.name} has spent epsilon {ledger.epsilon:.4g} {limit} at delta {ledger.delta:g}"


@privacy.command(
    "audit",
    epilog="Example: modelkeep privacy audit loans.onnx --members loans.npz --others rest.npz --attack lira --shadows 8",
)
@click.argument("model", metavar="MODEL")
@click.option("--members", required=True, metavar="DATA", help=f"Rows that the model was trained on: {ROWS}.")
@click.option("--others", required=True, metavar="DATA", help="Rows of the same kind that it was not trained on.")
@label_option
@purpose_option
@click.option("--attack", type=click.Choice(["loss", "lira", "rmia"]), default="loss", show_default=True, help="How to look.")
@click.option("--shadows", type=click.IntRange(2, 256), default=8, show_default=True, help="Models to train for lira and rmia.")
@click.option("--architecture", default="", metavar="ARCHITECTURE", help="Of the shadow models.  [default: MODEL's own layers]")
@click.option("--coin", is_flag=True, help="Which rows were members was drawn by coins: bound epsilon, too.")
@click.option("--delta", type=click.FloatRange(0.0, 1.0), default=1e-5, show_default=True, help="Of that bound.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the shadow models.")
@click.pass_obj
def audit(  # click hands over one argument an option
    ctx: Context, /, *, model: str, members: str, others: str, label: str, purpose: str, **given: Any
) -> None:
    """Tell how well the answers of MODEL, an ONNX file, show which rows it was trained on."""
    data = read_file(model)
    named = given.pop("architecture")
    layers = (read_file(named) if Path(named).exists() else named) if named else data
    attack = Attack(given.pop("attack"), architecture=layers, **given)
    trained, rest = (read_labelled(ctx, one, label, purpose) for one in (members, others))
    check_alike(trained, rest)
    if trained.digest == rest.digest:
        raise Invalid(
            f"--members {trained.name} and --others {rest.name} are the very same data: members must not be among others"
        )
    inside, outside = Rows.of(trained), Rows.of(rest)
    with bar(shown=not ctx.out.json) as told:
        found = audit_membership(data, Path(model).name, inside, outside, attack, told=told)
    ctx.out.show(found, _told(found))


def _told(found: MembershipAudit) -> str:
    by = f"{found.attack} with {found.shadows} shadow models" if found.shadows else found.attack
    rows = [
        f"{found.model}: area {found.area.value:.3f} ({found.area.low:.3f} to {found.area.high:.3f}) by {by}; 0.5 is guessing.",
        f"  members caught  {tell_audit(found.caught) or 'too few other rows to say'} false positives",
    ]
    if found.one_run is not None:
        one = found.one_run
        rows.append(f"  epsilon         at least {one.epsilon:.3g}: {one.correct} of {one.guesses} guesses were right")
    return "\n".join(rows)


@privacy.command("ledger", epilog="Example: modelkeep privacy ledger loans")
@click.argument("name", metavar="[NAME]", default="")
@click.pass_obj
def ledger(ctx: Context, name: str) -> None:
    """What private training has spent of the data set NAME, run by run, or of every one."""
    found = ctx.call(Keep.privacy_ledger, dataset=name)
    if not name:
        every = [(one.name, f"{one.epsilon:.4g}", _limit(one), f"{one.delta:g}", len(one.runs)) for one in found]
        columns = ("data set", "epsilon", "budget", "delta", "runs")
        ctx.out.table(found, columns, every, empty="No private run was charged to a data set, and no budget is set.")
        return
    (one,) = found
    runs = [
        (moment(run.at), run.dataset, run.state, f"{run.epsilon:.4g}", f"{run.delta:g}", run.steps or "-", run.run or "-")
        for run in one.runs
    ]
    if not ctx.out.json:
        ctx.out.show(one, f"{_spent(one)}.")
    ctx.out.table(one, ("at", "data", "state", "epsilon", "delta", "steps", "run"), runs, empty="No run was charged to it.")


def _limit(one: PrivacyLedger) -> str:
    return f"{one.budget:g}" if one.budget >= 0.0 else "none"


@privacy.command("budget", epilog="Example: modelkeep privacy budget loans --epsilon 8 --delta 1e-5")
@click.argument("name", metavar="NAME")
@click.option(
    "--epsilon", required=True, type=click.FloatRange(0.0, min_open=True), help="Most that all runs may cost together."
)
@click.option("--delta", required=True, type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True), help="At this delta.")
@click.option("--reason", default="", help="Why, for the releases log.")
@click.pass_obj
def budget(ctx: Context, name: str, epsilon: float, delta: float, reason: str) -> None:
    """Set the most that all private runs on the data set NAME may cost together; a run that would exceed it is refused."""
    done = ctx.call(Keep.privacy_budget, dataset=name, epsilon=epsilon, delta=delta, reason=reason)
    ctx.out.show(done, f"{_spent(done.ledger)}; log entry {done.log_index}")


@privacy.command(
    "return", epilog="Example: modelkeep privacy return 5f0c6f1d0b7c4e0f9b52b1a1c4d9e8a7 --reason 'killed at start'"
)
@click.argument("run", metavar="RUN")
@click.option("--steps", type=click.IntRange(0), default=0, show_default=True, help="That it made before it was cut off.")
@click.option("--reason", default="", help="Why, for the releases log.")
@click.pass_obj
def give_back(ctx: Context, run: str, steps: int, reason: str) -> None:
    """Give back what the reserved RUN did not spend, because it was cut off and nothing of it was seen by anybody."""
    done = ctx.call(Keep.privacy_settle, run=run, steps=steps, reason=reason)
    ctx.out.show(done, f"{done.run}: {done.state}, epsilon {done.epsilon:.4g} at delta {done.delta:g} for {done.steps:,} steps")


COMMANDS = (privacy,)
