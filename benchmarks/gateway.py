"""The gateway with every defence on, beside bare onnxruntime and the usual Python servers, one model, one run.

One ONNX MLP on the digits. modelkeep: its own ``serve`` process, TLS 1.3, API key, validation, extraction evidence, watermark,
an audit record on stable storage before each answer. The others: undefended, plain HTTP, in virtual environments of their own
that this bench makes (``_servers.py``). The server runs on one core and the load on another. Every client waits for its answer
before it asks again. ``python -m benchmarks gateway -- FOLDER MLServer``: only that peer, the log on FOLDER's disk.
"""

import asyncio
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks._peers import NoPeer
from benchmarks._servers import HOST, PORT, SERVERS, Server, bin_of, open_inference

PASSPHRASE = "a passphrase for a benchmark"
ACCOUNTS = 160
SECONDS = 6.0
WARM_UP = 1.0
CONNECTIONS = (1, 16)


class Peer(NamedTuple):
    """A server to ask: where, over what, with which headers (one set after the other), and how a question is written."""

    name: str
    port: int
    tls: ssl.SSLContext | None
    path: str
    headers: tuple[str, ...]
    body: Callable[[np.ndarray], bytes]


def run(args: list[str]) -> None:
    """``args``: a folder on the disk that the audit log shall be on (the system's temporary folder by default); peers."""
    with tempfile.TemporaryDirectory(dir=args[0] if args else None) as folder:
        rows = list(_measure(Path(folder), args[1:]))
    for row in rows:
        print(json.dumps(row))
    _show(rows)


def _measure(folder: Path, peers: list[str]) -> Iterator[dict[str, Any]]:
    model, rows, reference = _train()
    yield {"bench": "gateway", "case": "fdatasync", **_percentiles(_fdatasync(folder))}
    yield {"bench": "gateway", "case": "onnxruntime, bare loop", **_bare(model, rows)}
    yield _handler(folder / "handler", model, rows, reference)
    with _modelkeep(folder / "keep", model, reference) as peer:
        for connections in CONNECTIONS:
            yield _load(peer, rows, connections)
    with _modelkeep(folder / "crowd", model, reference, accounts=ACCOUNTS) as peer:
        yield _load(peer._replace(name="crowd: 160 accounts, no question twice"), rows, CONNECTIONS[-1])
    with _modelkeep(folder / "silent", model, reference, program=NO_SINK) as peer:
        yield _load(peer._replace(name="no-op sink: the same, but nothing is recorded"), rows, CONNECTIONS[-1])
    for server in SERVERS:
        if peers and server.name not in peers:
            continue
        try:
            with _other(server, folder / server.name, model) as other:
                for connections in CONNECTIONS:
                    yield _load(other, rows, connections)
        except NoPeer as cause:
            yield {"bench": "gateway", "case": server.name, "skipped": str(cause)}


def _train() -> tuple[bytes, np.ndarray, np.ndarray]:
    """The model file, rows to ask and benign reference rows."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    model = MLPClassifier((64,), max_iter=60, random_state=0, early_stopping=True).fit(x[:1200], y[:1200])
    proto = to_onnx(model, x[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    return proto.SerializeToString(), x[1200:], x[:1200]


# -- what there is without a server --


def _fdatasync(folder: Path, count: int = 1000) -> list[float]:
    """Append a record's bytes and fdatasync them."""
    waits = []
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(count):
            began = time.perf_counter()
            os.write(fd, bytes(900))
            os.fdatasync(fd)
            waits.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    return waits


def _bare(model: bytes, rows: np.ndarray, count: int = 20_000) -> dict[str, Any]:
    from modelkeep.adapters.runtime.onnx import OnnxRuntime

    runtime, waits = OnnxRuntime(model), []
    for n in range(count):
        feeds = {"X": rows[n % len(rows)][None]}
        began = time.perf_counter()
        runtime.run(feeds)
        waits.append(time.perf_counter() - began)
    return {**_percentiles(waits), "rps": round(count / sum(waits))}


def _recorded(_entry: Any, _body: bytes, done: Callable[[int], None]) -> str:
    done(0)
    return "nowhere"


