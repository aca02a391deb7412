"""Audit sinks: what a required second disk, webhook or syslog server costs, beside the journal alone in the same run."""

import json
import multiprocessing
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.sinks.disk import DiskSink
from modelkeep.adapters.sinks.stream import Stream, client_context
from modelkeep.adapters.sinks.syslog import SyslogSink
from modelkeep.adapters.sinks.webhook import Secret, WebhookSink
from modelkeep.core.ports import Sink
from modelkeep.crypto.notes import NoteSigner
from modelkeep.serving.audit import AuditEntry, AuditLog, Backing, verify_audit
from modelkeep.serving.sinks import SinkLimits, Sinks

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ports"))
from sink_servers import SECRET, Authority, SyslogReceiver, WebhookReceiver

ORIGIN = "bench.example/audit/bench"
BODY = bytes(600)
ROUNDS = ((1, 1_000), (64, 20_000))


class Webhook(WebhookReceiver):
    """Answers 204 to everything."""

    def talk(self, link) -> None:
        rest = b""
        while data := link.recv(1 << 20):
            rest += data
            while b"\r\n\r\n" in rest:
                head, _, body = rest.partition(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or b"0")
                while len(body) < size:
                    body += link.recv(1 << 20)
                rest = body[size:]
                link.sendall(self.answer)


class Syslog(SyslogReceiver):
    """Reads."""

    def talk(self, link) -> None:
        while link.recv(1 << 20):
            pass


def run(args: list[str]) -> None:
    """``args``: a folder on the first disk and one on the second; the system's temporary folder by default."""
    with tempfile.TemporaryDirectory(dir=args[0] if args else None) as one, ExitStack() as stack:
        two = stack.enter_context(tempfile.TemporaryDirectory(dir=args[1] if len(args) > 1 else None))
        authority = Authority(Path(two), time.time_ns())
        hook, syslog = (stack.enter_context(_apart(kind, authority)) for kind in (Webhook, Syslog))
        rows = []
        for clients, records in ROUNDS:
            base = None
            for name, sink in _cases(Path(two), authority, hook, syslog):
                row = _closed_loop(Path(one) / f"{clients}-{name}", name, sink, clients, records)
                base = base or row
                rows.append({**row, "ratio": round(row["records_per_s"] / base["records_per_s"], 2)})
    for row in rows:
        print(json.dumps(row))
    _show(rows)


@contextmanager
def _apart(kind: type[Webhook | Syslog], authority: Authority) -> Iterator[int]:
    """A receiver in a process of its own; its port."""
    fork, (here, there) = multiprocessing.get_context("fork"), multiprocessing.Pipe()

    def serve() -> None:
        there.send(kind(authority.context).port)
        threading.Event().wait()

    process = fork.Process(target=serve, daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()


def _cases(two: Path, authority: Authority, hook: int, syslog: int) -> list[tuple[str, Sink | None]]:
    mirror = Path(tempfile.mkdtemp(dir=two))
    trusting = str(authority.path)
    return [
        ("journal alone", None),
        ("+ required second disk", DiskSink(mirror, beside=None, reserve=1 << 20)),
        (
            "+ required webhook",
            WebhookSink(
                Stream("127.0.0.1", hook, client_context(trusting, "", "http/1.1"), 1.0), "/", Secret.parse(SECRET), "0"
            ),
        ),
        (
            "+ required syslog",
            SyslogSink(Stream("127.0.0.1", syslog, client_context(trusting, ""), 1.0), hostname="bench", product="0"),
        ),
    ]


def _closed_loop(folder: Path, name: str, sink: Sink | None, clients: int, records: int) -> dict[str, object]:
    """``clients`` requests are under way at any time; each waits for its record before the next is sent."""
    batches: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
    signer, files, clock = NoteSigner(ORIGIN, bytes(32)), FolderLogFiles(folder / "log"), SystemClock()
    sinks = None
    if sink is not None:
        cursor = FolderLogFiles(folder / "cursor")
        limits = SinkLimits(require=1, hang=5.0, slow=5.0, probe=1.0)
        sinks = Sinks([(sink, [])], clock, limits, cursor=lambda _sink: (cursor, ExitStack()))
    log = AuditLog(files, signer, ORIGIN, clock, deliver=batches.put, backing=Backing(sinks))
    while log.refusal:
        threading.Event().wait(0.01)
    waits, sent = [], 0

    def send() -> None:
        nonlocal sent
        entry = AuditEntry("predict", "sub_0123456789abcdef", "credit-risk@1", f"req-{sent:08d}", "ok")
        log.submit(entry, BODY, time.perf_counter())
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
    assert verify_audit(files, signer.vkey, ORIGIN).bodies == records
    cuts = statistics.quantiles(waits, n=100)
    return {
        "bench": "sinks",
        "case": f"{name}, {clients} at once",
        "records_per_s": round(records / seconds),
        "p50_us": round(cuts[49] * 1e6, 1),
        "p99_us": round(cuts[98] * 1e6, 1),
    }


def _show(rows: list[dict[str, object]]) -> None:
    table = Table(title="audit sinks: a record counts once the sink has it, too (900-byte records)")
    for column in ("case", "records/s", "of the journal alone", "wait p50 µs", "wait p99 µs"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("case", "records_per_s", "ratio", "p50_us", "p99_us")))
    Console().print(table)


if __name__ == "__main__":
    run(sys.argv[1:])
