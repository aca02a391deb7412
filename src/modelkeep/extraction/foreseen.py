"""How a suspect of two classes would answer an account's questions had it learnt clean answers, foreseen from what came before.

A copy that does not fit its answers errs by more than the mark, but it errs much as any other copy of these questions does. So
the questions are divided by time. Boosted trees that learnt the model's clean answers to the questions before a part foresee
the suspect there, by a line that is fitted on the parts before it, too; what is left over is read for marks. Nothing of a later
question is used, nor any key, so that the martingale of ``trace`` holds also when an account chose its questions by earlier
answers, in the order in which they are handed in.

Sources: Friedman 2001, "Greedy function approximation", algorithm 2 (least squares); Huber 1964, "Robust estimation of a
location parameter" (scores that large residuals do not rule).
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PART, GROWTH = 200, 0.1
"""Questions of a part: so many, and at least such a share of all that came before it. The first part is not read. How many
questions there are in all has no say, for an account may stop by what it was answered."""
ROWS = 4000
"""Questions that the trees learn from, at most: the last ones before a part."""
TREES, DEPTH, BINS = 50, 6, 32
COLUMNS = 128
"""That one tree looks at, at most: of wider rows each tree sees others."""
_RATE, _LEAF = 0.2, 20
_GROUPS, _STEADY = 8, 5.0
"""Groups of questions, by how hard they are, and how many questions the typical error counts for in each."""
_ROBUST, _SMALL = 1.5, 1e-4
"""Usual errors at which a surprise is cut off, and the least error that is usual."""


def surprises(asked: tuple[Floats, Floats, Floats], probes: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """What was not foreseen of each answer, from -1 to 1, and the error that is usual there, (n,) each; 0 in the first part.

    ``asked``: distinct questions (n, d) in the order in which they were asked, what the model answers to them without a mark,
    (n, 2), and what the suspect does, (n, 2); ``probes``: rows (m, d) that no key has to do with, and the model's answers.
    Positive where the suspect gives the class that is not on top more than was foreseen.
    """
    x, clean, read = asked
    rows, other = np.arange(len(x)), 1 - clean.argmax(axis=1)
    said, heard = clean[rows, other], read[rows, other]
    cuts = _cuts(len(x))
    copied = np.empty(len(x))
    for start, end in pairwise(cuts):
        some = slice(max(0, start - ROWS), start)
        known, told = (x[some], clean[some, 1]) if start else (probes[0], probes[1][:, 1])
        guess = boosted(known, told, x[start:end])
        copied[start:end] = np.where(other[start:end] == 1, guess, 1.0 - guess)
    gaps = copied - said
    terms = np.stack([np.ones(len(x)), said, said**2, gaps], axis=1)
    left, error = np.zeros(len(x)), np.ones(len(x))
    for start, end in pairwise(cuts[1:]):
        before, here = slice(0, start), slice(start, end)
        line = _line(terms[before], heard[before] - said[before])
        left[here] = heard[here] - said[here] - terms[here] @ line
        past = heard[before] - said[before] - terms[before] @ line
        hard = said + np.abs(gaps)
        error[here] = _usual(hard[before], past, hard[here])
    return np.clip(left / (_ROBUST * error), -1.0, 1.0), error


def _cuts(count: int) -> list[int]:
    """Where the parts of ``count`` questions begin and end, 0 and ``count`` among them."""
    cuts = [0]
    while cuts[-1] < count:
        cuts.append(min(count, cuts[-1] + max(PART, int(GROWTH * cuts[-1]))))
    return cuts


def _line(terms: Floats, wanted: Floats) -> Floats:
    square = terms.T @ terms + 1e-3 * np.eye(terms.shape[1])
    return np.asarray(np.linalg.solve(square, terms.T @ wanted), dtype=np.float64)


def _usual(hard: Floats, errors: Floats, here: Floats) -> Floats:
    """The usual size of ``errors`` (n,) among those that were as ``hard`` (n,) as each is ``here`` (m,), (m,). Large errors
    count less."""
    squares = errors**2
    typical = float(np.median(squares)) / 0.45  # a normal variable's squares have the median .455
    squares = np.minimum(squares, 18.0 * typical)
    edges = np.quantile(hard, np.linspace(0.0, 1.0, _GROUPS + 1)[1:-1])
    group = np.digitize(hard, edges)
    sums, counts = np.bincount(group, squares, _GROUPS), np.bincount(group, minlength=_GROUPS)
    mean = (sums + _STEADY * typical) / (counts + _STEADY)
    out: Floats = np.maximum(np.sqrt(mean[np.digitize(here, edges)]), _SMALL)
    return out


def boosted(known: Floats, told: Floats, rows: Floats) -> Floats:
    """What boosted trees that learnt the numbers ``told`` (n,) of ``known`` rows (n, d), n >= 1, say of ``rows`` (m, d), (m,).
    The same on every machine but for rounding."""
    edges = [_edges(column) for column in known.T]
    varied = [at for at, edge in enumerate(edges) if len(edge)]
    out, left = np.full(len(rows), told.mean()), told - told.mean()
    if not varied:
        return out
    learnt, asked = (
        np.stack([np.searchsorted(edges[at], some[:, at]) for at in varied]).astype(np.int64) for some in (known, rows)
    )
    sizes = np.array([len(edges[at]) + 1 for at in varied])
    step = -(-len(varied) // COLUMNS)
    least = int(np.clip(len(known) // _LEAF, 2, _LEAF))
    for tree in range(TREES):
        seen = np.arange(tree % step, len(varied), step)
        leaf, reached = _grow(learnt[seen], asked[seen], sizes[seen], left, least)
        counts = np.bincount(leaf, minlength=1 << DEPTH)
        values = _RATE * np.bincount(leaf, left, 1 << DEPTH) / np.maximum(counts, 1)
        left, out = left - values[leaf], out + values[reached]
    return out


def _edges(column: Floats) -> Floats:
    """Where a column may be cut: between its values where they are few, else at its quantiles; nowhere if it has one value."""
    values = np.unique(column)
    if len(values) > BINS:
        values = np.unique(np.quantile(column, np.linspace(0.0, 1.0, BINS + 1), method="lower"))
    out: Floats = (values[:-1] + values[1:]) / 2
    return out


def _grow(learnt: Ints, asked: Ints, sizes: Ints, left: Floats, least: int) -> tuple[Ints, Ints]:
    """One tree: the leaf of each row that it learns from, (n,), and of each that it is asked about, (m,).

    ``learnt``, ``asked``: bins (d, n), (d, m); ``sizes``: bins of each column; ``least``: rows of a leaf. The histograms of all
    columns lie one behind the other.
    """
    width, total = len(learnt), int(sizes.sum())
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    column = np.repeat(np.arange(width), sizes)
    place, sought = learnt + starts[:, None], np.tile(left, width)
    leaf, reached = np.zeros(learnt.shape[1], dtype=np.int64), np.zeros(asked.shape[1], dtype=np.int64)
    for level in range(DEPTH):
        nodes = 1 << level
        at = (place + total * leaf).ravel()
        moved = np.bincount(at, sought, nodes * total).reshape(nodes, total)
        sums = _running(moved.astype(np.float64), starts, column)
        found = np.bincount(at, minlength=nodes * total).reshape(nodes, total)
        counts = _running(found.astype(np.float64), starts, column)
        whole, all_rows = sums[:, sizes[0] - 1, None], counts[:, sizes[0] - 1, None]
        rest, others = whole - sums, all_rows - counts
        gain = sums**2 / np.maximum(counts, 1.0) + rest**2 / np.maximum(others, 1.0) - whole**2 / np.maximum(all_rows, 1.0)
        gain[(counts < least) | (others < least)] = 0.0
        best = gain.argmax(axis=1)
        chosen, cut = column[best], best - starts[column[best]]
        cut[gain[np.arange(nodes), best] <= 0.0] = BINS + 1  # no row lies above it
        leaf = 2 * leaf + (learnt[chosen[leaf], np.arange(len(leaf))] > cut[leaf])
        reached = 2 * reached + (asked[chosen[reached], np.arange(len(reached))] > cut[reached])
    return leaf, reached


def _running(values: Floats, starts: Ints, column: Ints) -> Floats:
    """Running sums (nodes, total) within each column."""
    sums = np.asarray(values.cumsum(axis=1), dtype=np.float64)
    out: Floats = sums - (sums[:, starts] - values[:, starts])[:, column]
    return out
