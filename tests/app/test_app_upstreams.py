"""Who may be asked by whom, with which token: what the settings say about upstreams."""

import http.server
import json
import threading

import numpy as np
import pytest

from modelkeep.app.sections import UpstreamSettings
from modelkeep.app.upstreams import UpstreamPlace, Upstreams
from modelkeep.errors import Denied, Invalid, NotTrusted, Unavailable
from modelkeep.formats.upstream import parse_upstream

METADATA = {
    "name": "iris",
    "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("authorization")))
        body = json.dumps(self.server.metadata if self.path.startswith("/v2/models/") else {"name": "t", "extensions": []})
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.seen, found.metadata, found.daemon_threads = [], METADATA, True
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{found.server_port}"
        yield found
        found.shutdown()
        thread.join()


def upstreams(folder, environment=None, **settings):
    return Upstreams(UpstreamSettings(**settings), folder, environment=environment or {})


def test_metadata_become_the_document(server, tmp_path):
    found = upstreams(tmp_path).discover(UpstreamPlace(f"{server.url}/v2/"), "iris")
    assert found.url == server.url and found.model == "iris" and found.platform == "test" and not found.binary
    assert parse_upstream(found.encode()) == found
    assert server.seen == [("/v2", None), ("/v2/models/iris", None)]
    upstreams(tmp_path).discover(UpstreamPlace(server.url, "other", "7"), "iris")
    assert server.seen[-1][0] == "/v2/models/other/versions/7"


def test_a_token_is_read_for_each_connection_and_sent_to_listed_servers_alone(server, tmp_path):
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "iris").write_text("first\n")
    place = UpstreamPlace(server.url, token="file:iris")
    with pytest.raises(Denied, match="lists"):
        upstreams(tmp_path).discover(place, "iris")
    assert server.seen == []
    listed = upstreams(tmp_path, origins=(server.url,))
    listed.discover(place, "iris")
    (tmp_path / "upstream" / "iris").write_text("second")
    listed.discover(place, "iris")
    assert [one for _, one in server.seen] == ["Bearer first"] * 2 + ["Bearer second"] * 2
    for bad in ("", "a b", "a\r\nx: y", "\u00fc", "x" * 9000):
        (tmp_path / "upstream" / "iris").write_text(bad, "utf-8")
        with pytest.raises(Unavailable, match="not at file:iris, or is no token"):
            listed.discover(place, "iris")
    (tmp_path / "upstream" / "iris").unlink()
    with pytest.raises(Unavailable, match="not at file:iris"):
        listed.discover(place, "iris")
    name = "MODELKEEP_UPSTREAM_TOKEN_IRIS"
    upstreams(tmp_path, {name: "third"}, origins=(server.url,)).discover(UpstreamPlace(server.url, token=f"env:{name}"), "iris")
    assert server.seen[-1][1] == "Bearer third"


def test_a_model_that_changed_is_not_started(server, tmp_path):
    here = upstreams(tmp_path)
    document = here.discover(UpstreamPlace(server.url), "iris")
    here.start(document)
    server.metadata = {**METADATA, "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]}
    with pytest.raises(Unavailable, match="something else than when it was published"):
        here.start(document)
    server.metadata = {"name": "iris"}
    with pytest.raises(Unavailable, match="does not say"):
        here.start(document)


def test_a_server_that_is_not_listed_is_not_asked_at_all(server, tmp_path):
    document = upstreams(tmp_path).discover(UpstreamPlace(server.url), "iris")
    server.seen.clear()
    with pytest.raises(Denied, match="does not list"):
        upstreams(tmp_path, origins=("https://models.acme.eu",)).start(document)
    assert server.seen == []


def test_a_release_is_started_as_what_the_log_says_it_is(server, tmp_path):
    """An address cannot pass for a sealed model: then admission would be asked about the wrong custody."""

    class Evidence:
        format = "onnx"

    here = upstreams(tmp_path)
    document = here.discover(UpstreamPlace(server.url), "iris").encode()
    with pytest.raises(NotTrusted, match="cannot load"):
        here.runtime(Evidence, document)
    Evidence.format = "upstream"
    assert here.runtime(Evidence, document).platform == "test"
    with pytest.raises(Invalid):
        here.runtime(Evidence, b"onnx bytes")


def test_what_it_runs_is_asked_without_a_loop(server, tmp_path):
    remote = upstreams(tmp_path).open(upstreams(tmp_path).discover(UpstreamPlace(server.url), "iris"))
    with pytest.raises(Unavailable, match="gave no answer that can be used"):  # this server answers GET alone
        remote.run({"x": np.zeros((1, 2), np.float32)})
