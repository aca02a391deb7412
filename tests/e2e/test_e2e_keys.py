"""Keys that rotate, move and end under a gateway that serves: real processes, clients that never stop asking."""

import json
import os

import pytest
from commandline import copy_keep
from e2e_house import Load, running, wait_for
from softhsm import Token


@pytest.fixture
def house(cli, tmp_path):
    with running(cli, tmp_path, MODELKEEP_KEYS_CHECK_SECONDS="0.5") as house:
        yield house
        house.check_output()


@pytest.fixture
def admin(cli, template, tmp_path):
    """Runs commands on control, as the administrator."""
    made = json.loads((template.parent / "init.json").read_bytes())
    (tmp_path / "old").write_text(made["password"])
    (tmp_path / "new").write_text("the admin's second password")
    there = cli.with_environment(XDG_CONFIG_HOME=str(tmp_path))
    files = "--password-file", str(tmp_path / "old"), "--new-password-file", str(tmp_path / "new")

    def run(house, *arguments, **more):
        if not (tmp_path / "modelkeep" / "sessions.json").exists():
            there(
                "--server", house.control, "login", "--user", "admin", "--ca", str(cli.keep / "tls" / "ca.pem"), *files, code=0
            )
        return there("--server", house.control, *arguments, **more)

    return run


def publish_next(run, desk):
    run("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)


def states(run):
    families = run("--json", "keys", "list", code=0).json
    return {key["key_id"]: key["state"] for family in families if family["family"] == "model-kek" for key in family["versions"]}


def version_served(house, token, subject, version):
    def served():
        answer = house.ask(token, subject.fresh[:1], f"/v2/models/risk/versions/{version}/infer")
        return answer.status_code == 200 and answer.json()["model_version"] == str(version)

    wait_for(served, 60, house.text)


def test_rotation_under_load_and_then_a_new_release(house, admin, cli, desk, subject):
    """In control, from afar: nobody is turned away, the same gateway process serves what is wrapped under the new keys."""
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60)
    gateway = house.address("gateway")[1]
    with Load(house, token, subject.fresh) as load:
        for family in ("model-kek", "audit-subject"):
            done = admin(house, "--json", "keys", "rotate", family, code=0).json
            assert done["primary"] == f"file:{family}/2"
        publish_next(lambda *a, **k: admin(house, *a, **k), desk)
        admin(house, "promote", "risk@2", code=0)
        version_served(house, token, subject, 2)
        wait_for(lambda: {event.version for event in load.answered[-20:]} == {"2"}, 60)
    assert {event.status for event in load.events} == {200}, [e for e in load.events if e.status != 200][:5]
    assert house.address("gateway")[1] == gateway  # the same process: it was handed the new keys, not started again
    assert states(lambda *a, **k: admin(house, *a, **k)) == {
        "file:model-kek/1": "pending-destruction",
        "file:model-kek/2": "primary",
    }
    # A key of an account that nobody asked with before is made under the new key, by the gateway that runs.
    cli("user", "add", "carol", "--role", "analyst", code=0)
    other = cli("key", "issue", "carol", "--json", code=0).json["token"]
    wait_for(lambda: house.ask(other, subject.fresh[:1]).status_code == 200, 60, house.text)
    held = {row["key_id"]: row["things"] for row in cli("--json", "keys", "inventory", code=0).json["keys"]}
    assert held["file:audit-subject/1"] == 0 and held["file:audit-subject/2"] == 2


def test_rotation_by_another_process_and_destruction(house, cli, desk, subject):
    """The operator rotates with the folder while control and gateway run: both take the new ring, the old key is gone."""
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60)
    before = copy_keep(house.keep, house.folder / "before")
    with Load(house, token, subject.fresh, threads=1) as load:
        cli("keys", "rotate", "model-kek", code=0)
        cli("keys", "destroy", "model-kek", "1", "--now", "--reason", "a test of it", code=0)
        publish_next(cli, desk)
        cli("promote", "risk@2", code=0)
        version_served(house, token, subject, 2)
    assert {event.status for event in load.events} == {200}
    assert states(cli) == {"file:model-kek/1": "destroyed", "file:model-kek/2": "primary"}
    # Old records do not open with what is left of the key: whoever puts them back gets nothing.
    (before / "keys" / "model-kek.keep").write_bytes((house.keep / "keys" / "model-kek.keep").read_bytes())
    old = cli.__class__(before, cli.passphrase_file)
    assert "destroyed" in old("export", "risk@1", "--out", str(house.folder / "out"), code=1).line()
    cli("export", "risk@1", "--out", str(house.folder / "risk.onnx"), code=0)
    assert (house.folder / "risk.onnx").read_bytes() == subject.onnx


def test_a_compromise_under_load_changes_every_data_key_and_no_answer(house, admin, cli, subject):
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60)
    blobs = {path.name for path in (house.keep / "blobs").rglob("*") if path.is_file()}
    with Load(house, token, subject.fresh, threads=2) as load:
        done = admin(house, "--json", "keys", "compromise", "model-kek", "1", "--reason", "a tape was lost", code=0).json
    assert done["resealed"] == 1
    assert {event.status for event in load.events} == {200}, [e for e in load.events if e.status != 200][:5]
    assert not blobs & {path.name for path in (house.keep / "blobs").rglob("*") if path.is_file()}
    assert "a tape was lost" in cli("incident", "list", code=0).out
    cli("verify", "risk@1", code=0)
    pid = house.kill()
    house.wait_ready(not_pid=pid)  # another process opens the new bodies with the new key
    version_served(house, token, subject, 1)


def test_moving_to_an_hsm_under_load(cli, desk, subject, tmp_path):
    """The gateway is handed where the keys are now, and opens the next release with the token."""
    place = Token().uri("models")
    environment = {"SOFTHSM2_CONF": os.environ["SOFTHSM2_CONF"]}
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    with running(cli, tmp_path, **environment) as house:
        wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60)
        with Load(house, token, subject.fresh, threads=1) as load:
            moved = cli("--json", "keys", "move", place, code=0).json
            publish_next(cli, desk)
            cli("promote", "risk@2", code=0)
            version_served(house, token, subject, 2)
        assert {event.status for event in load.events} == {200}
        assert states(cli) == {"file:model-kek/1": "pending-destruction", moved["primary"]: "primary"}
        house.check_output()
        assert Token.pin not in house.text()


def test_scheduled_rotation(cli, tmp_path):
    with running(cli, tmp_path, MODELKEEP_KEYS_CHECK_SECONDS="0.5", MODELKEEP_KEYS_TTL="1s") as house:
        wait_for(lambda: states(cli).get("file:model-kek/1") == "pending-destruction", 60, house.text)
        house.check_output()
    said = cli("log", "show", "--last", "60", code=0).out
    assert "control@local" in said and "keys.rotate" in said
    cli("verify", "risk@1", code=0)
