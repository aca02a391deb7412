"""Measure how a model stands up to attacks, noise and corruption: what the laboratory finds, put together and judged."""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.labelled import Labelled
from modelkeep.app.predictor import Predictor
from modelkeep.app.premises import Premises
from modelkeep.app.robustnessresults import AttackRow, Certified, Corrupted, Evaluated, Radius
from modelkeep.core.values import ModelSignature, ReleaseRef, digest_of
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.custody.scan import refusal, scan
from modelkeep.custody.signing import interface_of
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.detect import Format
from modelkeep.training import robustness as worth
from modelkeep.training.corruptions import corrupt, corruptions
from modelkeep.training.lab.attacks.square import Space, square
from modelkeep.training.robustness import Alarm, Share, share
from modelkeep.training.smoothing import reach, smooth
from modelkeep.workflows.registry import MODEL

if TYPE_CHECKING:  # PyTorch comes in when gradients are asked for
    from modelkeep.training.lab.nets import Net

Rows = NDArray[np.float64]
Mask = NDArray[np.bool_]
Told = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""
GRADIENT, BLACK_BOX = ("apgd", "fab"), ("square", "transfer")
ATTACKS = (*GRADIENT, *BLACK_BOX)
SUITE = "modelkeep evaluate"
_CHECKED, _CURVE_ROWS, _CERTIFIED = 100, 200, 100
"""Rows for the attack without bounds, for other radii, and for smoothing."""
_SHORT = 20
_SMALL = 1 << 20
"""Bytes of a model that runs on one thread: more would wait for each other."""
_TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)
_LEAST = 1e-38
_MISSING = "gradient attacks need PyTorch: 'pip install modelkeep[torch]', or ask for --attack square alone"


def _quiet(_what: str, _done: int, _total: int) -> None:
    """Nobody looks."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured. ``epsilon``: in ``norm``, in units of the input; ``low``, ``high``: of every input, None = as the
    rows have it; ``rows``: at most so many, drawn by ``seed``; ``queries``: answers that Square asks for of a row;
    ``smoothing``: standard deviation of the noise, 0 = none; ``bounds``: certify by interval bounds, too."""

    attacks: tuple[str, ...] = ("apgd", "fab", "square")
    norm: str = "linf"
    epsilon: float = 0.1
    steps: int = 100
    restarts: int = 1
    queries: int = 1000
    rows: int = 1000
    seed: int = 0
    low: float | None = None
    high: float | None = None
    smoothing: float = 0.0
    draws: int = 1000
    bounds: bool = False
    corruptions: bool = False
    curve: bool = True

    def check(self) -> None:
        """Raises Invalid: what cannot be."""
        strange = sorted(set(self.attacks) - set(ATTACKS))
        if strange or not self.attacks:
            raise Invalid(f"there is no attack {strange[0] if strange else ''!r}: use {', '.join(ATTACKS)}")
        if self.norm not in ("linf", "l2") or not 0 < self.epsilon < float("inf"):
            raise Invalid("an attack has the norm linf or l2, and an epsilon above 0")
        if min(self.steps, self.restarts, self.queries, self.rows, self.draws) < 1 or self.smoothing < 0:
            raise Invalid("steps, restarts, queries, rows and draws are 1 or more, and smoothing is not negative")


@dataclass(frozen=True, eq=False)
class Subject:
    """An opened model with its test rows. ``x``: (n, d); ``y``: the numbers of their classes, -1 for one that the model does
    not answer with; ``net``: the module with its gradients, None with the reason in ``why``."""

    predictor: Predictor
    x: Rows
    y: NDArray[np.int64]
    picture: tuple[int, int, int] | None
    net: "Net | None"
    why: str
    difference: float

    def scores(self, rows: Rows) -> Rows:
        """Logarithms of probabilities, or what else the model answers with."""
        found = self.predictor.scores(rows)
        return np.log(np.maximum(found, _LEAST)) if self.predictor.classifies else found

    def classes(self, rows: Rows) -> NDArray[np.int64]:
        """The number of the answered class of each row; one above the last where an answer holds what is no number."""
        found = self.predictor.scores(rows)
        return np.asarray(np.where(np.isnan(found).any(axis=1), found.shape[1], found.argmax(axis=1)), np.int64)


