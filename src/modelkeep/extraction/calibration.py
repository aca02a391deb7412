"""The null over people and tools that publish did not know: bounds from recorded queries, and what they cost.

Bounds only rise: over the publish-time families, over each declared tool's rows, and over each stretch of what real accounts
asked. No account widens the null alone, unless an operator vouches for it: of all others the second widest counts, stream by
stream, so that a thief who waits for the next calibration needs a second account that is as odd as he is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction import eprocess, evidence, null
from modelkeep.extraction.accounts import FAR, REMEMBERED
from modelkeep.extraction.features import margin
from modelkeep.extraction.paces import MAX_PAIRS
from modelkeep.extraction.places import Places
from modelkeep.extraction.profile import MIN_CALIBRATION, Hidden, Profile

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of far-out questions among an account's, for which the cost of a null is told."""
PATIENCE = 500
"""Distinct queries within which the smallest detectable share is asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What one account asked, in order: ``x`` (n, d), the model's own answers ``probs`` (n, k), and of a profile with an inner
    layer its coordinates ``hidden`` (n, r). ``vouched``: an operator says that it is honest, by its name or by a review."""

    subject: str
    x: Floats
    probs: Floats
    vouched: bool = False
    hidden: Hidden = None


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """New bounds ``kappa`` (streams,). ``accounts``: how many counted; ``short``: those with too few distinct queries;
    ``widest``: by subject, on how many streams its rate set the bound."""

    kappa: Floats
    accounts: int
    short: tuple[str, ...]
    widest: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Price:
    """What a null costs: for ``share`` of far-out questions the distinct queries to the alarm, 0 = never found."""

    share: float
    before: int
    after: int


def smallest_stretch(profile: Profile) -> int:
    """Distinct queries of an account over which its rates are taken: as many as the null's narrowest account is wide."""
    return math.ceil(null.smallest_account(profile.counts[3]))


def over_people(profile: Profile, people: Sequence[Recorded]) -> Fitted:
    """The profile's bounds, raised over what real accounts asked.

    Each account is cut into stretches of ``smallest_stretch`` distinct queries (the last one longer), each a user session
    with rates of its own. Accounts with fewer are left out. Raises Invalid (other columns than the profile's).
    """
    size = smallest_stretch(profile)
    bounds: dict[str, Floats] = {}
    short = []
    for one in people:
        events = new_events(profile, one.x, one.probs, one.hidden)
        if len(events) < size:
            short.append(one.subject)
            continue
        bounds[one.subject] = _stretched(events, size)
    trusted = {one.subject for one in people if one.vouched} & bounds.keys()
    others = {subject: bound for subject, bound in bounds.items() if subject not in trusted}
    kappa = profile.kappa.copy()
    for subject in trusted:
        kappa = np.maximum(kappa, bounds[subject])
    if len(others) > 1:
        kappa = np.maximum(kappa, np.sort(np.stack(list(others.values())), axis=0)[-2])
    moved = kappa > profile.kappa
    widest = {subject: int((moved & (bound >= kappa)).sum()) for subject, bound in bounds.items()}
    return Fitted(kappa, len(bounds), tuple(short), {subject: count for subject, count in widest.items() if count})


def over_tool(profile: Profile, x: Floats, probs: Floats | None, seed: int, hidden: Hidden = None) -> Floats:
    """The profile's bounds (streams,), raised over accounts that send rows ``x`` (n, d) of a tool, in the order in which it
    sends them, with the model's answers ``probs`` (n, k) and the coordinates ``hidden`` (n, r) of an inner layer.

    Every account of the null is covered with the tool's rows in place of the reference rows: any mix of classes,
    subpopulations and segments of them, and the tool's own order. Deterministic in ``seed``. Raises Invalid (too few rows).
    """
    rows, first = np.unique(np.asarray(x, dtype=np.float64), axis=0, return_index=True)
    if len(rows) < MIN_CALIBRATION:
        raise Invalid(f"{len(rows)} distinct rows of a tool are too few to bound what it does: give at least {MIN_CALIBRATION}")
    rng = np.random.default_rng(seed)
    answers = None if probs is None or probs.shape[1] < 2 else np.asarray(probs, dtype=np.float64)[first]
    seen = None if hidden is None else hidden[first]
    weights = null.accounts(_pool(profile, rows, answers), rng)
    spread = 1.0 / (weights**2).sum(axis=1)
    events = _score_events(profile, rows, answers, seen).astype(np.float64)
    scored = null.bound(weights @ events, spread)
    stepped = _mixed_steps(profile, rows, weights, events)
    in_order = new_events(profile, x, probs, hidden)
    ordered = _stretched(in_order, smallest_stretch(profile)) if len(in_order) else np.zeros(len(profile.kappa))
    out: Floats = np.maximum.reduce([profile.kappa, np.concatenate([scored, stepped]), ordered])
    return np.minimum(out, 0.999)


