"""Rows that come twice, rows that nearly do, rows of one table in another, and columns that say too much.

Rows of a test set can be in the training set by accident of the task (two clerks of 30 with the same answers) or by mistake.
If both sets were dealt from one stack, groups of equal rows would be dealt to either at random, and the chance that so many of
them lie in both is known, whatever the task is. More than that is a leak.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.training.encoding import spread_of
from modelkeep.training.personal import words_of
from modelkeep.training.summaries import value_keys
from modelkeep.training.tables import Column, Table
from modelkeep.training.tails import binomial_tail

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
NEAR = 0.01
"""Root mean square over columns of what near rows may differ by, in robust standard deviations; for pictures, in those of a
picture."""
NEAR_PICTURES = 0.1
_ROUNDS, _PROJECTIONS, _WIDTH = 10, 6, 8.0
_MOST_IN_CELL = 12
_SIDE = 8
_FOLDS, _BINS = 5, 64
_MIX = np.uint64(0x9E3779B97F4A7C15)
_FAR = 1e6
LEAST_ROWS = 20
_KEYS = frozenset({"id", "uuid", "guid", "key", "identifier"})
_LONGEST_KEY, _NO_ACCIDENT = 64, 1e-3
_ROWS_AT_ONCE = 4096


class Leak(NamedTuple):
    """Rows of a test set that the training set has, too. ``exact``, ``near``: which (m,); ``expected``: the share that there
    would be if both had been drawn alike; ``p``: the chance of so many by accident."""

    exact: Bools
    near: Bools
    expected: float
    p: float


@dataclass(frozen=True, slots=True)
class Telling:
    """How well a column alone tells the label: ``score``, 0 (nothing) to 1 (always)."""

    column: str
    score: float


def row_keys(table: Table, columns: Iterable[str]) -> NDArray[np.uint64]:
    """A number for every row (n,): the same for rows that agree in all ``columns``, of whatever table, and for no others but
    by an accident of one in 2^64 a pair."""
    total = np.zeros(len(table), dtype=np.uint64)
    for at, name in enumerate(columns):
        keys = value_keys(table.columns[name]) + np.uint64(2 * at + 1)
        total = _mixed(total ^ _mixed(keys * _MIX))
    return total


def copies(keys: NDArray[np.uint64]) -> Ints:
    """For every row (n,) the first row with the same key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    out: Ints = first[inverse].astype(np.int64)
    return out


def contradictory(keys: NDArray[np.uint64], labels: Column) -> Bools:
    """Rows (n,) that agree with another in everything but the label."""
    first = copies(keys)
    both = copies(_mixed(keys ^ _mixed(value_keys(labels) * _MIX)))
    differs = np.zeros(len(keys), dtype=bool)
    differs[first[both != both[first]]] = True
    out: Bools = differs[first]
    return out


def near_pairs(points: Floats, blocks: NDArray[np.uint64], radius: float, *, seed: int = 0) -> Ints:
    """Pairs (m, 2) of ``points`` (n, d) of one block that are at most ``radius`` apart; the smaller row first, each pair once.

    A pair that close is missed in fewer than 1 of 1000 cases, but in crowds: where more than a dozen rows share a cell, only
    those that are next to each other in one more projection are compared. Source: locality-sensitive hashing by Gaussian
    projections (Datar, Immorlica, Indyk, Mirrokni 2004), ten tables of six.
    """
    if not points.shape[1]:
        return np.empty((0, 2), dtype=np.int64)
    if len(whole := np.flatnonzero(np.isfinite(points).all(axis=1))) < len(points):  # what has gaps is near nothing
        return np.asarray(whole[near_pairs(points[whole], blocks[whole], radius, seed=seed)])
    draw = np.random.Generator(np.random.PCG64(seed))
    found = np.empty((0, 2), dtype=np.int64)
    for _ in range(_ROUNDS):
        seen = points @ draw.standard_normal((points.shape[1], _PROJECTIONS + 1)) / (_WIDTH * radius)
        cells = np.floor(seen[:, :-1] + draw.random(_PROJECTIONS)).astype(np.int64)
        keys = blocks.copy()
        for at in range(_PROJECTIONS):
            keys = _mixed(keys ^ _mixed(cells[:, at].view(np.uint64) + np.uint64(at)))
        pairs = _neighbours(keys, seen[:, -1])
        far = _distances(points, pairs)
        found = np.unique(np.concatenate([found, pairs[far <= radius]]), axis=0)
    return found


