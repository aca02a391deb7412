"""Traces as a collector receives them: decoded protobuf of a real OTLP receiver, from a keep that really runs."""

import gzip
import itertools
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from canaries import Canaries
from commandline import Cli, copy_keep
from e2e_house import INFER, House, question, wait_for

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from modelkeep.adapters.tracecontext import TRACEPARENT
from modelkeep.adapters.traces import Traces, parse_traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP receiver: every span that came, and the raw bytes of every request."""

    def __init__(self):
        spans, raw = self.spans, self.raw = [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                raw.append(body)
                assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {one.key: one.value.string_value for one in resource.resource.attributes}
                    spans.extend((names["service.name"], span) for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector():
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def house(template, desk, tmp_path_factory, collector):
    folder = tmp_path_factory.mktemp("traced")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    made = House(
        cli, folder, MODELKEEP_TRACE_ENDPOINT=collector.url, MODELKEEP_TRACE_SHARE="1", OTEL_BSP_SCHEDULE_DELAY="100"
    ).start()
    yield made
    assert made.stop() == 0


def attributes(span):
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_is_a_span_with_its_phases_in_the_clients_trace_and_without_its_words(house, collector, subject):
    canaries = Canaries()
    token = house.cli("--json", "key", "issue", "alice", code=0).json["token"]
    canaries.word("API key", token)
    row = np.array(subject.fresh[0])
    row[3] = 7654321.125
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60, house.text)
    with house.client(token) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00", "tracestate": "canary=1"}
        answer = client.post(INFER, json=question(row), headers=headers)
        client.post(f"/v2/models/{token[3:20].lower()}/infer", json=question(row), headers=headers)
    ours = lambda: [span for _, span in collector.spans if span.trace_id.hex() == TRACE]  # noqa: E731
    wait_for(lambda: sum(span.name == "POST infer" for span in ours()) == 2, 60, house.text)
    (root,) = [span for span in ours() if attributes(span).get("modelkeep.record") == answer.headers["modelkeep-record"]]
    assert root.parent_span_id.hex() == PARENT and not root.trace_state
    found = attributes(root)
    assert (found["http.response.status_code"], found["modelkeep.model"], found["http.route"]) == (200, "risk", "infer")
    phases = {span.name: span for span in ours() if span.parent_span_id == root.span_id}
    assert set(phases) == {"credential", "validate", "run", "record"}
    order = [phases[name] for name in ("credential", "validate", "run", "record")]
    assert all(one.end_time_unix_nano <= other.start_time_unix_nano for one, other in itertools.pairwise(order))
    assert (
        root.start_time_unix_nano <= order[0].start_time_unix_nano and order[-1].end_time_unix_nano <= root.end_time_unix_nano
    )
    (refused,) = [span for span in ours() if span.name == "POST infer" and span.span_id != root.span_id]
    assert attributes(refused)["error.type"] in ("denied", "missing", "invalid") and "modelkeep.model" not in attributes(
        refused
    )
    assert {name for name, _ in collector.spans} == {"modelkeep"}
    everything = b"".join(collector.raw)
    assert not canaries.found(everything) and b"canary" not in everything and b"7654321" not in everything
    assert token[3:20].lower().encode() not in everything


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", True),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-has", True),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{TRACE}-{PARENT}-01\n", False),
        (f"00-{TRACE[1:]}-{PARENT}-01", False),
        ("", False),
        ("x" * 10_000, False),
    ],
)
def test_traceparent_as_the_specification_has_it(value, good):
    found = parse_traceparent(value.encode())
    assert (found is not None) == good
    if found:
        assert f"{found.trace_id:032x}" == TRACE and f"{found.span_id:016x}" == PARENT and not found.trace_state


def test_a_client_cannot_have_its_request_sampled(collector):
    traces = Traces(collector.url, 0.0)
    assert traces.begin(f"00-{TRACE}-{PARENT}-01".encode()) is None and TRACEPARENT.get() == b""
    traces.close()


def test_what_is_asked_of_others_goes_on_with_the_trace(collector):
    traces = Traces(collector.url, 1.0)
    seen = traces.begin(f"00-{TRACE}-{PARENT}-00".encode())
    said = TRACEPARENT.get().decode()
    traces.end(seen, "POST infer", 200, {})
    assert said.startswith(f"00-{TRACE}-") and said.endswith("-01") and PARENT not in said
    assert TRACEPARENT.get() == b""
    traces.close()
    assert any(span.span_id.hex() in said for _, span in collector.spans)


def test_without_the_extra_it_says_what_to_install_and_off_it_imports_nothing(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith(("opentelemetry.", "modelkeep.adapters.traces"))]:
        monkeypatch.delitem(sys.modules, name)
    refused = cli("--set", "trace.endpoint=http://127.0.0.1:1/v1/traces", "serve", code=2)
    assert "modelkeep[otel]" in json.dumps(refused.err)
    assert os.environ.get("MODELKEEP_TRACE_ENDPOINT") is None
