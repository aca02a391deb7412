"""Which accounts' questions are alike: short sketches, groups found on half of space and tested on the other half.

For investigation, and never evidence by itself. Two radii: *copies*, rows within measurement noise of each other, which show
accounts that ask the same; and *steps*, rows as near as an honest account's own are rarely, which show accounts that walk one
line or one neighbourhood between them (a line search or an augmentation dealt round).

A question's locality-sensitive names are cells of random projections (Datar, Immorlica, Indyk, Mirrokni 2004, p-stable LSH);
an account's sketch is the smallest of their hashes, bottom-k (Cohen and Kaplan 2007), from which the Jaccard similarity of two
accounts is estimated. Space is cut in stripes along one direction; groups are chosen by what lies in the even stripes, and the
mean similarity within a group is then tested on the odd ones, against groups of as many accounts drawn at random.

Null: all accounts draw their questions independently and from one population, so that a group which was chosen elsewhere is
like any other. The p-value of one group is at most x with probability at most x then, and the corrected one (Bonferroni over
all groups of both radii) for any of them. Colleagues who work on the same cases are rightly found: what that means, a person
must say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Names = NDArray[np.uint64]

TABLES = 4
"""Names of one question."""
PROJECTIONS = 8
KEPT = 1024
"""Names in a sketch."""
STRIPE = 1.0
"""Radii across one stripe of space: of two places a radius apart one in seven pairs is cut."""
MIN_SHARED = 4
MIN_SIMILAR = 0.02
USUAL = 3.0
"""Two accounts are linked by at least so many names, so much of all that they have, and so many times what is usual."""
LARGEST = 64
"""Accounts of one group; a larger one, or one that hangs together by chains, is cut by asking for more similarity."""
COMMON = 200
"""A name that more accounts have says nothing of any two."""
DRAWS = 4999
"""Random groups that one is compared with."""


@dataclass(frozen=True, slots=True)
class Alike:
    """A group of accounts that ask alike. ``how``: "copies" or "steps"; ``similarity``: mean Jaccard similarity of its pairs on
    the half that was tested; ``usual``: that of random groups; ``p``: before and ``corrected``: after Bonferroni."""

    how: str
    accounts: tuple[str, ...]
    similarity: float
    usual: float
    p: float
    corrected: float


def halves(places: Floats, radius: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each place (n, d) lies in an even stripe of space. The same ``rng`` state cuts the same stripes."""
    direction = rng.normal(size=places.shape[1])
    along = places @ (direction / np.linalg.norm(direction))
    even: NDArray[np.bool_] = np.floor(along / (STRIPE * radius) + rng.random()) % 2 == 0
    return even


