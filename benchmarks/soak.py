"""A day scaled down: the gateway at full load for minutes. Do memory or the tail grow after the warm-up, is there an error?

``python -m benchmarks soak -- [SECONDS] [FOLDER]``: 600 seconds by default. The keep has 160 accounts; a second of every minute
brings bad requests (no credential, a wrong one, no JSON, an unknown model), as a day does.
"""

import asyncio
import contextlib
import json
import os
import ssl
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks import Row, report
from benchmarks._servers import HOST
from benchmarks.gateway import ACCOUNTS, Peer, _Client, _modelkeep, _train

CONNECTIONS = 16
WINDOWS = 10
"""Parts that the run is reported in. The first two are the warm-up."""


def run(args: list[str]) -> None:
    """``args``: seconds, and a folder on the disk that the audit log shall be on."""
    seconds = float(args[0]) if args else 600.0
    model, rows, reference = _train()
    with tempfile.TemporaryDirectory(dir=args[1] if len(args) > 1 else None) as folder:
        keep = Path(folder) / "keep"
        with (
            _modelkeep(keep, model, reference, accounts=ACCOUNTS) as peer,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            pid = int(json.loads((keep / "run" / "gateway.json").read_bytes())["pid"])
            found = runner.run(_soak(peer, rows, pid, seconds))
    report(f"soak, {seconds:.0f} s at {CONNECTIONS} connections", found)
    settled = found[2:]
    first, last = settled[0]["rss_mib"], settled[-1]["rss_mib"]
    print(f"memory after the warm-up: {first} MiB, at the end {last} MiB ({last - first:+.1f}); errors: {found[-1]['errors']}")
    tails = [row["p99_us"] for row in settled]
    print(f"p99 of the parts after the warm-up: {min(tails)} to {max(tails)} µs, median {statistics.median(tails)}")


async def _soak(peer: Peer, rows: np.ndarray, pid: int, seconds: float) -> list[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    head = f"POST {peer.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    bodies = [peer.body(row) for row in rows]
    requests = [f"{head}{key}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies for key in peer.headers]
    waits: list[float] = []
    errors: list[bytes] = []
    clients = []
    for n in range(CONNECTIONS):
        start = n * len(requests) // CONNECTIONS
        _, client = await loop.create_connection(
            lambda start=start: _Client(requests, start, waits, errors),
            HOST,
            peer.port,
            ssl=peer.tls,
            server_hostname="localhost",
        )
        clients.append(client)
    found: list[dict[str, Any]] = []
    for window in range(WINDOWS):
        waits.clear()
        began = time.perf_counter()
        await _trouble(peer, bodies[0])
        await asyncio.sleep(seconds / WINDOWS - (time.perf_counter() - began))
        cuts = statistics.quantiles(waits, n=100)
        found.append(
            {
                "bench": "soak",
                "part": window + 1,
                "requests": len(waits),
                "rps": round(len(waits) / (time.perf_counter() - began)),
                "p50_us": round(cuts[49] * 1e6),
                "p99_us": round(cuts[98] * 1e6),
                "rss_mib": _rss(pid),
                "open_files": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
                "errors": len(errors),
            }
        )
    for client in clients:
        client.running = False
    await asyncio.sleep(0.5)
    if errors:
        print(f"the first error: {errors[0][:300]!r}")
    return found


async def _trouble(peer: Peer, body: bytes) -> None:
    """A few requests that must be refused, one connection each."""
    good, bad = peer.headers[0], "authorization: Bearer mk_00000000_nonsense\r\n"
    questions = [("", peer.path, body), (bad, peer.path, body), (good, peer.path, b"{"), (good, "/v2/models/none/infer", body)]
    for headers, path, content in questions * 3:
        reader, writer = await asyncio.open_connection(HOST, peer.port, ssl=peer.tls, server_hostname="localhost")
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        status = await reader.readline()
        assert status[9:10] == b"4", status
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def _rss(pid: int) -> float:
    """Resident memory, MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


__all__ = ["Row", "run"]
