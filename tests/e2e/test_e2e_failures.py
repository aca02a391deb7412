"""What a running keep does when stores, disks, clocks and processes fail: it denies, says so, and comes back."""

import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from commandline import Cli, copy_keep
from disks import fill
from e2e_house import (
    INFER,
    RECEIPT,
    House,
    Load,
    audit_entries,
    check_receipts,
    find_canaries,
    question,
    running,
    tree_of,
    wait_for,
)

LEASE, MARGIN = 1.0, 1.5  # P5: denied at latest when the lease in force ends; the margin is a look and a loaded machine


@pytest.fixture(scope="module")
def shaken(template, desk, tmp_path_factory):
    """A running keep whose stores are taken away and given back; a key that may ask for ever."""
    folder = tmp_path_factory.mktemp("shaken")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    with running(cli, folder) as house:
        yield house, token
        house.check_output()


def status(house, token, rows):
    answer = house.ask(token, rows)
    assert "Traceback" not in answer.text and (answer.status_code == 200) == (RECEIPT in answer.headers)
    return answer.status_code


def denied_in_time(house, token, rows):
    """Nothing is answered that starts later than lease and margin after now; the last problem document."""
    with Load(house, token, rows, threads=1) as load:
        began = time.monotonic()
        wait_for(lambda: bool(load.events) and load.events[-1].status == 503, 60)  # one may hang with what it waits for
        first = load.events[-1].start
        wait_for(lambda: load.events[-1].start > began + LEASE + MARGIN, 60)
    late = [event for event in load.events if event.start >= min(first, began + LEASE + MARGIN)]
    assert {(event.status, event.code) for event in late} == {(503, "unavailable")}
    with house.client(None) as client:
        assert client.get("/v2/health/ready").status_code == 503


def back(house, token, rows):
    wait_for(lambda: status(house, token, rows) == 200, 60, house.text)


def test_records_that_are_locked(shaken, subject):
    house, token = shaken
    back(house, token, subject.fresh[:1])
    poor = house.cli("key", "issue", "alice", "--quota", "16", "--json", code=0).json["token"]  # leases are of one request
    with closing(sqlite3.connect(house.keep / "records.db", isolation_level=None, timeout=2)) as greedy:
        greedy.execute("BEGIN IMMEDIATE")
        house.cli("user", "list", code=0)  # whoever only reads is not held up
        assert "locked" in house.cli("user", "role", "alice", "--role", "analyst", code=3).line()
        waited = []
        with Load(house, poor, subject.fresh, threads=1) as load, house.client(None) as client:
            while len(waited) < 5 or not any(event.status == 503 for event in list(load.events)):
                began = time.monotonic()
                assert client.get("/v2/health/live").is_success
                waited.append(time.monotonic() - began)
                assert sum(waited) < 60
                time.sleep(0.05)
        assert statistics.median(waited) < 1.0, "who waits for the records does not hold everybody up"
        assert {event.status for event in load.events} <= {200, 503}, "a request that cannot be counted is not answered"
        greedy.execute("ROLLBACK")
    back(house, token, subject.fresh[:1])
    back(house, poor, subject.fresh[:1])


@pytest.mark.parametrize("what", ["records.db", "log/releases"])
def test_a_store_that_is_taken_away(shaken, subject, what):
    house, token = shaken
    back(house, token, subject.fresh[:1])
    taken = [path for path in house.keep.parent.glob(f"keep/{what}*") if path.exists()]
    for path in taken:
        path.rename(path.with_name(path.name + ".away"))
    denied_in_time(house, token, subject.fresh)
    for path in taken:
        shutil.rmtree(path, ignore_errors=True)  # somebody may have made a new folder
        path.with_name(path.name + ".away").rename(path)
    back(house, token, subject.fresh[:1])
    house.cli("log", "verify", code=0)


def test_records_that_are_replaced_by_older_ones(shaken, subject):
    house, token = shaken
    back(house, token, subject.fresh[:1])
    for path in house.keep.glob("records.db*"):
        shutil.copy2(path, path.with_name("kept-" + path.name))
    (house.keep / "kept-records.db").rename(house.keep / "records.db")  # an inode of its own, as a restore makes
    denied_in_time(house, token, subject.fresh)
    killed = house.kill()
    control = house.kill("control")
    house.wait_ready(not_pid=killed)
    wait_for(lambda: house.address("control")[1] != control, 60)
    back(house, token, subject.fresh[:1])


