"""modelkeep in front of MLServer: published by its address, refused by policy, guarded, and what happens when it falls over."""

import json
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from commandline import Cli, copy_keep
from e2e_house import RECEIPT, Load, check_receipts, labels, question, running, wait_for
from peer_mlserver import MlServer

GUARDED = "/v2/models/guarded/infer"
PATIENCE = 1.0
"""Seconds that a question has at the upstream here."""


def documented(kind):
    """The lines of the first block of this kind in docs/upstream.md."""
    text = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text("utf-8")
    return text.partition(f"```{kind}\n")[2].partition("```")[0].splitlines()


@pytest.fixture(scope="module")
def peer(tmp_path_factory, subject):
    """MLServer with the model to protect in it."""
    server = MlServer(tmp_path_factory.mktemp("mlserver"), subject.onnx)
    yield server.start()
    server.kill()


@pytest.fixture(scope="module")
def published(template, desk, peer, tmp_path_factory):
    """A keep in which guarded@1 is MLServer's model; what publishing and promoting said."""
    folder = tmp_path_factory.mktemp("guard")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    publish, _, promote = documented("sh")
    here = {"http://127.0.0.1:8080": peer.url, "benign.npz": str(desk / "ref.npz")}
    said = cli(*[here.get(word, word) for word in shlex.split(publish)[1:]], code=0).out
    return cli, folder, said, cli(*shlex.split(promote)[1:], code=0).out


@pytest.fixture(scope="module")
def guard(published):
    """A gateway in front of it that serves what others have in custody; a key that may ask for ever."""
    cli, folder, *_ = published
    cli(*shlex.split(documented("sh")[1])[1:], code=0)
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    quick = {
        "MODELKEEP_UPSTREAM_ANSWER_SECONDS": str(PATIENCE),
        "MODELKEEP_UPSTREAM_BREAKER_SECONDS": "0.5",
        "MODELKEEP_UPSTREAM_BREAKER_FAILURES": "3",
    }
    with running(cli, folder, **quick) as house:
        yield house, token
        house.check_output()


def metric(house, name):
    with house.client(None) as client:
        found = re.search(rf'^{name}\{{release="guarded@1"\}} (\S+)$', client.get("/metrics").text, re.MULTILINE)
    return float(found[1])


def ready(house, token):
    with house.client(token) as client:
        return client.get("/v2/models/guarded/ready").status_code


def test_the_settings_of_mlserver_are_the_documented_ones(peer):
    assert json.loads("\n".join(documented("json"))) == json.loads((peer.folder / "model-settings.json").read_text())


def test_custody_is_external_and_everybody_says_so(published):
    cli, _, said, promoted = published
    assert "custody external: another server has the weights" in said
    assert "not admitted by the standard policy: its weights must be sealed in this keep" in promoted
    shown = cli("show", "guarded@1", code=0).out
    assert "(upstream)" in shown and "custody    external" in shown
    assert "its weights must be sealed in this keep" in shown
    rows = {row["ref"]: row["custody"] for row in cli("--json", "list", code=0).json}
    assert rows == {"risk@1": "sealed", "guarded@1": "external"}
    for profile in ("standard", "strict"):
        cli("policy", "set", "admission", profile, "--reason", "to see", code=0)
        explained = cli("policy", "explain", "guarded@1")
        assert "its weights must be sealed in this keep" in explained.out + explained.err, profile
    bill = json.loads(cli("bom", "guarded@1", code=0).out)
    properties = {one["name"]: one["value"] for one in bill["metadata"]["component"]["properties"]}
    assert properties["modelkeep:custody"] == "external" and properties["modelkeep:file:format"] == "upstream"
    cli("verify", "guarded@1", code=0)


def test_what_is_exported_is_where_it_runs_and_no_secret(published, peer, tmp_path):
    cli, *_ = published
    cli("export", "guarded@1", "--out", str(tmp_path / "where.json"), code=0)
    said = json.loads((tmp_path / "where.json").read_bytes())
    assert said["url"] == peer.url and said["model"] == "risk" and said["platform"] == "onnx" and said["token"] == ""
    again = cli("publish", str(tmp_path / "where.json"), "--name", "again", "--reference", "/nonexistent", code=2)
    assert again.line()


