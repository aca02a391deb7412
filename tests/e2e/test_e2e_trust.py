"""A running keep through a rotation of its signing keys, and on the day on which one turns out to be stolen."""

import time

import httpx
import pytest
from commandline import Cli, copy_keep
from e2e_house import House, Load, check_receipts, running, wait_for

MARGIN = 0.5  # a request that started this long after the verb returned met what the verb did, on a loaded machine, too


@pytest.fixture
def house(template, desk, tmp_path):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    with running(cli, tmp_path) as made:
        yield made
        made.check_output()


@pytest.fixture
def token(house):
    return house.cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]


def answering(house, token, subject):
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60, house.text)


def after(load, moment):
    """Statuses of what was asked after ``moment``, once something was."""
    wait_for(lambda: any(event.start > moment for event in list(load.events)), 60)
    time.sleep(0.3)
    return {event.status for event in list(load.events) if event.start > moment}


def test_a_rotation_under_load_and_a_quarantine_by_the_new_identity(house, token, subject, tmp_path):
    answering(house, token, subject)
    pids = house.address("gateway")[1], house.address("control")[1]
    with Load(house, token, subject.fresh, threads=2) as load:
        wait_for(lambda: len(load.answered) > 5, 60)
        begun = time.monotonic()
        for _ in range(2):
            house.cli("keys", "rotate", "statement-signing", code=0)
        done = time.monotonic()
        assert after(load, done) == {200}, "the gateway goes on"
        assert {event.status for event in list(load.events) if begun < event.start < done} == {200}
        house.cli("quarantine", "risk@1", "--reason", "by the new identity", code=0)
        quarantined = time.monotonic()
        assert after(load, quarantined) == {423}
    assert (house.address("gateway")[1], house.address("control")[1]) == pids, "nothing was started again"
    # Control signs with the new identity, too: its audit checkpoints count.
    house.cli("reinstate", "risk@1", "--reason", "fine", code=0)
    house.cli("promote", "risk@1", code=0)
    answering(house, token, subject)
    killed = house.kill()
    house.wait_ready(not_pid=killed)
    answering(house, token, subject)
    assert house.stop() == 0
    house.cli("log", "verify", code=0)
    shown = house.cli("--json", "log", "verify", code=0).json
    assert "do not count" not in str(shown), "whoever signed, signed with an identity that was in force"
    assert check_receipts(house.keep / "log", house.keep / "trust.toml", (event.receipt for event in load.answered)) > 5


def test_a_compromise_ends_serving_within_the_lease_and_a_new_signature_brings_it_back(house, token, subject):
    answering(house, token, subject)
    with Load(house, token, subject.fresh, threads=2) as load:
        wait_for(lambda: len(load.answered) > 5, 60)
        told = house.cli(
            "--json", "keys", "compromise", "statement-signing", "1", "--since", "0", "--reason", "lost", code=0
        ).json
        returned = time.monotonic()
        assert told["gone"] == ["risk@1"]
        assert 200 not in after(load, returned)
        house.cli("trust", "resign", "risk@1", code=0)
        assert 200 not in after(load, time.monotonic()), "signed again is not promoted"
        house.cli("promote", "risk@1", code=0)
        wait_for(lambda: load.events[-1].status == 200, 60, house.text)
    assert house.stop() == 0
    house.cli("log", "verify", code=0)


def test_a_gateway_alone_that_is_not_told_refuses(template, desk, subject, tmp_path):
    """``serve`` without ``up`` gets no new keys: it sees that the trust root was changed by hand, and fails closed."""
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    house = House(cli, tmp_path)
    try:
        house.start("serve")
        answering(house, token, subject)
        cli("keys", "rotate", "statement-signing", code=0)
        cli("keys", "rotate", "statement-signing", code=0)
        before = cli.keep.joinpath("trust.toml").read_bytes()
        time.sleep(1.5)
        assert house.ask(token, subject.fresh[:1]).status_code == 200, "the log told it"
        cli("keys", "compromise", "statement-signing", "3", "--since", "9", "--reason", "lost", code=0)
        assert house.ask(token, subject.fresh[:1]).status_code == 503
        with house.client(None) as client:
            assert client.get("/v2/health/ready").status_code == 503
        wait_for(lambda: "start it again" in house.text(), 60)
        cli.keep.joinpath("new.toml").write_bytes(cli.keep.joinpath("trust.toml").read_bytes())
        cli.keep.joinpath("trust.toml").write_bytes(before)  # somebody with the disk puts the former one back
        time.sleep(1.0)
        assert house.ask(token, subject.fresh[:1]).status_code == 503
    finally:
        house.stop()
    house.check_output()


def test_token_signing_is_rotated_under_load(house, token, subject):
    answering(house, token, subject)
    with Load(house, token, subject.fresh, threads=2) as load:
        wait_for(lambda: len(load.answered) > 5, 60)
        house.cli("keys", "rotate", "token-signing", code=0)
        done = time.monotonic()
        wait_for(lambda: any(event.start > done and event.status == 200 for event in list(load.events)), 60, house.text)
    assert {event.status for event in load.events} == {200}, "API keys go on"
    house.cli("user", "disable", "alice", code=0)
    assert house.ask(token, subject.fresh[:1]).status_code == 401


def test_sessions_end_with_the_key_that_signed_them(house, subject):
    made = house.cli("--json", "user", "add", "carol", "--role", "analyst", code=0).json

    def log_in(password, new=""):
        import msgspec

        with httpx.Client(verify=False, trust_env=False) as client:  # who control is, other tests ask
            body = msgspec.msgpack.encode({"account": "carol", "password": password, "new_password": new})
            answer = client.post(f"{house.control}/admin/v1/login", content=body)
            assert answer.status_code == 200, answer.text
            return msgspec.msgpack.decode(answer.content)["token"]

    session = log_in(made["password"], "a long new password of carol")
    answering(house, session, subject)
    house.cli("keys", "rotate", "token-signing", code=0)
    wait_for(lambda: house.ask(session, subject.fresh[:1]).status_code == 401, 60)
    answering(house, log_in("a long new password of carol"), subject)
