"""The gateway over gRPC: the same promises, as statuses."""

import re
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from certificates import Authority, Issued
from gateway_support import PASSPHRASE, live, make_keep, train
from gateway_support import question as http_question
from grpc_support import Peer, message

from modelkeep import errors
from modelkeep.access.dpop import NONCE
from modelkeep.app.gateway import open_gateway
from modelkeep.app.handover import decode, encode, open_for
from modelkeep.app.keep import Keep
from modelkeep.custody.keys import GATEWAY_FAMILIES
from modelkeep.errors import (
    Conflict,
    Denied,
    Invalid,
    Missing,
    ModelkeepError,
    NotAdmitted,
    NotTrusted,
    OverBudget,
    Quarantined,
    Refused,
    ReviewRequired,
    Sealed,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from modelkeep.extraction.ladder import SHIPPED
from modelkeep.http.inference import failure, status_of
from modelkeep.serving.protobuf import write_bytes, write_text

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def keep(tmp_path_factory) -> Keep:
    folder = tmp_path_factory.mktemp("inference") / "keep"
    make_keep(folder, train(), ("iris", "bad"))
    settings = folder / "modelkeep.toml"
    settings.write_text(settings.read_text().replace("[gateway]\n", "[gateway]\ngrpc_port = 0\n"))
    made = Keep.open(folder, PASSPHRASE)
    made.quarantine(ref="bad@1", reason="odd answers")
    return made


@pytest.fixture(scope="module")
def alice(keep) -> str:
    return keep.key_issue(account="alice", quota=100_000).token


@pytest.fixture(scope="module")
def eve(keep) -> str:
    return keep.key_issue(account="eve").token


@pytest.fixture(scope="module")
def gateway(keep, alice, eve):
    with live(keep) as running:
        yield running
    assert running.errors == []


@contextmanager
def client(gateway, keep, shown: Issued | None = None):
    tls = ssl.create_default_context(cafile=str(keep.premises.directory / "tls" / "ca.pem"))
    if shown is not None:
        tls.load_cert_chain(shown.chain, shown.key)
    tls.set_alpn_protocols(["h2"])
    host, _, port = gateway.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as plain, tls.wrap_socket(plain, server_hostname=host) as connection:
        assert connection.selected_alpn_protocol() == "h2" and connection.version() == "TLSv1.3"
        yield Peer(connection)


def question(rows: np.ndarray, model: str = "iris", version: str = "") -> bytes:
    rows = np.atleast_2d(rows).astype(np.float32)
    shape = bytes(rows.shape)
    one = write_text(1, "X") + write_text(2, "FP32") + write_bytes(3, shape)
    return write_text(1, model) + write_text(2, version) + write_bytes(5, one) + write_bytes(7, rows.tobytes())


def infer(peer: Peer, token: str | None, asked: bytes) -> tuple[int, dict]:
    """Status, and all metadata of the answer."""
    more = {"authorization": f"Bearer {token}"} if token else {}
    number = peer.call(message(asked), SERVICE + "ModelInfer", **more)
    return peer.status(number), {**peer.head[number], **peer.trailers.get(number, {}), "body": peer.data.get(number, b"")}


ROW = np.zeros(6)


@pytest.mark.parametrize(
    ("who", "asked", "status", "code"),
    [
        ("alice", question(ROW), 0, None),
        ("alice", question(np.zeros((3, 6)), version="1"), 0, None),
        (None, question(ROW), 16, "unauthenticated"),
        ("nobody", question(ROW), 16, "unauthenticated"),
        ("eve", question(ROW), 7, "denied"),
        ("alice", question(ROW, "nothing"), 5, "missing"),
        ("alice", question(ROW, version="2"), 5, "missing"),
        ("alice", question(ROW, version="champion"), 5, "missing"),
        ("alice", question(ROW, "bad"), 9, "quarantined"),
        ("alice", question(ROW, "../etc"), 3, "invalid"),
        ("alice", question(ROW, version="-1"), 3, "invalid"),
        ("alice", question(np.zeros(5)), 3, "invalid"),
        ("alice", question(np.array([1, 2, 3, 4, 5, np.nan])), 3, "invalid"),
        ("alice", b"", 3, "invalid"),
        ("alice", b"\xff" * 20, 3, "invalid"),
        ("alice", question(ROW) + b"\x40\x01", 3, "invalid"),
    ],
)
def test_answers_and_refusals(gateway, keep, alice, eve, who, asked, status, code):
    token = {"alice": alice, "eve": eve}.get(who, who)
    with client(gateway, keep) as peer:
        found, said = infer(peer, token, asked)
    assert (found, said.get("modelkeep-code")) == (status, code), said
    if status:
        assert said["grpc-message"] and not said["body"] and "modelkeep-record" not in said
    else:
        assert said["body"] and said["modelkeep-record"].startswith(gateway.instance + "/")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unauthenticated("a"), 16, "unauthenticated"), (Denied("a"), 7, "denied"), (ReviewRequired("a"), 7, "review-required"),
        (Refused("a"), 7, "refused"), (NotTrusted("a"), 9, "not-trusted"), (Quarantined("a"), 9, "quarantined"),
        (NotAdmitted("a"), 9, "not-admitted"), (OverBudget("a", 1.5), 8, "over-budget"), (Invalid("a"), 3, "invalid"),
        (TooLarge("a"), 3, "too-large"), (Missing("a"), 5, "missing"), (Conflict("a"), 10, "conflict"),
        (Unavailable("a"), 14, "unavailable"), (Sealed("a"), 14, "sealed"), (ModelkeepError("a"), 13, "error"),
    ],
)  # fmt: skip
def test_errors_by_status(error, status, code):
    said = failure(error)
    trailers = dict(said.trailers)
    assert (said.status, trailers[b"modelkeep-code"].decode(), said.message) == (status, code, None)
    assert trailers.get(b"grpc-retry-pushback-ms") == (b"1500" if code == "over-budget" else None)


