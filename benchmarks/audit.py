"""Audit log: durable records a second and the wait for one, beside the bare fdatasync of the same disk in the same run.

Closed loops show what it can do; the open loop shows the wait that a gateway adds at 5,000 records a second (Poisson arrivals,
through the event loop). It alternates, several rounds, with bare appends and with the least that any group commit could do: a
loop that appends whatever has arrived and syncs it, no threads, no event loop, no tiles. p99 of the wait is set over p99 of
that loop's wait and over p99 of fdatasync, of the bare one and of the log's own in that round, whose disk is also taking
tiles. A slow sync makes many records wait and counts once among the syncs, so the first of the three compares like with like.
"""

import asyncio
import gc
import json
import os
import queue
import random
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FileJournal, FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.http.serve import SWITCH_SECONDS
from modelkeep.serving.audit import AuditEntry, AuditLog, verify_audit
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.recorder import Delivery, Recorder

ORIGIN = "bench.example/audit/bench"
BODY = os.urandom(600)
ROUNDS = ((1, 2_000), (16, 30_000), (256, 100_000))
OFFERED, SECONDS, REPEATS = 5_000, 2.0, 5


def run(args: list[str]) -> None:
    """``args``: a folder on the disk to measure; the system's temporary folder by default."""
    sys.setswitchinterval(SWITCH_SECONDS)  # as a gateway does
    gc.freeze()
    with tempfile.TemporaryDirectory(dir=args[0] if args else None) as folder:
        rows = [_fdatasync(Path(folder))]
        rows += [_closed_loop(Path(folder) / str(clients), clients, records) for clients, records in ROUNDS]
        rows += [_offered(Path(folder) / f"open-{number}", number) for number in range(REPEATS)]
    for row in rows:
        print(json.dumps(row))
    _show(rows)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_us": round(cuts[49] * 1e6, 1), "p99_us": round(cuts[98] * 1e6, 1)}


def _fdatasync(folder: Path, count: int = 2_000) -> dict[str, object]:
    """Append one record's bytes and fdatasync, as the limit that no durable log can beat for one client."""
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    waits = []
    try:
        for _ in range(count):
            begun = time.perf_counter()
            os.write(fd, BODY + BODY[:300])
            os.fdatasync(fd)
            waits.append(time.perf_counter() - begun)
    finally:
        os.close(fd)
    return {
        "bench": "audit",
        "case": "bare write + fdatasync",
        "records_per_s": round(count / sum(waits)),
        **_percentiles(waits),
    }


def _closed_loop(folder: Path, clients: int, records: int) -> dict[str, object]:
    """``clients`` requests are under way at any time; each waits for its record to be durable before the next is sent."""
    batches: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
    signer = NoteSigner(ORIGIN, bytes(32))
    files = FolderLogFiles(folder)
    log = AuditLog(files, signer, ORIGIN, SystemClock(), deliver=batches.put)
    waits, costs, sent = [], [], 0

    def send() -> None:
        nonlocal sent
        entry = AuditEntry("predict", "sub_0123456789abcdef", "credit-risk@1", f"req-{sent:08d}", "ok")
        begun = time.perf_counter()
        log.submit(entry, BODY, begun)  # the callback slot carries the time; results are taken from ``batches``
        costs.append(time.perf_counter() - begun)
        sent += 1

    started = time.perf_counter()
    for _ in range(clients):
        send()
    while len(waits) < records:
        for begun, index in batches.get():
            assert isinstance(index, int), index
            waits.append(time.perf_counter() - begun)
            if sent < records:
                send()
    seconds = time.perf_counter() - started
    log.stop()
    report = verify_audit(files, signer.vkey, ORIGIN)
    assert report.bodies == records, report
    return {
        "bench": "audit",
        "case": f"audit log, {clients} at once",
        "records_per_s": round(records / seconds),
        **_percentiles(waits),
        "submit_p50_us": round(statistics.median(costs) * 1e6, 2),
        "submit_p99_us": round(statistics.quantiles(costs, n=100)[98] * 1e6, 2),
    }


