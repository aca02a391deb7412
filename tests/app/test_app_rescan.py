"""Control judges models again by itself, when the rules of now are others than those of the last verdict."""

import msgspec
import pytest
from commandline import PASSPHRASE

from modelkeep.app.control import open_control
from modelkeep.app.handover import open_for
from modelkeep.app.keep import Keep
from modelkeep.custody.keys import FAMILIES
from modelkeep.custody.opinions import Scanner
from modelkeep.custody.scan import scan
from modelkeep.ledger.predicates import Finding


def strict(data, filename):
    """Rules of tomorrow, to which every model is bad."""
    found = Finding("new-rule", "w", "known to be bad")
    return msgspec.structs.replace(scan(data, filename), clean=False, findings=(found,), rules_version="900")


@pytest.fixture
def control(cli):
    """Control, before it is started, and what it reports."""
    said = []
    made = open_control(cli.keep, open_for(Keep.open(cli.keep, PASSPHRASE.encode()).premises, FAMILIES), said.append)
    yield made, said
    made.stop()


def state(cli):
    return cli("--json", "show", "risk@1", code=0).json["release"]["state"]


def test_at_start_it_takes_away_what_the_rules_of_now_call_bad(cli, control):
    made, said = control
    made.keep.premises.scanner = Scanner(rules=strict, rules_version="900")
    made.start()
    made.stop()  # waits for its threads, each of which does its work once at least
    assert state(cli) == "quarantined"
    assert said == ["control judged risk@1 again: not-clean: known to be bad"]
    (incident,) = cli("--json", "incident", "list", code=0).json
    assert incident["id"] == "scan:risk@1"
    rows = cli("--json", "log", "show", "--last", "1000", code=0).json
    assert [row["actor"] for row in rows if row["type"] in ("scan", "state")][-2:] == ["control@local"] * 2


def test_with_the_rules_of_the_last_verdict_it_logs_nothing(cli, control):
    made, said = control
    before = len([row for row in cli("--json", "log", "show", "--last", "1000", code=0).json if row["type"] == "scan"])
    made.start()
    made.stop()
    assert (state(cli), said) == ("promoted", [])
    assert len([row for row in cli("--json", "log", "show", "--last", "1000", code=0).json if row["type"] == "scan"]) == before
