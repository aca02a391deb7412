"""What a suspect is asked beside what accounts asked: rows of a pool that the log has from before the keys, or as they come."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.app.arrays import load_rows
from modelkeep.core.values import ReleaseRef, digest_of
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.extraction.probes import DRAWN, Pool, draw_pool, draw_probes, drawn, probe_seed
from modelkeep.extraction.profile import Profile
from modelkeep.workflows.decisions import LoggedPool
from modelkeep.workflows.tracereport import LEAST_SIGNIFICANT, Pooled

Rows = NDArray[np.float64]

PROBES = ("data", "theirs", "beacon", "log")
LONGEST_BEACON = 4096


class Asked(NamedTuple):
    """What a trace is asked for. ``probes``: an npz file of natural rows, else they are drawn of the release's own pool;
    ``beacon``: what draws them, a value that nobody knew when the suspect was fixed, b"" = the suspect alone; ``significance``:
    of corrected p-values; ``report``: make the files that somebody else can run it by; ``seen``: Unix nanoseconds by which the
    suspect was there, 0 = nothing is known of its age but what the log says; ``theirs``: the other side chose the probes."""

    probes: bytes = b""
    beacon: bytes = b""
    significance: float = 1e-3
    report: bool = False
    seen: int = 0
    theirs: bool = False

    def probing(self) -> "Probing":
        """Where the probes come from. Raises Invalid."""
        if len(self.beacon) > LONGEST_BEACON:
            raise Invalid(f"a beacon has at most {LONGEST_BEACON:,} bytes")
        if self.theirs and (self.beacon or not self.probes):
            raise Invalid(
                "probes that the other side chose are rows of theirs, all of which are asked: give those, and no beacon"
            )
        if self.probes:
            return Probing("theirs" if self.theirs else "data", load_rows(self.probes, "the probes"), self.beacon)
        return Probing("beacon" if self.beacon else "log", beacon=self.beacon)

    def check(self, now: int) -> None:
        """Raises Invalid: it accuses too easily, or the suspect was seen after ``now``."""
        if not 0.0 < self.significance <= LEAST_SIGNIFICANT:
            raise Invalid(f"the significance of a trace is above 0 and at most {LEAST_SIGNIFICANT:g}")
        if not 0 <= self.seen <= now:
            raise Invalid("the suspect was seen at a time that has not come yet")


class Probing(NamedTuple):
    """Where probes come from: ``rows`` that the owner (how = ``data``) or the other side (``theirs``) handed in, or the
    release's pool, by a ``beacon`` (``beacon``) or by the suspect alone (``log``)."""

    how: str
    rows: Rows | None = None
    beacon: bytes = b""

    def said(self, given: bytes) -> str:
        """What the report says of them. ``given``: the file with the rows."""
        return str(digest_of(given)) if self.rows is not None else self.beacon.hex()


class Drawn(NamedTuple):
    """Probes ``x`` (m, d), and what shows where they come from; None where nothing does."""

    x: Rows
    pooled: Pooled | None = None


class Pools:
    """The pools of rows that probes for suspects of a release are drawn of. ``logged``: those that were handed in and logged,
    by release and root."""

    def __init__(
        self, evidence: ReleaseEvidence, profile: Profile, logged: Mapping[tuple[str, str], LoggedPool], first: int
    ) -> None:
        """``first``: index of the log entry that said first what the profile is."""
        self._evidence, self._profile, self._logged, self._first = evidence, profile, logged, first

    def draw(self, probing: Probing, suspect: bytes) -> Drawn:
        """Probes for the suspect with this SHA-256. Raises Invalid (rows of another width), NotTrusted (the log has another
        pool)."""
        rows = probing.rows
        if rows is not None and rows.shape[1] != self._profile.n_features:
            raise Invalid(
                f"the probes have {rows.shape[1]} values a row, and {self._evidence.ref} takes {self._profile.n_features}"
            )
        if rows is not None:
            found = self._handed_in(probing)
            return Drawn(rows) if found is None else _of(Pool(rows), found.index, probing.beacon, suspect)
        said = None if self._evidence.profile is None else self._evidence.profile.trace
        if said is None:
            return Drawn(draw_probes(self._profile, DRAWN, probe_seed(probing.beacon, suspect)))
        pool = draw_pool(self._profile.embedding, said.rows)
        if pool.root != said.pool:
            raise NotTrusted(
                f"the log says of {self._evidence.ref} that its probes are drawn of another pool: {said.pool[:16]}…"
            )
        return _of(pool, self._first, probing.beacon, suspect)

    def check_reportable(self, probing: Probing) -> None:
        """Raises Invalid: these probes prove nothing to anybody else."""
        if probing.how == "data" and self._handed_in(probing) is None:
            raise Invalid(
                "a report on rows of your own choice proves nothing, for you know the keys: log them first ('modelkeep "
                "log-probes'), let them be drawn (leave --probes out), or say that the other side chose them (--probe theirs)"
            )
        if probing.how in ("beacon", "log") and (self._evidence.profile is None or self._evidence.profile.trace is None):
            raise Invalid(
                f"the log has no pool of probes for {self._evidence.ref}, which an earlier version published: have the other "
                "side choose rows (--probe theirs), or, for keys from then on, log some ('modelkeep log-probes', 'renew-mark')"
            )

    def _handed_in(self, probing: Probing) -> LoggedPool | None:
        if probing.how != "data" or probing.rows is None:
            return None
        return self._logged.get((str(self._evidence.ref), Pool(probing.rows).root))


def parse_pool(ref: ReleaseRef, probes: bytes, most: int) -> Pool:
    """The pool in an npz file. Raises Invalid (too many rows, or none)."""
    pool = Pool(load_rows(probes, "the probes"))
    if len(pool) > most:
        raise Invalid(f"a pool of probes for {ref} has at most {most:,} rows, and this one has {len(pool):,}")
    return pool


def _of(pool: Pool, entry: int, beacon: bytes, suspect: bytes) -> Drawn:
    index = drawn(beacon, pool.root, len(pool), suspect)
    return Drawn(pool.rows[index].astype(np.float64), Pooled(pool.root, len(pool), entry, index, pool.paths(index)))