def test_answers_are_those_of_the_model_behind_and_guarded(guard, subject):
    house, token = guard
    answer = house.ask(token, subject.fresh[:8], GUARDED)
    assert answer.status_code == 200, answer.text
    assert labels(answer) == list(subject.top1[:8])
    body = answer.json()
    assert body["model_name"] == "guarded" and "id" not in body
    probabilities = next(one["data"] for one in body["outputs"] if one["name"] == "probabilities")
    assert all(len(str(value)) <= 6 for value in probabilities)  # rounded and marked, as for any model
    assert set(answer.headers) <= {
        "cache-control", "x-content-type-options", "content-type", "content-length", "date", RECEIPT,
        "ratelimit", "ratelimit-policy", "strict-transport-security",
    }  # fmt: skip
    assert house.ask(None, subject.fresh[:1], GUARDED).status_code == 401
    with house.client(token) as client:
        said = client.get("/v2/models/guarded").json()
        assert said["platform"] == "onnx" and said["inputs"][0]["name"] == "x"
        assert client.get("/v2/models/risk").json()["platform"] == "onnx_onnxruntime"
    assert ready(house, token) == 200 and metric(house, "modelkeep_upstream_breaker") == 0
    assert metric(house, "modelkeep_upstream_answers_total") >= 1


def test_the_same_over_grpc(guard, desk, subject, peer):
    house, token = guard
    asked = ("--name", "wired", "--upstream-model", "risk", "--reference", str(desk / "ref.npz"))
    house.cli("publish", "--upstream", peer.grpc_url, *asked, code=0)
    house.cli("promote", "wired@1", code=0)
    where = "/v2/models/wired/infer"
    wait_for(lambda: house.ask(token, subject.fresh[:1], where).status_code == 200, 60, house.text)
    answer = house.ask(token, subject.fresh[:8], where)
    assert labels(answer) == list(subject.top1[:8]) == labels(house.ask(token, subject.fresh[:8], GUARDED))
    assert "status 5" in house.cli("publish", "--upstream", peer.grpc_url, *asked[:2], *asked[4:], code=3).line()
    assert "no path" in house.cli("publish", "--upstream", f"{peer.grpc_url}/x", *asked, code=2).line()


def test_it_is_published_from_afar(guard, template, desk, peer, tmp_path):
    house, _ = guard
    (tmp_path / "old").write_text(json.loads((template.parent / "init.json").read_bytes())["password"])
    (tmp_path / "new").write_text("the admin's second password")
    files = ("--password-file", str(tmp_path / "old"), "--new-password-file", str(tmp_path / "new"))
    there = house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path), MODELKEEP_SERVER=house.control)
    there("login", "--user", "admin", "--ca", str(house.keep / "tls" / "ca.pem"), *files, code=0)
    asked = ("--name", "afar", "--reference", str(desk / "ref.npz"))
    done = there("--json", "publish", "--upstream", peer.url, "--upstream-model", "risk", *asked, code=0).json
    assert done["ref"] == "afar@1" and done["custody"] == "external"
    assert "status 404" in there("publish", "--upstream", peer.url, *asked, code=3).line()


