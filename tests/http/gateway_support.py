"""A whole gateway in this process: a keep on disk, real models, real TLS sockets."""

import asyncio
import ssl
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, NamedTuple

import httpx
import msgspec
import numpy as np
from commandline import copy_keep

from modelkeep.access.presented import Presented
from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.gateway import open_gateway
from modelkeep.app.handover import decode, encode, open_for
from modelkeep.app.keep import Keep
from modelkeep.core.values import ReleaseRef, Role, digest_of
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT, GATEWAY_FAMILIES
from modelkeep.extraction.fitting import fit_profile
from modelkeep.http.serve import serving
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows import follow
from modelkeep.workflows.predict import Answer, Call
from modelkeep.workflows.publish import Calibration, ModelFile, publish
from modelkeep.workflows.reference import learn_reference
from modelkeep.workflows.service import Service
from modelkeep.workflows.tracereport import DECIMALS, code_of, terms_of

PASSPHRASE = b"a passphrase of several words"
IRIS = ReleaseRef("iris", 1)


class Trained(NamedTuple):
    """A model file, its benign rows, and held-out rows."""

    onnx: bytes
    reference: np.ndarray
    fresh: np.ndarray


def train(features: int = 6) -> Trained:
    """A small three-class model."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(7)
    centres = rng.normal(size=(3, features)) * 1.2
    labels = rng.integers(0, 3, 600)
    rows = (centres[labels] + rng.normal(size=(600, features))).astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    proto = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    return Trained(proto.SerializeToString(), rows[:300], rows[300:])


def make_keep(
    directory: Path, trained: Trained, names: tuple[str, ...] = ("iris",), accounts: tuple[str, ...] = ("alice",)
) -> Keep:
    """A keep with promoted models, analysts called ``accounts``, and a data scientist called eve."""
    known = trained.onnx, trained.reference.tobytes(), names, accounts
    if known not in _MADE:
        _MADE[known] = TemporaryDirectory(prefix="mk-keep-")
        _make(Path(_MADE[known].name) / "keep", trained, names, accounts)
    return Keep.open(copy_keep(Path(_MADE[known].name) / "keep", directory), PASSPHRASE)


_MADE: dict[tuple[bytes, bytes, tuple[str, ...], tuple[str, ...]], TemporaryDirectory[str]] = {}
"""Keeps that this process made and copies: making one takes seconds."""


def _make(directory: Path, trained: Trained, names: tuple[str, ...], accounts: tuple[str, ...]) -> None:
    Keep.init(directory, PASSPHRASE)
    with (directory / "modelkeep.toml").open("a") as file:
        file.write("[gateway]\nport = 0\n[limits]\nrate = 100000.0\nburst = 100000\naddress_rate = 0\ncost_rate = 0\n")
    keep = Keep.open(directory, PASSPHRASE)
    for name in accounts:
        keep.user_add(name=name, roles=(Role.ANALYST,))
    keep.user_add(name="eve", roles=(Role.DATA_SCIENTIST,))
    rows = trained.reference.astype(np.float64)
    profile = fit_profile(rows, lambda x: OnnxRuntime(trained.onnx).run({"X": x.astype(np.float32)})["probabilities"], seed=1)
    arrays = {**profile.to_arrays(), **learn_reference(rows, 1)}
    calibration = Calibration(lambda _model, _interface: arrays, len(rows), digest_of(b"reference"), code_of, _terms)
    for name in names:
        found = publish(keep.premises.desk(), ModelFile(trained.onnx, "m.onnx"), name, actor="test", calibration=calibration)
        keep.promote(ref=str(found.ref))
    keep.premises.records.close()


def _terms(arrays):
    return terms_of(arrays, 0.05, DECIMALS)


def make_service(keep: Keep, **listen) -> Service:
    """What ``modelkeep serve`` runs, from compartments that were handed over."""
    opened = decode(encode(open_for(keep.premises, GATEWAY_FAMILIES)))
    service = open_gateway(keep.premises.directory, opened, [], lambda _text: None)
    return msgspec.structs.replace(service, listen=msgspec.structs.replace(service.listen, **listen))


class Live:
    """A gateway that runs in a thread. ``Live.all``: those that run in this process."""

    all: ClassVar[set["Live"]] = set()

    def __init__(self, service: Service, directory: Path) -> None:
        self.service, self.errors = service, []
        self.instance = service.audit.current.instance
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(120)
        if self._failed:
            raise self._failed
        self.tls = ssl.create_default_context(cafile=str(directory / "tls" / "ca.pem"))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as cause:
            self._failed = cause
            self._ready.set()
        Live.all.discard(self)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        async with serving(self.service) as (self.url, self.grpc):
            Live.all.add(self)
            self._ready.set()
            await self._stop.wait()

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        Live.all.discard(self)
        if self._thread.is_alive():
            self.begin_stop()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def look(self) -> None:
        """Wait until the gateway knows what is on record now: a look that began after this moment has ended."""
        began = time.monotonic()
        soon(lambda: self.looked(began) or self not in Live.all)

    def looked(self, moment: float) -> bool:
        """Whether a look that began after ``moment`` has ended, and nothing is being loaded."""
        return self.service.gateway.admitted.until - follow.LEASE > moment and not self.service.follower._loading

    def client(self, key: str | None) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, verify=self.tls, headers=headers, timeout=60)


@contextmanager
def live(keep: Keep, **listen):
    """A gateway on ``keep`` for the length of the block."""
    running = Live(make_service(keep, **listen), keep.premises.directory)
    try:
        yield running
    finally:
        running.stop()


def soon(what, seconds=60.0):
    """Wait until ``what`` gives something; that."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def watch_of(running: Live):
    """The evidence of a gateway on iris@1."""
    return running.service.loader.by_release()[IRIS]


