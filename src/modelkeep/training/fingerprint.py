"""Fingerprints of models without a mark: does a suspect share what is peculiar to a model?

Every model draws its class boundaries a little differently. Probes are points close to the model's own boundaries, each on a
line between two reference rows of different classes, found by bisection on the model's answers. Which line, which side of the
boundary and how far from it is drawn by a secret *key*. A suspect is asked for the class of every probe, and so is a population
of models that were trained independently. What counts is not that the suspect agrees with the model, for models of the same
task agree with each other, but that it agrees *where the others do not*: the correlation of the two, after the mean of the
others is taken off (``shared``).

Since version 2 (``likeness``) there is a second look: answers are read as probabilities where the suspect gives them, and in
place of the others' mean what is taken off is what the others together explain best, with a constant for each class. So a copy
that took another balance between the classes, as training on does it, is still a copy. The others' weights come from other
probes than those that they are applied to. The better look counts, with twice its p.

What is a theorem, and of what:

- ``rank``: if the suspect is exchangeable with the population, that is trained independently in the same manner, the share of
  models that reach its correlation is a p-value, whatever the model, the reference rows and the key are. It cannot be below
  1 / (n + 1) for a population of n.
- ``p_key``: for any suspect and population that were made without knowledge of the key, this bounds the probability, over
  keys, of such an excess over *every* model of the population, unless the suspect really shares more with the model over all
  probes that a key could draw. So it says that the probes are no lucky choice; it does not say what else could share as much.
- ``p_population`` is no theorem: it extends the population by a normal law of its correlations (Fisher's z), with the
  prediction interval of Student's t. With 20 models nobody can check such a law a million to one.

``p`` is the larger of the last two. All of it is about the population: a suspect from the same training rows is to be compared
with models from those rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.draws import uniform
from modelkeep.training.tails import SMALLEST, prediction_tail

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]

PROBES = 4000
LEAST_POPULATION = 20
"""Models, below which no claim is made."""
LEAST_PROBES = 50
KEY_BYTES = 32
_STEPS = 20
_NEAR, _FAR = 0.02, 0.12
"""How far from the boundary probes lie, as a share of the line between the two rows."""
_DRAWS = 64
"""Pairs of rows that are tried for each probe, until one has two classes."""
_NEARLY = 0.999999
_BETS = (0.03, 0.1, 0.3, 0.6, 0.95)
VERSION = 2
"""Of what is computed: 1 is the mean of the others, by labels; 2 has what they explain best, by probabilities, too."""
_SHRINK = 0.01
"""Of the others' weights, as a share of a probe's largest square."""
_TAG = b"modelkeep/fingerprint/1\0"


@dataclass(frozen=True, eq=False)
class Probes:
    """``points`` (m, d), as float32 has them; ``classes`` (m, 2): those of the model on both sides of the boundary; ``told``
    (m,): what it answers to the points."""

    points: Floats
    classes: Ints
    told: Ints


@dataclass(frozen=True)
class Resemblance:
    """How much a suspect shares of what is peculiar to a model.

    ``shared``: correlation, -1 to 1; ``population``: those of the independent models; ``agreement``: share of probes that the
    suspect answers as the model; ``rank``: share of models, the suspect among them, that reach ``shared``; ``p_population``,
    ``p_key``: as the module says; ``p``: the larger.
    """

    p: float
    p_population: float
    p_key: float
    rank: float
    shared: float
    population: tuple[float, ...]
    agreement: float


def draw_probes(predict: Predict, reference: Floats, key: bytes, count: int = PROBES) -> Probes:
    """Probes of the model ``predict``, (b, d) to (b, k), between ``reference`` rows (n, d). The same key gives the same probes.

    Raises Invalid (the rows are of one class alone, or answers are not finite (rows, classes)), ValueError (key or count).
    """
    if len(key) != KEY_BYTES or count < LEAST_PROBES:
        raise ValueError(f"a fingerprint has a key of {KEY_BYTES} bytes and {LEAST_PROBES} probes or more")
    rows = reference.astype(np.float32).astype(np.float64)
    classes = labels(predict, rows)
    first, second = _pairs(classes, key, count)
    start, way = rows[first], rows[second] - rows[first]
    low, high = _bisect(predict, start, way, classes[first])
    beyond = labels(predict, start + high[:, None] * way)
    aside = _NEAR + (_FAR - _NEAR) * uniform(key, _TAG + b"distance", count)
    aside *= np.where(uniform(key, _TAG + b"side", count) < 0.5, -1.0, 1.0)
    at = np.clip(0.5 * (low + high) + aside, 0.0, 1.0)
    points = (start + at[:, None] * way).astype(np.float32).astype(np.float64)
    return Probes(points, np.stack([classes[first], beyond], axis=1), labels(predict, points))


def answers(predict: Predict, rows: Floats) -> Floats:
    """The probabilities (n, k) that a model answers rows (n, d) with. Raises Invalid (not finite (rows, classes))."""
    found = np.asarray(predict(rows), dtype=np.float64)
    if found.ndim != 2 or len(found) != len(rows) or found.shape[1] < 2 or not np.isfinite(found).all():
        raise Invalid(f"a model must answer finite numbers (rows, classes), not shape {found.shape} for {len(rows)} rows")
    return found


def labels(predict: Predict, rows: Floats) -> Ints:
    """The classes (n,) that a model answers rows (n, d) with. Raises Invalid (answers are not finite (rows, classes))."""
    out: Ints = answers(predict, rows).argmax(axis=1).astype(np.int64)
    return out


def resemblance(probes: Probes, suspect: Ints, population: NDArray[np.int64]) -> Resemblance:
    """Compare a suspect with a model and with independent models.

    ``suspect``: its classes (m,) of the probes; ``population``: those of the independent models (n, m). Raises Invalid (fewer
    than 20 models, or answers to other probes).
    """
    if len(population) < LEAST_POPULATION:
        raise Invalid(f"a claim needs {LEAST_POPULATION} independent models or more, and here are {len(population)}")
    if suspect.shape != probes.told.shape or population.shape[1:] != probes.told.shape:
        raise Invalid(f"there are {len(probes.told)} probes, and answers of shape {suspect.shape} and {population.shape}")
    mine = _sides(probes, probes.told)
    everyone = np.stack([_sides(probes, one) for one in (*population, suspect)])
    by_key = _by_key(mine, everyone[:-1], everyone[-1])
    return _resemblance(_shared(mine, everyone), by_key, float((suspect == probes.told).mean()))


def likeness(probes: Probes, suspect: Floats, population: Sequence[Floats]) -> Resemblance:
    """The same of version 2: by labels as ``resemblance`` does, and beyond what the others explain; the smaller ``p`` of both.

    Its numbers are twice as large as it found them, for two were looked at. ``suspect``, each of ``population``: probabilities
    (m, k) of the probes; where the suspect tells labels alone, or one has fewer classes than the model, all are read by their
    labels. Raises Invalid (as ``resemblance``).
    """
    for one in (suspect, *population):
        if len(one) != len(probes.told):
            raise Invalid(f"there are {len(probes.told)} probes, and answers of shape {one.shape}")
    told = np.array([one.argmax(axis=1) for one in population], dtype=np.int64).reshape(len(population), -1)
    by_labels = resemblance(probes, suspect.argmax(axis=1), told)
    narrow = min(one.shape[1] for one in (suspect, *population)) <= probes.classes.max()
    hard = narrow or bool(np.isin(suspect, (0.0, 1.0)).all())
    everyone = np.stack(
        [_sides(probes, one.argmax(axis=1)) if hard else _soft_sides(probes, one) for one in (*population, suspect)]
    )
    mine, balance = _sides(probes, probes.told), _balance(probes)
    shared = np.array([_shared_beyond(mine, everyone, at, balance) for at in range(len(everyone))])
    beyond = _resemblance(shared, _by_key_beyond(mine, everyone, balance), by_labels.agreement)
    better = min(by_labels, beyond, key=lambda one: one.p)
    twice = {name: min(1.0, 2.0 * getattr(better, name)) for name in ("p", "p_population", "p_key", "rank")}
    return replace(better, **twice)


def _resemblance(shared: Floats, by_key: float, agreement: float) -> Resemblance:
    """``shared`` (n + 1,): of the population, and last of the suspect."""
    others, own = shared[:-1], float(shared[-1])
    by_population = _by_population(others, own)
    return Resemblance(
        p=max(by_population, by_key),
        p_population=by_population,
        p_key=by_key,
        rank=(1 + int((others >= own).sum())) / (len(others) + 1),
        shared=own,
        population=tuple(float(one) for one in others),
        agreement=agreement,
    )


def _soft_sides(probes: Probes, told: Floats) -> Floats:
    """How far a model sees each probe on either side: -1 to 1, from its probabilities (m, k) of the two classes."""
    each = np.arange(len(told))
    near, far = (np.clip(told[each, probes.classes[:, at]], 0.0, None) for at in (0, 1))
    out: Floats = (near - far) / np.maximum(near + far, 1e-12)
    return out


def _balance(probes: Probes) -> Floats:
    """A column (m,) for each class of the model's: 1 on its near side, -1 on its far one."""
    each, columns = np.arange(len(probes.told)), np.zeros((len(probes.told), int(probes.classes.max()) + 1))
    columns[each, probes.classes[:, 0]] += 1.0
    columns[each, probes.classes[:, 1]] -= 1.0
    return columns