def falls_and_comes_back(house, token, subject, fall, rise):
    """Under load the upstream falls: nobody waits beyond his time, all are denied, and all is well once it is back."""
    with Load(house, token, subject.fresh, where=GUARDED, threads=4) as load:
        wait_for(lambda: len(load.answered) > 20, 60, house.text)
        fall()
        began = time.monotonic()
        wait_for(lambda: metric(house, "modelkeep_upstream_breaker") > 0, 60, house.text)
        wait_for(lambda: load.events[-1].status == 503 and load.events[-1].start > began + 1, 60)
        assert ready(house, token) == 503
        with house.client(token) as client:
            assert client.get("/v2/health/ready").status_code == 200  # the gateway itself is well
            denied = client.post(GUARDED, json=question(subject.fresh[:1]))
            assert denied.status_code == 503 and int(denied.headers["retry-after"]) >= 1
            assert denied.json()["code"] == "unavailable" and "127.0.0.1" not in denied.text
        assert house.ask(token, subject.fresh[:1]).status_code == 200  # another model is served as ever
        rising = time.monotonic()
        rise()
        back = time.monotonic()
        wait_for(lambda: bool(load.answered) and load.answered[-1].start > back, 60, house.text)
        wait_for(lambda: ready(house, token) == 200, 60)
    down = [event for event in load.events if began + PATIENCE < event.start and event.end < rising]
    assert down and {event.status for event in down} == {503}
    assert max(event.end - event.start for event in down) < PATIENCE + 5, "a request waited beyond its time"
    receipts = [event.receipt for event in load.answered]
    assert all(receipts)
    return receipts


@pytest.fixture(scope="module")
def receipts():
    """Of the answers that were given under load."""
    return []


def test_it_is_stopped_and_killed_under_load(guard, subject, peer, receipts):
    house, token = guard
    receipts += falls_and_comes_back(
        house, token, subject, lambda: peer.send(signal.SIGSTOP), lambda: peer.send(signal.SIGCONT)
    )
    receipts += falls_and_comes_back(house, token, subject, peer.kill, peer.start)
    log = house.text()
    assert "is left alone for a while" in log and "answers again" in log
    wait_for(lambda: house.ask(token, subject.fresh[:1], GUARDED).status_code == 200, 60)


def test_every_answer_has_its_record_and_a_gateway_starts_while_the_upstream_is_down(guard, subject, peer, receipts):
    house, token = guard
    peer.kill()
    old = house.kill()
    house.wait_ready(not_pid=old)  # the gateway is, without that model
    assert check_receipts(house.keep / "log", house.keep / "trust.toml", receipts) == len(receipts) > 40
    answer = house.ask(token, subject.fresh[:1], GUARDED)
    assert answer.status_code == 503 and ready(house, token) == 503
    peer.start()
    wait_for(lambda: house.ask(token, subject.fresh[:1], GUARDED).status_code == 200, 60, house.text)


def test_nobody_can_be_published_who_is_not_there_or_must_not_be(published, desk, peer):
    cli, *_ = published
    asked = ("--name", "other", "--reference", str(desk / "ref.npz"))
    assert "status 404" in cli("publish", "--upstream", peer.url, *asked, code=3).line()
    assert "link-local" in cli("publish", "--upstream", "http://169.254.169.254", *asked, code=1).line()
    assert "one of the two" in cli("publish", *asked, code=2).line()
    assert "goes with --upstream" in cli("publish", "m.onnx", "--upstream-version", "1", *asked, code=2).line()
    token = ("--upstream-model", "risk", "--upstream-token", "env:MODELKEEP_UPSTREAM_TOKEN_ML")
    assert "upstream.origins" in cli("publish", "--upstream", peer.url, *asked, *token, code=1).line()
    listed = cli.with_environment(MODELKEEP_UPSTREAM_ORIGINS=f"https://models.acme.eu,{peer.url}")
    assert "is not at env:" in listed("publish", "--upstream", peer.url, *asked, *token, code=3).line()
    stolen = ("--upstream-model", "risk", "--upstream-token", "env:AWS_SECRET_ACCESS_KEY")
    assert "names no token" in listed("publish", "--upstream", peer.url, *asked, *stolen, code=2).line()
    elsewhere = cli.with_environment(MODELKEEP_UPSTREAM_ORIGINS="https://models.acme.eu")
    assert "does not list" in elsewhere("publish", "--upstream", peer.url, *asked, code=1).line()
    given = listed.with_environment(MODELKEEP_UPSTREAM_TOKEN_ML="s3cret-token")
    assert given("publish", "--upstream", peer.url, *asked, *token, code=0).out.startswith("other@1")
