"""Queries of many accounts, made ready, charged and compared with what each account asked last, all accounts at once.

What an account asks is judged by what it asked before. So its queries are taken in turns (``turns``), and the arithmetic of a
turn is done for all accounts together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction import budget, null, places
from modelkeep.extraction.accounts import Account, Accounts
from modelkeep.extraction.evidence import with_own
from modelkeep.extraction.places import Places
from modelkeep.extraction.profile import Hidden, Profile
from modelkeep.extraction.turns import turns

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Batch(NamedTuple):
    """Queries as they came: ``names`` (b,), ``x`` (b, d), the model's answers (b, k), coordinates of the inner layer (b, r)."""

    names: NDArray[np.uint64]
    x: Floats
    probs: Floats | None
    hidden: Hidden


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Queries made ready: places (b, 32), score events (b, streams), phi (b, 24) and w (b,)."""

    own: NDArray[np.float32]
    events: Bools
    phi: NDArray[np.float32]
    w: Floats

    def joined(self, other: "Queries") -> "Queries":
        """These, then the ``other`` ones."""
        return Queries(
            np.concatenate([self.own, other.own]),
            np.concatenate([self.events, other.events]),
            np.concatenate([self.phi, other.phi]),
            np.concatenate([self.w, other.w]),
        )


class Ready(NamedTuple):
    """``queries`` of a batch that were no exact repeat when it began; ``rows``: where each of them is, by its place there."""

    queries: Queries
    rows: dict[int, int]


class Found(NamedTuple):
    """Places in a batch of the queries that were no exact repeat (``asked``), and of those that were no near one either and so
    are evidence (``told``), each account's in their order; ``events``: (told, streams)."""

    asked: list[int]
    told: list[int]
    events: Bools


class Examiner:
    """Examines queries by one profile, ``most`` at once. Not thread-safe: the guard's lock is held."""

    def __init__(self, profile: Profile, accounts: Accounts, most: int) -> None:
        self._profile, self._accounts = profile, accounts
        self._places = Places(profile.embedding)
        self._apart = np.empty((most, null.OWN, places.DIMENSIONS), dtype=np.float32)  # kept: a new one costs more than its use

    def prepare(self, batch: Batch, chosen: list[int]) -> Ready:
        """The queries ``chosen`` of a batch, made ready."""
        return Ready(self._prepare(batch, chosen), dict(zip(chosen, range(len(chosen)), strict=True)))

    def _prepare(self, batch: Batch, chosen: list[int]) -> Queries:
        profile, x, probs = self._profile, batch.x[chosen], batch.probs
        answers = None if probs is None or probs.shape[1] < 2 else np.asarray(probs, dtype=np.float64)[chosen]
        hidden = None if profile.layer is None or batch.hidden is None else batch.hidden[chosen]
        if not chosen:
            own, phi = np.empty((0, places.DIMENSIONS), np.float32), np.empty((0, budget.DIMENSIONS), np.float32)
            return Queries(own, np.empty((0, profile.limits.size), np.bool_), phi, np.empty(0))
        projected = profile.embedding.project(x)[1]
        found = self._places.of(x)
        own = np.zeros((len(x), places.DIMENSIONS), dtype=np.float32)
        own[:, : found.shape[1]] = found
        return Queries(
            own=own,
            events=profile.events(x, answers, hidden),
            phi=budget.spend_features(profile.embedding, projected).astype(np.float32),
            w=budget.weight_of(answers, len(x)),
        )

    def take(self, subjects: Sequence[str], accounts: Mapping[str, Account], batch: Batch, ready: Ready) -> Found:
        """Charge every query that is no exact repeat, and compare it with its account's last ones, which it then joins."""
        names, near = batch.names.tolist(), self._profile.near
        queries, rows = ready.queries, dict(ready.rows)
        taken: dict[str, set[int]] = {subject: set() for subject in accounts}
        asked: list[int] = []
        told: list[int] = []
        apart: list[float] = []
        for turn in turns(subjects):
            new: list[int] = []
            for i in turn:
                mine = taken[subjects[i]]
                if names[i] in mine or (i not in rows and (not mine or accounts[subjects[i]].remembers(batch.names[i]))):
                    continue
                new.append(i)
                if i not in rows:  # it was a repeat, until others of this batch pushed out what it repeats
                    queries, rows[i] = queries.joined(self._prepare(batch, [i])), len(queries.w)
            asked += new
            for i, nearest in zip(new, self._nearest(subjects, new, queries.own, rows), strict=True):
                if nearest > near:
                    self._accounts.remember(subjects[i], batch.names[i], queries.own[rows[i]])
                    taken[subjects[i]].add(names[i])
                    told.append(i)
                    apart.append(nearest)
        charged, row = [accounts[subjects[i]] for i in asked], [rows[i] for i in asked]
        nats = budget.spend_each([one.inverse for one in charged], queries.phi[row], queries.w[row])
        for account, cost in zip(charged, nats, strict=True):
            account.spent += cost
        scored = queries.events[[rows[i] for i in told]]
        return Found(asked, told, with_own(scored, np.array(apart), self._profile.step_limits, self._profile.beside))

    def _nearest(
        self, subjects: Sequence[str], turn: list[int], own: NDArray[np.float32], rows: Mapping[int, int]
    ) -> list[float]:
        """How far each query of a ``turn`` is from the nearest of its account's last ones. ``own``: places, by ``rows``."""
        apart = self._apart[: len(turn)]
        for i, out in zip(turn, apart, strict=True):
            np.subtract(self._accounts.places(subjects[i]), own[rows[i]], out=out)
        square = np.minimum.reduce(np.einsum("aij,aij->ai", apart, apart), axis=1)
        return [math.sqrt(one) for one in square.tolist()]
