"""Targets: the same model in memory and behind a real socket, and every way a gateway can say no."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.adapters.targets import HttpTarget, OnnxTarget
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid, ModelkeepError, NotTrusted, OverBudget, Quarantined, ReviewRequired, Unavailable

RNG = np.random.default_rng(4)
X = RNG.normal(size=(90, 3)).astype(np.float32).astype(np.float64)
MODEL = LogisticRegression().fit(X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 1))


@pytest.fixture(scope="module")
def onnx() -> bytes:
    return bytes(to_onnx(MODEL, X[:1].astype(np.float32), options={id(MODEL): {"zipmap": False}}).SerializeToString())


class Gateway(ThreadingHTTPServer):
    """Speaks just enough of the Open Inference Protocol; ``script``: (status, code, retry-after) to say before answering."""

    daemon_threads = True

    def __init__(self, model: OnnxTarget, *, labels_only: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.labels_only = model, labels_only
        self.script: list[tuple[int, str, str]] = []
        self.raw: bytes | None = None
        self.asked: list[dict[str, object]] = []
        self.served = 0


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        inputs = [{"name": "X", "datatype": "FP32", "shape": [-1, 3]}]
        outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
        self._send(200, json.dumps({"name": "m", "inputs": inputs, "outputs": outputs}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.script:
            status, code, wait = self.server.script.pop(0)
            self._send(
                status, json.dumps({"code": code, "detail": f"no: {code}"}).encode(), {"retry-after": wait} if wait else {}
            )
            return
        assert self.headers["authorization"] == "Bearer secret"
        assert self.path == "/v2/models/m/versions/2/infer"
        tensor = body["inputs"][0]
        self.server.asked.append(tensor)
        probs = self.server.model.predict(np.array(tensor["data"]).reshape(tensor["shape"]))
        label = {"name": "label", "datatype": "INT64", "shape": [len(probs)], "data": probs.argmax(axis=1).tolist()}
        soft = {"name": "probabilities", "datatype": "FP32", "shape": list(probs.shape), "data": probs.ravel().tolist()}
        outputs = [label] if self.server.labels_only else [label, soft]
        record = f"i1/{self.server.served}"
        self.server.served += 1
        self._send(200, self.server.raw or json.dumps({"outputs": outputs}).encode(), {"modelkeep-record": record})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def gateway(onnx: bytes) -> Iterator[Gateway]:
    server = Gateway(OnnxTarget(onnx))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client(gateway: Gateway, patience: float = 0.0) -> HttpTarget:
    return HttpTarget(f"http://127.0.0.1:{gateway.server_port}", ReleaseRef("m", 2), "secret", patience=patience)


def test_the_bare_model_answers_as_scikit_learn_does(onnx: bytes) -> None:
    np.testing.assert_allclose(OnnxTarget(onnx).predict(X), MODEL.predict_proba(X), atol=1e-5)


def test_over_a_socket_the_answers_are_those_of_the_bare_model(gateway: Gateway, onnx: bytes) -> None:
    with client(gateway) as target:
        np.testing.assert_allclose(target.predict(X[:7]), OnnxTarget(onnx).predict(X[:7]), atol=1e-7)
        target.predict(X[7:8])
        assert target.receipts == ["i1/0", "i1/1"]
    assert gateway.asked[0]["shape"] == [7, 3]
    assert np.array(gateway.asked[0]["data"], dtype=np.float32).tobytes() == X[:7].astype(np.float32).tobytes()


def test_labels_alone_become_one_hot_rows(gateway: Gateway, onnx: bytes) -> None:
    gateway.labels_only = True
    with client(gateway) as target:
        found = target.predict(X[:20])
    np.testing.assert_array_equal(found, np.eye(3)[OnnxTarget(onnx).predict(X[:20]).argmax(axis=1)])


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "review-required", ReviewRequired),
        (423, "quarantined", Quarantined),
        (423, "not-trusted", NotTrusted),
        (429, "over-budget", OverBudget),
        (503, "unavailable", Unavailable),
        (500, "a code of the future", Unavailable),
    ],
)
def test_a_refusal_is_the_error_that_its_code_names(
    gateway: Gateway, status: int, code: str, error: type[ModelkeepError]
) -> None:
    gateway.script = [(status, code, "30")]
    with client(gateway, patience=2) as target, pytest.raises(error, match=f"no: {code}") as refusal:
        target.predict(X[:1])
    assert type(refusal.value) is error
    if isinstance(refusal.value, OverBudget):
        assert refusal.value.retry_after == 30


def test_a_patient_client_comes_back_when_it_is_told_to(gateway: Gateway) -> None:
    gateway.script = [(429, "over-budget", "0.05"), (503, "unavailable", "0.05")]
    with client(gateway, patience=1) as target:
        assert len(target.predict(X[:1])) == 1


def test_patience_ends(gateway: Gateway) -> None:
    gateway.script = [(429, "over-budget", "0.1")] * 50
    with client(gateway, patience=0.3) as target, pytest.raises(OverBudget):
        target.predict(X[:1])
    assert len(gateway.script) >= 45


@pytest.mark.parametrize(
    "raw", [b"<html>", b"{}", b'{"outputs":[]}', b'{"outputs":[{"name":"p","datatype":"BYTES","shape":[1],"data":["a"]}]}']
)
def test_an_answer_that_is_none_is_unavailable(gateway: Gateway, raw: bytes) -> None:
    gateway.raw = raw
    with client(gateway) as target, pytest.raises(Unavailable):
        target.predict(X[:1])


def test_nobody_there_is_unavailable() -> None:
    with (
        HttpTarget("http://127.0.0.1:9", ReleaseRef("m", 1), "k") as target,
        pytest.raises(Unavailable, match="no answer from"),
    ):
        target.predict(X[:1])


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for ca in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(Invalid, match="certificate file"):
            HttpTarget("https://localhost:1", ReleaseRef("m", 1), "k", ca=ca)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x08\x07"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        OnnxTarget(data)


def test_a_copy_exports_as_onnx_and_answers_the_same() -> None:
    copy = MlpSurrogate((8,), updates=100)
    with pytest.raises(Invalid, match="fitted"):
        copy.onnx()
    copy.fit(X, MODEL.predict_proba(X))
    np.testing.assert_allclose(OnnxTarget(copy.onnx()).predict(X), copy.predict(X), atol=1e-5)
