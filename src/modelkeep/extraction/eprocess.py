"""The anytime-valid test: bets on events that are rare for every honest account, and never settled against one for long.

Null: for every stream (score, tau), P(event at query t | the past) <= kappa(stream), for an account's distinct queries. A
bet with q > kappa multiplies its stake by q / kappa on an event and by (1 - q) / (1 - kappa) otherwise, which is a
supermartingale under the whole composite null. M is the equal mixture of all bets from the first query on; R restarts them
at every query, R_t = e_t (R_{t-1} + w_t), so that a sleeper's honest past does not protect him. Both have expectation at
most 1 at any stopping time, hence by Ville's inequality P(sup_t (M_t + R_t) / 2 >= 1 / alpha) <= alpha.

Sources: Ville 1939; Shafer 2021, "Testing by betting"; Shin, Ramdas, Rinaldo 2024, "E-detectors" (the restart, here with
summable weights so that the lifetime error is bounded).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.turns import turns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RATES = (0.02, 0.035, 0.06, 0.1, 0.2, 0.4, 0.7, 0.93)
CEILING = 1e250
"""Stakes are cut here so that they never overflow; cutting only lowers evidence."""


@dataclass(frozen=True, slots=True, eq=False)
class Bets:
    """All bets, side by side: ``stream`` (c,) index of the event each bets on, ``up`` and ``down`` (c,) its two factors."""

    stream: Ints
    up: Floats
    down: Floats

    def factors(self, events: Bools) -> Floats:
        """The factor of every bet for ``events`` (..., streams): shape (..., c)."""
        return np.where(events[..., self.stream], self.up, self.down)


def make_bets(kappa: Floats) -> Bets:
    """Bets against the bounds ``kappa`` (streams,). A stream whose bound exceeds 0.75 is not worth betting on."""
    stream, up, down = [], [], []
    for s, bound in enumerate(kappa):
        if not 0.0 < bound <= 0.75:
            continue
        for q in sorted({1.6 * bound, *RATES}):
            if 1.5 * bound < q < 0.97 or (bound > 0.6 and q == RATES[-1]):
                stream.append(s)
                up.append(q / bound)
                down.append((1.0 - q) / (1.0 - bound))
    return Bets(np.array(stream, dtype=np.int64), np.array(up), np.array(down))


def most_bets(streams: int) -> int:
    """No bounds on so many streams lead to more bets than this."""
    return streams * (len(RATES) + 1)


def restart_weight(t: Ints | int) -> Floats:
    """w_t = 1 / (2.2 (t + 2) ln²(t + 2)) for t = 0, 1, 2 ...; the whole series sums to less than 1."""
    n = np.asarray(t, dtype=np.float64) + 2.0
    out: Floats = 1.0 / (2.2 * n * np.log(n) ** 2)
    return out


def threshold(alpha: float, reviews: int, calibrations: int) -> float:
    """The evidence that accuses in one of the tests that follow each other on an account, or a cluster: after so many reviews
    and calibrations, each of which starts it anew.

    1 / threshold bounds the error of one test. Tests lie on one path, since each review and each calibration ends one; whatever
    the path, and however it depends on the past, its errors sum to at most 2 ``alpha``: 2^-j for reviews alone, and
    1 / (j + 1)^2 < 1.65 for calibrations alone. Over all pairs, on a path or not, they sum to less than 3.3 ``alpha``.
    """
    return 2.0**reviews * (calibrations + 1.0) ** 2 / alpha


def step(kept: Floats, restarted: Floats, factors: Floats, t: Ints | int) -> tuple[Floats, Floats]:
    """One query of one account, or of each of several.

    ``kept``, ``restarted``, ``factors``: (..., c); ``t``: (...), queries counted before. Returns the new stakes.
    """
    forward = np.minimum(kept * factors, CEILING)
    again = np.minimum((restarted + restart_weight(t)[..., None]) * factors, CEILING)
    return forward, again


def settle(stakes: Sequence[Floats], factors: Floats, t: Sequence[int]) -> Floats:
    """Queries of several accounts, in the order of each: ``step`` for all of them in place, and the ``evidence`` after each.

    ``stakes`` (n,): kept and restarted of whoever asked, (2, c), one and the same array for all queries of one account;
    ``factors``: (n, c); ``t`` (n,): queries of that account counted before the first of these. Shape (n,).
    """
    count, bets = factors.shape
    if not count or not bets:
        return np.ones(count)
    taken = turns([id(one) for one in stakes])
    order = [i for turn in taken for i in turn]
    times, added, after = factors[order, None].repeat(2, axis=1), np.zeros((count, 2, bets)), np.empty((count, 2, bets))
    added[:, 1] = [[_restart_weight(t[i] + number)] for number, turn in enumerate(taken) for i in turn]
    now, end = np.array([stakes[i] for i in taken[0]]), 0
    for size, run in groupby(taken, len):
        begin, end, now = end, end + size * len(list(run)), now[:size]
        parts = (part[begin:end].reshape(-1, size, 2, bets) for part in (added, times, after))
        for more, factor, here in zip(*parts, strict=True):
            now = np.add(now, more, out=here)
            now *= factor
            np.minimum(now, CEILING, out=now)
    for i, mine in zip(order, after, strict=True):  # the last of each account is what stays
        stakes[i][:] = mine
    out = np.empty(count)
    out[order] = after.reshape(count, -1).sum(axis=1) * (0.5 / bets)
    return out


@lru_cache(maxsize=4096)
def _restart_weight(t: int) -> float:
    n = t + 2.0
    return 1.0 / (2.2 * n * math.log(n) ** 2)


def evidence(kept: Floats, restarted: Floats) -> Floats:
    """(M + R) / 2 from stakes (..., c), shape (...): the number that is compared with 1 / alpha."""
    bets = kept.shape[-1]
    if bets == 0:
        return np.ones(kept.shape[:-1])
    out: Floats = np.asarray((kept.sum(axis=-1) + restarted.sum(axis=-1)) * (0.5 / bets))
    return out
