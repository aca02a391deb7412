"""Audit log: durable records a second and the wait for one, beside the bare fdatasync of the same disk in the same run."""

import json
import os
import queue
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.serving.audit import AuditEntry, AuditLog, verify_audit

ORIGIN = "bench.example/audit/bench"
BODY = os.urandom(600)
ROUNDS = ((1, 2_000), (16, 30_000), (256, 100_000))


def run(args: list[str]) -> None:
    """``args``: a folder on the disk to measure; the system's temporary folder by default."""
    with tempfile.TemporaryDirectory(dir=args[0] if args else None) as folder:
        rows = [_fdatasync(Path(folder))]
        rows += [_closed_loop(Path(folder) / str(clients), clients, records) for clients, records in ROUNDS]
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


def _show(rows: list[dict[str, object]]) -> None:
    table = Table(title="audit log: durable before the answer (900-byte records)")
    for column in ("case", "records/s", "wait p50 µs", "wait p99 µs", "submit p50 µs", "submit p99 µs"):
        table.add_column(column, justify="left" if column == "case" else "right")
    keys = ("case", "records_per_s", "p50_us", "p99_us", "submit_p50_us", "submit_p99_us")
    for row in rows:
        table.add_row(*(f"{row[key]:,}" if isinstance(row.get(key), int | float) else str(row.get(key, "")) for key in keys))
    Console().print(table)


if __name__ == "__main__":
    import sys

    run(sys.argv[1:])
