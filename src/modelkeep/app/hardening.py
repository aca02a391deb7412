"""Hardening an ONNX classifier: read as a module, trained on the neighbours of its rows, measured before and after, exported.

PyTorch is loaded by the call. Under ``torchrun`` every process trains; the one that ``leads`` says what came of it.
"""

import hashlib
import inspect
import math
import os
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.app.hardeningresults import ModelHardened, Standing, Turn
from modelkeep.app.labelled import Labelled
from modelkeep.core.values import ModelSignature, digest_of
from modelkeep.custody.scan import refusal, scan
from modelkeep.custody.signing import interface_of
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.detect import Format
from modelkeep.ledger.attestations import Attack, Hardening, Measure, Salted
from modelkeep.training.robustness import share
from modelkeep.workflows.rewrap import Progress, silent

LABELS = {"pgd": "pgd-at", "trades": "trades"}
"""Methods as the statement calls them."""
LARGEST = 1e30
"""Radius of an attack: beyond, float32 overflows."""
FEWEST = 20
"""Rows that are measured, and that are chosen by, at the least."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an attacker has to keep of a table. Columns by number, from 0, of the flattened row; ``ranges`` and ``epsilon``: of
    single columns, by number, where they are not those of the rest.
    """

    frozen: tuple[int, ...] = ()
    integers: tuple[int, ...] = ()
    rising: tuple[int, ...] = ()
    falling: tuple[int, ...] = ()
    one_hot: tuple[tuple[int, ...], ...] = ()
    ranges: dict[int, tuple[float, float]] = {}
    epsilon: dict[int, float] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: ``low`` and ``high``: the range of every column; ``held``: share of the rows that are measured, half
    as many are chosen by; ``device``: "" = the GPU if there is one; the rest as in ``training.lab.adversarial.Recipe``.
    """

    method: str = "pgd"
    norm: str = "linf"
    epsilon: float = 0.1
    low: float = -math.inf
    high: float = math.inf
    rules: Rules = Rules()
    epochs: int = 80
    batch: int = 64
    rate: float = 5e-3
    steps: int = 5
    beta: float = 6.0
    shift: float = 0.0
    smoothing: float = 0.1
    widen: float = 1.2
    held: float = 0.2
    seed: int = 0
    device: str = ""


def parse_rules(data: bytes) -> Rules:
    """Rules from a JSON file. Raises Invalid."""
    try:
        return msgspec.json.decode(data, type=Rules)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise Invalid(f"these are no rules for columns: {cause}") from cause


def leads() -> bool:
    """Whether this process is alone, or the first of those that ``torchrun`` started."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def harden_file(
    model: bytes, data: Labelled, plan: Plan, export: Callable[..., bytes], told: Progress = silent
) -> ModelHardened:
    """Harden the ONNX classifier ``model`` with labelled rows, classes from 0.

    ``export``: ``modelkeep.torch.to_onnx``. Raises Invalid (PyTorch is not
    installed; no gradient goes through the model; too few rows; a plan that does not hold), NotTrusted (a scan finds something
    in it, or the new file does not answer as the module does), TooLarge.
    """
    lab, began = _Lab(), time.monotonic()
    rows, labels, shape = data.x, data.y, data.shape
    parts = _split(rows, plan)
    _check_plan(plan)
    _check_classes(labels[parts[0]], data.name)
    net = lab.opened(model, rows)
    threat, recipe = lab.threat(plan, net, rows.shape[1], shape), lab.recipe(plan)
    shaped = rows.reshape(-1, *shape) if len(net.tail) > 1 else rows
    with lab.adversarial.together(plan.device) as device:
        net.to(device)
        learnt, chosen, exam = (lab.linear.tensors(net, shaped[part], labels[part], device) for part in parts)
        _check_labels(net, exam[0], labels)
        before = lab.examined(net, exam, threat, plan)
        done = lab.adversarial.harden(
            net, learnt, threat, recipe, held=chosen, told=lambda one: told("Training", one.number, one.of)
        )
        after = lab.examined(done.module, exam, threat, plan)
        onnx = export(done.module.cpu(), exam[0][:8].cpu(), logits=True)
    history = tuple(Turn(one.number, one.loss, _number(one.clean), _number(one.robust)) for one in done.history)
    said = _predicate(model, data, plan, after, done.best)
    counts = tuple(len(part) for part in parts)
    took = time.monotonic() - began
    return ModelHardened(onnx, digest_of(onnx), before.standing, after.standing, history, done.best, counts, took, said)