def local_names(places: Floats, radius: float, rng: np.random.Generator) -> Names:
    """Names (n, 4) of places (n, d): places within ``radius`` mostly share some, those much further apart none.

    The same ``rng`` state gives the same names.
    """
    d = places.shape[1]
    cells = np.empty((len(places), TABLES, PROJECTIONS), dtype=np.int64)
    for table in range(TABLES):
        directions = rng.normal(size=(d, PROJECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        cells[:, table] = np.floor(places @ directions / radius + rng.random(PROJECTIONS))
    factors = rng.integers(1, 2**63, size=(TABLES, PROJECTIONS), dtype=np.uint64) | np.uint64(1)
    mixed = (cells.astype(np.uint64) * factors).sum(axis=2, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the order of names says nothing of where they are
    out: Names = mixed ^ (mixed >> np.uint64(29))
    return out


def sketch(names: Names) -> Names:
    """The bottom-k sketch of an account's names: its smallest distinct ones, ascending."""
    out: Names = np.unique(names)[:KEPT]
    return out


def shared_names(sketches: Sequence[Names]) -> NDArray[np.int64]:
    """How many names each two of ``sketches`` (n) share, shape (n, n), those that are too common left out."""
    owners = np.repeat(np.arange(len(sketches)), [len(one) for one in sketches])
    names = np.concatenate([*sketches, np.empty(0, dtype=np.uint64)])
    order = np.argsort(names, kind="stable")
    names, owners = names[order], owners[order]
    out = np.zeros((len(sketches), len(sketches)), dtype=np.int64)
    for who in np.split(owners, np.flatnonzero(names[1:] != names[:-1]) + 1):
        if 1 < len(who) <= COMMON:
            out[np.ix_(who, who)] += 1
    np.fill_diagonal(out, 0)
    return out


def similarities(sketches: Sequence[Names], shared: NDArray[np.int64]) -> Floats:
    """Jaccard similarity, shape (n, n), estimated from sketches and what they share."""
    sizes = np.array([len(one) for one in sketches], dtype=np.int64)
    out: Floats = shared / np.maximum(sizes[:, None] + sizes - shared, 1)
    return out


def find_groups(shared: NDArray[np.int64], similar: Floats) -> list[tuple[int, ...]]:
    """Groups of accounts that are linked with each other, directly or through others; no account is in two."""
    out: list[tuple[int, ...]] = []
    if len(similar) < 2:
        return out
    usual = float(np.median(similar[np.triu_indices(len(similar), 1)]))
    waiting = [(list(range(len(similar))), MIN_SIMILAR + USUAL * usual)]
    while waiting:
        members, least = waiting.pop()
        for group in _connected(members, (shared >= MIN_SHARED) & (similar >= least)):
            within = similar[np.ix_(group, group)].sum() / (len(group) * (len(group) - 1))
            if len(group) <= LARGEST and within >= least:
                out.append(tuple(group))
            elif least < 1.0:
                waiting.append((group, 1.5 * least))
    return sorted(out)


def _connected(members: Iterable[int], linked: NDArray[np.bool_]) -> list[list[int]]:
    """Connected parts of two accounts or more."""
    left, out = set(members), []
    while left:
        group, edge = set[int](), [left.pop()]
        while edge:
            at = edge.pop()
            group.add(at)
            beside = left.intersection(np.flatnonzero(linked[at]).tolist())
            left -= beside
            edge += beside
        if len(group) > 1:
            out.append(sorted(group))
    return out


def weigh_group(group: Sequence[int], similar: Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean similarity of a group's pairs, that of random groups of its size, and the p-value. ``similar``: of the other half.

    p = (1 + #{random groups that are as alike}) / (draws + 1) (Phipson and Smyth 2010).
    """
    pairs = np.array(list(combinations(range(len(group)), 2)))
    members = np.array(group)
    mine = float(similar[members[pairs[:, 0]], members[pairs[:, 1]]].mean())
    drawn = np.array([rng.choice(len(similar), len(group), replace=False) for _ in range(DRAWS)])
    others = similar[drawn[:, pairs[:, 0]], drawn[:, pairs[:, 1]]].mean(axis=1)
    return mine, float(others.mean()), (1.0 + float((others >= mine).sum())) / (DRAWS + 1.0)


def find_alike(asked: Mapping[str, Floats], radii: Mapping[str, float], seed: int) -> list[Alike]:
    """Groups of accounts that ask alike, the most certain first.

    ``asked``: places (n, d) of each account's distinct questions; ``radii``: by name, such as {"copies": 0.2, "steps": 1.5}.
    Deterministic in ``seed``.
    """
    subjects, found = sorted(asked), []
    for number, (how, radius) in enumerate(sorted(radii.items())):
        if not radius > 0.0 or not np.isfinite(radius):
            continue
        sides: tuple[list[Names], list[Names]] = ([], [])
        for subject in subjects:
            even = halves(asked[subject], radius, np.random.default_rng((seed, number, 0)))
            names = local_names(asked[subject], radius, np.random.default_rng((seed, number, 1)))
            sides[0].append(sketch(names[even]))
            sides[1].append(sketch(names[~even]))
        chosen = shared_names(sides[0])
        groups = find_groups(chosen, similarities(sides[0], chosen))
        other = similarities(sides[1], shared_names(sides[1]))
        rng = np.random.default_rng((seed, number, 2))
        found += [(how, tuple(subjects[i] for i in group), *weigh_group(group, other, rng)) for group in groups]
    alike = [Alike(how, who, mine, usual, p, min(1.0, p * len(found))) for how, who, mine, usual, p in found]
    return sorted(alike, key=lambda one: (one.p, -one.similarity, one.accounts))
