"""One verdict on the rows of a data set, of every method that what is given allows.

Two things are looked for. A **planted** row has a trigger: a model that learnt it is sure of its label (out of fold, too, for
the others taught it), while rows that look like it have another, or its fine grain drags other pictures to its label; and it
lies with its like in the features. A **mislabelled** row has a label that a model of the other rows does not believe.

What is flagged, and why honest rows seldom are:

- *planted*: rows that contradict their neighbours (or drag others) seed a clump in the features of their class. It is flagged
  whole, when two fifths of it or more are such rows, few of the others are, and both stand apart. Honest rows like that exist
  in every class; they are a few among many that are not, wherever the clump is drawn.
- *mislabelled*: a label whose probability is so low that drawing labels by the probabilities gives as low a one in at most 2 %
  of rows, and that noise put there with probability 0.3 or more. The noise is read from rows that cannot be of a class
  (``labels.floors``); where it would be more than 15 %, classes have no such rows, and the rule is the first part alone, at
  0.5 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.poison._inputs import Bools, Floats, Ints, features_of, labels_of, outlying, probabilities_of
from modelkeep.training.poison.clumps import Clump, grow
from modelkeep.training.poison.clusters import activation
from modelkeep.training.poison.labels import below, floors, pool, replaced, self_confidence
from modelkeep.training.poison.neighbours import isolation, nearest, votes
from modelkeep.training.poison.sources import excess, groups_of
from modelkeep.training.poison.spectra import main, quantum, signature

NEAREST = 15
DIRECTIONS = 48
"""Main directions of the rows that neighbours are looked for in."""
STRONG, MOST, FEW, APART = 0.5, 0.4, 0.2, 2.5
"""Of a planted clump: evidence of its seeds; share of such rows in it, at least, and among the others, at most; distance."""
LEAST, HONEST = 12, 0.002
"""Rows of a planted clump; honest ones that are flagged with it, as a share of all rows and as its two laws would have it."""
BUDGET, REPLACED, NOISE, STRICT = 0.02, 0.3, 0.15, 0.005
SOURCE = 1e-3
"""Chance of a source's suspected rows, times the number of sources, from which all are told to be looked at."""


@dataclass(frozen=True, eq=False)
class Suspicions:
    """What was found in n rows.

    ``scores``: by method, each (n,) from 0 to 1 and larger where it is worse; ``combined`` (n,): the order to look at rows in;
    ``flagged`` (n,): by the rules of the module; ``reasons``: which rows each rule flagged; ``sources``: the chance of each
    source's flagged rows; ``notes``: what was found, in sentences.
    """

    scores: Mapping[str, Floats]
    combined: Floats
    flagged: Bools
    reasons: Mapping[str, Bools]
    sources: Mapping[str, float]
    notes: tuple[str, ...]