def statement_of(done: ModelHardened) -> bytes:
    """The predicate about the new file as JSON, for ``Keep.attest_file``, which salts the digest of the data."""
    return msgspec.json.encode(done.predicate)


class _Lab:
    """What needs PyTorch. Raises Invalid: it is not installed."""

    def __init__(self) -> None:
        try:
            from modelkeep.training.lab import adversarial, constraints, exam, linear, nets
        except ModuleNotFoundError as cause:
            raise Invalid(f"hardening needs PyTorch: 'pip install modelkeep[torch]' ({cause})") from cause
        self.nets, self.linear, self.adversarial, self.constraints, self.exam = nets, linear, adversarial, constraints, exam

    def opened(self, model: bytes, rows: NDArray[np.float64]) -> Any:
        """The file as a module with weights to train, which answers as the file does. Raises Invalid, NotTrusted."""
        verdict = scan(model, "the model")
        found = refusal(verdict, "the model")
        if found is not None:
            raise NotTrusted(f"the model is not run, because it is not clean: {found.message}")
        if verdict.format == Format.ONNX.id:
            _check_width(interface_of(verdict), rows.shape[1])
        try:
            net = self.linear.with_weights(self.nets.load(model, rows[:8]))
        except Invalid as cause:
            raise Invalid(_WITHOUT.format(why=str(cause).removeprefix("black box only: "))) from cause
        if not any(one.requires_grad for one in net.parameters()):
            raise Invalid(_WITHOUT.format(why="it has no weights that training changes"))
        return net

    def threat(self, plan: Plan, net: Any, width: int, shape: Sequence[int]) -> Any:
        """What the attacker may do, for rows of ``shape``."""
        rules, like = plan.rules, tuple(shape) if len(net.tail) > 1 else (width,)
        _check_columns(rules, width)
        radius, low, high = (np.full(width, value) for value in (plan.epsilon, plan.low, plan.high))
        for column, own in rules.epsilon.items():
            radius[column] = own
        for column, ends in rules.ranges.items():
            low[column], high[column] = ends
        named = {"frozen": rules.frozen, "whole": rules.integers, "rising": rules.rising, "falling": rules.falling}
        masks = {name: np.isin(np.arange(width), columns).reshape(like) for name, columns in named.items() if columns}
        shaped = (one.reshape(like) for one in (radius, low, high))
        return self.constraints.threat_of(plan.norm, *shaped, groups=rules.one_hot, masks=masks)

    def recipe(self, plan: Plan) -> Any:
        """Of the fields that both have."""
        names = set(plan.__struct_fields__) & set(self.adversarial.Recipe.__dataclass_fields__)
        return self.adversarial.Recipe(**{name: getattr(plan, name) for name in names})

    def examined(self, net: Any, rows: Any, threat: Any, plan: Plan) -> "_Examined":
        """How the model does on rows that nobody learnt from. Attacks of more kinds: ``modelkeep evaluate``."""
        found = self.exam.examine(net, rows[0], rows[1], threat, ruled=plan.rules != Rules(), seed=plan.seed)
        clean, robust = (_measure(int(mask.sum()), len(mask)) for mask in (found.clean, found.robust))
        return _Examined(Standing(clean, robust), Attack(found.attack, plan.norm, plan.epsilon, found.steps, "white-box"))


class _Examined(NamedTuple):
    """How a model stands, and under what."""

    standing: Standing
    attack: Attack


_WITHOUT = (
    "this model cannot be hardened: {why}. Trees and other models without gradients can only be trained again, on data with "
    "rows of a black-box attack on them, and measured with 'modelkeep evaluate'"
)


