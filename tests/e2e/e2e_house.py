"""A keep that really runs: ``modelkeep up`` in processes of its own, and clients that talk to it over TLS."""

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.trust import TrustRoot
from modelkeep.ledger.log import LogView

INFER = "/v2/models/risk/infer"
RECEIPT = "modelkeep-record"


def question(rows: np.ndarray) -> dict[str, Any]:
    """An inference request for ``rows``."""
    rows = np.atleast_2d(np.asarray(rows, np.float32))
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]}


def labels(answer: httpx.Response) -> list[int]:
    """The top classes in an answer."""
    outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    return list(outputs["label"])


class House:
    """``modelkeep up`` on one keep, its output in a file."""

    def __init__(self, cli, folder: Path, **environment: str) -> None:
        self.cli, self.keep, self.folder = cli, cli.keep, folder
        self.output = folder / "up.log"
        (folder / "tmp").mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "MODELKEEP_DIR": str(cli.keep),
            "MODELKEEP_PASSPHRASE_FILE": str(cli.passphrase_file),
            "MODELKEEP_GATEWAY_PORT": "0",
            "MODELKEEP_CONTROL_PORT": "0",
            "MODELKEEP_LIMITS_RATE": "100000",
            "MODELKEEP_LIMITS_BURST": "100000",
            "MODELKEEP_LIMITS_ADDRESS_RATE": "0",
            "MODELKEEP_LIMITS_COST_RATE": "0",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder / "tmp"),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, verb: str = "up", *arguments: str) -> "House":
        """Start ``up`` and wait until the gateway answers."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modelkeep", verb, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_ready()
        return self

    def address(self, role: str) -> tuple[str, int]:
        """URL and process id of ``control`` or ``gateway``."""
        said = json.loads((self.keep / "run" / f"{role}.json").read_bytes())
        return said["url"], said["pid"]

    @property
    def url(self) -> str:
        return self.address("gateway")[0]

    @property
    def control(self) -> str:
        return self.address("control")[0]

    @property
    def trust(self) -> ssl.SSLContext:
        """What a client that was given ca.pem trusts."""
        return ssl.create_default_context(cafile=str(self.keep / "tls" / "ca.pem"))

    def client(self, token: str | None, **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, verify=self.trust, headers=headers, timeout=20, trust_env=False, **more)

    def ask(self, token: str | None, rows: np.ndarray, where: str = INFER) -> httpx.Response:
        with self.client(token) as client:
            return client.post(where, json=question(rows))

    def wait_ready(self, *, not_pid: int = 0, seconds: float = 60.0) -> None:
        """Wait until a gateway other than ``not_pid`` is ready."""

        def ready() -> bool:
            assert self.process is not None and self.process.poll() is None, self.text()
            try:
                if self.address("gateway")[1] == not_pid:
                    return False
                with self.client(None) as client:
                    return client.get("/v2/health/ready").is_success
            except (OSError, ValueError, httpx.HTTPError):
                return False

        wait_for(ready, seconds, self.text)

    def kill(self, role: str = "gateway") -> int:
        """kill -9; the process id."""
        pid = self.address(role)[1]
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM; the exit code of ``up``. Whatever is left is killed."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def text(self) -> str:
        """All that the servers printed."""
        return self.output.read_text(errors="replace")

    def check_output(self) -> None:
        """No server printed a traceback."""
        assert "Traceback" not in self.text() and "Exception" not in self.text(), self.text()


def wait_for(what: Callable[[], bool], seconds: float, say: Callable[[], str] = str) -> float:
    """Wait until ``what``; seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() < began + seconds, f"waited {seconds} s in vain: {say()}"
        time.sleep(0.02)
    return time.monotonic() - began


class Event(NamedTuple):
    """One request: seconds (monotonic) of start and end, status, receipt, and the version that answered."""

    start: float
    end: float
    status: int
    receipt: str
    version: str
    code: str


class Load:
    """Clients that ask without pause, each on a connection of its own, and note what happened."""

    def __init__(self, house: House, token: str, rows: np.ndarray, *, threads: int = 3, where: str = INFER) -> None:
        self.events: list[Event] = []
        self._house, self._token, self._rows, self._where = house, token, rows, where
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        at = number * 7
        while not self._stop.is_set():
            try:
                with self._house.client(self._token) as client:
                    while not self._stop.is_set():
                        at += 1
                        start = time.monotonic()
                        answer = client.post(self._where, json=question(self._rows[at % len(self._rows)]))
                        self.events.append(_event(start, answer))
            except (OSError, ValueError, httpx.HTTPError):
                time.sleep(0.05)  # killed, or not up yet

    @property
    def answered(self) -> list[Event]:
        return [event for event in list(self.events) if event.status == 200]


def _event(start: float, answer: httpx.Response) -> Event:
    end, body = time.monotonic(), answer.json()
    receipt = answer.headers.get(RECEIPT, "")
    return Event(start, end, answer.status_code, receipt, str(body.get("model_version", "")), str(body.get("code", "")))


def audit_entries(logs: Path, trust: Path) -> dict[str, list[dict[str, Any]]]:
    """Every audit log below ``logs``, each entry proven against its log's signed checkpoint."""
    root = TrustRoot.parse(trust.read_bytes())
    found = {}
    for folder in sorted((logs / "audit").iterdir()):
        origin = f"{root.origin}/audit/{folder.name}"
        view = LogView(FolderLogFiles(folder), encode_vkey(origin, root.audit_key), origin)
        found[folder.name] = [json.loads(entry) for entry in view.entries(0, view.refresh().size)]
    return found


def check_receipts(logs: Path, trust: Path, receipts: Iterable[str]) -> int:
    """Every receipt names a prediction in an audit log, and none is held twice; how many."""
    entries = audit_entries(logs, trust)
    held = list(receipts)
    assert len(set(held)) == len(held)
    for receipt in held:
        instance, _, index = receipt.partition("/")
        assert entries[instance][int(index)]["kind"] == "predict", receipt
    return len(held)


def files_of(*folders: Path) -> Iterable[tuple[Path, bytes]]:
    """Every file below ``folders``."""
    for folder in folders:
        for place, _, names in os.walk(folder):  # passes over folders that are gone when their turn comes
            for path in (Path(place) / name for name in sorted(names)):
                if path.is_file() and not path.is_symlink():
                    try:
                        yield path, path.read_bytes()
                    except FileNotFoundError:
                        continue  # a temporary name


def find_canaries(windows: Iterable[bytes], *folders: Path) -> list[str]:
    """Files below ``folders`` that hold one of ``windows``."""
    pieces = tuple(windows)
    return [f"{path}: {piece[:8].hex()}" for path, data in files_of(*folders) for piece in pieces if piece in data]


def tree_of(folder: Path) -> dict[str, str]:
    """Digest by relative path, without what SQLite and locks leave."""
    skip = ("-wal", "-shm", ".lock")
    return {
        str(path.relative_to(folder)): hashlib.sha256(data).hexdigest()
        for path, data in files_of(folder)
        if not path.name.endswith(skip)
    }


@contextmanager
def running(cli, folder: Path, **environment: str):
    """``up`` for the length of the block; it must end cleanly."""
    house = House(cli, folder, **environment)
    try:
        yield house.start()
    finally:
        house.stop()
