"""What several replicas were granted and used, as they wrote it down, and whether it keeps the promise (P6, P5).

``python lease_history.py URL FILE RECORDS`` is one such replica, until FILE.over is there. Times are of CLOCK_MONOTONIC, which
all processes of a machine share.
"""

import asyncio
import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from modelkeep.access.leases import Leases, largest
from modelkeep.access.limits import Limits
from modelkeep.access.rates import Rates
from modelkeep.adapters.clock import SystemEntropy
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.core.values import Principal
from modelkeep.errors import OverBudget, Unavailable

RATES = Rates(account=(40.0, 80.0), cost=(60.0, 120.0))
ALICE = Principal("alice", "sub_1", ("analyst",), "key:1", ())
LIMITS = {found.name: found for found in (RATES.of_account("alice"), RATES.of_cost("alice")) if found is not None}
LEASE = 1.0
"""Seconds after which nobody may live on what was granted before (P5)."""
MARGIN = 0.15
"""Seconds of grace for what took place at about the time of a fault."""


class Line(NamedTuple):
    """``kind``: use, grant, refused, down. ``start``, ``end``: when it was asked for and had. ``units`` of ``limit``, negative
    when they were given back."""

    kind: str
    start: float
    end: float
    limit: str = ""
    units: float = 0.0


class Break(NamedTuple):
    """A fault: ``lost`` (the store forgot) or ``silent`` (it does not answer); from ``start`` until ``end``."""

    kind: str
    start: float
    end: float


def most_above(uses: Iterable[tuple[float, float, float]], rate: float) -> float:
    """The largest, over every window, of the units used in it less ``rate`` times its length.

    ``uses``: (start, end, units), each of which took place somewhere between its start and its end. In order of their ends,
    those from the i-th to the j-th took place between the earliest start from the i-th on and the end of the j-th: a window
    that is never too short, so that nothing is found that need not be so.
    """
    ordered = sorted(uses, key=lambda use: use[1])
    earliest = list(itertools.accumulate((use[0] for use in reversed(ordered)), min))[::-1]
    most, before, lowest = 0.0, 0.0, math.inf
    for (_, end, units), start in zip(ordered, earliest, strict=True):
        lowest = min(lowest, before - rate * start)
        before += units
        most = max(most, before - rate * end - lowest)
    return most


def faults(lines: Sequence[Line], breaks: Sequence[Break], replicas: int) -> list[str]:
    """Everything in the history that breaks the promise, in words."""
    found = []
    for name, rate in LIMITS.items():
        for kind, spare in (("grant", 0.0), ("use", replicas * largest(rate))):
            mine = [(line.start, line.end, line.units) for line in lines if (line.kind, line.limit) == (kind, name)]
            most = most_above(mine, rate.per_second)
            if most > rate.burst + spare + 1e-3:
                found.append(f"{kind} of {name}: {most:.1f} above the rate, allowed are {rate.burst + spare:g}")
        for one in (one for one in breaks if one.kind == "lost"):
            opens = one.end + rate.window
            for line in lines:
                if (
                    line.limit == name
                    and line.kind == "grant"
                    and line.units > 0
                    and one.end < line.start
                    and line.end < opens - MARGIN
                ):
                    found.append(f"{line.units:g} of {name} granted {line.end - one.end:.2f} s after it was lost")
                if (
                    line.limit == name
                    and line.kind == "use"
                    and one.end + LEASE + MARGIN < line.start
                    and line.end < opens - MARGIN
                ):
                    found.append(f"{line.units:g} of {name} used {line.end - one.end:.2f} s after it was lost")
    for one in breaks:
        if one.kind == "silent":
            late_uses = [
                line for line in lines if line.kind == "use" and one.start + LEASE + MARGIN < line.start and line.end < one.end
            ]
            found += [f"{line.units:g} of {line.limit} used {line.end - one.start:.2f} s into silence" for line in late_uses]
    return found


def read(path: Path) -> list[Line]:
    """The history that replicas wrote; a line that was cut off by a kill is none."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(Line(*json.loads(text)))
        except ValueError:
            continue
    return lines


class Replica:
    """Writes down what it is granted and what it uses."""

    def __init__(self, place, path: Path) -> None:
        self._place = place
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *line: object) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def grant(self, wants):
        start = time.monotonic()
        found = self._place.grant(wants)
        for want, given in zip(wants, found.given, strict=True):
            self.note("grant", start, time.monotonic(), want.name.partition("/")[0], given.units)
        return found

    def give_back(self, epoch, units) -> None:
        for want, count in units:  # before it is so: it may be granted to somebody else before the answer is here
            now = time.monotonic()
            self.note("grant", now, now, want.name.partition("/")[0], -count)
        self._place.give_back(epoch, units)

    def close(self) -> None:
        self._place.close()

    async def ask(self, limits: Limits, over: Path) -> None:
        while not over.exists():
            start = time.monotonic()
            try:
                await limits.admit(ALICE, "key:1")
                self.note("use", start, time.monotonic(), "account", 1.0)
                await limits.take(ALICE, "risk", 2.0)
                self.note("use", start, time.monotonic(), "rows", 2.0)
            except OverBudget:
                self.note("refused", start, time.monotonic())
            except Unavailable:
                self.note("down", start, time.monotonic())
            await asyncio.sleep(0.004)


def main(url: str, path: str, records: str) -> None:
    from modelkeep.access.epochs import KeptEpoch
    from modelkeep.adapters.state.redis import RedisAllowances

    place = RedisAllowances(url, "keep.example/history", KeptEpoch(SqliteRecords(Path(records))), SystemEntropy())
    replica = Replica(place, Path(path))
    leases = Leases(replica, time.monotonic)
    limits = Limits(time.monotonic, RATES, cells=leases)
    leases.start()

    async def run() -> None:
        await asyncio.gather(*(replica.ask(limits, Path(f"{path}.over")) for _ in range(3)))

    asyncio.run(run())
    with contextlib.suppress(Unavailable):
        leases.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
