"""A keep that runs as a service: its log, its certificate, what it says of its health, and how it stops."""

import json
import signal
import socket
import ssl
import time

import httpx
import numpy as np
import pytest
from canaries import Canaries
from commandline import PASSPHRASE
from cryptography import x509
from e2e_house import House, question, wait_for

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key

NUMBER = 7654321.125
"""An input that nothing else says."""
CA_KEY = make_authority_key()
CA = authority_certificate(CA_KEY, "an authority of one's own", int(time.time() * 1e9))


def pair(folder, name):
    made = issue(CA_KEY, CA, [name, "127.0.0.1"], int(time.time() * 1e9))
    for file, data in (("chain.pem", made.chain), ("key.pem", made.key)):
        (folder / file).write_bytes(data)
        (folder / file).chmod(0o600)


class OwnHouse(House):
    """Shows a certificate of one's own, and writes a line of every request."""

    @property
    def trust(self):
        return ssl.create_default_context(cadata=CA.decode())


@pytest.fixture(scope="module")
def house(template, desk, tmp_path_factory):
    from commandline import Cli, copy_keep

    folder = tmp_path_factory.mktemp("own")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    pair(folder, "first")
    files = {"CERTIFICATE": str(folder / "chain.pem"), "KEY": str(folder / "key.pem")}
    made = OwnHouse(
        cli,
        folder,
        MODELKEEP_LOG_ACCESS="1",
        MODELKEEP_LOG_REPEAT_SECONDS="0",
        **{f"MODELKEEP_GATEWAY_{name}": value for name, value in files.items()},
    ).start()
    yield made
    assert made.stop() == 0
    check_the_end(made)


def lines(house):
    """Every line of its log, which all are JSON."""
    return [json.loads(line) for line in house.text().splitlines()]


def shown(house):
    host, port = house.url.removeprefix("https://").split(":")
    with house.trust.wrap_socket(socket.create_connection((host, int(port)), 5), server_hostname="127.0.0.1") as connection:
        found = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
    return found.subject.rfc4514_string().removeprefix("CN=")


def check_the_end(house):
    """At a stop the gateway ends before control does, so that its last checkpoint is handed over."""
    said = house.text()
    assert "not handed over" not in said.split("terminated")[-1] and "Traceback" not in said


def test_a_start_is_no_trouble_and_names_no_authority_that_is_not_shown(house):
    said = [line for line in lines(house) if line["process"] == "gateway"]
    begun = next(at for at, line in enumerate(said) if line["message"].startswith("gateway: https://"))
    assert said[begun]["event"] == "notice" and "ca.pem" not in said[begun]["message"]
    assert [line for line in said[: begun + 1] if line["event"] == "trouble"] == []


def test_requests_are_lines_of_json_without_a_secret_or_an_input(house, subject):
    canaries = Canaries()
    token = house.cli("--json", "key", "issue", "alice", code=0).json["token"]
    canaries.word("API key", token)
    canaries.word("passphrase", PASSPHRASE)
    row = np.array(subject.fresh[0])
    row[3] = NUMBER
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60, house.text)
    answer = house.ask(token, row)
    with house.client(token) as client:
        client.get(f"/{token}")
        client.post(f"/v2/models/{token.lower()[:20]}/infer", json=question(row))
        client.get("/v2/models/risk?token=" + token)
    httpx.post(house.control + "/admin/v1/login", content=PASSPHRASE.encode(), verify=False, trust_env=False)
    with house.client(None) as client:
        client.post("/v2/models/risk/infer", content=b"x", headers={"authorization": f"Basic {token}"})
    wait_for(lambda: sum(line["event"] == "request" for line in lines(house)) >= 4, 60, house.text)
    requests = [line for line in lines(house) if line["event"] == "request"]
    (infer,) = [line for line in requests if line.get("record") == answer.headers["modelkeep-record"]]
    assert (infer["model"], infer["status"], infer["route"]) == ("risk", 200, "infer")
    assert infer["process"] == "gateway" and infer["ms"] > 0
    assert not canaries.found(house.text()) and "7654321" not in house.text()
    assert token.lower()[:20] not in house.text() and "address" not in infer and "127.0.0.1" not in json.dumps(requests)
    assert {line["process"] for line in lines(house)} == {"up", "control", "gateway"}


def test_a_certificate_is_taken_over_at_sighup(house):
    assert shown(house) == "first"
    pids = [house.address(role)[1] for role in ("gateway", "control")]
    pair(house.folder, "second")
    house.process.send_signal(signal.SIGHUP)
    wait_for(lambda: shown(house) == "second", 60, house.text)
    (house.folder / "chain.pem").write_bytes(b"junk")
    house.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "the former one is shown on" in house.text(), 60, house.text)
    assert shown(house) == "second"
    assert pids == [house.address(role)[1] for role in ("gateway", "control")] and house.process.poll() is None
    pair(house.folder, "second")


def test_health_says_what_is_so(house):
    admin = house.cli("--json", "key", "issue", "admin", code=0).json["token"]
    alice = house.cli("--json", "key", "issue", "alice", code=0).json["token"]
    with house.client(None) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
    with house.client(admin) as client:
        wait_for(lambda: "served" in client.get("/v2/health/ready").json(), 60, house.text)  # the key is known here
        assert client.get("/v2/health/ready").json() == {"ready": True, "served": ["risk@1"], "refused": {}}
        house.cli("quarantine", "risk@1", "--reason", "a test", code=0)
        said = client.get("/v2/health/ready").json()  # the verb has waited until every gateway knows
        assert said["served"] == [] and said["refused"]["risk@1"]["code"] == "quarantined"
        house.cli("reinstate", "risk@1", "--reason", "a test", code=0)
    with house.client(alice) as client:
        wait_for(lambda: client.get("/v2/models/risk").status_code != 401, 60, house.text)  # the key is known here
        assert client.get("/v2/health/ready").json() == {"ready": True}  # who may not see more gets what anybody gets
    with httpx.Client(base_url=house.control, verify=False, trust_env=False) as control:
        assert control.get("/ready").json() == {"ready": True, "settled": True}
        assert control.get("/health").json() == {"live": True}


def test_no_banner_and_headers_that_keep_browsers_safe(house):
    for url, path in (
        (house.url, "/v2/health/live"),
        (house.url, "/none"),
        (house.control, "/health"),
        (house.control, "/none"),
    ):
        headers = httpx.get(url + path, verify=False, trust_env=False).headers
        assert "server" not in headers and "x-powered-by" not in headers
        assert headers["strict-transport-security"] == "max-age=31536000"
        assert headers["x-content-type-options"] == "nosniff" and "no-store" in headers["cache-control"]
    assert (
        "default-src 'none'"
        in httpx.get(house.control + "/none", verify=False, trust_env=False).headers["content-security-policy"]
    )


def test_metrics_of_the_process_and_of_the_certificate(house):
    with house.client(None) as client:
        text = client.get("/metrics").text
    found = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if not line.startswith("#")}
    end = found["modelkeep_tls_certificate_expiration_timestamp_seconds"]
    assert 89 < (end - time.time()) / 86_400 < 91
    assert found["process_resident_memory_bytes"] > 20e6 and found["process_start_time_seconds"] <= time.time()
    assert found["modelkeep_connections"] >= 1 and found["process_cpu_seconds_total"] > 0
    assert any(name.startswith("modelkeep_build_info{version=") for name in found)
    assert found["process_max_fds"] > 100
    for name in found:  # https://prometheus.io/docs/practices/naming/: base units, and counters end in _total
        assert not name.partition("{")[0].endswith(("_ms", "_kb", "_count_total"))