def inspect(
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    probabilities: Floats | Sequence[Floats] | None = None,
    features: Floats | None = None,
    pull: Floats | None = None,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> Suspicions:
    """Look for planted and mislabelled rows among ``x`` (n, d) of numbers, or (n, ...) of pictures, with labels ``y`` (n,).

    Args:
        probabilities: out-of-fold ones (n, k), or several such of different models; without them, those of neighbours.
        features: (n, f) of the inner layer of a network that learnt from all rows; without them, the rows' own directions.
        pull: (n,) as ``training.lab.features.pull`` makes it, of pictures.
        groups: the source (n,) of each row.
        seed: of what is drawn (clusters, trees).
    Returns: see ``Suspicions``; the same for the same rows in another order, but for what is drawn.
    Raises: Invalid (shapes that do not fit, numbers that are not finite, fewer than 32 rows, one class alone).
    """
    y = labels_of(y)
    rows = features_of(x, len(y))
    if len(y) < 2 * NEAREST + 2 or y.min() == y.max():
        raise Invalid(f"rows are inspected from {2 * NEAREST + 2} on, and of two classes or more")
    plain = _plain(rows, scaled=np.ndim(x) == 2)
    near = y[nearest(plain, NEAREST)]
    told = _given(probabilities, y)
    voted = votes(near, y, told[0].shape[1] if told else int(y.max()) + 1)
    inner = plain if features is None else features_of(features, len(y))
    believed = pool([*told, voted], y)
    scores = {
        "neighbours": (near != y[:, None]).mean(axis=1),
        "mislabelled": self_confidence(believed, y),
        "signature": outlying(signature(inner, y), y),
        "quantum": outlying(quantum(inner, y), y),
        "activation": activation(inner, y, seed=seed),
    }
    if np.ndim(x) == 2:
        scores["isolation"] = isolation(plain, seed=seed)
    if told:
        scores["contradiction"] = (1.0 - self_confidence(pool(told, y), y)) * scores["neighbours"]
    if pull is not None:
        scores["pull"] = _fraction(pull, len(y))
    planted, clumped, notes = _planted(scores, inner, y)
    scores["planted"] = planted
    reasons = {"planted": clumped, "mislabelled": _mislabelled(believed, y) & ~clumped}
    flagged = clumped | reasons["mislabelled"]
    sources = {} if groups is None else excess(flagged, groups)
    for name, chance in sources.items():
        if chance <= SOURCE:
            notes.append(f"source {name[:80]}: more of its rows are flagged than of others (chance {chance:.1g})")
    if groups is not None:
        names, numbers = groups_of(groups, len(y))
        scores["source"] = np.array([1.0 - sources[str(name)] for name in names])[numbers]
    if reasons["mislabelled"].any():
        notes.append(f"{int(reasons['mislabelled'].sum()):,} labels that no model of the other rows believes")
    combined = np.maximum(0.9 * scores["mislabelled"], np.where(planted > 0.5, planted, 0.0))
    combined[clumped] = 0.9 + 0.1 * planted[clumped]
    return Suspicions(scores, combined, flagged, reasons, sources, tuple(notes))


# -- planted --


def _planted(scores: Mapping[str, Floats], inner: Floats, y: Ints) -> tuple[Floats, Bools, list[str]]:
    """Scores (n,), the rows of clumps that are flagged, and what is said of them."""
    kinds = [kind for kind in ("contradiction", "pull") if kind in scores]
    loose = np.mean([scores[kind] for kind in ("quantum", *kinds)], axis=0)
    planted, clumped, notes = 0.5 * loose, np.zeros(len(y), dtype=np.bool_), []
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        for kind in kinds:
            found = _clump(inner[rows], scores[kind][rows], scores["quantum"][rows])
            if found is None:
                continue
            inside = _flagged(found.share, HONEST * len(y))
            planted[rows] = np.maximum(planted[rows], 0.5 + 0.5 * _squashed(found.along))
            clumped[rows] |= inside
            notes.append(f"class {label}: {int(inside.sum()):,} of {len(rows):,} rows seem to share a trigger ({kind})")
    return planted, clumped, notes


def _clump(inner: Floats, evidence: Floats, quantum: Floats) -> Clump | None:
    """Of the clumps around rows with evidence, around those of them that are odd in the features, too, and around the twentieth
    of the class that is odd by both: the one that stands and holds most evidence, weaker rows counted against it.
    """
    both = evidence + quantum
    seeds = (evidence > STRONG, (evidence > STRONG) & (quantum > STRONG), both > np.quantile(both, 0.95))
    grown = [clump for clump in (grow(inner, each) for each in seeds) if clump is not None and _stands(clump, evidence)]
    return max(grown, key=lambda clump: float((evidence - STRONG)[clump.share > 0.5].sum()), default=None)


def _flagged(share: Floats, honest: float) -> Bools:
    """As many rows (n,) of a class, likeliest in the clump first, as have ``honest`` others among them, by their shares."""
    order = np.argsort(-share, kind="stable")
    inside = np.zeros(len(share), dtype=np.bool_)
    inside[order[np.cumsum(1.0 - share[order]) <= honest]] = True
    return inside


def _stands(found: Clump, evidence: Floats) -> bool:
    """Whether a clump is mostly of rows with evidence, the others are mostly not, and they are apart."""
    inside, strong = found.share > 0.5, evidence > STRONG
    if inside.sum() < LEAST or inside.all():
        return False
    return bool(strong[inside].mean() >= MOST and strong[~inside].mean() <= FEW and found.apart >= APART)


def _squashed(along: Floats) -> Floats:
    """Standard deviations as 0 ... 1: half at three."""
    far = np.maximum(along, 0.0)
    out: Floats = far / (far + 3.0)
    return out


# -- labels --


def _mislabelled(p: Floats, y: Ints) -> Bools:
    share, left = replaced(p, y)
    each = np.arange(len(y))
    if float(floors(p).sum()) > NOISE:
        out: Bools = p[each, y] <= below(p, STRICT)
    else:
        out = (left[each, y] <= below(left, BUDGET)) & (share >= REPLACED)
    return out


def _given(probabilities: Floats | Sequence[Floats] | None, y: Ints) -> list[Floats]:
    if probabilities is None:
        return []
    several = [probabilities] if isinstance(probabilities, np.ndarray) and probabilities.ndim == 2 else list(probabilities)
    if not several:
        raise Invalid("there are no probabilities")
    return [probabilities_of(each, y) for each in several]


def _plain(rows: Floats, *, scaled: bool) -> Floats:
    """Rows (n, d) along their main directions, after each column has the same variance if ``scaled``."""
    centred: Floats = rows - rows.mean(axis=0)
    if scaled:
        spread = centred.std(axis=0)
        centred = centred / np.where(spread > 0.0, spread, 1.0)
    if centred.shape[1] <= DIRECTIONS:
        return centred
    out: Floats = centred @ main(centred, DIRECTIONS)
    return out


def _fraction(pull: Floats, rows: int) -> Floats:
    found = np.asarray(pull, dtype=np.float64)
    if found.shape != (rows,) or not np.isfinite(found).all() or found.min() < 0.0 or found.max() > 1.0:
        raise Invalid(f"pull is {rows} numbers from 0 to 1")
    return found