@pytest.mark.parametrize("how", ["removed", "replaced", "cut"])
def test_an_audit_log_that_is_gone(shaken, subject, how):
    house, token = shaken
    back(house, token, subject.fresh[:1])
    answer = house.ask(token, subject.fresh[:1])
    folder = house.keep / "log" / "audit" / answer.headers[RECEIPT].partition("/")[0]
    away = house.keep.parent / f"away-{how}"
    if how == "removed":
        folder.rename(away)
    elif how == "replaced":
        folder.rename(away)
        shutil.copytree(away, folder)
    else:
        shutil.copytree(folder, away, ignore=shutil.ignore_patterns(".new-*"))  # a temporary name, which may be gone
        journal = max((folder / "journal").iterdir())
        os.truncate(journal, journal.stat().st_size - 1)
    assert status(house, token, subject.fresh[:1]) == 503, "at once: no answer without a record"
    shutil.rmtree(folder, ignore_errors=True)
    away.rename(folder)
    assert status(house, token, subject.fresh[:1]) == 503, "a log that failed once is not believed again"
    house.wait_ready(not_pid=house.kill())
    back(house, token, subject.fresh[:1])
    house.cli("log", "verify", code=0)


def test_a_quota_over_restarts_by_kill_minus_nine(shaken, subject):
    house, _ = shaken
    token = house.cli("key", "issue", "alice", "--quota", "60", "--json", code=0).json["token"]
    back(house, token, subject.fresh[:1])
    answered = 1
    for _ in range(3):
        with Load(house, token, subject.fresh, threads=2) as load:
            wait_for(lambda n=load: len(n.answered) >= 8 or any(e.status == 429 for e in n.events), 60)
            killed = house.kill()
        answered += len(load.answered)
        house.wait_ready(not_pid=killed)
    spent = []
    while len(spent) < 70 and (not spent or spent[-1] != 429):
        spent.append(status(house, token, subject.fresh[:1]))
    answered += spent.count(200)
    assert spent[-1] == 429 and answered <= 60
    row = next(row for row in house.cli("key", "list", "--json").json if token.startswith(f"mk_{row['id']}"))
    assert answered <= row["used"] <= 60


def test_two_gateways_share_a_quota_and_no_log(template, desk, subject, tmp_path):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "50", "--json", code=0).json["token"]
    houses = [House(cli, tmp_path), House(cli, tmp_path)]
    statuses, instances = [], set()
    try:
        houses[0].start("serve")
        first = houses[0].url
        houses[1].start("serve")
        wait_for(lambda: houses[1].url != first, 60)
        urls = (first, houses[1].url)
        with httpx.Client(verify=houses[0].trust, headers={"authorization": f"Bearer {token}"}, trust_env=False) as client:
            for turn in range(120):
                answer = client.post(urls[turn % 2] + INFER, json=question(subject.fresh[:1]))
                statuses.append(answer.status_code)
                instances |= {answer.headers[RECEIPT].partition("/")[0]} if RECEIPT in answer.headers else set()
        assert set(statuses) == {200, 429} and statuses.count(200) <= 50
        assert len(instances) == 2, "each has an audit log of its own"
    finally:
        codes = [house.stop() for house in houses]
    assert codes == [0, 0]
    houses[0].check_output()
    cli("log", "verify", code=0)


def test_two_processes_claim_one_audit_log(shaken):
    from modelkeep.adapters.clock import SystemClock
    from modelkeep.app.keep import Keep
    from modelkeep.custody.keys import AUDIT_LOG
    from modelkeep.errors import Conflict
    from modelkeep.serving.audit import AuditLog
    from modelkeep.serving.recovery import recover_audit

    house, _ = shaken
    keep = Keep.open(house.keep, house.cli.passphrase_file.read_bytes().strip())
    instance = next(name for name in reversed(keep.premises.audit_instances()) if "gateway" in name)
    origin = keep.premises.audit_origin(instance)
    signer = keep.keyring([AUDIT_LOG]).note_signer(AUDIT_LOG, origin)
    with pytest.raises(Conflict, match=r"audit log|another process"):
        AuditLog(keep.premises.audit_files(instance), signer, origin, SystemClock(), deliver=lambda _done: None)
    with pytest.raises(Conflict, match=r"audit log|another process"):
        recover_audit(keep.premises.audit_files(instance), signer, origin, SystemClock())


