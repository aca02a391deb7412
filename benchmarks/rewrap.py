"""Rewrap: every body of a keep wrapped under a fresh key, beside as many commits of the records with their wait for the disk.

``python -m benchmarks rewrap [-- BODIES [KIB [FOLDER]]]``: how many sealed bodies (1,000) of how many KiB (4), and where.
"""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import Row, report
from modelkeep.app.keep import Keep
from modelkeep.core.ports import Change
from modelkeep.core.values import ModelSignature, ReleaseRef, ReleaseState
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.custody.releases import RELEASE, Release
from modelkeep.workflows.bodies import seal_anew
from modelkeep.workflows.holdings import Bodies, wrapped_under
from modelkeep.workflows.registry import MODEL, Desk
from modelkeep.workflows.rewrap import BATCH, THREADS, rewrap

ROUNDS = 5
PASSPHRASE = b"a passphrase of the benchmark"


def run(args: list[str]) -> None:
    """``args``: bodies, KiB of each, folder; all optional."""
    count = int(args[0]) if args else 1000
    size = (int(args[1]) if len(args) > 1 else 4) << 10
    with tempfile.TemporaryDirectory(dir=args[2] if len(args) > 2 else None, prefix="modelkeep-bench-") as name:
        rows = _measure(Path(name) / "keep", count, size)
    title = (
        f"Rewrap {count:,} bodies of {size >> 10} KiB, file provider, {THREADS} threads, {BATCH} a commit, median of {ROUNDS}"
    )
    report(title, rows)


def _measure(root: Path, count: int, size: int) -> list[Row]:
    Keep.init(root, PASSPHRASE)
    keep = Keep.open(root, PASSPHRASE)
    desk = keep.premises.desk()
    _fill(desk, count, size)
    before, times = _blobs_digest(root), []
    for _ in range(ROUNDS):
        keep.premises.ring_keys(MODEL_KEK).rotate()
        primary = desk.wrapper
        times.append(_seconds(partial(rewrap, Bodies(desk.registry), primary)))
        assert wrapped_under(Bodies(desk.registry)) == {primary.key_id: count}
    assert _blobs_digest(root) == before, "a byte of ciphertext changed"
    taken = statistics.median(times)
    limit = statistics.median(_seconds(lambda: _commits(desk, count)) for _ in range(ROUNDS))
    return [
        _row("a commit of the records for each", count, limit, limit),
        _row("rewrap", count, taken, limit, ciphertext=f"untouched, sha256 {before[:12]}"),
    ]


def _row(case: str, count: int, seconds: float, limit: float, **more: object) -> Row:
    return {
        "bench": "rewrap",
        "case": case,
        "seconds": round(seconds, 3),
        "per_second": round(count / seconds),
        "times_the_commits": round(limit / seconds, 2),
        **more,
    }


def _fill(desk: Desk, count: int, size: int) -> None:
    """Sealed bodies whose release is under way: what rewrapping reads of a release is where its body is."""
    for number in range(count):
        stored = seal_anew(desk, os.urandom(size), MODEL)
        release = Release(
            ref=ReleaseRef("bench", number + 1),
            state=ReleaseState.PENDING,
            claim="00" * 16,
            model=stored.source,
            filename="bench",
            format="safetensors",
            size=size,
            actor="bench",
            created=0,
            interface=ModelSignature((), ()),
            body=stored.body,
        )
        desk.registry.records.commit([stored.change, Change(RELEASE, str(release.ref), release.encode(), 0)])


def _commits(desk: Desk, count: int) -> None:
    for number in range(count):
        desk.registry.records.commit([Change("bench", str(number), os.urandom(300))])


def _blobs_digest(root: Path) -> str:
    """One digest over every stored body, names and bytes."""
    found = hashlib.sha256()
    for path in sorted((root / "blobs").rglob("*")):
        if path.is_file():
            found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