def test_how_to_authenticate_is_said_as_over_http():
    """A proof that needs the server's nonce finds it in the trailers (RFC 9449, section 8)."""
    assert dict(failure(Unauthenticated("a")).trailers)[b"www-authenticate"] == b'Bearer realm="modelkeep"'
    said = dict(failure(Unauthenticated("a", fault=NONCE, nonce="n-1")).trailers)
    assert said[b"dpop-nonce"] == b"n-1" and said[b"www-authenticate"].startswith(b"DPoP ")


def test_a_client_certificate_speaks_for_its_account(keep, tmp_path):
    """On both addresses alike; a certificate of another authority gets no connection."""
    clients, strangers = Authority(tmp_path / "clients"), Authority(tmp_path / "strangers")
    mine, nobodys = clients.issue(uri="spiffe://acme.eu/scoring"), clients.issue(uri="spiffe://acme.eu/nobody")
    trusted = keep.premises.directory / "clients.pem"
    trusted.touch(0o600)
    trusted.write_bytes(clients.pem)
    keep.cert_add(account="alice", certificate="uri:spiffe://acme.eu/scoring")
    settings = keep.premises.directory / "modelkeep.toml"
    before = settings.read_text()
    settings.write_text(before.replace("[gateway]\n", '[gateway]\nclient_ca = "clients.pem"\n'))
    try:
        with live(Keep.open(keep.premises.directory, PASSPHRASE)) as running:
            for shown, status in ((mine, 0), (nobodys, 16), (None, 16)):
                with client(running, keep, shown) as peer:
                    assert infer(peer, None, question(ROW))[0] == status
            with pytest.raises((ssl.SSLError, OSError)), client(running, keep, strangers.issue()) as peer:
                peer.until_closed()
                raise ConnectionResetError
        assert running.errors == []
    finally:
        settings.write_text(before)


def test_what_an_open_method_takes(gateway, keep):
    with client(gateway, keep) as peer:
        for method, asked, status in (
            ("ServerLive", b"", 0), ("ServerReady", b"", 0), ("ServerMetadata", b"", 0), ("ServerLive", b"\x08\x01", 3),
            ("ModelReady", b"", 16), ("ModelMetadata", b"", 16), ("ModelStreamInfer", b"", 12), ("RepositoryIndex", b"", 12),
        ):  # fmt: skip
            assert peer.status(peer.call(message(asked), SERVICE + method)) == status, method
        assert peer.status(peer.call(message(b""), "/grpc.health.v1.Health/Check")) == 12


def test_what_is_no_tls_1_3_is_turned_away(gateway, keep):
    tls = ssl.create_default_context(cafile=str(keep.premises.directory / "tls" / "ca.pem"))
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    host, _, port = gateway.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as plain, pytest.raises((ssl.SSLError, OSError)):
        tls.wrap_socket(plain, server_hostname=host)


def test_rest_with_binary_tensors(gateway, alice):
    head = b'{"model_name":"iris","inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"parameters":{"binary_data_size":24}}]}'
    sizes = {"inference-header-content-length": str(len(head))}
    body = head + np.zeros(6, np.float32).tobytes()
    with gateway.client(alice) as http:
        answer = http.post("/v2/models/iris/infer", content=body, headers=sizes)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json", answer.text
        other = http.post("/v2/models/iris/infer", content=body.replace(b'"iris"', b'"Iris"'), headers=sizes)
        assert (other.status_code, other.json()["code"]) == (400, "invalid") and "iris was addressed" in other.json()["detail"]
        wrong = http.post("/v2/models/iris/infer", content=body + b"1", headers=sizes)
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid")
        twice = http.post("/v2/models/iris/infer", content=body, headers=[*sizes.items(), *sizes.items()])
        assert twice.status_code == 400 and "stands twice" in twice.json()["detail"]