def near_duplicates(table: Table, columns: Sequence[str], *, seed: int = 0) -> Ints:
    """Pairs (m, 2) of rows that nearly agree and are no copies: text and categories alike, numbers but for ``NEAR``, pictures
    but for brightness, contrast and a little noise."""
    keys = row_keys(table, columns)
    alone = np.flatnonzero(copies(keys) == np.arange(len(table)))
    kept = table.rows(alone)
    pictures = [name for name in columns if kept.columns[name].ndim > 1]
    numbers = [name for name in columns if kept.columns[name].ndim == 1 and kept.columns[name].dtype.kind in "iuf"]
    rest = [name for name in columns if name not in {*pictures, *numbers}]
    if pictures:
        looks = np.concatenate([_look(kept.columns[name]) for name in pictures], axis=1)
        pairs = near_pairs(looks, row_keys(kept, [*rest, *numbers]), NEAR_PICTURES, seed=seed)
        whole = np.concatenate([kept.columns[name].reshape(len(kept), -1) for name in pictures], axis=1)
        return alone[pairs[_resemble(whole, pairs)]]
    if not numbers:
        return np.empty((0, 2), dtype=np.int64)
    points = np.stack([_standard(kept.columns[name]) for name in numbers], axis=1)
    return alone[near_pairs(points, row_keys(kept, rest), NEAR * math.sqrt(len(numbers)), seed=seed)]


def leak(train: Table, test: Table, columns: Sequence[str], *, seed: int = 0) -> Leak:
    """Which rows of ``test`` are rows of ``train``, judged by ``columns``, which both have and of one type."""
    both = Table({name: np.concatenate([train.columns[name], test.columns[name]]) for name in columns})
    late = np.arange(len(both)) >= len(train)
    first = copies(row_keys(both, columns))
    pairs = near_duplicates(both, columns, seed=seed)
    exact = ~late[first] & late
    across = pairs[late[first[pairs]].any(axis=1) & ~late[first[pairs]].all(axis=1)]
    near = np.isin(first, across[:, 1]) & late & ~exact
    return Leak(exact[late], near[late], *_by_chance(_components(first, pairs), late))


def _by_chance(groups: Ints, late: Bools) -> tuple[float, float]:
    """The share of test rows that would share a ``group`` (n,) with a training row if rows had been dealt out at random, and
    the chance that as many groups as here, or more, would be dealt to both.

    The chance that a group is dealt to both differs between groups; their mean bounds the tail (Hoeffding 1956, "On the
    distribution of the number of successes in independent trials").
    """
    sizes = np.bincount(groups)
    part = float(late.mean())
    many = sizes > 1
    if not many.any() or not 0.0 < part < 1.0:
        return 0.0, 1.0
    dealt = np.bincount(groups, weights=late)
    shared = int(((dealt > 0) & (dealt < sizes)).sum())
    big = sizes[many].astype(np.float64)
    chances = 1.0 - part**big - (1.0 - part) ** big
    expected = float((big * part * (1.0 - part ** (big - 1.0))).sum()) / float(late.sum())
    return expected, binomial_tail(shared, int(many.sum()), float(chances.mean()))


def _components(first: Ints, pairs: Ints) -> Ints:
    """For every row (n,) the smallest row that copies (``first``) and ``pairs`` (m, 2) connect it with."""
    found = first.copy()
    while True:
        low = np.minimum(found[pairs[:, 0]], found[pairs[:, 1]])
        before = found.copy()
        for side in (0, 1):
            np.minimum.at(found, pairs[:, side], low)
        found = np.minimum(found, found[found])[first]
        if (found == before).all():
            return found