def evaluate(name: str, model: bytes, data: Labelled, asked: Asked, *, called: str = "", told: Told = _quiet) -> Evaluated:
    """Measure an ONNX classifier on labelled rows. ``called``: what statements name them, unless as the rows are.

    Gradients come from the same graph computed by PyTorch, and what it finds is put to the file itself before it counts.
    Raises Invalid (no classifier, rows that it does not take, PyTorch is not installed), NotTrusted (the file is not clean; the
    module does not answer as it does).
    """
    asked.check()
    begun = time.monotonic()
    subject = _opened(name, model, data, asked)
    box = _box(subject.x, asked)
    clean = subject.classes(subject.x) == subject.y
    if not clean.any():
        raise Invalid("the model answers none of these rows rightly: are these the labels, and the scale, that it knows?")
    attacked = _Attacked(subject, asked, box, clean, told)
    rows, alarms = attacked.run()
    curve = attacked.curve() if asked.curve and subject.net is not None else ()
    alarms = [*alarms, *attacked.radius_alarms]
    seconds = time.monotonic() - begun
    return Evaluated(
        model=name, digest=digest_of(model), data=called or data.name, data_digest=data.digest,
        norm=asked.norm, epsilon=asked.epsilon, box=(float(box[0][0]), float(box[1][0])), seed=asked.seed,
        clean=_share(clean), attacks=tuple(rows),
        robust=_share(attacked.standing), alarms=tuple(alarms), black_box=subject.why, difference=subject.difference,
        curve=curve, certified=tuple(_certified(subject, asked, box, clean, told)),
        corrupted=tuple(_corrupted(subject, box, clean, told)) if asked.corruptions else (), seconds=round(seconds, 2),
        evaluator=f"modelkeep {version('modelkeep')}",
    )  # fmt: skip


def predicates(found: Evaluated) -> list[bytes]:
    """What ``attest`` logs of it: one evaluation without an attack, and one of each attack, with the alarms that rang."""
    data = {"name": found.data, "digest": found.data_digest}
    base = {"suite": SUITE, "dataset": data, "seed": found.seed, "evaluator": found.evaluator}
    said: list[dict[str, Any]] = [{**base, "metrics": {"accuracy": _measure(found.clean)}}]
    alarms = [f"{one.name}: {one.why}" for one in found.alarms]
    for row in found.attacks:
        attack = {
            "name": row.name,
            "norm": found.norm,
            "epsilon": found.epsilon,
            "steps": row.steps,
            "knowledge": row.knowledge,
        }
        said.append({**base, "metrics": {"accuracy": _measure(row.accuracy)}, "attack": attack, "alarms": alarms})
    for one in found.certified:
        attack = {"name": f"any ({one.method})", "norm": one.norm, "epsilon": one.epsilon}
        said.append({**base, "metrics": {"certified_accuracy": _measure(one.accuracy)}, "attack": attack})
    return [msgspec.json.encode(one) for one in said]


def _measure(found: Share) -> dict[str, Any]:
    return asdict(found)


def _opened(name: str, model: bytes, data: Labelled, asked: Asked) -> Subject:
    drawn = np.random.default_rng(asked.seed).permutation(len(data.x))
    chosen = drawn[: asked.rows]  # and not in order: some parts take the first
    x, y = data.x[chosen], data.y[chosen]
    interface = clean_interface(name, model)
    predictor = Predictor(OnnxRuntime(model, threads=1 if len(model) < _SMALL else 2), interface, x)
    if predictor.scores(x[:2]).shape[1] < 2:
        raise Invalid(f"{name} is no classifier: it does not answer with a score for each class")
    net, why, difference = None, "", 0.0
    if set(asked.attacks) & set(GRADIENT):
        try:
            net, difference = with_gradients(model, predictor, x)
        except Invalid as cause:
            if not str(cause).startswith("black box only"):
                raise
            why = str(cause).removeprefix("black box only: ")
    tail = tuple(interface.inputs[0].shape[1:])
    picture = _picture(data.shape) or _picture(tail)
    return Subject(predictor, x, _numbered(predictor, x, y), picture, net, why, difference)


def clean_interface(name: str, model: bytes) -> ModelSignature:
    """What a file takes and gives, once it is scanned. Raises Invalid (no ONNX model), NotTrusted (not clean)."""
    verdict = scan(model, name)
    reason = refusal(verdict, name)
    if reason is not None:
        raise NotTrusted(f"{name} is not run, because it is not clean: {reason.message}")
    if verdict.format != Format.ONNX.id:
        raise Invalid(f"{name} is {verdict.format}, and only ONNX models can be evaluated: convert it first")
    return interface_of(verdict)


