"""From queries to events: conformal p-values, thresholded, of scores that are large for synthetic rows.

p = (1 + #{reference scores >= s}) / (n + 1) is at most tau with probability at most tau for a row exchangeable with the
reference rows, whatever the score (Vovk, Gammerman, Shafer 2005, proposition 2.8). An exact repeat of one of the account's
last 1,024 queries, and a row within the declared measurement noise of one of its last 128, is no new query and gives no
evidence.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TAUS = (0.1, 0.03, 0.01, 0.003, 0.001)
SCORES = ("synthetic", "far", "margin", "synthetic+far", "trees")
BESIDE = 0.5
"""An own question is beside another when it is as near as the nearest of this share of honest ones."""


def fingerprints(x: Floats) -> NDArray[np.uint64]:
    """A 64-bit name of each canonical row (float32, no negative zero): equal rows, equal names. Zero is never a name."""
    rows = np.ascontiguousarray(x, dtype=np.float32) + np.float32(0.0)
    digests = b"".join([hashlib.blake2b(row, digest_size=8).digest() for row in rows])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64) | np.uint64(1)


def p_values(scores: Floats, reference: Floats) -> Floats:
    """Conformal p-values. ``scores``: (b, s); ``reference``: (s, n), each row ascending. Shape (b, s)."""
    n = reference.shape[1]
    above = np.stack([n - np.searchsorted(row, scores[:, s], side="left") for s, row in enumerate(reference)], axis=1)
    out: Floats = (1.0 + above) / (n + 1.0)
    return out


def usable_taus(n: int) -> tuple[float, ...]:
    """The levels that ``n`` reference rows can reach: those with tau (n + 1) >= 1, and 1 / (n + 1) when none of the small ones
    can.
    """
    reached = [tau for tau in TAUS if tau * (n + 1) >= 1.0]
    if reached and reached[-1] > 0.003 and reached[-1] * (n + 1) >= 2.0:
        reached.append(1.0 / (n + 1))
    return tuple(reached)


def thresholds(reference: Floats, taus: tuple[float, ...]) -> Floats:
    """Scores above which p <= tau, shape (s, taus). ``reference``: (s, n), ascending."""
    n = reference.shape[1]
    at = [n - allowed(n, tau) - 1 for tau in taus]
    return reference[:, at]


def allowed(n: int, tau: float) -> int:
    """How many of ``n`` reference scores may be >= s while p <= tau still."""
    return int(np.floor(tau * (n + 1) + 1e-9)) - 1


def with_own(scored: Bools, nearest: Floats | float, steps: Floats, beside: float) -> Bools:
    """All events of queries: ``scored`` (..., score streams), then *step* at each limit of ``steps`` (taus,), and *beside*: the
    events of the last score, the trees, of those nearer than ``beside`` (0: there are no such streams).

    ``nearest``: (...), distance to the nearest of the account's last queries. Shape (..., streams).
    """
    apart = np.asarray(nearest)[..., None]
    parts = [scored, apart < steps]
    if beside:
        parts.append(scored[..., -len(steps) :] & (apart < beside))
    return np.concatenate(parts, axis=-1)


def own_events(reference: Floats, taus: tuple[float, ...]) -> Bools:
    """Events of the reference rows themselves, each judged by the others. ``reference``: (s, n), in row order. (s, taus, n)."""
    n = reference.shape[1]
    order = np.sort(reference, axis=1)
    above = np.stack([n - np.searchsorted(order[s], reference[s], side="left") - 1 for s in range(len(reference))])
    return np.stack([above <= allowed(n, tau) for tau in taus], axis=1)
