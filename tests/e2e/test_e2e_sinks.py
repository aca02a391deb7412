"""A keep that runs with required audit sinks: a mirror and a webhook. P1 holds for each of them, and break-glass is audited."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commandline import Cli, copy_keep
from e2e_house import RECEIPT, Load, check_receipts, running, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from sink_servers import SECRET, WebhookReceiver

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.serving.journal import batches


@pytest.fixture
def receiver():
    made = WebhookReceiver(None)
    yield made
    made.stop()


def mirrored(mirror, origin):
    """Indexes of a log's records in the mirror, by instance."""
    return {
        folder.name: {
            index
            for batch in batches(FolderLogFiles(folder), f"{origin}/audit/{folder.name}", 0)
            for index in range(batch.first, batch.end)
        }
        for folder in mirror.iterdir()
    }


def test_every_answer_is_in_the_journal_in_the_mirror_and_at_the_webhook(template, desk, subject, tmp_path, receiver):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "100000", "--json", code=0).json["token"]
    origin = cli("status", "--json", code=0).json["origin"]
    mirror, secret = tmp_path / "second", tmp_path / "secret"
    mirror.mkdir()
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    hook = f"http://127.0.0.1:{receiver.port}/hook#secret={secret}"
    sinks = {"MODELKEEP_AUDIT_SINKS": f"disk:{mirror}?same-disk=yes,{hook}", "MODELKEEP_AUDIT_REQUIRE": "2"}
    receipts = []

    def ask(house):
        answer = house.ask(token, subject.fresh[:1])
        receipts.extend([answer.headers[RECEIPT]] if answer.status_code == 200 else [])
        return answer

    def readiness(house):
        with house.client(None) as client:
            return client.get("/v2/health/ready")

    with running(cli, tmp_path, **sinks) as house:
        wait_for(lambda: ask(house).status_code == 200, 60, house.text)
        with house.client(None) as client:
            metrics = client.get("/metrics").text
        assert f'modelkeep_audit_sink_up{{sink="disk:{mirror}"}} 1' in metrics and "whsec" not in metrics

        with Load(house, token, subject.fresh, threads=2) as load:  # kill -9 in the middle
            wait_for(lambda: len(load.answered) > 20, 60)
            killed = house.kill()
            house.wait_ready(not_pid=killed)
        receipts += [event.receipt for event in load.answered]

        receiver.mode = "hang"  # it takes connections, reads, and says nothing
        took = wait_for(lambda: readiness(house).status_code == 503, 60)
        assert took < 20 and "2 of 2 audit sinks" in readiness(house).text  # a second, on a machine that has time
        assert ask(house).status_code == 503
        receiver.mode = ""
        receiver.go.set()
        wait_for(lambda: ask(house).status_code == 200, 60, house.text)

        mirror.rename(tmp_path / "unmounted")
        wait_for(lambda: readiness(house).status_code == 503, 60)
        refused = ask(house)
        assert refused.status_code == 503 and "disk: down" in refused.text
        assert str(mirror) not in refused.text, "what a client reads names no place"
        wait_for(lambda: f"audit-sink:disk:{mirror}" in json.dumps(cli("incident", "list", "--json", code=0).json), 60)
        assert f"the audit sink disk:{mirror} is down" in house.text()
        (tmp_path / "unmounted").rename(mirror)
        wait_for(lambda: ask(house).status_code == 200, 60, house.text)
        assert house.stop() == 0
        house.check_output()
    cli("log", "verify", code=0)
    assert check_receipts(cli.keep / "log", cli.keep / "trust.toml", receipts) > 20
    there = mirrored(mirror, origin)
    for receipt in receipts:
        instance, _, index = receipt.partition("/")
        assert int(index) in there[instance], receipt
        assert (f"{origin}/audit/{instance}", int(index)) in receiver.records, receipt
    for instance, indexes in there.items():  # what was recorded and not answered got there, too
        size = int((cli.keep / "log" / "audit" / instance / "checkpoint").read_text().split("\n")[1])
        assert indexes == set(range(size)), instance
        assert {index for name, index in receiver.records if name.endswith(instance)} == set(range(size)), instance


def test_break_glass_is_in_the_log_before_it_is_in_force(template, desk, subject, tmp_path):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "1000", "--json", code=0).json["token"]
    until = (datetime.now(UTC) + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%MZ")
    sinks = {"MODELKEEP_AUDIT_SINKS": f"disk:{tmp_path / 'missing'}?same-disk=yes", "MODELKEEP_AUDIT_REQUIRE": "1"}
    glass = {"MODELKEEP_AUDIT_BREAK_GLASS": f"until {until}: the second disk is being replaced"}
    with running(cli, tmp_path, **sinks, **glass) as house:
        wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60, house.text)
        with house.client(None) as client:
            assert "modelkeep_audit_break_glass 1" in client.get("/metrics").text
        wait_for(lambda: cli("status", code=0).out.count("break-glass:") == 2, 60)
        assert house.stop() == 0
        assert "BREAK-GLASS" in house.text()
        house.check_output()
    logged = [row for row in cli("log", "show", "--json", code=0).json if "break-glass" in json.dumps(row)]
    assert len(logged) == 1 and until in json.dumps(logged[0])
    folder = max((path for path in (cli.keep / "log" / "audit").iterdir() if "gateway" in path.name), key=lambda p: p.name)
    entries = [json.loads(entry) for batch in batches(FolderLogFiles(folder), _origin(folder), 0) for entry in batch.entries]
    kinds = [entry["kind"] for entry in entries]
    assert kinds.index("break-glass") < kinds.index("predict")


def _origin(folder):
    return (folder / "checkpoint").read_text().partition("\n")[0]
