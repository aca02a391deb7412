"""A restart comes up sealed; a passphrase, people with shares, or an HSM unseal it; and one command seals it again."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from e2e_house import House, Load, wait_for
from softhsm import Token

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key

ALL = ("gateway", "worker-1", "worker-2", "owner", "control")


class SealedHouse(House):
    """``up`` without a passphrase: listens, sealed."""

    def __init__(self, cli, folder, **environment):
        super().__init__(cli, folder, MODELKEEP_PASSPHRASE_FILE="", MODELKEEP_UNSEAL_RETRY_SECONDS="0.3", **environment)

    authority = ""
    """Of the certificate of one's own, PEM."""

    @property
    def trust(self):
        return ssl.create_default_context(cadata=self.authority) if self.authority else super().trust

    def start_sealed(self, verb="up", *arguments):
        self.begin(verb, *arguments)
        wait_for(lambda: self.get("/v2/health/live") == 200, 60, self.text)
        if verb == "up":
            wait_for(lambda: self.get("/health", "control") == 200, 60, self.text)
        return self

    def sealed(self):
        """Wait for the answer of a gateway that came up sealed after a lock: its code."""
        wait_for(lambda: self.get("/v2/health/live") == 200, 60, self.text)
        return self.answer("/v2/models/risk/infer").json()["code"]

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
    house.start_sealed("up", "--workers", "2")
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
    assert "given: share 1, 1 of 2" in cli("unseal", "--status", code=0).out
    cli("unseal", "--share-file", str(files[3]), code=0)
    house.wait_ready()
    assert house.ask(key, subject.fresh[:1]).status_code == 200
    (record,) = acts(cli, "unsealed")
    assert record["summary"] == f"unsealed how=shares set={other['set_id']} shares=1,3 uids={os.getuid()},{os.getuid()}"
    assert "has its keys" in cli("unseal", "--status", code=0).out
    # and what was unsealed without a passphrase can change keys
    cli("keys", "new", "model-kek", code=0)

    locked_pids = [house.address(role)[1] for role in ALL]
    assert "sealed" in cli("lock", code=0).out
    assert not any(Path(f"/proc/{pid}").exists() for pid in locked_pids)
    assert house.sealed() == "sealed"
    assert len(acts(cli, "locked")) == 1
    assert house.process.poll() is None

    wrong = tmp_path / "wrong-pass"
    wrong.write_bytes(b"no passphrase of anybody, and no UTF-8: \xff")
    assert "wrong passphrase" in cli("--passphrase-file", str(wrong), "unseal", code=1).line()
    time.sleep(0.6)
    cli("unseal", code=0)
    house.wait_ready()
    assert house.ask(key, subject.fresh[:1]).status_code == 200
    said = house.text()
    assert all(share not in said for share in (*made["shares"], *other["shares"]))
    # and whoever kills what lock speaks to leaves nobody behind who has keys
    pids = [house.address(role)[1] for role in ALL]
    house.process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60, house.text)


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
    house.process.kill()
    house.process.wait()
    house.begin()  # anew, beside what the killed one left in the run folder
    house.wait_ready()
    assert [len(acts(cli, verb)) for verb in ("unsealed", "locked")] == [2, 1]


def test_processes_alone_come_up_sealed_too_and_give_their_keys_up(cli, house, tmp_path):
    """Control, and a gateway with several workers, the owner of what they share, and who keeps them running."""
    control = SealedHouse(cli, tmp_path)
    try:
        control.begin("control", "--sealed")
        house.begin("serve", "--sealed", "--workers", "2")
        wait_for(lambda: house.get("/v2/health/live") == control.get("/health", "control") == 200, 60, house.text)
        cli("unseal", code=0)
        wait_for(lambda: house.get("/v2/health/ready") == 200, 60, house.text)
        wait_for(lambda: house.get("/admin/v1/status", "control") == 405, 60, house.text)
        pids = [house.address(name)[1] for name in ("worker-1", "worker-2", "owner")]
        assert cli("lock", code=0).out.count(": sealed") == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        wait_for(lambda: house.get("/v2") == house.get("/admin/v1/status", "control") == 503, 60, house.text)
        assert house.sealed() == "sealed"
        assert "Traceback" not in house.text()
    finally:
        control.stop()


def test_who_is_locked_out_by_a_new_passphrase_is_told_and_unsealed_again_follows_the_ring(cli, house, tmp_path, subject):
    key = cli("key", "issue", "alice", "--json", code=0).json["token"]
    house.start_sealed()
    cli("unseal", code=0)
    house.wait_ready()
    (tmp_path / "new").write_text("a new passphrase of several words\n")
    changed = replace(cli, passphrase_file=tmp_path / "new")
    ran = cli("--json", "keys", "passwd", "--new-passphrase-file", str(tmp_path / "new"), code=0)
    assert ran.json["locked_out"] == [{"role": "up", "pid": house.process.pid}]
    for said in (ran.err, changed("unseal", "--status", code=0).out):
        assert "takes over no key that is made from now on" in said and "'modelkeep lock', 'modelkeep unseal'" in said
    assert house.ask(key, subject.fresh[:1]).status_code == 200
    changed("lock", code=0)
    house.sealed()
    changed("unseal", code=0)
    house.wait_ready()
    assert changed("--json", "unseal", "--status", code=0).json[0]["locked_out"] is False
    before = house.text().count("the running processes have it")
    changed("keys", "rotate", "model-kek", code=0)
    wait_for(lambda: house.text().count("the running processes have it") > before, 60, house.text)
    assert house.ask(key, subject.fresh[:1]).status_code == 200


def test_nothing_is_answered_after_lock_returned(cli, house, subject):
    """A gateway alone becomes another process by itself, while clients ask it without pause."""
    key = cli("key", "issue", "alice", "--json", code=0).json["token"]
    authority = make_authority_key()
    ca = authority_certificate(authority, "one's own", time.time_ns())
    for name, data in issue(authority, ca, ["127.0.0.1"], time.time_ns())._asdict().items():
        (cli.keep / name).write_bytes(data)
        (cli.keep / name).chmod(0o600)
    house.environment |= {"MODELKEEP_GATEWAY_CERTIFICATE": "chain", "MODELKEEP_GATEWAY_KEY": "key"}
    house.begin("serve")
    wait_for(lambda: house.get("/v2/health/live") == 200, 60, house.text)
    house.authority = ca.decode()
    assert httpx.get(house.url + "/v2", verify=house.trust, trust_env=False).json()["code"] == "sealed"
    cli("unseal", code=0)
    wait_for(lambda: house.get("/v2/health/ready") == 200, 60, house.text)
    with Load(house, key, subject.fresh[:20]) as load:
        wait_for(lambda: len(load.answered) > 20, 60, house.text)
        cli("lock", code=0)
        returned = time.monotonic()
        wait_for(lambda: house.get("/v2") == 503, 60, house.text)
    assert not [event for event in load.answered if event.end > returned]
    house.stop()
    cli("unseal", "--status", code=3)
