"""Where the probes of a trace report come from, checked without the keep: drawn of a pool that the log has from before the
keys."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import Digest, Resource, digest_bytes
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import NotTrusted
from modelkeep.extraction.probes import check_paths, drawn
from modelkeep.extraction.reading import Predict
from modelkeep.ledger.predicates import Act, TraceTerms
from modelkeep.ledger.proofs import check_proof
from modelkeep.ledger.statements import keep_resource, predicate_of
from modelkeep.workflows.decisions import POOL as POOL_ACT
from modelkeep.workflows.decisions import logged_pool
from modelkeep.workflows.tracereport import POOL, TraceReport

Floats = NDArray[np.float64]

MOST = 1 << 24
"""Rows of a pool: no statement of ours names more."""
_ROOT = re.compile("[0-9a-f]{64}")
_UNSHOWN = {
    "data": "rows that the owner handed in: who picks them with a key at hand can have them accuse anybody",
    "beacon": "drawn by a value that nobody knew when the suspect was fixed, as the report says",
    "log": "drawn by the suspect's digest, as the report says",
}


class Found(msgspec.Struct, frozen=True):
    """One thing that was checked: ``what``, and what was seen."""

    what: str
    seen: str


@dataclass(frozen=True, eq=False)
class Reader:
    """What the reader of a report knows of himself. ``suspect``: (b, d) to (b, k), to be asked again, its ``suspect_kind``
    (``onnx``, ``address``, ``function``) and ``suspect_digest``, of its file or of its name; ``seen``: Unix nanoseconds by
    which it was there; ``model``, ``model_digest``: the owner's model, as it was shown to him; ``beacon``: the value that is to
    draw the probes; ``rows``: probes (m, d) that the other side chose. None, "" or 0 where he knows nothing."""

    suspect: Predict | None = None
    suspect_kind: str = ""
    suspect_digest: Digest | None = None
    seen: int = 0
    model: Predict | None = None
    model_digest: Digest | None = None
    beacon: bytes | None = None
    rows: Floats | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A report that is checked: its ``files`` by name, the keep's public keys, what it says, and what its ``reader`` knows."""

    files: Mapping[str, bytes]
    root: TrustRoot
    signatories: Signatories
    said: TraceReport
    suspect: Resource
    model: Resource
    reader: Reader

    def file(self, name: str) -> bytes:
        """A file of the report that was signed. Raises NotTrusted."""
        if name not in self.said.files:
            raise NotTrusted(f"the report has no {name} that was signed with it")
        return self.files[name]


@dataclass(frozen=True)
class Fixed:
    """What the log says of the code before any key: in which entry, of which model file, and what else a trace goes by."""

    index: int
    model: Resource
    terms: TraceTerms | None


class Origin(NamedTuple):
    """Where probes come from. ``after``: log index behind which the keys must stand, -1 = none; ``shown``: of the report's
    caveats, what needs nobody's word."""

    found: tuple[Found, ...]
    after: int = -1
    shown: frozenset[str] = frozenset()


def check_origin(case: Case, probes: tuple[Floats, Mapping[str, NDArray[Any]]], fixed: Fixed | None) -> Origin:
    """Check what a report says of its probes: the rows (m, d) and the other arrays beside them. Raises NotTrusted."""
    x, arrays = probes
    about = case.said.probes
    if about.count != len(x):
        raise NotTrusted(f"the report has {len(x)} probes, and says that it has {about.count}")
    if not about.pool:
        return _as_they_came(case, x, fixed)
    if case.reader.rows is not None:
        raise NotTrusted("the probes of the report are drawn of a pool, and you say that the other side chose them")
    logged = _logged(case, fixed)
    if (about.pool, about.rows, about.entry) != logged or not 0 < about.rows <= MOST or not _ROOT.fullmatch(about.pool):
        raise NotTrusted(f"entry {logged[2]} of the log says nothing of the pool that the probes of the report are drawn of")
    beacon = _beacon(case.said, case.reader)
    index, paths = arrays.get("pool.index", np.empty(0)), arrays.get("pool.paths", np.empty(0))
    wanted = drawn(beacon, about.pool, about.rows, digest_bytes(case.suspect.digest))
    if index.dtype != np.int64 or not np.array_equal(index, wanted):
        raise NotTrusted("the probes of the report are not those that the beacon and the suspect draw of the pool")
    check_paths(x, index, paths, about.pool, about.rows)
    whose = "rows that the owner handed in, which" if about.how == "data" else "rows which"
    found = Found("probes", f"drawn again, of {about.rows:,} {whose} entry {about.entry} of the releases log says")
    words, vouched = _seed(case.said, case.reader)
    return Origin((found, Found("seed", words)), about.entry, frozenset({"probes", "seed"} if vouched else {"probes"}))