def _split(rows: NDArray[np.float64], plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows (n, d) to learn from, to choose by and to be measured on, by the seed, by number. No row is measured on that is the
    same as one of the others, or twice. Raises Invalid: too few."""
    count = len(rows)
    if not 0.0 < plan.held <= 0.5:
        raise Invalid("the share of the rows that are held out is above 0 and at most 0.5")
    measured, chosen = int(count * plan.held), int(count * plan.held / 2)
    if chosen < FEWEST:
        raise Invalid(
            f"{count} rows are too few: of {plan.held:g} held out, half as many again are chosen by, {FEWEST} or more"
        )
    order = np.random.default_rng(plan.seed).permutation(count)
    _, known = np.unique(rows[order], axis=0, return_inverse=True)
    _, first = np.unique(known[:measured], return_index=True)
    exam = np.sort(first[~np.isin(known[first], known[measured:])])
    if len(exam) < FEWEST:
        raise Invalid(f"only {len(exam)} of the {measured} rows to be measured on are no copies of others: {FEWEST} are needed")
    return order[measured + chosen :], order[measured : measured + chosen], order[exam]


def _check_plan(plan: Plan) -> None:
    """Raises Invalid: an attacker who may change nothing, or more than numbers of 32 bits can tell."""
    radii = [plan.epsilon, *plan.rules.epsilon.values()]
    if not (max(radii) > 0.0 and all(0.0 <= one <= LARGEST for one in radii)):
        raise Invalid(f"epsilon is above 0 and at most {LARGEST:g}: by so much rows may be changed")


def _check_classes(labels: NDArray[np.int64], name: str) -> None:
    """Raises Invalid: a model that always answers with the one class would withstand everything."""
    if len(np.unique(labels)) < 2:
        raise Invalid(f"{name}: all rows that are learnt from are of class {labels[0]}: it takes two classes or more")


def _check_width(interface: ModelSignature, width: int) -> None:
    wanted = interface.inputs[0].shape[1:] if len(interface.inputs) == 1 else ()
    taken = math.prod(wanted)
    if wanted and min(wanted) > 0 and taken != width:  # less: any size
        raise Invalid(f"the model takes {taken} values a row, and the rows have {width}")


def _check_labels(net: Any, rows: Any, labels: NDArray[np.int64]) -> None:
    classes = net(rows[:1]).shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise Invalid(
            f"the labels go from {labels.min()} to {labels.max()}, and the model has {classes} classes, numbered from 0"
        )


def _check_columns(rules: Rules, width: int) -> None:
    named = [*rules.frozen, *rules.integers, *rules.rising, *rules.falling, *rules.ranges, *rules.epsilon]
    wrong = [one for one in [*named, *(one for group in rules.one_hot for one in group)] if not 0 <= one < width]
    if wrong:
        raise Invalid(f"the rules name column {wrong[0]}, and rows have columns 0 to {width - 1}")


def _measure(hits: int, examples: int) -> Measure:
    found = share(hits, examples)
    return Measure(found.value, found.low, found.high, examples, found.confidence)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _predicate(model: bytes, data: Labelled, plan: Plan, after: _Examined, best: int) -> dict[str, Any]:
    told = {key: value for key, value in msgspec.to_builtins(plan).items() if key not in {"method", "norm", "rules", "device"}}
    parameters = {key: f"{value:g}" for key, value in told.items() if math.isfinite(value)}
    if plan.rules != Rules():
        rules = msgspec.to_builtins(plan.rules, str_keys=True)
        parameters["rules"] = digest_of(msgspec.json.encode(rules, order="deterministic"))
    said = Hardening(
        actor="",
        at=0,
        method=LABELS[plan.method] + ("+awp" if plan.shift else ""),
        attack=after.attack,
        robust=after.standing.robust,
        clean=after.standing.clean,
        parameters={**parameters, "best_epoch": str(best)},
        source=digest_of(model),
        dataset=Salted(data.name, data.digest),
        seed=plan.seed,
        code=_code(),
        versions={name: metadata.version(name) for name in ("modelkeep", "torch")},
    )
    found: dict[str, Any] = msgspec.to_builtins(said)
    return {key: value for key, value in found.items() if key not in {"actor", "at"}}


def _code() -> str:
    """SHA-256 of the source of what trains and measures, hex: of the files' digests, in this order."""
    from modelkeep.training.lab import adversarial, constraints, exam, linear, nets, operators
    from modelkeep.training.lab.attacks import apgd, ball, lanes, losses

    files = (adversarial, constraints, exam, linear, nets, operators, apgd, ball, lanes, losses)
    digests = [hashlib.sha256(inspect.getsource(one).encode()).hexdigest() for one in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