def _left(
    some: Sequence[Floats], others: Floats, balance: Floats, fitted: NDArray[np.bool_], used: NDArray[np.bool_]
) -> Floats:
    """What ``others`` (n, m) and ``balance`` (m, k) leave of each of ``some`` (m,) on the probes ``used``, by weights from
    those ``fitted`` (ridge regression)."""
    given = np.concatenate([others.T, balance], axis=1)
    known = given[fitted]
    square = known.T @ known + _SHRINK * len(known) * np.eye(given.shape[1])
    wanted = np.stack(some, axis=1)
    out: Floats = (wanted[used] - given[used] @ np.linalg.solve(square, known.T @ wanted[fitted])).T
    return out


def _shared_beyond(mine: Floats, everyone: Floats, at: int, balance: Floats) -> float:
    """Correlation of ``mine`` and the model ``at``, beyond what *all* others explain of both; the suspect is one of them."""
    others, odd = np.delete(everyone, at, axis=0), np.arange(len(mine)) % 2 == 1
    halves = [_left([mine, everyone[at]], others, balance, some, ~some) for some in (odd, ~odd)]
    one, other = np.concatenate(halves, axis=1)
    return float(one @ other / max(math.sqrt(float((one @ one) * (other @ other))), 1e-12))


def _by_key_beyond(mine: Floats, everyone: Floats, balance: Floats) -> float:
    """The largest of the p-values against each model j of the population, as ``_by_key``, beyond what the rest of it explains.

    The weights come from every second probe and the bets are on those between, which the key draws apart from them.
    """
    first, worst = np.arange(len(mine)) % 2 == 0, 0.0
    for at in range(len(everyone) - 1):
        rest = np.delete(everyone[:-1], at, axis=0)
        left = np.clip(_left([mine, everyone[-1], everyone[at]], rest, balance, first, ~first), -1.0, 1.0)
        worst = max(worst, _bets(left[0] * (left[1] - left[2]) / 2.0))
    return worst


