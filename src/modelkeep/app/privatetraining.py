"""Private training and its audit on this machine: arrays in, an ONNX file, figures and a report out. No keep is asked here."""

import datetime
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.labelled import Labelled
from modelkeep.app.privacyresults import MembershipAudit, PrivateModel
from modelkeep.app.suspects import onnx_suspect
from modelkeep.core.page import Bar, bars, facts, heading, lines, page, paragraph, table
from modelkeep.core.values import digest_of
from modelkeep.errors import Invalid
from modelkeep.training.accountant import Steps, epsilon_of
from modelkeep.training.budgets import PrivacySpent, Recipe
from modelkeep.training.membership import (
    Interval,
    OneRun,
    area,
    audit_one_run,
    caught,
    confidences,
    lira,
    proportion,
    rmia,
)

Floats = NDArray[np.float64]
Told = Callable[[str, int, int], None]
Export = Callable[..., bytes]

LEAST_CANARIES = 20
MOST_CLASSES = 1 << 16
FALSE = (0.001, 0.01)
"""Rates of false positives at which members that are caught are counted, where there are rows enough."""
_POINTS = 24


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled rows: ``x`` (n, ...), float32, ``y`` (n,); ``classes``: how many the task has."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: int

    @classmethod
    def of(cls, data: Labelled, classes: int = 0) -> "Rows":
        """Labelled rows. ``classes``: 0 = as the labels say. Raises Invalid (no such classes, numbers beyond float32)."""
        labels = data.y
        low, high = int(labels.min()), int(labels.max())
        count = classes or high + 1
        if low < 0 or high >= count or not 2 <= count <= MOST_CLASSES:
            raise Invalid(
                f"{data.name}: labels go from {low} to {high}: classes are numbered from 0, "
                + (f"and there are {count} of them" if classes > high else f"and there are 2 to {MOST_CLASSES:,} of them")
            )
        with np.errstate(over="ignore"):
            rows = data.x.reshape(-1, *data.shape).astype(np.float32)
        if not np.isfinite(rows).all():
            raise Invalid(f"{data.name}: some numbers are beyond the range of float32, in which models learn: scale them first")
        return cls(rows, labels, count)


@dataclass(frozen=True, eq=False)
class PrivateTask:
    """What is trained. ``architecture``: a word, or the bytes of an ONNX file whose layers are taken and whose weights are not;
    ``bounds``: public ones of the columns, None = rows are used as they are; ``canaries``: rows that are given a wrong class
    and trained on by the toss of a coin, to audit the run; ``seed``: as ``train_private``."""

    architecture: str | bytes
    rows: Rows
    plan: PrivacySpent
    recipe: Recipe
    bounds: tuple[Floats, Floats] | None = None
    canaries: int = 0
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class PrivatelyTrained:
    """The ONNX file of the model, and what is to be told of it."""

    onnx: bytes
    told: PrivateModel


def check_task(task: PrivateTask) -> None:
    """Check what can be before anything is charged. Raises Invalid (PyTorch is missing, no such architecture, canaries)."""
    _lab()
    from modelkeep.training.lab.architectures import architecture

    architecture(task.architecture, task.rows.x.shape[1:], task.rows.classes)
    _check_canaries(task)


def train_private_model(task: PrivateTask, test: Rows | None, export: Export, *, file: str, told: Told) -> PrivatelyTrained:
    """Train, export, measure. ``test``: rows that are not trained on; ``export``: ``modelkeep.torch.to_onnx``.

    Raises Invalid (PyTorch is missing, an architecture that cannot be trained privately, too few rows).
    """
    lab = _lab()
    from modelkeep.training.lab.architectures import architecture

    rows, canaries = _with_canaries(task)
    module = architecture(task.architecture, rows.x.shape[1:], rows.classes)
    if task.bounds is not None:
        module = lab.within_bounds(module, *(np.broadcast_to(one, rows.x.shape[1:]) for one in task.bounds))
    done = lab.train_planned(module, rows.x, rows.y, task.plan, recipe=task.recipe, seed=task.seed, told=told)
    example = test.x if test is not None else np.zeros_like(rows.x[:8])
    onnx = export(done.module, lab.tensor(example[:64]), logits=True)
    accuracy = _accuracy(onnx, test) if test is not None else None
    audit = canaries.guess(onnx, task.plan.delta) if canaries is not None else None
    plan = task.plan
    return PrivatelyTrained(
        onnx,
        PrivateModel(
            file=file,
            digest=digest_of(onnx),
            rows=len(task.rows.x),
            epsilon=plan.epsilon,
            delta=plan.delta,
            noise_multiplier=plan.noise_multiplier,
            sample_rate=plan.sample_rate,
            steps=plan.steps,
            max_grad_norm=plan.max_grad_norm,
            accountant=plan.accountant,
            repairs=done.repairs,
            way=done.way,
            noise=done.noise,
            accuracy=accuracy,
            audit=audit,
        ),
    )