def with_gradients(model: bytes, predictor: Predictor, x: Rows) -> tuple["Net", float]:
    """The file as a module, and the greatest difference of their answers to rows. Raises Invalid, NotTrusted."""
    nets = in_laboratory("nets")
    net = nets.load(model, x[:8])
    return net, nets.compare(net, x[:512], predictor.scores(x[:512]))


def in_laboratory(name: str) -> Any:
    """A module of ``training/lab``. Raises Invalid (PyTorch is not installed)."""
    try:
        return importlib.import_module(f"modelkeep.training.lab.{name}")
    except ModuleNotFoundError as cause:
        raise Invalid(_MISSING) from cause


def _picture(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Channels, height and width of a row of that shape. Where the last axis is short it holds channels: no squares."""
    if len(shape) == 2 and min(shape) > 3:
        return (1, int(shape[0]), int(shape[1]))
    if len(shape) == 3 and min(shape[1:]) > 3:
        return (int(shape[0]), int(shape[1]), int(shape[2]))
    return None


def _numbered(predictor: Predictor, x: Rows, y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels as numbers of classes, by how the model's own labels and scores go together; as they are where it gives none, but
    for -1 where there is no such class."""
    count = predictor.scores(x[:1]).shape[1]
    known_as_they_are = np.where((y >= 0) & (y < count), y, -1)
    if predictor.label is None:
        return known_as_they_are
    label = np.concatenate([np.asarray(one[predictor.label]).reshape(-1) for one in predictor.answers(x)])
    if label.dtype.kind not in "iu":
        return known_as_they_are
    numbers = predictor.scores(x).argmax(axis=1)
    known = {int(one): int(np.bincount(numbers[label == one]).argmax()) for one in np.unique(label)}
    return np.array([known.get(int(one), -1) for one in y], np.int64)


def _box(x: Rows, asked: Asked) -> tuple[Rows, Rows]:
    """The lowest and highest value of every feature: the same for all, so that no attack is held back by what the rows happen
    to hold. Raises Invalid."""
    low = float(x.min()) if asked.low is None else asked.low
    high = float(x.max()) if asked.high is None else asked.high
    if not low < high or x.min() < low - 1e-6 or x.max() > high + 1e-6:
        raise Invalid(f"rows lie between {x.min():g} and {x.max():g}, and --low {low:g} --high {high:g} do not hold them")
    width = x.shape[1]
    return np.full(width, low), np.full(width, high)


class _Attacked:
    """The attacks in their order, each on what is left. ``standing``: rows that are answered rightly after them, (n,)."""

    def __init__(self, subject: Subject, asked: Asked, box: tuple[Rows, Rows], clean: Mask, told: Told) -> None:
        self._on, self._asked, self._box, self._clean, self._told = subject, asked, box, clean, told
        self.standing = clean.copy()
        self.radius_alarms: list[Alarm] = []
        self._flat, self._still = np.ones_like(clean), np.ones_like(clean)
        self._parted = set[int]()
        self._space = Space(asked.norm, asked.epsilon, *box, subject.picture)

    def run(self) -> tuple[list[AttackRow], list[Alarm]]:
        """What each left, and the alarms that rang."""
        names = [one for one in ATTACKS if one in self._asked.attacks]
        rows: list[AttackRow] = []
        alarms = worth.row_alarms(self._on.x, self._on.y)
        if self._on.net is not None:
            wanted = [part for one in names for part in {"apgd": ("apgd-ce", "apgd-t"), "fab": ("fab",)}.get(one, ())]
            rows += [self._gradient(name) for name in wanted]
            alarms += self._checks()
        black = [one for one in names if one in BLACK_BOX] or (["square"] if self._on.net is None else [])
        before = int(self.standing.sum())
        attacks = {"square": self._square, "transfer": self._transfer}
        rows += [attacks[name]() if self.standing.any() else self._nothing_left(name) for name in black]
        if self._on.net is not None and black:
            alarms += filter(None, [worth.black_box_alarm(before - int(self.standing.sum()), len(self.standing))])
        return rows, alarms

    def _gradient(self, name: str) -> AttackRow:
        moved, trail = self._cascade([name], self.standing, self._asked.epsilon, self._asked.steps, self._told)
        self._flat &= trail[0]
        self._still &= trail[1]
        return self._row(name, "white-box", self._fell(moved), self._asked.steps)

    def _cascade(
        self, names: list[str], chosen: Mask, epsilon: float, steps: int, told: Told = _quiet
    ) -> tuple[dict[int, Rows], Any]:
        """What fooled the module in place of the ``chosen`` rows, by number, and the trail."""
        cascade = in_laboratory("attacks.cascade")
        net, at = self._on.net, np.flatnonzero(chosen)
        assert net is not None
        ball = cascade.ball_of(net, self._asked.norm, epsilon, *self._box)
        plan = cascade.Plan(steps, self._asked.restarts, self._asked.seed)
        out = cascade.attack(net, self._on.x[at].astype(np.float32), self._on.y[at], ball, names, plan, told)
        fell = np.any(list(out.broken.values()), axis=0)
        trail = [np.ones_like(self._clean), np.ones_like(self._clean)]
        for whole, part in zip(trail, out.trail, strict=True):
            whole[at] = part.numpy()
        return dict(zip(at[fell].tolist(), out.adversarial[fell].astype(np.float64), strict=True)), trail

    def _fell(self, moved: dict[int, Rows]) -> list[int]:
        """Of rows that fooled the module, those that fool the file itself."""
        if not moved:
            return []
        at = np.array(list(moved))
        answers = self._on.classes(np.stack(list(moved.values())))
        self._parted.update(at[answers == self._on.y[at]].tolist())
        return [int(one) for one in at[answers != self._on.y[at]]]

    def _row(self, name: str, knowledge: str, fell: list[int], steps: int) -> AttackRow:
        self.standing[fell] = False
        return AttackRow(name, knowledge, _share(self.standing), len(fell), steps)

    def _checks(self) -> list[Alarm]:
        """One step on what stands, and an attack without bounds on a few."""
        self._told("alarms", 0, 2)
        once, _ = self._cascade(["apgd-ce"], self.standing, self._asked.epsilon, 1)
        climbed = "apgd" in self._asked.attacks
        losses = worth.loss_alarms(self._flat[self.standing], self._still[self.standing]) if climbed else []
        found = [*losses, worth.one_step_alarm(len(self._fell(once)), len(self.standing))]
        found.append(worth.parted_alarm(sum(bool(self.standing[one]) for one in self._parted), len(self.standing)))
        self._told("alarms", 1, 2)
        few = np.flatnonzero(self._clean)[:_CHECKED]
        if len(few) and len(set(self._on.y[self._clean].tolist())) > 1:
            span = self._box[1] - self._box[0]
            reach = float(span.max() if self._asked.norm == "linf" else np.linalg.norm(span))
            chosen = np.zeros_like(self._clean)
            chosen[few] = True
            moved, _ = self._cascade(["apgd-ce", "apgd-t"], chosen, reach, _SHORT)
            found.append(worth.unbounded_alarm(len(few) - len(self._fell(moved)), len(few)))
        self._told("alarms", 2, 2)
        return [one for one in found if one is not None]

    def curve(self) -> tuple[Radius, ...]:
        """Accuracy under short attacks of several radii, on some of the rows; a larger one that breaks less is an alarm."""
        few = np.zeros_like(self._clean)
        few[:_CURVE_ROWS] = True
        points, before = [Radius(0.0, _share(self._clean[few]))], None
        for number, times in enumerate(_TIMES):
            self._told("radii", number, len(_TIMES))
            epsilon = times * self._asked.epsilon
            moved, _ = self._cascade(["apgd-ce", "apgd-t"], self._clean & few, epsilon, min(_SHORT, self._asked.steps))
            standing = self._clean.copy()
            standing[self._fell(moved)] = False
            points.append(Radius(epsilon, _share(standing[few])))
            if before is not None:
                alarm = worth.radius_alarm(before[1][few], standing[few], before[0], epsilon)
                self.radius_alarms += [alarm] if alarm else []
            before = (epsilon, standing)
        self._told("radii", len(_TIMES), len(_TIMES))
        return tuple(points)

    def _nothing_left(self, name: str) -> AttackRow:
        return self._row(name, "black-box", [], self._asked.queries if name == "square" else self._asked.steps)

    def _square(self) -> AttackRow:
        at = np.flatnonzero(self.standing)
        self._told("square", 0, 1)
        how = {"queries": self._asked.queries, "seed": self._asked.seed}
        _, fell = square(self._on.scores, self._on.x[at], self._on.y[at], self._space, **how)
        self._told("square", 1, 1)
        return self._row("square", "black-box", at[fell].tolist(), self._asked.queries)

    def _transfer(self) -> AttackRow:
        cascade, transfer = in_laboratory("attacks.cascade"), in_laboratory("attacks.transfer")
        self._told("transfer", 0, 1)
        at, low, high = np.flatnonzero(self.standing), *self._box
        reach = np.full(len(low), self._asked.epsilon / (1.0 if self._asked.norm == "linf" else np.sqrt(len(low))))

        def probabilities(rows: Rows) -> Rows:
            scores = self._on.scores(np.clip(rows, low, high))
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))

        net = transfer.stand_in(probabilities, self._on.x, reach, seed=self._asked.seed)
        ball = cascade.ball_of(net, self._asked.norm, self._asked.epsilon, low, high)
        plan = cascade.Plan(self._asked.steps, self._asked.restarts, self._asked.seed)
        out = cascade.attack(net, self._on.x[at].astype(np.float32), self._on.y[at], ball, ("apgd-ce", "apgd-t"), plan)
        moved = dict(zip(at.tolist(), out.adversarial.astype(np.float64), strict=True))
        self._told("transfer", 1, 1)
        return self._row("transfer", "black-box", self._fell(moved), self._asked.steps)


