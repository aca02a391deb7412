"""Many accounts at once, in lock-step: what the guard holds about each, vectorised over accounts.

For calibration and benchmarks, where thousands of accounts ask thousands of queries each. The guard itself takes queries as
they come; a test holds the two to the same decisions, but that a crowd does not look for drift.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction import eprocess, null, places
from modelkeep.extraction.accounts import FAR, REMEMBERED
from modelkeep.extraction.evidence import fingerprints, with_own
from modelkeep.extraction.guard import MIN_EFFECTIVE
from modelkeep.extraction.places import Places
from modelkeep.extraction.profile import Hidden, Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Rows made ready to be asked by many: ``names`` (n,), ``places`` (n, 32), ``events`` (n, score streams)."""

    names: NDArray[np.uint64]
    places: NDArray[np.float32]
    events: NDArray[np.bool_]

    @classmethod
    def of(cls, profile: Profile, x: Floats, probs: Floats | None, hidden: Hidden = None) -> "Asked":
        """Rows ``x`` (n, d) with the model's own answers ``probs`` (n, k), and coordinates ``hidden`` (n, r) of an inner layer
        where the profile looks at one, as the guard would see them."""
        found = Places(profile.embedding).of(x)
        own = np.zeros((len(x), places.DIMENSIONS), dtype=np.float32)
        own[:, : found.shape[1]] = found
        return cls(fingerprints(x), own, profile.events(x, probs, hidden))


class Crowd:
    """So many accounts of one release, each of which asks one query a ``step``.

    ``value``: (accounts,) the evidence (M + R) / 2 of each; ``highest``: its largest so far, where it is enforced on;
    ``effective``: distinct queries; ``alarmed_at``: queries asked at the alarm, 0 without one.
    """

    def __init__(self, profile: Profile, accounts: int, *, alpha: float = 1e-3) -> None:
        self._bets = eprocess.make_bets(profile.kappa)
        self._near, self._steps, self._beside, self._alpha = profile.near, profile.step_limits, profile.beside, alpha
        count = len(self._bets.stream)
        self._kept, self._restarted = np.ones((accounts, count)), np.zeros((accounts, count))
        self._names = np.zeros((accounts, REMEMBERED), dtype=np.uint64)
        self._own = np.full((accounts, null.OWN, places.DIMENSIONS), FAR, dtype=np.float16)
        self.value, self.highest = np.full(accounts, 0.5), np.zeros(accounts)
        self.effective = np.zeros(accounts, dtype=np.int64)
        self.alarmed_at = np.zeros(accounts, dtype=np.int64)
        self.queries = 0

    def step(self, asked: Asked, rows: Ints) -> None:
        """Account i asks row ``rows[i]`` of ``asked``. Raises Invalid (not one row an account)."""
        if rows.shape != self.value.shape:
            raise Invalid(f"{len(self.value)} accounts ask one row each, not {rows.shape}")
        self.queries += 1
        fresh = np.flatnonzero(~(self._names == asked.names[rows][:, None]).any(axis=1))
        if not len(fresh):
            return
        mine = rows[fresh]
        apart = self._own[fresh].astype(np.float32) - asked.places[mine][:, None, :]
        nearest = np.sqrt(np.einsum("aij,aij->ai", apart, apart).min(axis=1).astype(np.float64))
        told = nearest > self._near
        fresh, mine, nearest = fresh[told], mine[told], nearest[told]
        since = self.effective[fresh]
        self._names[fresh, since % REMEMBERED] = asked.names[mine]
        self._own[fresh, since % null.OWN] = asked.places[mine]
        events = with_own(asked.events[mine], nearest, self._steps, self._beside)
        self._kept[fresh], self._restarted[fresh] = eprocess.step(
            self._kept[fresh], self._restarted[fresh], self._bets.factors(events), since
        )
        self.value[fresh] = eprocess.evidence(self._kept[fresh], self._restarted[fresh])
        self.effective[fresh] = since + 1
        judged = fresh[self.effective[fresh] >= MIN_EFFECTIVE]
        self.highest[judged] = np.maximum(self.highest[judged], self.value[judged])
        alarm = judged[(self.value[judged] >= 1.0 / self._alpha) & (self.alarmed_at[judged] == 0)]
        self.alarmed_at[alarm] = self.queries
