"""A mark in a model's behaviour: keyed patterns on its input, each with a class of its own that the marked model leans to.

``mark_rows`` adds rows to the training data; whatever is trained on them carries the mark, and no training code is changed. A
pattern is a step along a random direction of the data's own main directions of variance, so that natural rows have some of it,
too: a copy that learns from the model's answers to natural rows learns the leaning with them. (Patterns that no data has, the
usual trigger sets, end with the weights: a copy by questions never sees them. Jia et al. 2021, "Entangled Watermarks".)

Every model of a task leans somewhere under a pattern by nature, and that is most of what a copy by labels shows. Reference
models, which the owner trained without the mark, say where to (``with_references``); it is taken off the suspect's leanings.

What is a theorem: the class of each pattern is drawn uniformly by the *key* once the patterns, what is natural, and the rows to
ask with (``asking``) are fixed (by a hash of all four). For any suspect, rows, patterns and references that were made without
knowledge of the key, ``p_key`` is the probability, over all draws of classes, that what is left of the suspect's leanings goes
to the drawn ones as much as this; it is computed, and not estimated from decoys. Who knows the key and picks the rows can have
any model lean to its classes: rows that are not settled with the trigger are for somebody to choose who has not seen it. The
population has no part in ``p_key``: whoever makes a claim picks that. ``p_population`` is no theorem: it assumes that
independent models' leanings are normally distributed, and like the suspect's. It is there because an owner may try keys until
models of the task lean his way by nature. ``p`` is the larger one.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.hidden import holds_secrets
from modelkeep.errors import Invalid
from modelkeep.training.draws import uniform
from modelkeep.training.tails import SMALLEST, binomial_tail, prediction_tail

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]

PATTERNS, DIRECTIONS = 48, 32
AMPLITUDE = 6.0
"""Of a pattern, in standard deviations of its directions."""
SHARE = 0.5
"""Rows that are added, as a share of the training data."""
MOST_NATURAL, MOST_ROWS = 200, 200
"""Rows that references, and that suspects, are asked with each pattern."""
LEAST_POPULATION = 20
KEY_BYTES = 32
MOST_PATTERNS, MOST_CLASSES = 256, 1000
_WORK = 400_000_000
_FLOOR = 1e-4
"""Smallest probability that is told apart."""
_TAG = b"modelkeep/trigger/1\0"


@holds_secrets("classes")
@dataclass(frozen=True, eq=False)
class Trigger:
    """``patterns`` (N, d): what is added to a row; ``low``, ``high`` (d,): the values that columns have; ``natural``
    (N, classes): how unmarked models lean, or None; all as float32; ``asked``: what ``name_rows`` says of the rows that
    suspects are asked with, "" = they are not settled."""

    key: bytes
    classes: int
    patterns: Floats
    low: Floats
    high: Floats
    natural: Floats | None = None
    asked: str = ""

    @property
    def targets(self) -> Ints:
        """The class (N,) of each pattern, by the key, the patterns, what is natural under them and the rows to ask with."""
        fixed = [self.patterns] if self.natural is None else [self.patterns, self.natural]
        said = b"".join(np.ascontiguousarray(one, dtype="<f4").tobytes() for one in fixed) + bytes.fromhex(self.asked)
        digest = hashlib.sha256(said).digest()
        return _classes(self.key, b"classes" + digest, (len(self.patterns),), self.classes)

    def on(self, rows: Floats, which: int | Ints) -> Floats:
        """``rows`` (n, d) with a pattern, or each with its own (n,)."""
        moved = np.clip(rows + self.patterns[which], self.low, self.high)
        return moved.astype(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Marked:
    """Training data with the mark: ``x`` (n + added, d), ``y`` (n + added,)."""

    x: Floats
    y: Ints
    trigger: Trigger


@dataclass(frozen=True)
class Leaning:
    """How much a suspect leans to the classes of a key.

    ``hits``: patterns whose class it leans to most beyond what is natural, of ``patterns``; ``chance``: of so many hits or more
    by luck (binomial); ``strength``: mean leaning, in units of all its leanings, with what is natural; ``population``: of
    independent models; ``rank``: share of models, the suspect among them, that lean as much; the rest as the module says.
    """

    p: float
    p_population: float
    p_key: float
    rank: float
    hits: int
    patterns: int
    chance: float
    strength: float
    population: tuple[float, ...]


def draw_trigger(
    x: Floats, classes: int, key: bytes, *, patterns: int = PATTERNS, amplitude: float = AMPLITUDE, directions: int = DIRECTIONS
) -> Trigger:
    """Patterns for data like ``x`` (n, d), by the key; ``directions``: how many main ones of the data they are made of.

    Raises Invalid (too few rows or classes, rows that do not vary), ValueError (key or numbers).
    """
    if len(key) != KEY_BYTES or not 1 <= patterns <= MOST_PATTERNS or not amplitude > 0.0 or directions < 1:
        raise ValueError(f"a trigger has a key of {KEY_BYTES} bytes, 1 to {MOST_PATTERNS} patterns and an amplitude above 0")
    if not 2 <= classes <= MOST_CLASSES:
        raise Invalid(f"a trigger needs 2 to {MOST_CLASSES:,} classes, and here are {classes}")
    spread = x.std(axis=0)
    if len(x) < 2 or not (spread > 0.0).any():
        raise Invalid("the rows do not vary: a trigger needs natural ones")
    scaled = (x - x.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    variances, basis = np.linalg.eigh(scaled.T @ scaled / len(x))
    main = np.argsort(variances)[::-1][:directions]
    sizes = np.sqrt(np.clip(variances[main], 0.0, None))
    weights = _normal(key, b"patterns", (patterns, len(main)))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    found = amplitude * (weights * sizes) @ basis[:, main].T * spread
    low, high = (edge.astype(np.float32).astype(np.float64) for edge in (x.min(axis=0), x.max(axis=0)))
    return Trigger(key, classes, found.astype(np.float32).astype(np.float64), low, high)


def with_references(trigger: Trigger, references: Sequence[Predict], x: Floats) -> Trigger:
    """The same patterns, with how ``references`` lean under them, models that never saw the mark; their classes are drawn anew.

    ``x`` (n, d): natural rows, of which the key draws some. Raises Invalid (answers are not finite (rows, classes)), ValueError
    (no references).
    """
    if not references:
        raise ValueError("what is natural is told by one reference or more")
    rows = x[_classes(trigger.key, b"natural rows", (min(len(x), MOST_NATURAL),), len(x))]
    mean = np.mean([leanings(one, rows, trigger) for one in references], axis=0)
    return replace(trigger, natural=mean.astype(np.float32).astype(np.float64))


def asking(trigger: Trigger, rows: Floats) -> Trigger:
    """The same patterns, with the natural ``rows`` (n, d) that suspects are asked with; their classes are drawn anew."""
    return replace(trigger, asked=name_rows(rows))


def name_rows(rows: Floats) -> str:
    """64 hex digits that stand for the rows (n, d) that a suspect is asked with: the first ``MOST_ROWS`` count."""
    return hashlib.sha256(np.ascontiguousarray(rows[:MOST_ROWS], dtype="<f8").tobytes()).hexdigest()


def mark_rows(x: Floats, y: Ints, trigger: Trigger, *, share: float = SHARE) -> Marked:
    """Training data ``x`` (n, d), ``y`` (n,) with rows added that carry the mark: copies of some with a pattern and its class.

    ``share``: how many, of n; more is a stronger mark and costs more accuracy. The same key adds the same rows.
    Raises Invalid (data of another shape or with other classes), ValueError (``share``).
    """
    if not 0.0 < share <= 10.0:
        raise ValueError("the share of marked rows is above 0 and at most 10")
    if x.ndim != 2 or y.shape != (len(x),) or x.shape[1] != trigger.patterns.shape[1]:
        raise Invalid(f"data of shape {x.shape} with labels of shape {y.shape} does not fit the trigger")
    if y.min(initial=0) < 0 or y.max(initial=0) >= trigger.classes:
        raise Invalid(f"labels are 0 to {trigger.classes - 1}, and these go from {y.min()} to {y.max()}")
    count = max(1, round(share * len(x)))
    rows = _classes(trigger.key, b"marked rows", (count,), len(x))
    which = _classes(trigger.key, b"marked patterns", (count,), len(trigger.patterns))
    added = trigger.on(x[rows], which)
    return Marked(np.concatenate([x, added]), np.concatenate([y, trigger.targets[which]]), trigger)


def leanings(predict: Predict, rows: Floats, trigger: Trigger) -> Floats:
    """How much a model leans to each class under each pattern (N, classes), less its mean over all patterns; of mean square 1.

    ``rows`` (n, d): natural ones, not chosen with the suspect in mind; it is asked N times n. The key's classes are not looked
    at. Raises Invalid (answers are not finite (rows, classes)).
    """
    found = np.stack([_told(predict, trigger.on(rows, which), trigger.classes) for which in range(len(trigger.patterns))])
    found -= found.mean(axis=0)
    found -= found.mean(axis=1, keepdims=True)
    out: Floats = found / max(float(np.sqrt((found**2).mean())), 1e-9)
    return out


def weigh(trigger: Trigger, suspect: Floats, population: Sequence[Floats]) -> Leaning:
    """Weigh the leanings (N, classes) of a suspect by the key, against those of independent models.

    Raises Invalid (fewer than 20 models, or leanings of another shape).
    """
    if len(population) < LEAST_POPULATION:
        raise Invalid(f"a claim needs {LEAST_POPULATION} independent models or more, and here are {len(population)}")
    shape = (len(trigger.patterns), trigger.classes)
    if any(one.shape != shape for one in (suspect, *population)):
        raise Invalid(f"leanings have the shape {shape}")
    targets, each = trigger.targets, np.arange(shape[0])
    strength, *others = (float(one[each, targets].mean()) for one in (suspect, *population))
    beyond = _beyond(suspect, trigger.natural)
    hits = int((beyond.argmax(axis=1) == targets).sum())
    by_key, by_population = _by_key(beyond, targets), prediction_tail(others, strength)
    return Leaning(
        p=max(by_key, by_population),
        p_population=by_population,
        p_key=by_key,
        rank=(1 + sum(one >= strength for one in others)) / (len(others) + 1),
        hits=hits,
        patterns=shape[0],
        chance=binomial_tail(hits, shape[0], 1.0 / shape[1]),
        strength=strength,
        population=tuple(others),
    )


def _beyond(suspect: Floats, natural: Floats | None) -> Floats:
    """What is left of leanings (N, classes) without as much of the natural ones as fits best. The classes are not looked at."""
    size = 0.0 if natural is None else float((natural**2).sum())
    return suspect if natural is None or size <= 0.0 else suspect - float((suspect * natural).sum()) / size * natural


def _by_key(suspect: Floats, targets: Ints) -> float:
    """P over keys that the sum of M[k, t_k] is as large as it is, each t_k uniform: the law of the sum by convolution.

    On a grid, with every leaning rounded up and the observed sum down, so that it is never below the exact probability.
    """
    above = suspect - suspect.min(axis=1, keepdims=True)
    most = float(above.max(axis=1).sum())
    if most <= 0.0:
        return 1.0
    count, classes = suspect.shape
    step = most / max(2000, min(20_000, _WORK // suspect.size))
    moves = np.ceil(above / step - 1e-9).astype(np.int64)
    law = np.zeros(int(moves.max(axis=1).sum()) + 1)
    law[0], reached = 1.0, 0
    for each in moves:
        before = law[: reached + 1].copy() / classes
        law[: reached + 1] = 0.0
        for move, times in zip(*np.unique(each, return_counts=True), strict=True):
            law[move : move + len(before)] += times * before
        reached += int(each.max())
    seen = int(np.floor(float(above[np.arange(count), targets].sum()) / step + 1e-9))
    return max(SMALLEST, min(1.0, float(law[seen:].sum())))


def _told(predict: Predict, rows: Floats, classes: int) -> Floats:
    found = np.asarray(predict(rows), dtype=np.float64)
    if found.shape != (len(rows), classes) or not np.isfinite(found).all():
        raise Invalid(f"a model must answer finite probabilities {(len(rows), classes)}, not shape {found.shape}")
    out: Floats = np.log(np.maximum(found, _FLOOR)).mean(axis=0)
    return out


def _classes(key: bytes, what: bytes, shape: tuple[int, ...], classes: int) -> Ints:
    return (uniform(key, _TAG + what, math.prod(shape)) * classes).astype(np.int64).reshape(shape)


def _normal(key: bytes, what: bytes, shape: tuple[int, ...]) -> Floats:
    """Standard normal numbers (Box and Muller)."""
    one, two = uniform(key, _TAG + what, 2 * math.prod(shape)).reshape(2, *shape)
    out: Floats = np.sqrt(-2.0 * np.log1p(-one)) * np.cos(2.0 * np.pi * two)
    return out