def _certified(subject: Subject, asked: Asked, box: tuple[Rows, Rows], clean: Mask, told: Told) -> list[Certified]:
    found = []
    if asked.bounds:
        if subject.net is None or asked.norm != "linf":
            raise Invalid(f"interval bounds need gradients and the norm linf{f': {subject.why}' if subject.why else ''}")
        certify, cascade = in_laboratory("certify"), in_laboratory("attacks.cascade")
        told("bounds", 0, 1)
        ball = cascade.ball_of(subject.net, "linf", asked.epsilon, *box)
        safe = np.zeros_like(clean)
        safe[clean] = certify.certified(subject.net, subject.x[clean].astype(np.float32), subject.y[clean], ball)
        found.append(Certified("interval-bounds", "linf", asked.epsilon, _share(safe)))
        told("bounds", 1, 1)
    if asked.smoothing:
        count = subject.predictor.scores(subject.x[:1]).shape[1] + 1  # what is no number is an answer of its own
        radii = []
        some, draws = min(_CERTIFIED, len(subject.x)), max(asked.draws, 10)
        for number in range(some):
            told("smoothing", number, some)
            row, how = subject.x[number : number + 1], {"count": count, "seed": asked.seed + number}
            (one,) = smooth(subject.classes, row, asked.smoothing, draws, **how)
            radii.append(one.radius if one.label == subject.y[number] else -1.0)
        told("smoothing", some, some)
        told_of = {0.0, *(round(asked.smoothing * times, 6) for times in (0.5, 1.0, 2.0))}
        most = reach(draws, asked.smoothing)
        for radius in sorted(one for one in told_of if one < most):  # farther off no row could be: 0 % would say nothing
            held = share(sum(one > radius for one in radii), some)
            found.append(Certified("smoothing", "l2", radius, held, asked.smoothing))
    return found


def _corrupted(subject: Subject, box: tuple[Rows, Rows], clean: Mask, told: Told) -> list[Corrupted]:
    found, names = [], corruptions(subject.picture)
    for number, name in enumerate(names):
        told("corruptions", number, len(names))
        for severity in (1, 3, 5):
            right = subject.classes(corrupt(name, subject.x, severity, *box, subject.picture)) == subject.y
            lost = worth.paired(clean, right)
            found.append(Corrupted(name, severity, _share(right), (lost.difference, lost.low, lost.high)))
    told("corruptions", len(names), len(names))
    return found


def _share(right: Mask) -> Share:
    return share(int(right.sum()), len(right))


def opened_release(premises: Premises, ref: str) -> bytes:
    """The model file of a release of the keep in this folder. Raises Missing, Invalid, NotTrusted, Unavailable."""
    premises.keyring([MODEL_KEK])
    registry = premises.registry(premises.openers())
    evidence = registry.release(ReleaseRef.parse(ref))
    return bytes(registry.open_body(evidence.body, evidence.model, MODEL).read_source())


def with_logged(found: Evaluated, indexes: Sequence[int]) -> Evaluated:
    """The same, with the log entries that say so."""
    return msgspec.structs.replace(found, logged=tuple(indexes))