def _bets(d: Floats) -> float:
    """P by Markov of what bets on each of ``d`` (m,), within -1 and 1, have grown to, if their mean is not positive."""
    grown = np.array([np.log1p(bet * d).sum() for bet in _BETS])
    high = float(grown.max())
    mean = high + math.log(float(np.exp(grown - high).mean()))
    return max(SMALLEST, min(1.0, math.exp(-min(max(mean, 0.0), 690.0))))


def _sides(probes: Probes, told: Ints) -> Floats:
    """On which side of the boundary a model sees each probe: 1, -1, or 0 for a third class."""
    near, far = (probes.classes[:, at] == told for at in (0, 1))
    out: Floats = near.astype(np.float64) - far.astype(np.float64)
    return out


def _shared(mine: Floats, everyone: Floats) -> Floats:
    """For each row of ``everyone`` (n + 1, m) its correlation with ``mine`` (m,), both less the mean of all *other* rows.

    Every row is treated alike, the suspect's too, so that exchangeable models give exchangeable correlations.
    """
    rest = (everyone.sum(axis=0) - everyone) / (len(everyone) - 1)
    one, other = everyone - rest, mine - rest
    one, other = (part - part.mean(axis=1, keepdims=True) for part in (one, other))
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    out: Floats = (one * other).sum(axis=1) / np.maximum(scale, 1e-12)
    return out


def _by_population(others: Floats, own: float) -> float:
    """P that one more of the same normal law reaches ``own``, from n that were seen (Fisher's z, Student's t)."""
    z = [math.atanh(min(max(float(each), -_NEARLY), _NEARLY)) for each in (*others, own)]
    return prediction_tail(z[:-1], z[-1])


def _by_key(mine: Floats, population: Floats, suspect: Floats) -> float:
    """The largest of the p-values against each model of the population, each from the draw of the probes alone.

    Against model j, d = (mine - mean of the others) * (suspect - j) / 4 lies within -1 ... 1 and is drawn anew with each probe.
    Unless its mean over all probes is positive, the product of 1 + b d has at most the mean 1 for every bet b in (0, 1), and
    exceeds 1 / p with probability p at most (Markov; Waudby-Smith and Ramdas 2024, section 4).
    """
    rest = (population.sum(axis=0) - population) / (len(population) - 1)
    d = (mine - rest) * (suspect - population) / 4.0
    grown = np.stack([np.log1p(bet * d).sum(axis=1) for bet in _BETS])
    high = grown.max(axis=0)
    least = float((high + np.log(np.exp(grown - high).mean(axis=0))).min())
    return max(SMALLEST, min(1.0, math.exp(-min(max(least, 0.0), 690.0))))


def _pairs(classes: Ints, key: bytes, count: int) -> tuple[Ints, Ints]:
    if len(np.unique(classes)) < 2:
        raise Invalid("the model answers all reference rows with one class: there is no boundary between them")
    drawn = (uniform(key, _TAG + b"rows", 2 * _DRAWS * count) * len(classes)).astype(np.int64).reshape(-1, 2)
    apart = drawn[classes[drawn[:, 0]] != classes[drawn[:, 1]]][:count]
    if len(apart) < count:
        raise Invalid("nearly all reference rows are of one class: name rows of several")
    return apart[:, 0], apart[:, 1]


def _bisect(predict: Predict, start: Floats, way: Floats, first: Ints) -> tuple[Floats, Floats]:
    """Shares of the way (m,) between which the model leaves its first class."""
    low, high = np.zeros(len(start), dtype=np.float64), np.ones(len(start), dtype=np.float64)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        same = labels(predict, start + middle[:, None] * way) == first
        low[same] = middle[same]
        high[~same] = middle[~same]
    return low, high
