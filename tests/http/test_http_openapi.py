"""The OpenAPI document: it is what the code says, it names every address, and the gateway keeps to it whatever it is asked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_support import live, make_keep, train

from modelkeep.http import gateway as routes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from openapi import FILE, document, text  # noqa: E402

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip


def test_the_file_is_what_the_code_says():
    assert FILE.read_text("utf-8") == text(), "run: python tools/openapi.py"


def test_every_address_of_the_gateway_is_in_it():
    paths = set(document()["paths"])
    verbs = re.search(rb"\(([^()]*)\)\?\\Z", routes._MODEL.pattern)[1].decode().split("|")
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        assert {base + verb for verb in ("", *verbs)} <= paths
    page = (ROOT / "docs" / "gateway.md").read_text("utf-8")
    fixed = set(re.findall(r"`GET (/v2[^`\[{]*|/metrics)`", page))
    assert {path for path in paths if "{" not in path} == fixed


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    keep = make_keep(tmp_path_factory.mktemp("keeps") / "keep", train())
    key = keep.key_issue(account="alice", quota=1_000_000).token
    with live(keep) as running:
        yield running, key, keep.premises.directory / "tls" / "ca.pem"
    assert running.errors == []


def test_the_example_is_answered(gateway):
    running, key, _ = gateway
    body = document()["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    with running.client(key) as client:
        for verb in ("infer", "explain"):
            assert client.post(f"/v2/models/iris/{verb}", json=body["one row"]["value"]).status_code == 200


def test_the_gateway_keeps_to_it_whatever_it_is_asked(gateway, tmp_path):
    """schemathesis, with a seed, makes requests that fit the document and requests that do not, and looks at every answer."""
    running, key, ca = gateway
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(FILE), "--url", running.url, "--tls-verify", str(ca),
        "--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--seed", "1", "--max-examples", "8",
        "--phases", "examples,coverage,fuzzing", "--no-color", "--suppress-health-check", "all", "--warnings", "off",
        "--report", "ndjson", "--report-ndjson-path", str(tmp_path / "events"),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-16000:] + done.stderr[-2000:]
    generated = int(re.search(r"(\d+) generated", done.stdout)[1])
    assert generated > 100 and "Tested: 12" in done.stdout
    with running.client(key) as client:
        metrics = client.get("/metrics").text
    assert 'outcome="unavailable"' not in metrics