def identifying(column: Column, name: str = "") -> bool:
    """Whether every row (n,) has a value of its own that names it, as numbers of rows, customers and transactions do.

    Measurements can be all different, too, and so can remarks: whole numbers name rows if that they are all different is no
    accident in a range as wide (the birthday bound), if they only rise or fall, or if they have eight digits or more and all as
    many; text if it has no spaces. The column's ``name`` may say so. Below 20 rows nothing does.
    """
    if column.ndim > 1 or len(column) < LEAST_ROWS or column.dtype.kind == "b":
        return False
    if column.dtype.kind == "f" and (not np.isfinite(column).all() or (column != np.floor(column)).any()):
        return False
    if len(np.unique(value_keys(column))) < len(column):
        return False
    if words_of(name) & _KEYS:
        return True
    if column.dtype.kind == "O":
        return all(one is not None and len(one) <= _LONGEST_KEY and " " not in one for one in column.tolist())
    values = column.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    steps = np.diff(values)
    as_many = low >= 10**7 and len(str(int(low))) == len(str(int(high)))
    accident = math.exp(-0.5 * len(values) ** 2 / max(high - low, 1.0))
    return bool(accident < _NO_ACCIDENT or as_many or (steps > 0).all() or (steps < 0).all())


def same_columns(table: Table, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of columns that say the same: each value of one goes with one value of the other. Columns of one value are left
    out, and those where most rows have their own."""
    codes = {name: _first_seen(value_keys(table.columns[name])) for name in names if table.columns[name].ndim == 1}
    groups: dict[bytes, str] = {}
    found = []
    for name, code in codes.items():
        if not 0 < code.max() < len(code) // 2:
            continue
        known = groups.setdefault(code.tobytes(), name)
        if known != name:
            found.append((known, name))
    return found


def telling(table: Table, names: Sequence[str], label: Column, *, seed: int = 0) -> tuple[Telling, ...]:
    """How well each column alone tells the ``label``, the best first. What a value tells is how labels lie among the other rows
    that have it (five folds); a label of more than 50 numbers is told by its rank, ``score`` being the share of variance that
    is told."""
    fold = np.random.Generator(np.random.PCG64(seed)).permutation(len(table)) % _FOLDS
    ranked = label.dtype.kind == "f" and len(np.unique(label[~np.isnan(label)])) > 50
    ranks, classes = _ranks(label) if ranked else np.empty(0), np.unique(value_keys(label), return_inverse=True)[1]

    def score(name: str) -> float:
        codes = _binned(table.columns[name])
        return _variance_told(codes, ranks, fold) if ranked else _labels_told(codes, classes.astype(np.int64), fold)

    found = [Telling(name, score(name)) for name in names if table.columns[name].ndim == 1]
    return tuple(sorted(found, key=lambda one: -one.score))


# -- keys and cells --


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: a bijection in which every bit depends on every other."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: NDArray[np.uint64] = keys ^ (keys >> np.uint64(31))
    return out


def _neighbours(keys: NDArray[np.uint64], place: Floats) -> Ints:
    """Pairs of rows with the same key, fewer than ``_MOST_IN_CELL`` places apart by ``place`` among those."""
    order = np.lexsort((place, keys))
    same = keys[order]
    pairs = []
    for apart in range(1, _MOST_IN_CELL):
        at = np.flatnonzero(same[apart:] == same[:-apart])
        if not len(at):
            break
        pairs.append(np.stack([order[at], order[at + apart]], axis=1))
    found = np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)
    out: Ints = np.sort(found, axis=1).astype(np.int64)
    return out


def _distances(points: Floats, pairs: Ints) -> Floats:
    parts = [
        np.sqrt(((points[part[:, 0]] - points[part[:, 1]]) ** 2).sum(axis=1))
        for part in np.array_split(pairs, max(1, len(pairs) // _ROWS_AT_ONCE))
    ]
    return np.concatenate(parts)


def _standard(column: Column) -> Floats:
    """A column less its median, over a robust deviation; missing values stand far from all others."""
    middle, spread = spread_of(column)
    values = (column.astype(np.float64) - middle) / spread
    out: Floats = np.where(np.isnan(values), -_FAR, np.clip(values, -_FAR, _FAR))
    return out


def _look(pictures: Column) -> Floats:
    """Pictures (n, height, width[, channels]) or other tensors as unit vectors: means of 8 x 8 tiles, less their mean."""
    grey = pictures.astype(np.float64)
    grey = grey.mean(axis=tuple(range(3, grey.ndim))) if grey.ndim > 3 else grey
    if grey.ndim == 3:
        high, wide = grey.shape[1:]
        rows = np.linspace(0, high, min(_SIDE, high) + 1).astype(int)[:-1]
        places = np.linspace(0, wide, min(_SIDE, wide) + 1).astype(int)[:-1]
        sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), places, axis=2)
        grey = sums / (np.diff([*rows, high])[:, None] * np.diff([*places, wide])[None, :])
    return _unit(grey.reshape(len(grey), -1))


def _unit(flat: Floats) -> Floats:
    centred = flat - flat.mean(axis=1, keepdims=True)
    out: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return out


def _resemble(flat: Column, pairs: Ints) -> Bools:
    """Which pairs of whole pictures are correlated as near ones are: their unit vectors within ``NEAR_PICTURES``."""
    told = [
        np.linalg.norm(_unit(flat[part[:, 0]].astype(np.float64)) - _unit(flat[part[:, 1]].astype(np.float64)), axis=1)
        for part in np.array_split(pairs, max(1, len(pairs) // _ROWS_AT_ONCE))
    ]
    out: Bools = np.concatenate(told) <= NEAR_PICTURES
    return out


# -- columns --


def _first_seen(keys: NDArray[np.uint64]) -> Ints:
    """Values numbered in the order in which they first come."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    out: Ints = number[inverse]
    return out


def _binned(column: Column) -> Ints:
    """A column as a few whole numbers: its values where they are few, else quantiles; a missing value is one of its own."""
    keys = value_keys(column)
    distinct, codes = np.unique(keys, return_inverse=True)
    if len(distinct) <= _BINS or column.dtype.kind == "O":
        return np.asarray(codes, dtype=np.int64)
    values = column.astype(np.float64)
    cuts = np.unique(np.nanquantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    out: Ints = np.where(np.isnan(values), len(cuts) + 1, np.searchsorted(cuts, values, side="left")).astype(np.int64)
    return out


def _ranks(label: Column) -> Floats:
    values = label.astype(np.float64)
    out: Floats = np.searchsorted(np.sort(values), values) / len(values)
    return out


def _labels_told(codes: Ints, labels: Ints, fold: Ints) -> float:
    """The larger of two shares, out of fold: of the errors of the most frequent label, and of the uncertainty (in bits)."""
    width, classes, rows = int(codes.max()) + 1, int(labels.max()) + 1, len(labels)
    cell = codes * classes + labels
    every = np.bincount(cell, minlength=width * classes)
    right, bits = 0, 0.0
    for one in range(_FOLDS):
        held = fold == one
        counts = (every - np.bincount(cell[held], minlength=width * classes)).reshape(width, classes).astype(np.float64)
        prior = counts.sum(axis=0) + 1.0
        counts += prior / prior.sum()  # the law of all labels, worth one row, where a value was seldom seen
        chosen = counts[codes[held]]
        right += int((chosen.argmax(axis=1) == labels[held]).sum())
        bits -= float(np.log2(chosen[np.arange(len(chosen)), labels[held]] / chosen.sum(axis=1)).sum())
    base = np.bincount(labels) / rows
    if base.max() == 1.0:
        return 0.0
    entropy = -float((base[base > 0] * np.log2(base[base > 0])).sum())
    return max(0.0, 1.0 - (1.0 - right / rows) / (1.0 - float(base.max())), 1.0 - bits / rows / entropy)


def _variance_told(codes: Ints, target: Floats, fold: Ints) -> float:
    width = int(codes.max()) + 1
    error = 0.0
    for one in range(_FOLDS):
        held = fold == one
        counts = np.bincount(codes[~held], minlength=width)
        sums = np.bincount(codes[~held], weights=target[~held], minlength=width)
        guess = np.where(counts > 0, sums / np.maximum(counts, 1), target[~held].mean())
        error += float(((guess[codes[held]] - target[held]) ** 2).sum())
    total = float(((target - target.mean()) ** 2).sum())
    return max(0.0, 1.0 - error / total) if total else 0.0
