"""A whole gateway in this process: a keep on disk, real models, real TLS sockets."""

import asyncio
import ssl
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import numpy as np

from modelkeep.access.directory import Directory
from modelkeep.access.limits import Limiter
from modelkeep.access.quotas import Quotas
from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.adapters.tls import issue, server_context
from modelkeep.app.keep import Keep
from modelkeep.core.values import Role
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_LOG, AUDIT_SUBJECT, GATEWAY_FAMILIES, MODEL_KEK, TLS_CA, WATERMARK
from modelkeep.extraction.guard import Guard
from modelkeep.http.serve import serving
from modelkeep.policy.engine import Engine
from modelkeep.serving.audit import AuditLog
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows.follow import AdmissionFollower, AuditFolder, Authority, History, Loader, open_release
from modelkeep.workflows.predict import Doors, Gateway, Marks, Terms
from modelkeep.workflows.recorder import Delivery, Recorder
from modelkeep.workflows.reviews import Reviews
from modelkeep.workflows.service import Listen, Service

PASSPHRASE = b"a passphrase of several words"


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
    labels = rng.integers(0, 3, 900)
    rows = (centres[labels] + rng.normal(size=(900, features))).astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    proto = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    return Trained(proto.SerializeToString(), rows[:600], rows[600:])


def npz(rows: np.ndarray) -> bytes:
    """Rows as a reference file."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, x=rows)
    return buffer.getvalue()


def make_keep(directory: Path, trained: Trained, names: tuple[str, ...] = ("iris",)) -> Keep:
    """A keep with promoted models and an analyst called alice."""
    Keep.init(directory, PASSPHRASE)
    keep = Keep.open(directory, PASSPHRASE)
    keep.user_add(name="alice", roles=(Role.ANALYST,))
    keep.user_add(name="eve", roles=(Role.DATA_SCIENTIST,))
    for name in names:
        ref = keep.publish(name=name, filename="m.onnx", model=trained.onnx, reference=npz(trained.reference)).ref
        keep.promote(ref=ref)
    return keep


def make_service(keep: Keep, instance: str, *, rate: float = 1e6, files=None, terms: Terms | None = None, **listen) -> Service:
    """What ``app`` wires for ``modelkeep serve``."""
    here = keep.premises
    keyring = here.keyring(GATEWAY_FAMILIES)
    clock, delivery = here.clock, Delivery()
    registry = here.registry(keyring.wrappers(MODEL_KEK))
    directory = Directory(
        here.records,
        clock,
        [here.trust.token_key],
        here.trust.origin,
        failures=Limiter(clock.monotonic, rate=1.0, burst=20, what="bad credentials from this address"),
    )
    quotas = Quotas(here.records)
    keys = SubjectKeys(here.records, keyring.wrapper(AUDIT_SUBJECT), here.entropy)
    reviews = Reviews(here.trust)
    reviews.catch_up(registry.view, registry.view.checkpoint.size)
    past = [
        AuditFolder(here.audit_files(name), encode_vkey(here.audit_origin(name), here.trust.audit_key), here.audit_origin(name))
        for name in here.audit_instances()
    ]
    origin = here.audit_origin(instance)
    audit = AuditLog(files or here.audit_files(instance), keyring.note_signer(AUDIT_LOG, origin), origin, clock, deliver=delivery)
    recorder = Recorder(audit, instance, clock)
    gateway = Gateway(
        Doors(
            directory=directory,
            rate=Limiter(clock.monotonic, rate=rate, burst=int(2 * rate), what="requests of this account"),
            quotas=quotas,
            policy=Engine(),
        ),
        keys,
        Marks(keyring.secret(WATERMARK), registry.book.commitment),
        recorder,
        clock=clock,
        terms=terms,
    )
    loader = Loader(
        lambda found: open_release(registry, found),
        OnnxRuntime,
        clock,
        History(past, keys, reviews.cleared_at),
        guard=lambda profile: Guard(profile, alpha=1e-3),
    )
    follower = AdmissionFollower(
        Authority(registry, here.admission(), reviews),
        loader,
        clock,
        publish=lambda admitted: setattr(gateway, "admitted", admitted),
        also=(directory.refresh, quotas.refill),
    )
    ca = (here.directory / "tls" / "ca.pem").read_bytes()
    identity = issue(keyring.secret(TLS_CA), ca, ["localhost", "127.0.0.1"], clock.now_ns())
    return Service(
        listen=Listen(port=0, tls=server_context(identity), **listen),
        gateway=gateway,
        follower=follower,
        loader=loader,
        audit=audit,
        recorder=recorder,
        delivery=delivery,
        clock=clock,
        releases=here.releases_files(),
        audits=here.audit_files,
        closing=(quotas.give_back,),
    )


class Live:
    """A gateway that runs in a thread."""

    def __init__(self, service: Service, directory: Path) -> None:
        self.service, self.errors = service, []
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait(60)
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
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        async with serving(self.service) as self.url:
            self._ready.set()
            await self._stop.wait()

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def client(self, key: str | None) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, verify=self.tls, headers=headers, timeout=20)


@contextmanager
def live(keep: Keep, instance: str, **options):
    running = Live(make_service(keep, instance, **options), keep.premises.directory)
    try:
        yield running
    finally:
        running.stop()


def question(rows: np.ndarray, name: str = "X", **more) -> bytes:
    """The body of an inference request."""
    rows = np.atleast_2d(rows)
    tensor = {"name": name, "datatype": "FP32", "shape": list(rows.shape), "data": [float(v) for v in rows.ravel()]}
    return msgspec.json.encode({"inputs": [tensor], **more})
