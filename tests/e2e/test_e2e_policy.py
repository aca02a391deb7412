"""A running keep follows its policies: what may be served, and who may ask, change under load when the verb returns."""

import json
import time

import pytest
from commandline import Cli, copy_keep
from e2e_house import Load, running, wait_for

NO_ANALYSTS = """
@id("no-analysts") @says("analysts ask from elsewhere") forbid (principal in Role::"analyst", action, resource)
when { context has address && context.address.isLoopback() };
"""


@pytest.fixture
def house(template, desk, tmp_path):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass").with_environment(XDG_CONFIG_HOME=str(tmp_path))
    with running(cli, tmp_path) as made:
        yield made
        made.check_output()


def statuses_after(load, moment):
    """Statuses of what was asked after ``moment``, once something was."""
    wait_for(lambda: any(event.start > moment for event in list(load.events)), 60)
    time.sleep(0.2)
    return {event.status for event in list(load.events) if event.start > moment}


def test_policies_take_effect_before_the_verb_returns(house, subject, template, tmp_path):
    cli, token = house.cli, house.cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60, house.text)
    (tmp_path / "leave.cedar").write_text(NO_ANALYSTS)
    with Load(house, token, subject.fresh, threads=2) as load:
        wait_for(lambda: len(load.answered) > 5, 60)
        for kind, strange, refused, usual in (
            ("admission", ("strict",), 423, "standard"),
            ("access", (str(tmp_path / "leave.cedar"), "--extend"), 403, "default"),
        ):
            cli("policy", "set", kind, *strange, code=0)
            assert statuses_after(load, time.monotonic()) == {refused}
            cli("policy", "set", kind, usual, code=0)
            wait_for(lambda: load.events[-1].status == 200, 60, house.text)
    assert "two people" in why_not(house, cli, token, subject)
    approve_as_admin(house, template, tmp_path)
    assert house.stop() == 0
    assert cli("--json", "policy", "explain", "risk@1", code=0).json["facts"]["approvals"] == 1
    cli("log", "verify", code=0)


def why_not(house, cli, token, subject):
    """What a client is told while the strict policy holds."""
    cli("policy", "set", "admission", "strict", code=0)
    said = house.ask(token, subject.fresh[:1]).json()
    assert said["code"] == "not-admitted"
    cli("policy", "set", "admission", "standard", code=0)
    return said["detail"]


def approve_as_admin(house, template, tmp_path):
    """From afar, as a person whom control has authenticated."""
    made = json.loads((template.parent / "init.json").read_bytes())
    (tmp_path / "old").write_text(made["password"])
    (tmp_path / "new").write_text("the admin's second password")
    there, files = (
        ("--server", house.control),
        ("--password-file", str(tmp_path / "old"), "--new-password-file", str(tmp_path / "new")),
    )
    house.cli(*there, "login", "--user", "admin", "--ca", str(house.keep / "tls" / "ca.pem"), *files, code=0)
    assert "approved by admin" in house.cli(*there, "approve", "risk@1", "--reason", "read it", code=0).out
    assert "not admitted" in house.cli(*there, "policy", "check", "risk@1", "--by", "strict", code=1).out