def _handler(folder: Path, model: bytes, rows: np.ndarray, reference: np.ndarray, count: int = 3000) -> dict[str, Any]:
    """``Gateway.predict`` without the socket and without the disk: what all defences cost in the handler."""
    from modelkeep.access.presented import Presented
    from modelkeep.workflows.doors import Call

    _, (key,) = _make_keep(folder, model, reference)
    service = _open(folder)
    service.recorder._submit = _recorded  # the bench's own: no setting turns the record off
    bodies = [open_inference(row) for row in rows]
    waits: list[float] = []

    async def ask() -> None:
        service.follower.settle(120.0)
        service.follower.start()
        for n in range(count):
            call = Call("digits", None, Presented(key, "127.0.0.1"), bodies[n % len(bodies)])
            began = time.perf_counter()
            await service.gateway.predict(call)
            waits.append(time.perf_counter() - began)
            if n % 64:  # the evidence is the watcher thread's work, a batch at a time: here between two timings
                continue
            for watch in service.loader.watches():
                for subject, done in watch.work().items():
                    watch.release(subject, done)

    asyncio.run(ask())
    service.follower.stop()
    service.audit.stop()
    return {"bench": "gateway", "case": "handler, no socket, no disk", **_percentiles(waits[count // 10 :])}


# -- servers --


def _make_keep(folder: Path, model: bytes, reference: np.ndarray, accounts: int = 1) -> tuple[Path, list[str]]:
    """A keep with the model promoted, and keys of so many analysts."""
    import io

    from modelkeep.app.keep import Keep
    from modelkeep.core.values import Role

    Keep.init(folder, PASSPHRASE.encode())
    with (folder / "modelkeep.toml").open("a") as file:
        file.write("[gateway]\nport = 0\n[limits]\nrate = 1e9\nburst = 1000000000\n")
        file.write("address_rate = 1e9\naddress_burst = 1000000000\ncost_rate = 1e9\ncost_burst = 1000000000\n")
    keep = Keep.open(folder, PASSPHRASE.encode())
    buffer = io.BytesIO()
    np.savez(buffer, x=reference)
    found = keep.publish(name="digits", filename="digits.onnx", model=model, reference=buffer.getvalue())
    keep.promote(ref=found.ref)
    names = [f"bench-{number}" for number in range(accounts)]
    for name in names:
        keep.user_add(name=name, roles=(Role.ANALYST,))
    return folder, [keep.key_issue(account=name, quota=1_000_000_000).token for name in names]


def _open(folder: Path) -> Any:
    from modelkeep import Keep
    from modelkeep.app.gateway import open_gateway
    from modelkeep.app.handover import open_for
    from modelkeep.custody.keys import GATEWAY_FAMILIES

    opened = open_for(Keep.open(folder, PASSPHRASE.encode()).premises, GATEWAY_FAMILIES)
    return open_gateway(folder, opened, [], lambda text: print(text, file=sys.stderr))


SERVE = "from modelkeep.__main__ import run; run()"
NO_SINK = f"""
from modelkeep.workflows.recorder import Recorder, Written

async def write(self, entry, body):
    return Written("nowhere", 0)

Recorder.write = write
{SERVE}
"""
"""The same program with an audit log that takes nothing: in this bench only, no such setting exists."""


@contextmanager
def _modelkeep(folder: Path, model: bytes, reference: np.ndarray, *, accounts: int = 1, program: str = SERVE) -> Iterator[Peer]:
    _, keys = _make_keep(folder, model, reference, accounts)
    secret = folder.parent / "passphrase"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    command = [sys.executable, "-c", program, "--dir", str(folder), "--passphrase-file", str(secret), "serve"]
    with _process(command, {}) as process:
        address = folder / "run" / "gateway.json"
        if not _wait(lambda: address.exists() and json.loads(address.read_bytes())["pid"] == process.pid, process):
            raise RuntimeError("the gateway did not start")
        port = int(json.loads(address.read_bytes())["url"].rpartition(":")[2])
        tls = ssl.create_default_context(cafile=str(folder / "tls" / "ca.pem"))
        headers = tuple(f"authorization: Bearer {key}\r\n" for key in keys)
        yield Peer("modelkeep, all defences", port, tls, "/v2/models/digits/infer", headers, open_inference)


@contextmanager
def _other(server: Server, folder: Path, model: bytes) -> Iterator[Peer]:
    programs = bin_of(server)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    command = server.write(folder)
    place = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    with _process(command, place, folder) as process:
        if not _wait(lambda: _answers(PORT, server.ready), process):
            raise NoPeer(f"{server.name} did not start")
        yield Peer(f"{server.name}, undefended, plain HTTP", PORT, None, server.path, ("",), server.body)


@contextmanager
def _process(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A server, with all that it starts, on the first core; this process goes to the last one."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.sched_setaffinity(0, {cores[-1]})
    try:
        yield process
    finally:
        os.sched_setaffinity(0, set(cores))
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):  # some leave workers behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(up: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 90.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if up():
            return True
        time.sleep(0.1)
    return False


def _answers(port: int, path: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


# -- load --


class _Client(asyncio.Protocol):
    """One connection that asks, waits for the whole answer, and asks again."""

    def __init__(self, requests: list[bytes], start: int, waits: list[float], errors: list[bytes]) -> None:
        self._requests, self._at, self._waits, self._errors = requests, start, waits, errors
        self._buffer, self._began, self.running = b"", 0.0, True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._at = (self._at + 1) % len(self._requests)
        self._began = time.perf_counter()
        self._transport.write(self._requests[self._at])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._waits.append(time.perf_counter() - self._began)
        if not head.startswith(b"HTTP/1.1 200"):
            self._errors.append(body)
        self._buffer = b""
        if self.running:
            self._ask()
        else:
            self._transport.close()


def _load(peer: Peer, rows: np.ndarray, connections: int) -> dict[str, Any]:
    import uvloop

    head = f"POST {peer.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    bodies = [peer.body(row) for row in rows]
    requests = [
        f"{head}{headers}content-length: {len(body)}\r\n\r\n".encode() + body for headers in peer.headers for body in bodies
    ]
    waits: list[float] = []
    errors: list[bytes] = []

    async def ask() -> float:
        loop = asyncio.get_running_loop()
        clients = []
        for n in range(connections):
            start = n * len(requests) // connections
            made = await loop.create_connection(
                lambda start=start: _Client(requests, start, waits, errors),
                HOST,
                peer.port,
                ssl=peer.tls,
                server_hostname="localhost" if peer.tls else None,
            )
            clients.append(made[1])
        await asyncio.sleep(WARM_UP)
        waits.clear()
        began = time.perf_counter()
        await asyncio.sleep(SECONDS)
        took = time.perf_counter() - began
        for client in clients:
            client.running = False
        await asyncio.sleep(0.2)
        return took

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took = runner.run(ask())
    row = {
        "bench": "gateway",
        "case": peer.name,
        "connections": connections,
        **_percentiles(waits),
        "rps": round(len(waits) / took),
    }
    if errors:
        row |= {"errors": len(errors), "first_error": errors[0].decode(errors="replace")[:200]}
    return row


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_us": round(cuts[49] * 1e6, 1), "p99_us": round(cuts[98] * 1e6, 1)}


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("case", "connections", "p50 µs", "p99 µs", "requests/s", "errors", title="gateway, digits MLP")
    for row in rows:
        cells = [row.get(key, "") for key in ("connections", "p50_us", "p99_us", "rps", "errors")]
        table.add_row(row["case"], *(str(cell) for cell in cells))
    console = Console()
    console.print(table)
    name = lambda case: case.partition(",")[0].partition(":")[0]  # noqa: E731
    found = {(name(row["case"]), row.get("connections", 0)): row for row in rows if "p50_us" in row}
    bars(found, console.print)


def bars(found: dict[tuple[str, int], dict[str, Any]], tell: Callable[[str], None]) -> None:
    """Say how the figures stand to what is wanted. ``found``: rows by the first word of their case, and connections."""
    added = {cut: found["handler", 0][cut] - found["onnxruntime", 0][cut] for cut in ("p50_us", "p99_us")}
    tell(f"all defences in the handler, no disk: {added['p50_us']:.0f} µs p50, {added['p99_us']:.0f} µs p99 (wanted: 30, 500)")
    ours, silent = found["modelkeep", 16], found["no-op sink", 16]
    tell(f"durable audit at 16 connections: {ours['rps'] / silent['rps']:.2f} x a no-op sink (wanted: 0.6)")
    theirs = found.get(("MLServer", 1))
    if theirs is not None:
        bar = 0.40 * theirs["p50_us"] + 1.2 * found["fdatasync", 0]["p50_us"]
        one = found["modelkeep", 1]["p50_us"]
        tell(
            f"p50 at 1 connection: {one:.0f} µs, {one / theirs['p50_us']:.2f} x MLServer's "
            f"(wanted: 0.40 x MLServer + 1.2 x fdatasync = {bar:.0f} µs)"
        )
    for server in SERVERS:
        other = found.get((server.name, 16))
        if other is not None:
            tell(f"requests/s at 16 connections: {ours['rps'] / other['rps']:.2f} x {server.name}'s")