@dataclass(frozen=True, eq=False)
class _Canaries:
    """Rows with a wrong class, and whether each was trained on."""

    rows: Rows
    included: NDArray[np.bool_]

    def guess(self, onnx: bytes, delta: float) -> OneRun:
        scores = confidences(answers(onnx, self.rows.x), self.rows.y)
        return audit_one_run(scores, self.included, delta)


def _with_canaries(task: PrivateTask) -> tuple[Rows, _Canaries | None]:
    """What is trained on: some rows are set aside, get a wrong class, and are put back by the toss of a coin."""
    rows, count = task.rows, task.canaries
    if not count:
        return rows, None
    _check_canaries(task)
    generator = np.random.default_rng(secrets.randbits(128) if task.seed is None else task.seed)
    chosen = generator.choice(len(rows.x), count, replace=False)
    wrong = (rows.y[chosen] + generator.integers(1, rows.classes, count)) % rows.classes
    included = generator.random(count) < 0.5
    labels, kept = rows.y.copy(), np.ones(len(rows.x), dtype=bool)
    labels[chosen], kept[chosen] = wrong, included
    canaries = _Canaries(Rows(rows.x[chosen], wrong, rows.classes), included)
    return Rows(rows.x[kept], labels[kept], rows.classes), canaries


def _check_canaries(task: PrivateTask) -> None:
    count, rows = task.canaries, len(task.rows.x)
    if count and not LEAST_CANARIES <= count <= rows // 2:
        raise Invalid(f"an audit has {LEAST_CANARIES} to {rows // 2:,} canaries of {rows:,} rows, not {count:,}")


@dataclass(frozen=True)
class Attack:
    """How members are looked for: ``loss``, or ``lira`` or ``rmia`` with so many ``shadows`` of an ``architecture``. ``coin``:
    rows of both files were members by the toss of a coin, so that epsilon can be bounded at ``delta``."""

    kind: str = "loss"
    shadows: int = 0
    architecture: str | bytes = ""
    coin: bool = False
    delta: float = 1e-5
    seed: int = 0


def audit_membership(model: bytes, name: str, members: Rows, others: Rows, attack: Attack, *, told: Told) -> MembershipAudit:
    """Ask an ONNX model about rows that it was trained on and rows that it was not.

    Raises Invalid (rows of another shape, too few, no shadow models where they are needed), NotTrusted (it is not clean).
    """
    if members.x.shape[1:] != others.x.shape[1:]:
        raise Invalid(f"members have rows of shape {members.x.shape[1:]}, and others of {others.x.shape[1:]}")
    onnx_suspect(model, name, called=name)
    x, y = np.concatenate([members.x, others.x]), np.concatenate([members.y, others.y])
    target = answers(model, x)
    if y.max() >= target.shape[1]:
        raise Invalid(f"the model has {target.shape[1]} classes, and the rows are labelled up to {y.max()}")
    scores = _scores(target, x, y, len(members.x), attack, told)
    inside, outside = scores[: len(members.x)], scores[len(members.x) :]
    found = {f"{rate:g}": caught(inside, outside, rate) for rate in FALSE if int(rate * len(outside)) >= 1}
    included = np.arange(len(scores)) < len(members.x)
    bound = audit_one_run(scores, included, attack.delta) if attack.coin else None
    shadows = attack.shadows if attack.kind != "loss" else 0
    return MembershipAudit(name, len(inside), len(outside), attack.kind, shadows, area(inside, outside), found, bound)


def _scores(target: Floats, x: NDArray[Any], y: NDArray[np.int64], members: int, attack: Attack, told: Told) -> Floats:
    if attack.kind == "loss":
        return confidences(target, y)
    if attack.shadows < 2:
        raise Invalid(f"{attack.kind} needs two shadow models or more: say how many, and of which architecture")
    _lab()
    from modelkeep.training.lab.architectures import architecture
    from modelkeep.training.lab.shadows import train_shadows

    made = train_shadows(
        lambda: architecture(attack.architecture, x.shape[1:], target.shape[1]),
        x, y, attack.shadows, seed=attack.seed, told=told,
    )  # fmt: skip
    if attack.kind == "lira":
        return lira(confidences(target, y), np.stack([confidences(one, y) for one in made.answers]), made.inside)
    own, reference = target[np.arange(len(y)), y], made.answers[:, np.arange(len(y)), y].mean(axis=0)
    return rmia(own, reference, own[members:], reference[members:])


