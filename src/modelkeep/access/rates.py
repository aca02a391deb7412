"""What is limited: for each thing that is counted, so many units a second and so many at once.

Two units. *Requests* guard the gateway itself: an account, a credential and an address may send so many. *Rows* guard the
models: what one account, everybody together, or one account of one model may ask costs its rows (or the time that they take
the model), so that a batch of 500 weighs 500.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

ACCOUNT, KEY, ADDRESS = "account", "key", "address"
ROWS, TIME, MODEL, ACCOUNT_MODEL = "rows", "time", "model", "account-model"
IN_FLIGHT = "in-flight"
REQUESTS = "requests"

_NO_OVERRIDES: Mapping[str, "Override"] = {}


class Rate(NamedTuple):
    """``per_second`` units on average, at most ``burst`` at once. ``name``: what clients are told the limit is called.

    ``share``: part of what is usual that this is, for an account on a higher rung of the extraction ladder.
    """

    name: str
    per_second: float
    burst: float
    unit: str = REQUESTS
    share: float = 1.0

    def lowered(self, share: float) -> "Rate":
        """This limit for an account that has only ``share`` of it; one unit at once always passes."""
        return self._replace(per_second=self.per_second * share, burst=max(1.0, self.burst * share), share=share)

    @property
    def window(self) -> float:
        """Seconds in which all of the burst comes back."""
        return self.burst / self.per_second

    @property
    def terms(self) -> str:
        """The parameters of this limit in a RateLimit-Policy field: ``burst`` units in a window of whole seconds.

        Source: draft-ietf-httpapi-ratelimit-headers-11, section 3.1. Its registry of units knows requests only.
        """
        other = "" if self.unit == REQUESTS else f';modelkeep-unit="{self.unit}"'
        return f"q={math.floor(self.burst)};w={max(1, math.ceil(self.window))}{other}"


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What one account, credential or model is allowed instead; None: as everybody. ``cost``: what a row of a model weighs."""

    rate: float | None = None
    burst: float | None = None
    cost_rate: float | None = None
    cost_burst: float | None = None
    cost: float = 1.0


_AS_USUAL = Override()


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """All limits of a gateway. A rate of 0 limits nothing.

    ``timed``: a row costs the milliseconds that the model takes for it, instead of 1. ``accounts`` (by name), ``keys`` (by
    credential id), ``models`` (by name): exceptions.
    """

    account: tuple[float, float] = (100.0, 200.0)
    key: tuple[float, float] = (0.0, 200.0)
    address: tuple[float, float] = (0.0, 2000.0)
    cost: tuple[float, float] = (0.0, 8192.0)
    model: tuple[float, float] = (0.0, 8192.0)
    account_model: tuple[float, float] = (0.0, 8192.0)
    timed: bool = False
    accounts: Mapping[str, Override] = _NO_OVERRIDES
    keys: Mapping[str, Override] = _NO_OVERRIDES
    models: Mapping[str, Override] = _NO_OVERRIDES

    def of_account(self, name: str) -> Rate | None:
        """Requests of one account."""
        special = self.accounts.get(name, _AS_USUAL)
        return _rate(ACCOUNT, self.account, special.rate, special.burst)

    def of_key(self, credential: str) -> Rate | None:
        """Requests with one credential. ``credential``: ``key:<id>``, or what else it is counted under."""
        special = self.keys.get(credential.removeprefix("key:"), _AS_USUAL)
        return _rate(KEY, self.key, special.rate, special.burst)

    def of_address(self) -> Rate | None:
        """Requests and connections from one address."""
        return _rate(ADDRESS, self.address, None, None)

    def of_cost(self, account: str) -> Rate | None:
        """What one account may ask of all models together."""
        special = self.accounts.get(account, _AS_USUAL)
        name = TIME if self.timed else ROWS
        return _rate(name, self.cost, special.cost_rate, special.cost_burst, self._unit)

    def of_model(self, model: str) -> Rate | None:
        """What everybody together may ask of one model."""
        special = self.models.get(model, _AS_USUAL)
        return _rate(MODEL, self.model, special.rate, special.burst, self._unit)

    def of_account_model(self, model: str) -> Rate | None:
        """What one account may ask of one model."""
        special = self.models.get(model, _AS_USUAL)
        return _rate(ACCOUNT_MODEL, self.account_model, special.cost_rate, special.cost_burst, self._unit)

    def row_cost(self, model: str, row_seconds: float) -> float:
        """Units that one row of ``model`` weighs; ``row_seconds``: what it was measured to take."""
        special = self.models.get(model, _AS_USUAL)
        return special.cost * row_seconds * 1000.0 if self.timed else special.cost

    @property
    def _unit(self) -> str:
        return "milliseconds" if self.timed else "rows"


def _rate(name: str, usual: tuple[float, float], rate: float | None, burst: float | None, unit: str = REQUESTS) -> Rate | None:
    per_second, at_once = usual[0] if rate is None else rate, usual[1] if burst is None else burst
    return _made(name, per_second, at_once, unit) if per_second > 0 else None


@functools.lru_cache(maxsize=1024)
def _made(name: str, per_second: float, burst: float, unit: str) -> Rate:
    """One object for all who have the same limit."""
    return Rate(name, per_second, burst, unit)