def predict(running: Live, token: str, address: str, rows: np.ndarray) -> Answer:
    """Ask iris without a socket, as if from ``address``. Raises what refuses."""
    call = Call("iris", None, Presented(token, address), question(rows))
    return asyncio.run_coroutine_threadsafe(running.service.gateway.predict(call), running._loop).result(20)


def question(rows: np.ndarray, name: str = "X", **more) -> bytes:
    """The body of an inference request."""
    rows = np.atleast_2d(rows)
    tensor = {"name": name, "datatype": "FP32", "shape": list(rows.shape), "data": [float(v) for v in rows.ravel()]}
    return msgspec.json.encode({"inputs": [tensor], **more})


def recorded(keep):
    """Every entry of every audit log, with its encrypted body."""
    here = keep.premises
    for instance in here.audit_instances():
        origin = here.audit_origin(instance)
        for _, entry, sealed in read_bodies(here.audit_files(instance), encode_vkey(origin, here.trust.audit_key), origin):
            yield entry, sealed


def records(keep, kind):
    """Entries of a kind with the keys of their subjects and their encrypted bodies, from every audit log."""
    here = keep.premises
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, here.decisions().epochs())
    for entry, sealed in recorded(keep):
        if entry.kind == kind:
            yield entry, keys.existing(entry.subject), sealed


class HoursAgo(SystemClock):
    """A clock that is so many hours slow."""

    def __init__(self, hours):
        self.late = hours * 3_600_000_000_000

    def now_ns(self):
        return super().now_ns() - self.late


def strangers(keep, names):
    """Accounts that share nothing: each signed up in an hour of its own, a day and more ago. Their keys, by name."""
    usual = keep.premises.clock
    for hours, name in enumerate(names, 24):
        keep.premises.clock = HoursAgo(hours)
        keep.user_add(name=name, roles=("analyst",))
    keep.premises.clock = usual
    return {name: keep.key_issue(account=name, quota=100_000).token for name in names}