def answers(onnx: bytes, x: NDArray[np.float32]) -> Floats:
    """Probabilities (n, k) of a model for rows (n, ...), 1,024 at a time. Raises Invalid (it is no such classifier)."""
    ask = onnx_suspect(onnx, "the model").ask(x.reshape(len(x), -1).astype(np.float64))
    parts = [ask(part) for part in np.split(x.reshape(len(x), -1).astype(np.float64), range(1024, len(x), 1024))]
    found: Floats = np.concatenate(parts)
    if found.ndim != 2 or found.shape[1] < 2:
        raise Invalid("the model does not answer with probabilities of classes")
    return found


def _accuracy(onnx: bytes, test: Rows) -> Interval:
    labels = OnnxRuntime(onnx).run({"x": test.x})["label"]
    return proportion(int((labels == test.y).sum()), len(test.y))


def report(done: PrivateModel) -> bytes:
    """The run as a page of HTML: the promise, what it cost step by step, what it is worth, and what an audit found."""
    spent = Steps(done.noise_multiplier, done.sample_rate, done.steps)
    at = sorted({max(1, round(done.steps * part / _POINTS)) for part in range(1, _POINTS + 1)})
    curve = [(float(step), epsilon_of([Steps(spent.noise, spent.rate, step)], done.delta)) for step in at]
    blocks = [
        paragraph(
            f"Whoever sees the model learns hardly more of one row than without it: ({done.epsilon:.4g}, {done.delta:g})"
            "-differential privacy, one row more or less."
        ),
        facts({
            "Model": f"{done.file} ({done.digest})",
            "Rows": f"{done.rows:,}",
            "Noise": f"{done.noise_multiplier:g} x the clip of {done.max_grad_norm:g}; {done.noise}",
            "Sampling": f"each row with probability {done.sample_rate:.4g} in each of {done.steps:,} steps",
            "Clipping": done.way,
            "Before training": "; ".join(done.repairs),
            "Accountant": done.accountant,
        }),
        heading("Spent, step by step"),
        lines({"epsilon": curve}, x="steps", y="epsilon", caption=f"Epsilon at delta {done.delta:g}, by this accountant"),
    ]  # fmt: skip
    if done.accuracy is not None:
        bar = Bar("accuracy", done.accuracy.value, done.accuracy.low, done.accuracy.high)
        blocks += [heading("Worth"), bars([bar], caption="On the test rows, with the interval of Clopper and Pearson at 95 %")]
    if done.audit is not None:
        blocks += [heading("Audit"), *_audited(done.audit, done.epsilon)]
    if done.ledger is not None:
        ledger = done.ledger
        rows = [(_moment(one.at), one.dataset, one.state, one.epsilon, one.steps) for one in ledger.runs]
        limit = f" of {ledger.budget:g}" if ledger.budget >= 0.0 else ", and no budget is set"
        blocks += [
            heading(f"Ledger of {ledger.name}"),
            paragraph(f"All runs together have spent epsilon {ledger.epsilon:.4g}{limit} at delta {ledger.delta:g}."),
            table(("at", "data", "state", "epsilon", "steps"), rows),
        ]
    return page(f"Private training of {done.file}", blocks)


def _moment(nanoseconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC):%Y-%m-%d %H:%M:%SZ}"


def _audited(audit: OneRun, promised: float) -> list[str]:
    rows = [Bar("promised", promised), Bar("found, at least", audit.epsilon)]
    words = (
        f"{audit.correct} of {audit.guesses} guesses about {audit.canaries} canaries were right, which at a confidence of "
        f"{audit.confidence:.0%} takes an epsilon of {audit.epsilon:.3g} or more. A better attack may find more."
    )
    return [bars(rows, caption="Epsilon", top=max(promised, audit.epsilon, 1e-9)), paragraph(words)]


def tell_audit(found: Mapping[str, Interval]) -> str:
    """Shares of members caught, in words."""
    return ", ".join(f"{one.value:.2%} ({one.low:.2%}-{one.high:.2%}) at {rate}" for rate, one in found.items())


def _lab() -> Any:
    try:
        from modelkeep.training.lab import private
    except ModuleNotFoundError as cause:
        raise Invalid("private training needs PyTorch and Opacus: 'pip install modelkeep[torch]'") from cause
    return private