class _TimedFiles(FolderLogFiles):
    """A folder whose journals remember how long each sync took."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.syncs: list[float] = []

    def journal(self, path: str) -> FileJournal:
        journal, plain = super().journal(path), FileJournal.sync

        def sync() -> None:
            begun = time.perf_counter()
            plain(journal)
            self.syncs.append(time.perf_counter() - begun)

        journal.sync = sync  # type: ignore[method-assign]
        return journal


def _offered(folder: Path, number: int) -> dict[str, object]:
    """``OFFERED`` records a second for ``SECONDS``, whether or not earlier ones are done, as requests come to a gateway."""
    folder.mkdir()
    bare = _fdatasync(folder)
    least = _percentiles(_least(folder, _arrival_times(random.Random(number))))
    files = _TimedFiles(folder / "log")
    waits: list[float] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds = runner.run(_arrivals(files, waits, random.Random(number)))
    own = _percentiles(files.syncs)
    wait = _percentiles(waits)
    return {
        "bench": "audit",
        "case": f"{OFFERED:,}/s offered, round {number + 1}",
        "records_per_s": round(len(waits) / seconds),
        **wait,
        "least_p99_us": least["p99_us"],
        "wait_to_least": round(wait["p99_us"] / least["p99_us"], 2),
        "bare_p99_us": bare["p99_us"],
        "own_sync_p99_us": own["p99_us"],
        "wait_to_bare": round(wait["p99_us"] / float(str(bare["p99_us"])), 2),
        "wait_to_own_sync": round(wait["p99_us"] / own["p99_us"], 2),
    }


def _arrival_times(chance: random.Random) -> Iterator[float]:
    """Seconds from the start, of a Poisson process of ``OFFERED`` a second."""
    due = 0.0
    while due < SECONDS:
        yield due
        due += chance.expovariate(OFFERED)


def _least(folder: Path, arrivals: Iterator[float]) -> list[float]:
    """Seconds that each arrival waits when one loop appends and syncs whatever has arrived."""
    fd = os.open(folder / "least", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    waits, started, due = [], time.perf_counter(), list(arrivals)
    try:
        while len(waits) < len(due):
            now = time.perf_counter() - started
            count = bisect_right(due, now) - len(waits)
            if not count:
                continue
            os.write(fd, (BODY + BODY[:300]) * count)
            os.fdatasync(fd)
            done = time.perf_counter() - started
            waits += [done - at for at in due[len(waits) : len(waits) + count]]
    finally:
        os.close(fd)
    return waits


async def _arrivals(files: FolderLogFiles, waits: list[float], chance: random.Random) -> float:
    delivery = Delivery()
    delivery.loop = asyncio.get_running_loop()
    log = AuditLog(files, NoteSigner(ORIGIN, bytes(32)), ORIGIN, SystemClock(), deliver=delivery)
    recorder = Recorder(AuditSeries(lambda: ("bench", log), SystemClock()), SystemClock())
    recorder.took = waits.append
    pending: set[asyncio.Task[object]] = set()
    started = time.perf_counter()
    for number, due in enumerate(_arrival_times(chance)):
        while (ahead := started + due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        entry = AuditEntry("predict", "sub_0123456789abcdef", "credit-risk@1", f"req-{number:08d}", "ok")
        task = asyncio.create_task(recorder.write(entry, BODY))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    seconds = time.perf_counter() - started
    delivery.loop = None
    log.stop()
    return seconds


def _show(rows: list[dict[str, object]]) -> None:
    table = Table(title="audit log: durable before the answer (900-byte records)")
    columns = (
        "records/s",
        "wait p50 µs",
        "wait p99 µs",
        "submit p50 µs",
        "submit p99 µs",
        "p99 to least",
        "to bare",
        "to own sync",
    )
    for column in ("case", *columns):
        table.add_column(column, justify="left" if column == "case" else "right")
    keys = (
        "records_per_s",
        "p50_us",
        "p99_us",
        "submit_p50_us",
        "submit_p99_us",
        "wait_to_least",
        "wait_to_bare",
        "wait_to_own_sync",
    )
    for row in rows:
        table.add_row(
            str(row["case"]),
            *(f"{row[key]:,}" if isinstance(row.get(key), int | float) else str(row.get(key, "")) for key in keys),
        )
    Console().print(table)


if __name__ == "__main__":
    run(sys.argv[1:])
