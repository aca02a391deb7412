"""Explanations of a model that another server runs: asked as predictions are, and no longer than somebody waits for it."""

import http.server
import io
import json
import threading
import time

import numpy as np
import pytest
from gateway_support import live, make_keep, question

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.upstreams import UpstreamPlace

EXPLAIN, INFER = "/v2/models/far/explain", "/v2/models/far/infer"
MOST_ROWS = 32
METADATA = {
    "name": "far",
    "platform": "test",
    "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 6]}],
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
    ],
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.say(METADATA if self.path.startswith("/v2/models/") else {"name": "t", "extensions": []})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked += 1
        if self.server.asked > self.server.quick:
            self.server.go.wait(60)
        if self.server.broken:
            return self.say({"error": "on fire"}, 500)
        (tensor,) = asked["inputs"]
        if tensor["shape"][0] > MOST_ROWS:
            return self.say({"error": "batch too large"}, 400)
        found = self.server.model.run({"X": np.array(tensor["data"], np.float32).reshape(tensor["shape"])})
        outputs = [{**one, "shape": list(found[one["name"]].shape)} for one in METADATA["outputs"]]
        for one in outputs:
            one["data"] = found[one["name"]].ravel().tolist()
        return self.say({"id": asked["id"], "model_name": "far", "outputs": outputs})

    def say(self, what, status=200):
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(trained):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.model, found.asked, found.broken, found.quick = OnnxRuntime(trained.onnx), 0, False, 1e9
        found.go, found.daemon_threads = threading.Event(), True
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{found.server_port}"
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def house(server, trained, tmp_path):
    """A keep in which ``far`` is the server's model and ``iris`` the same one sealed; a key."""
    keep = make_keep(tmp_path / "keep", trained)
    with (keep.premises.directory / "modelkeep.toml").open("a") as file:
        file.write("[upstream]\nbreaker_failures = 3\nbreaker_share = 0.1\nbreaker_seconds = 600\n")
    data = io.BytesIO()
    np.savez(data, x=trained.reference)
    keep.publish_upstream(name="far", at=UpstreamPlace(server.url), reference=data.getvalue())
    keep.policy_set(kind="admission", profile="open", reason="another server has it")
    keep.promote(ref="far@1")
    return keep, keep.key_issue(account="alice", quota=100_000).token


def ask(gateway, token, row, address=EXPLAIN):
    with gateway.client(token) as client:
        return client.post(address, content=question(row))


def test_what_is_asked_goes_past_its_breaker_and_in_batches_that_servers_take(house, server, trained):
    keep, token = house
    with live(keep) as gateway:
        far = ask(gateway, token, trained.fresh[0])
        assert far.status_code == 200, far.text
        here = ask(gateway, token, trained.fresh[0], "/v2/models/iris/explain").json()
        assert np.allclose(far.json()["outputs"][0]["data"], here["outputs"][0]["data"], atol=0.1)  # another background
        remote = next(one for one in gateway.service.gateway.admitted.models.values() if one.remote).remote
        assert remote.readings.answers > 10  # counted where predictions are
        server.broken = True
        for _ in range(3):
            assert ask(gateway, token, trained.fresh[1]).status_code == 503
        server.broken, server.asked = False, 0
        for address in (EXPLAIN, INFER):  # one breaker for both: it is left alone
            answer = ask(gateway, token, trained.fresh[1], address)
            assert answer.status_code == 503 and "left alone" in answer.json()["detail"]
        assert server.asked == 0
    assert gateway.errors == []


def test_what_it_cannot_answer_costs_no_rows_and_what_it_refuses_does(house, server, trained):
    keep, _ = house
    token = keep.key_issue(account="alice", quota=40).token
    with live(keep) as gateway:
        server.broken = True
        for address, row in ((INFER, trained.fresh[:30]), (EXPLAIN, trained.fresh[0])):
            assert ask(gateway, token, row, address).status_code == 503
        server.broken = False
        assert ask(gateway, token, trained.fresh[: MOST_ROWS + 1], INFER).status_code == 400
        assert ask(gateway, token, trained.fresh[:8], INFER).status_code == 429
        assert ask(gateway, token, trained.fresh[:7], INFER).status_code == 200
    assert gateway.errors == []


def test_a_model_is_asked_no_more_once_nobody_waits(house, server, trained):
    keep, token = house
    with live(keep, handle_seconds=2.0) as gateway:
        server.asked, server.quick = 0, 2
        assert ask(gateway, token, trained.fresh[0]).status_code == 503
        after = server.asked
        assert 2 < after < 12
        server.go.set()
        time.sleep(1.0)
        assert server.asked <= after + 1
    assert gateway.errors == []


def test_a_suspect_is_held_against_it_in_batches_that_it_takes(house, trained):
    keep, token = house
    with live(keep) as gateway:
        for at in range(0, 96, 24):
            assert ask(gateway, token, trained.fresh[at : at + 24], INFER).status_code == 200
    data = io.BytesIO()
    np.savez(data, x=trained.fresh[:200])
    found = keep.trace(ref="far@1", suspect=trained.onnx, probes=data.getvalue())
    assert [one.queries for one in found.accounts] == [96]
