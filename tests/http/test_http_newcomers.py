"""Accounts of another issuer that come for the first time: whatever they ask first, they wait to be known, or hear why not."""

import http.server
import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager

import jwt
import pytest
from gateway_support import PASSPHRASE, Live, make_keep, make_service, question
from grpc_support import Peer, message
from identity import ec_key, public_jwk

from modelkeep.access.externals import NAME_TAKEN, REASONS, TOO_MANY
from modelkeep.app.control import CONTROL
from modelkeep.app.keep import Keep
from modelkeep.http.inference import SERVICE
from modelkeep.serving.protobuf import write_text

MODEL = "/v2/models/iris"
KEY = ec_key()
SETTINGS = """
[[issuers]]
alias = "corp"
issuer = "{issuer}"
audiences = ["keep"]
roles = {{ analyst = "analyst", admin = "admin" }}
jwks_uri = "{issuer}/keys"
account_claim = "name"
allow_http = true
max_accounts = 12
"""


class Keys(http.server.BaseHTTPRequestHandler):
    """Publishes the issuer's key."""

    def do_GET(self):
        body = json.dumps({"keys": [public_jwk(KEY, "one", "ES256")]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def issuer():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained, issuer):
    made = make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)
    with (made.premises.directory / "modelkeep.toml").open("a") as file:
        file.write(SETTINGS.format(issuer=issuer))
    return Keep.open(made.premises.directory, PASSPHRASE)


@contextmanager
def admitting(keep):
    """What control does four times a second."""
    over = threading.Event()

    def work():
        control = Keep.open(keep.premises.directory, PASSPHRASE).acting_as(CONTROL)
        while not over.wait(0.05):
            control.admit_newcomers()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def token(issuer, name, *, sub="", role="analyst", audience="keep"):
    now = int(time.time())
    said = {"iss": issuer, "aud": audience, "sub": sub or name, "name": name, "iat": now, "exp": now + 600, "jti": name}
    headers = {"typ": "at+jwt", "kid": "one"}
    return jwt.encode({**said, "client_id": "app", "roles": [role]}, KEY, algorithm="ES256", headers=headers)


@pytest.fixture(scope="module")
def gateway(keep, issuer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELKEEP_GATEWAY_GRPC_PORT", "0")
        running = Live(make_service(keep), keep.premises.directory)
    with admitting(keep), running.client(token(issuer, "nobody", audience="another")) as client:
        while client.get(MODEL).status_code == 503:  # until the issuer's keys were read
            time.sleep(0.05)
        yield running
    running.stop()
    assert running.errors == []


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/ready", "/audit/INSTANCE/checkpoint"])
def test_who_looks_first_waits_a_moment(gateway, issuer, path):
    gateway.service.audit.publish()
    role = "admin" if path.startswith("/audit") else "analyst"
    with gateway.client(token(issuer, f"looks-{path.rpartition('/')[2]}", role=role)) as client:
        answer = client.get(path.replace("INSTANCE", gateway.instance))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("verb", ["infer", "explain"])
def test_who_asks_first_waits_a_moment(gateway, issuer, trained, verb):
    with gateway.client(token(issuer, f"asks-{verb}")) as client:
        answer = client.post(f"{MODEL}/{verb}", content=question(trained.fresh[:1]))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_over_grpc_too(gateway, keep, issuer, method):
    tls = ssl.create_default_context(cafile=str(keep.premises.directory / "tls" / "ca.pem"))
    tls.set_alpn_protocols(["h2"])
    host, _, port = gateway.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as plain, tls.wrap_socket(plain, server_hostname=host) as connection:
        peer = Peer(connection)
        bearer = f"Bearer {token(issuer, f'calls-{method}')}"
        number = peer.call(message(write_text(1, "iris")), f"{SERVICE.decode()}{method}", authorization=bearer)
        assert peer.status(number) == 0 and len(peer.data[number]) > len(message(b"")), "ready, and described"


def test_a_probe_does_not_wait(gateway, issuer):
    with gateway.client(token(issuer, "probe")) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}


def test_who_gets_no_account_is_told_why(gateway, issuer, trained, keep):
    with gateway.client(token(issuer, "asks-infer", sub="another")) as client:
        for _ in range(2):
            for answer in (client.get(MODEL), client.post(f"{MODEL}/infer", content=question(trained.fresh[:1]))):
                assert (answer.status_code, answer.json()["code"]) == (403, "denied")
                assert answer.json()["detail"] == REASONS[NAME_TAKEN]
    with gateway.client(token(issuer, "one-more")) as client:
        found = [client.get(MODEL).status_code]
    known = sum(row.name.endswith("@corp") for row in keep.user_list())
    for number in range(12 - known):
        with gateway.client(token(issuer, f"more-{number}")) as client:
            found.append(client.get(MODEL).status_code)
    with gateway.client(token(issuer, "too-many")) as client:
        answer = client.get(MODEL)
    assert set(found) == {200} and (answer.status_code, answer.json()["detail"]) == (403, REASONS[TOO_MANY])