def _as_they_came(case: Case, x: Floats, fixed: Fixed | None) -> Origin:
    """Probes that are drawn of no pool: those that the reader himself has, or the owner's word."""
    how, reader = case.said.probes.how, case.reader
    if reader.beacon is not None:
        raise NotTrusted("no value draws the probes of the report, and you say that one is to")
    if reader.rows is not None:
        if not np.array_equal(reader.rows, x):
            raise NotTrusted("the probes of the report are not the rows that you say the other side chose")
        return Origin((Found("probes", "the rows that you say the other side chose"),), -1, frozenset({"probes", "seed"}))
    if how == "theirs":
        raise NotTrusted(
            "the report says that the other side chose its probes, which is for you to know: give these rows with --probes"
        )
    if how in ("beacon", "log") and fixed is not None and fixed.terms is not None:
        raise NotTrusted(f"entry {fixed.index} of the log says of which pool probes are drawn, and those of the report are not")
    return Origin((Found("probes", _UNSHOWN.get(how, "it does not say where they come from")),))


def _logged(case: Case, fixed: Fixed | None) -> tuple[str, int, int]:
    """Root and rows of the pool that the log says, and in which entry."""
    said, root = case.said, case.root
    if said.probes.how in ("beacon", "log"):
        if fixed is None or fixed.terms is None:
            raise NotTrusted("the report has no proof of what the log says of the pool that its probes are drawn of")
        return fixed.terms.pool, fixed.terms.rows, fixed.index
    if said.probes.how != "data" or POOL not in said.files:
        raise NotTrusted("the report has no proof of what the log says of the pool that its probes are drawn of")
    proof, _ = check_proof(case.file(POOL), root.releases_log, root.releases_origin)
    statement, _ = case.signatories.check(parse_envelope(proof.entry), proof.index)
    act = predicate_of(statement, Act)
    pool = logged_pool(act, proof.index) if act.verb == POOL_ACT else None
    if pool is None or act.about != said.release or statement.subject != (keep_resource(root.origin),):
        raise NotTrusted(f"entry {proof.index} of the log says nothing of a pool of probes for {said.release}")
    return pool.pool, pool.rows, pool.index


def _beacon(said: TraceReport, reader: Reader) -> bytes:
    """The value that is said to draw the probes. Raises NotTrusted: the report or the reader says another one."""
    about = said.probes
    try:
        beacon = bytes.fromhex(about.beacon)
    except ValueError as cause:
        raise NotTrusted("the report's beacon is not hex") from cause
    if (about.how == "beacon") != bool(beacon) and about.how != "data":
        raise NotTrusted(f"the report says that its probes are drawn by {about.how}, and its beacon is {about.beacon!r}")
    if about.how == "beacon" and about.said != about.beacon:
        raise NotTrusted("the report says two values that its probes are drawn by")
    if reader.beacon is not None and reader.beacon != beacon:
        raise NotTrusted("the probes of the report are drawn by another value than yours")
    return beacon


def _seed(said: TraceReport, reader: Reader) -> tuple[str, bool]:
    """By what the probes are drawn, in words, and whether the reader knows of himself that it was not picked among many."""
    by = "the value that you hold, and by the digest of" if said.probes.beacon else "the digest alone of"
    if said.probes.beacon and reader.beacon is None:
        return "drawn by a value that the report says, which is for you to know: give yours with --beacon-file", False
    kind = said.kind if said.kind != "onnx" else reader.suspect_kind
    if kind not in ("", "onnx"):
        return f"drawn by {by} how the owner spells the {kind}: he could have tried several", False
    if reader.suspect_digest is None:
        return f"drawn by {by} the suspect's file, which you have not shown: give it with --suspect", False
    return f"drawn by {by} the file that you hold, if it is as the other side had it: its bytes decide", True
