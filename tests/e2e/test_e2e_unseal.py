"""A restart comes up sealed; a passphrase, people with shares, or an HSM unseal it; and one command seals it again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from e2e_house import House, wait_for
from softhsm import Token


class SealedHouse(House):
    """``up`` without a passphrase: listens, sealed."""

    def __init__(self, cli, folder, **environment):
        super().__init__(cli, folder, MODELKEEP_PASSPHRASE_FILE="", MODELKEEP_UNSEAL_RETRY_SECONDS="0.3", **environment)

    def start_sealed(self, verb="up", *arguments):
        self.begin(verb, *arguments)
        wait_for(lambda: self.get("/v2/health/live") == 200, 60, self.text)
        return self

    def begin(self, verb="up", *arguments):
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modelkeep", verb, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def answer(self, path, role="gateway"):
        return httpx.get(self.address(role)[0] + path, verify=False, timeout=5, trust_env=False)

    def get(self, path, role="gateway"):
        try:
            return self.answer(path, role).status_code
        except (OSError, ValueError, httpx.HTTPError):
            return 0


@pytest.fixture
def house(cli, tmp_path):
    """A sealed one; stopped at the end whatever happened."""
    made = SealedHouse(cli, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.send_signal(signal.SIGTERM)
        made.process.wait(60)


def acts(cli, verb):
    entries = cli("--json", "log", "show", "--last", "500", code=0).json
    return [entry for entry in entries if verb in json.dumps(entry)]


def test_a_restart_comes_up_sealed_and_people_with_shares_unseal_it_and_lock_it(cli, house, tmp_path, subject):
    made = cli("--json", "shares", "make", "--threshold", "2", "--shares", "3", code=0).json
    other = cli("--json", "shares", "make", "--threshold", "2", "--shares", "3", code=0).json  # replaces the first set
    key = cli("key", "issue", "alice", "--json", code=0).json["token"]
    files = []
    for number, text in enumerate([*made["shares"][:1], *other["shares"]]):
        files.append(tmp_path / f"share-{number}")
        files[-1].write_text(text + "\n")
    house.start_sealed()
    for role in ("gateway", "control"):
        path = "/v2/models/risk/infer" if role == "gateway" else "/admin/v1/status"
        refusal = house.answer(path, role)
        assert (refusal.status_code, refusal.json()["code"]) == (503, "sealed")
    assert house.get("/v2/health/ready") == 503 and house.get("/health", "control") == 200
    assert cli("unseal", "--share-file", str(files[0]), code=1).line().count("another set") == 1
    assert "1 of 2" in cli("unseal", "--share-file", str(files[1]), code=0).out
    assert "given already" in cli("unseal", "--share-file", str(files[1]), code=1).line()
    mistyped = tmp_path / "mistyped"
    mistyped.write_text(other["shares"][2][:-1] + ("a" if other["shares"][2][-1] != "a" else "b"))
    assert "mistyped" in cli("unseal", "--share-file", str(mistyped), code=2).line()
    assert "wait" in cli("unseal", "--share-file", str(files[3]), code=3).line()
    time.sleep(0.6)
    assert "shares 1 were given" in cli("unseal", "--status", code=0).out
    cli("unseal", "--share-file", str(files[3]), code=0)
    house.wait_ready()
    assert house.ask(key, subject.fresh[:1]).status_code == 200
    (record,) = acts(cli, "unsealed")
    assert record["summary"] == f"unsealed how=shares set={other['set_id']} shares=1,3 uids={os.getuid()},{os.getuid()}"
    assert "has its keys" in cli("unseal", "--status", code=0).out
    # and what was unsealed without a passphrase can change keys
    cli("keys", "new", "model-kek", code=0)

    locked_pids = [house.address(role)[1] for role in ("gateway", "control")]
    began = time.monotonic()
    assert "sealed" in cli("lock", code=0).out
    assert not any(Path(f"/proc/{pid}").exists() for pid in locked_pids), time.monotonic() - began
    wait_for(lambda: house.get("/v2/health/live") == 200, 60, house.text)
    assert house.answer("/v2/models/risk/infer").json()["code"] == "sealed"
    assert len(acts(cli, "locked")) == 1
    assert house.process.poll() is None

    wrong = tmp_path / "wrong-pass"
    wrong.write_text("no passphrase of anybody")
    assert "wrong passphrase" in cli("--passphrase-file", str(wrong), "unseal", code=1).line()
    time.sleep(0.6)
    cli("unseal", code=0)
    house.wait_ready()
    assert house.ask(key, subject.fresh[:1]).status_code == 200
    said = house.text()
    assert all(share not in said for share in (*made["shares"], *other["shares"]))
    house.stop()


def test_an_hsm_unseals_at_start_when_it_can_and_a_locked_keep_waits_for_a_person(cli, house, subject):
    token = Token()
    uri = token.uri("unseal")
    cli("keys", "new", uri, code=0)
    cli("unsealing", "provider", uri, code=0)
    assert "the key pkcs11:token=" in cli("unsealing", "list", code=0).out
    cli("keys", "rotate", "model-kek", code=0)  # what changes in the ring changes nothing about who opens it
    house.environment |= {"MODELKEEP_UNSEAL_PROVIDER": uri, "SOFTHSM2_CONF": os.environ["SOFTHSM2_CONF"]}
    with token.pulled():
        house.start_sealed()
        wait_for(lambda: "not unsealed by the provider" in house.text(), 60, house.text)
        assert house.get("/v2/health/ready") == 503
    house.wait_ready()
    (record,) = acts(cli, "unsealed")
    assert "provider" in json.dumps(record)
    cli("lock", code=0)
    wait_for(lambda: house.get("/v2/health/live") == 200, 60, house.text)
    assert "waits for 'modelkeep unseal'" in house.text().splitlines()[-1]
    time.sleep(1.0)  # three times the pause between two tries
    assert house.get("/v2/health/ready") == 503


@pytest.mark.parametrize("role", ["control", "serve"])
def test_a_process_alone_comes_up_sealed_too_and_gives_its_keys_up(cli, house, role):
    name = {"control": "control", "serve": "gateway"}[role]
    path = {"control": "/health", "serve": "/v2/health/live"}[role]
    house.begin(role, "--sealed")
    wait_for(lambda: house.get(path, name) == 200, 60, house.text)
    cli("unseal", code=0)
    ask = {"control": "/admin/v1/status", "serve": "/v2"}[role]
    unsealed = {"control": 405, "serve": 200}[role]
    wait_for(lambda: house.get(ask, name) == unsealed, 60, house.text)
    cli("lock", code=0)
    wait_for(lambda: house.get(ask, name) == 503, 60, house.text)
    assert "Traceback" not in house.text()


@pytest.mark.parametrize("role", ["up", "serve"])
def test_several_workers_give_their_keys_up_too(cli, house, role):
    """And whatever they share: the owner of their evidence, and who keeps them running."""
    house.begin(role, "--workers", "2")
    wait_for(lambda: house.get("/v2/health/live") == 200, 60, house.text)
    cli("unseal", code=0)
    wait_for(lambda: house.get("/v2/health/ready") == 200, 60, house.text)
    names = [path.stem for path in (cli.keep / "run").glob("*.json")]
    assert {"worker-1", "worker-2", "owner"} <= {*names}
    pids = [house.address(name)[1] for name in ("worker-1", "worker-2", "owner")]
    cli("lock", code=0)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 2, house.text)
    wait_for(lambda: house.get("/v2") == 503, 60, house.text)
    assert house.answer("/v2").json()["code"] == "sealed" and "Traceback" not in house.text()