def new_events(profile: Profile, x: Floats, probs: Floats | None, hidden: Hidden = None) -> Bools:
    """The events (queries that count, streams) of one account that asks ``x`` (n, d) in this order, as the guard sees them.

    Exact repeats and near repeats do not count. Raises Invalid (other columns than the profile's).
    """
    if x.ndim != 2 or x.shape[1] != profile.n_features:
        raise Invalid(f"the rows have {x.shape[-1]} values each, and the profile is of {profile.n_features}")
    answers = None if probs is None or probs.shape[1] < 2 else np.asarray(probs, dtype=np.float64)
    names, places = evidence.fingerprints(x), Places(profile.embedding).of(x).astype(np.float32)
    scored = _score_events(profile, x, answers, hidden)
    known: dict[int, None] = {}
    own = np.full((null.OWN, places.shape[1]), FAR, dtype=np.float16)
    out: list[Bools] = []
    for i, name in enumerate(names.tolist()):
        if name in known:
            continue
        apart = own.astype(np.float32) - places[i]
        nearest = math.sqrt(float(np.einsum("ij,ij->i", apart, apart).min()))
        if nearest <= profile.near:
            continue
        own[len(out) % null.OWN] = places[i]
        known[name] = None
        if len(known) > REMEMBERED:
            del known[next(iter(known))]
        out.append(evidence.with_own(scored[i], nearest, profile.step_limits, profile.beside))
    return np.array(out, dtype=np.bool_).reshape(len(out), len(profile.kappa))


def prices(before: Floats, after: Floats, alpha: float) -> tuple[Price, ...]:
    """What the bounds ``after`` cost, against ``before``: for a few shares of questions that are beyond every honest row."""
    return tuple(
        Price(share, queries_to_alarm(before, share, alpha), queries_to_alarm(after, share, alpha)) for share in SHARES
    )


def smallest_share(kappa: Floats, alpha: float) -> float:
    """The smallest share of far-out questions, in steps of 1 %, that is found within ``PATIENCE`` expected queries; 1.0 when
    none is."""
    for percent in range(1, 101):
        if 0 < queries_to_alarm(kappa, percent / 100.0, alpha) <= PATIENCE:
            return percent / 100.0
    return 1.0


def queries_to_alarm(kappa: Floats, share: float, alpha: float) -> int:
    """Expected distinct queries until an account is alarmed of whose questions ``share`` give the rarest event; 0 = never.

    Wald's equation for the best single bet, which is one of many: (ln 1/alpha + ln 2 bets) / growth. Shares are those of the
    event of the stream with the smallest bound.
    """
    bets = eprocess.make_bets(kappa)
    if not len(bets.stream):
        return 0
    mine = bets.stream == kappa.argmin()
    growth = share * np.log(bets.up[mine]) + (1.0 - share) * np.log(bets.down[mine])
    best = float(growth.max(initial=0.0))
    return 0 if best <= 0.0 else math.ceil((math.log(1.0 / alpha) + math.log(2.0 * len(bets.stream))) / best)


def _stretched(events: Bools, size: int) -> Floats:
    """Bounds (streams,) over the stretches of one account."""
    cuts = range(size, max(len(events) - size, 0) + 1, size)
    parts = np.split(events, list(cuts))
    rates = np.stack([part.mean(axis=0) for part in parts])
    return null.bound(rates, np.array([float(len(part)) for part in parts]))


def _score_events(profile: Profile, x: Floats, probs: Floats | None, hidden: Hidden) -> Bools:
    return profile.events(x, probs, hidden)


def _mixed_steps(profile: Profile, rows: Floats, weights: Floats, events: Floats) -> Floats:
    """Bounds of the steps (taus,), and of what is beside an own question (taus,), of accounts that draw the tool's rows in any
    order. ``events``: (n, score streams) as 0/1."""
    points = Places(profile.embedding).of(rows[:MAX_PAIRS])
    apart = np.stack([np.sqrt(((points - point) ** 2).sum(axis=1)) for point in points])
    share = weights[:, : len(points)]
    kept = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    spread = 1.0 / (kept**2).sum(axis=1)
    wide = spread >= 0.9 * null.smallest_account(len(points))
    rates = [null.step_rates(kept[wide], apart, profile.near, profile.step_limits)]
    if profile.beside:
        odd = events[: len(points), -len(profile.taus) :]
        rates.append(null.beside_rates(kept[wide], apart, (profile.near, profile.beside), odd, {"what-if": odd}))
    return np.concatenate([null.bound(some, spread[wide]) for some in rates])


def _pool(profile: Profile, rows: Floats, probs: Floats | None) -> null.Pool:
    white = profile.embedding.project(rows)[1] / profile.embedding.spread
    if probs is None:
        return null.Pool(white[:, :16], np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows)))
    return null.Pool(white[:, :16], probs.argmax(axis=1), margin(probs))