def test_calls_are_counted(gateway, keep, alice):
    with client(gateway, keep) as peer, gateway.client(None) as http:
        infer(peer, alice, question(ROW))
        infer(peer, None, question(ROW))
        said = http.get("/metrics").text
    assert 'modelkeep_requests_total{model="iris",outcome="ok"}' in said
    assert 'modelkeep_requests_total{model="",outcome="unauthenticated"}' in said


def test_without_the_audit_log_nothing_is_answered(keep, alice):
    """P1: the record is durable before the answer leaves, so that without one none does."""
    with live(keep) as running, client(running, keep) as peer:
        assert infer(peer, alice, question(ROW))[0] == 0
        (journal,) = (keep.premises.directory / "log" / "audit" / running.instance / "journal").iterdir()
        journal.rename(journal.with_name("gone"))
        for _ in range(3):
            status, said = infer(peer, alice, question(np.ones(6)))
            assert (status, said["modelkeep-code"], said["body"]) == (14, "unavailable", b"") and "audit" in said[
                "grpc-message"
            ]
        number = peer.call(message(b""), SERVICE + "ServerReady")
        assert peer.status(number) == 0 and peer.data[number] == message(b"")  # not ready
        journal.with_name("gone").rename(journal)


def test_stopping_answers_what_has_begun(keep, alice):
    with live(keep) as running, client(running, keep) as peer:
        number = peer.call(message(question(ROW)), SERVICE + "ModelInfer", authorization=f"Bearer {alice}")
        late = peer.call(b"", SERVICE + "ModelInfer", end=False, authorization=f"Bearer {alice}")
        assert peer.status(number) == 0
        running.begin_stop()
        while peer.goaway is None:
            peer.read()
        peer.send(late, message(question(ROW)))
        assert peer.status(late) == 0 and peer.trailers[late]["modelkeep-record"].startswith(running.instance)
        peer.until_closed()
    assert running.errors == []


def test_what_grpc_needs_may_be_missing(keep, monkeypatch):
    """Whoever asks for gRPC without its package is told so before anything is served."""
    monkeypatch.setattr("modelkeep.app.gateway.find_spec", lambda _name: None)
    opened = decode(encode(open_for(keep.premises, GATEWAY_FAMILIES)))
    with pytest.raises(Invalid, match=r"pip install 'modelkeep\[grpc\]'"):
        open_gateway(keep.premises.directory, opened, [], lambda _text: None)


def test_the_statuses_are_documented():
    """The table of docs/errors.md is the one of the code."""
    names = {
        3: "INVALID_ARGUMENT", 5: "NOT_FOUND", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION",
        10: "ABORTED", 13: "INTERNAL", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED",
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    rows = re.findall(
        r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| `([A-Z_]+)` \|$", page.partition("## Errors over gRPC")[2], re.MULTILINE
    )
    said = {code.strip("` "): status for codes, status in rows for code in codes.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelkeepError)]
    assert said == {kind.code: names[status_of(kind("a", 1.0) if kind is OverBudget else kind("a"))] for kind in kinds}


def test_a_server_without_grpc_does_not_need_its_package():
    code = "import sys; sys.modules['h2'] = sys.modules['hyperframe'] = None; import modelkeep.cli.main, modelkeep.http.serve"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_told_and_looked_out_for_over_http_is_here_and_with_explanations_too(keep, alice):
    """The notice of an account whose answers are not as usual, and the User-Agent that threat intelligence names."""
    for source in ("grpc", "explain"):
        keep.intel_indicate(data=f"kind,value\nagent,thief-{source}/1.0\n".encode(), source=source)
    try:
        with live(keep) as running, client(running, keep) as peer, running.client(alice) as http:
            asked, before = message(question(np.arange(6.0))), infer(peer, alice, question(ROW))[1]
            assert "modelkeep-notice" not in before
            agents = {"authorization": f"Bearer {alice}", "user-agent": "Thief-gRPC/1.0"}
            assert peer.status(peer.call(asked, SERVICE + "ModelInfer", **agents)) == 0
            body = http_question(np.arange(6.0))
            http.headers["user-agent"] = "Thief-Explain/1.0"
            assert http.post("/v2/models/iris/explain", content=body).status_code == 200
            late = time.monotonic() + 60
            while sum(len(row.cautions) for row in keep.account_list()) < 2:
                assert time.monotonic() < late, keep.account_list()
                time.sleep(0.1)
            keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 0.5").encode())
            told = infer(peer, alice, question(ROW))[1]["modelkeep-notice"]
            assert told == http.post("/v2/models/iris/infer", content=body).headers["modelkeep-notice"]
            assert re.match(r"answers are labels only, .*; the information budget begins anew on \d{4}-\d\d-\d\d\Z", told)
    finally:
        for source in ("grpc", "explain"):
            keep.intel_forget(source=source)
        keep.policy_set(kind="ladder", profile="default")
    assert running.errors == []