def test_a_port_that_is_taken_is_one_clear_line(shaken):
    house, _ = shaken
    port = house.url.rpartition(":")[2]
    for verb in ("serve", "control"):
        variable = f"MODELKEEP_{'GATEWAY' if verb == 'serve' else 'CONTROL'}_PORT"
        done = subprocess.run(
            [sys.executable, "-m", "modelkeep", verb], env={**house.environment, variable: port},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 3) and "Traceback" not in done.stderr, done.stderr
        assert "cannot listen" in done.stderr.strip().splitlines()[-1] and not done.stdout


def test_a_thread_that_dies_while_the_gateway_starts_ends_it(template, desk, tmp_path):
    """The thread that takes changed keys starts before all is open; it meets a message that carries nothing."""
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.setswitchinterval(1e-6)  # so that it dies at once")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"?")
        done = subprocess.run(
            [sys.executable, "-m", "modelkeep", "serve", "--updates-fd", str(theirs.fileno())],
            env=House(cli, tmp_path, PYTHONPATH=str(tmp_path)).environment, pass_fds=[theirs.fileno()],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 3 and not done.stdout
    assert "thread keys died of IndexError in " in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk(template, desk, subject, small_disk, tmp_path):
    cli = Cli(copy_keep(template, small_disk / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "100000", "--json", code=0).json["token"]
    with running(cli, tmp_path) as house:
        back(house, token, subject.fresh[:1])
        with Load(house, token, subject.fresh, threads=2) as load:
            wait_for(lambda: len(load.answered) > 10, 60)
            ballast = fill(small_disk)
            wait_for(lambda: any(event.status == 503 for event in list(load.events)), 60)
            time.sleep(0.5)  # the log gave its reserve back, for its own end
            more = fill(small_disk, "more")
            refused = cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"))
            assert refused.code == 3 and refused.line(), refused.err
            for verb in (
                ("promote", "risk@1"),
                ("user", "add", "carol", "--role", "analyst"),
                ("quarantine", "risk@1", "--reason", "x"),
            ):
                assert cli(*verb).code in (1, 3) and cli(*verb).line()
            assert cli("init", str(small_disk / "another")).code == 3 and not (small_disk / "another").exists()
            assert cli("export", "risk@1", "--out", str(small_disk / "out")).code == 3 and not (small_disk / "out").exists()
        ballast.unlink()
        more.unlink()
        house.wait_ready()  # its audit log noticed in time and goes on; or it failed for good, and the process ended by itself
        back(house, token, subject.fresh[:1])
        assert {event.status for event in load.events} == {200, 503}
        cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
        assert [row["state"] for row in cli("list", "--json").json] == ["promoted", "published"]
        assert house.stop() == 0
        house.check_output()
    cli("log", "verify", code=0)
    cli("verify", "risk@2", code=0)
    assert check_receipts(cli.keep / "log", cli.keep / "trust.toml", (event.receipt for event in load.answered)) > 10
    assert not find_canaries(subject.windows, small_disk)


CLOCK = """
import time
_now = time.time_ns
def _moved():
    try:
        with open({path!r}) as stream:
            return int(stream.read() or 0)
    except OSError:
        return 0
time.time_ns = lambda: _now() + _moved() * 1_000_000_000
time.time = lambda: time.time_ns() / 1e9
"""


def test_a_clock_that_goes_backwards(template, desk, subject, tmp_path):
    (tmp_path / "site").mkdir()
    moved = tmp_path / "moved"
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK.format(path=str(moved)))
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    token = cli("key", "issue", "alice", "--quota", "100000", "--json", code=0).json["token"]
    receipts = []

    def ask(house):
        answer = house.ask(token, subject.fresh[:1])
        receipts.extend([answer.headers[RECEIPT]] if answer.status_code == 200 else [])
        return answer.status_code

    with running(
        cli, tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ) as house:
        wait_for(lambda: ask(house) == 200, 60)
        moved.write_text(str(95 * 86_400))  # past the key's last day
        wait_for(lambda: ask(house) == 401, 60)
        moved.write_text(str(-7200))  # behind the first record
        time.sleep(0.6)
        assert ask(house) == 401, "what has expired stays expired in the process that saw it"
        fresh = house.ask(token, subject.fresh[:1])
        assert fresh.headers["content-type"] == "application/problem+json"
        moved.write_text("0")
        house.wait_ready(not_pid=house.kill())
        wait_for(lambda: ask(house) == 200, 60)
        moved.write_text("-7200")
        for _ in range(5):
            assert ask(house) == 200
        assert house.stop() == 0
        house.check_output()
    cli("log", "verify", code=0)
    for instance, entries in audit_entries(cli.keep / "log", cli.keep / "trust.toml").items():
        times = [entry["t"] for entry in entries]
        assert times == sorted(times), instance
    assert check_receipts(cli.keep / "log", cli.keep / "trust.toml", receipts) >= 7


MOMENTS = {
    "reserved": lambda keep: bool(list((keep / "claims").glob("*"))),
    "first body": lambda keep: blobs(keep) > 2,
    "second body": lambda keep: blobs(keep) > 3,
    "log grows": lambda keep: entries(keep) > 6,
}


def blobs(keep):
    return sum(1 for path in (keep / "blobs").rglob("*") if path.is_file() and not path.name.startswith("."))


def entries(keep):
    return int((keep / "log" / "releases" / "checkpoint").read_text().split("\n")[1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_minus_nine_while_publishing_leaves_no_weights_in_the_clear(template, desk, subject, tmp_path, moment):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    (tmp_path / "tmp").mkdir()
    cli("quarantine", "risk@1", "--reason", "so that its bodies are not shared, and new ones are sealed", code=0)
    size = entries(cli.keep)
    MOMENTS["log grows"] = lambda keep: entries(keep) > size
    environment = {**House(cli, tmp_path).environment, "OMP_NUM_THREADS": "2"}
    arguments = ["publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz")]
    publisher = subprocess.Popen(
        [sys.executable, "-m", "modelkeep", *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    reached = MOMENTS[moment]
    while publisher.poll() is None and not reached(cli.keep):
        time.sleep(0.0005)
    publisher.kill()
    publisher.wait()
    publisher.stderr.close()
    assert not find_canaries(subject.windows, cli.keep, tmp_path / "tmp")
    cli("promote", "risk@1")  # whatever opens the keys next settles what was cut off
    from modelkeep.app.keep import Keep

    Keep.open(cli.keep, (desk / "pass").read_bytes().strip()).settle()
    rows = cli("list", "--json", code=0).json
    assert [row["ref"] for row in rows] in (["risk@1"], ["risk@1", "risk@2"])
    for row in rows:
        cli("verify", row["ref"], code=0)
    assert blobs(cli.keep) == 2 * len(rows) and not list((cli.keep / "claims").glob("*.pending"))
    cli("log", "verify", code=0)
    done = cli("--json", "publish", *arguments[1:], code=0).json["ref"]
    assert done in ("risk@2", "risk@3")
    assert not find_canaries(subject.windows, cli.keep, tmp_path / "tmp")


def test_kill_minus_nine_while_starting_and_serving_leaves_no_weights_in_the_clear(shaken, subject):
    house, token = shaken
    back(house, token, subject.fresh[:1])
    killed = house.kill()
    for pause in (0.4, 0.8, 1.2):  # starting: keys, replay, loading
        time.sleep(pause)
        children = f"/proc/{house.process.pid}/task/{house.process.pid}/children"
        found = [int(pid) for pid in Path(children).read_text().split()]
        for pid in found:
            if pid != house.address("control")[1]:
                with suppress(ProcessLookupError):  # it had just ended
                    os.kill(pid, 9)
        assert not find_canaries(subject.windows, house.keep, house.folder / "tmp")
    house.wait_ready(not_pid=killed)
    back(house, token, subject.fresh[:1])
    assert not find_canaries(subject.windows, house.keep, house.folder / "tmp")
    assert (
        tree_of(house.keep / "blobs")
        and np.isfinite(json.loads(house.ask(token, subject.fresh[:1]).text)["outputs"][1]["data"]).all()
    )
