"""A gateway of several processes: one account's questions are judged together, and any of the processes may die."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress

import httpx
import numpy as np
import pytest
from commandline import PASSPHRASE, Cli, copy_keep
from e2e_house import INFER, RECEIPT, House, Load, check_receipts, question, wait_for
from services import lives

from modelkeep.adapters.process import pipe_with
from modelkeep.app.handover import encode, open_for
from modelkeep.app.keep import Keep
from modelkeep.custody.keys import GATEWAY_FAMILIES
from modelkeep.workflows.watch import UNSEEN_ROWS

WORKERS, FEATURES = 3, 30
RATE, BURST = 0.25, 24.0
LEASE, MARGIN = 1.0, 1.5


class Crew:
    """``modelkeep serve --workers 3`` on a keep of its own, and a connection to each worker."""

    def __init__(self, cli, folder, workers=WORKERS):
        self.workers = workers
        # a key is asked with until every worker knows it, however long they take to look: no limit on bad credentials meanwhile
        terms = {"MODELKEEP_GATEWAY_GRPC_PORT": "0", "MODELKEEP_LIMITS_FAILURES_BURST": "100000"}
        self.cli, self.house, self.receipts = cli, House(cli, folder, **terms), []

    def token(self, account="alice"):
        return self.cli("key", "issue", account, "--quota", "1000000", "--json", code=0).json["token"]

    def pid(self, part):
        """The process that last said that it is ``part``; 0 while none does."""
        try:
            return json.loads((self.house.keep / "run" / f"{part}.json").read_bytes())["pid"]
        except FileNotFoundError:
            return 0

    def pids(self):
        return {part: self.pid(part) for part in ("owner", *(f"worker-{number + 1}" for number in range(self.workers)))}

    @contextmanager
    def connections(self, token, rows):
        """A client for each worker: connections are made until all of them have answered."""
        found, self.asked = {}, 0
        with ExitStack() as stack:
            for _ in range(200):
                client = stack.enter_context(self.house.client(token))
                answer = client.post(INFER, json=question(rows[:1]))
                assert answer.status_code in (200, 401), answer.text  # 401: it has not looked since the key was made
                if RECEIPT in answer.headers:
                    self.asked += 1
                    found.setdefault(answer.headers[RECEIPT].partition("/")[0], client)
                if len(found) == self.workers:
                    break
                # an answer counts against the account's limit: a worker that has not looked yet has a second to do so
                time.sleep(0.02 if answer.status_code == 401 else 0.1)
            yield list(found.values())

    def known(self, account="alice"):
        """A fresh token that every worker knows."""
        token = self.token(account)
        with self.connections(token, np.zeros((1, FEATURES), np.float32)):
            return token

    def back(self, token, rows):
        """Wait until predictions are answered."""

        def answered():
            with suppress(httpx.HTTPError):
                return self.house.ask(token, rows[:1]).status_code == 200

        wait_for(lambda: bool(answered()), 60, self.house.text)


@pytest.fixture(scope="module")
def crew(template, desk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crew")
    made = Crew(Cli(copy_keep(template, folder / "keep"), desk / "pass"), folder)
    with (made.house.keep / "modelkeep.toml").open("a") as settings:
        settings.write(f"\n[limits.accounts.limited]\nrate = {RATE}\nburst = {BURST}\n")
    try:
        made.house.start("serve", "--workers", str(WORKERS))
        yield made
    finally:
        code = made.house.stop()
    assert code == 0, made.house.text()
    made.house.check_output()
    made.cli("log", "verify", code=0)


def strange(rng):
    return rng.uniform(-9, 9, (1, FEATURES)).astype(np.float32)


def test_workers_speak_grpc_too(crew):
    said = json.loads((crew.house.keep / "run" / "gateway.json").read_bytes())
    host, port = said["grpc"].rsplit(":", 1)
    context = crew.house.trust
    context.set_alpn_protocols(["h2"])
    for _ in range(2 * WORKERS):
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=host) as end,
        ):
            assert end.selected_alpn_protocol() == "h2"


def test_any_worker_tells_the_counts_of_all(crew, subject):
    token = crew.token()
    with crew.connections(token, subject.fresh) as clients:

        def total(client):
            found = re.findall(
                r'^modelkeep_requests_total\{model="risk",outcome="ok"\} (\d+)$', client.get("/metrics").text, re.M
            )
            return int(found[0]) if found else 0

        before = max(total(client) for client in clients)
        for client in clients:
            for _ in range(4):
                assert client.post(INFER, json=question(subject.fresh[:1])).status_code == 200
        wait_for(lambda: all(total(client) >= before + 12 for client in clients), 60)
        text = clients[0].get("/metrics").text
        assert "modelkeep_models_served 1\n" in text and "modelkeep_audit_refusing 0\n" in text


def test_a_limit_holds_over_all_workers(crew, subject):
    crew.cli("user", "add", "limited", "--role", "analyst", code=0)
    token = crew.token("limited")
    began = time.monotonic()
    with crew.connections(token, subject.fresh) as clients:
        answered = crew.asked
        for turn in range(60):
            answer = clients[turn % WORKERS].post(INFER, json=question(subject.fresh[:1]))
            assert answer.status_code in (200, 429), answer.text
            answered += answer.status_code == 200
    assert answer.status_code == 429 and "retry-after" in answer.headers
    assert BURST / 2 < answered <= BURST + RATE * (time.monotonic() - began)


def accused(crew):
    """The alarms of all accounts, as their incidents tell them."""
    told = [row["detail"] for row in crew.cli("incident", "list", "--json", code=0).json]
    return [detail for detail in told if detail.startswith("extraction alarm at query ")]


def test_one_account_over_all_workers_is_accused_once_and_by_all(crew, subject):
    crew.cli("user", "add", "thief", "--role", "analyst", code=0)
    token, honest = crew.token("thief"), crew.token()
    with crew.connections(token, subject.fresh) as clients:
        rng, asked, codes = np.random.default_rng(1), 0, []
        while 403 not in codes:
            answer = clients[asked % WORKERS].post(INFER, json=question(strange(rng)))
            codes.append(answer.status_code)
            asked += 1
            assert answer.status_code in (200, 403) and asked < 400, answer.text
        assert answer.json()["code"] == "review-required"
        wait_for(lambda: {one.post(INFER, json=question(subject.fresh[:1])).status_code for one in clients} == {403}, 60)
        wait_for(lambda: len(accused(crew)) == 1, 60)
        at, answered = int(re.search(r"at query (\d+)", accused(crew)[0])[1]), crew.asked + codes.count(200)
        assert at <= answered <= at + UNSEEN_ROWS + WORKERS, "no more ran ahead of its evidence than in one process"
        assert crew.house.ask(honest, subject.fresh[:1]).status_code == 200
        crew.cli("review", "thief", "--outcome", "cleared", "--reason", "a test", code=0)
        wait_for(lambda: {one.post(INFER, json=question(subject.fresh[:1])).status_code for one in clients} == {200}, 60)


def test_a_batch_is_judged_before_its_answer_leaves_whichever_worker_has_it(crew, subject):
    crew.cli("user", "add", "bulk", "--role", "analyst", code=0)
    token = crew.token("bulk")
    with crew.connections(token, subject.fresh) as clients:
        rng, rows = np.random.default_rng(2), 0
        for turn in range(40):
            batch = np.concatenate([strange(rng) for _ in range(16)])
            answer = clients[turn % WORKERS].post(INFER, json=question(batch))
            if answer.status_code == 403:
                break
            assert answer.status_code == 200
            rows += 16
        assert answer.status_code == 403 and rows < 160
        assert clients[(turn + 1) % WORKERS].post(INFER, json=question(batch)).status_code == 403


def test_kill_minus_nine_of_a_worker_under_load_loses_no_record_and_stops_nobody(crew, subject):
    token, before = crew.known(), crew.pids()
    with Load(crew.house, token, subject.fresh, threads=4) as load:
        wait_for(lambda: len(load.answered) > 100, 60)
        os.kill(before["worker-2"], signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: crew.pid("worker-2") not in (0, before["worker-2"]), 60)
        back = time.monotonic()
        wait_for(lambda: load.answered[-1].start > back + 0.5, 60)
    assert {event.status for event in load.events} == {200}
    assert sum(killed < event.start and event.end < back for event in load.answered) > 3, "the others went on"
    after = crew.pids()
    assert [part for part in before if before[part] != after[part]] == ["worker-2"]
    wait_for(lambda: "finished the audit log" in crew.house.text(), 60)
    crew.receipts += [one.receipt for one in load.answered]  # proven once the logs are closed, by the last test of the crew


def test_kill_minus_nine_of_the_owner_denies_and_its_successor_has_all_the_evidence(crew, subject):
    crew.cli("user", "add", "burglar", "--role", "analyst", code=0)
    token, honest, before = crew.token("burglar"), crew.known(), crew.pid("owner")
    rng = np.random.default_rng(3)
    with crew.connections(token, subject.fresh) as clients:
        while clients[0].post(INFER, json=question(strange(rng))).status_code == 200:
            pass
        with Load(crew.house, honest, subject.fresh, threads=3) as load:
            wait_for(lambda: len(load.answered) > 20, 60)
            os.kill(before, signal.SIGSTOP)  # it is there, and says nothing
            stopped = time.monotonic()
            wait_for(lambda: load.events[-1].status == 503, 60)
            wait_for(lambda: load.events[-1].start > stopped + LEASE + MARGIN, 60)
            assert not [one for one in load.answered if one.start > stopped + LEASE + 0.2]
            with crew.house.client(None) as client:
                assert client.get("/v2/health/ready").status_code == 503
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: crew.pid("owner") not in (0, before), 60)
            killed = time.monotonic()
            wait_for(lambda: load.answered[-1].start > killed, 60)
        assert {event.status for event in load.events} == {200, 503}
        crew.back(honest, subject.fresh)
        assert {client.post(INFER, json=question(subject.fresh[:1])).status_code for client in clients} == {403}
        crew.receipts += [one.receipt for one in load.answered]  # proven once the logs are closed, by the last test of the crew


def test_a_quarantine_is_in_force_on_every_worker_when_the_verb_returns(crew, subject):
    token = crew.known()
    with Load(crew.house, token, subject.fresh, threads=4) as load:
        wait_for(lambda: len(load.answered) > 50, 60)
        crew.cli("quarantine", "risk@1", "--reason", "a test", code=0)
        returned = time.monotonic()
        wait_for(lambda: load.events[-1].start > returned + 0.5, 60)
        assert not [one for one in load.answered if one.start > returned]
    assert {event.status for event in load.events if event.start > returned} == {423}
    crew.cli("reinstate", "risk@1", "--reason", "the test is over", code=0)
    crew.cli("promote", "risk@1", code=0)
    crew.back(token, subject.fresh)


def test_a_worker_takes_neither_less_nor_more_than_it_is_given(template, desk, tmp_path):
    """The owner of the evidence must not hold the watermark key, and nobody else the keys of its siblings' supervisor."""
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")
    keep = Keep.open(cli.keep, PASSPHRASE.encode())
    descriptor = pipe_with(encode(open_for(keep.premises, GATEWAY_FAMILIES)))
    ours, theirs = socket.socketpair()
    handed = ["--keys-fd", str(descriptor), "--updates-fd", str(theirs.fileno())]
    ran = subprocess.run(
        [sys.executable, "-m", "modelkeep", "--dir", cli.keep, "serve", "--part", "owner", *handed],
        check=False,
        pass_fds=[descriptor, theirs.fileno()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(descriptor)
    ours.close()
    theirs.close()
    assert ran.returncode == 2 and "must not hold watermark" in ran.stderr and "Traceback" not in ran.stderr


def test_a_stop_under_load_loses_nothing_and_a_start_knows_what_was_asked(crew, subject):
    token = crew.known()
    with Load(crew.house, token, subject.fresh, threads=4) as load:
        wait_for(lambda: len(load.answered) > 100, 60)
        assert crew.house.stop() == 0
    crew.house.check_output()
    assert {event.status for event in load.events} <= {200, 503}
    crew.receipts += [one.receipt for one in load.answered]
    assert check_receipts(crew.house.keep / "log", crew.house.keep / "trust.toml", crew.receipts) > 300
    crew.cli("log", "verify", code=0)
    assert not list((crew.house.keep / "run").glob("worker-*")) and not (crew.house.keep / "run" / "owner.json").exists()
    crew.house.start("serve")  # one process, on what three recorded: the burglar of above is still accused
    with crew.house.client(None) as client:
        assert "modelkeep_extraction_alarms 2\n" in client.get("/metrics").text


def test_who_lost_its_supervisor_ends(template, desk, subject, tmp_path):
    crew = Crew(Cli(copy_keep(template, tmp_path / "keep"), desk / "pass"), tmp_path, workers=2)
    try:
        crew.house.start("up", "--workers", "2")
        token, pids = crew.token(), crew.pids()
        crew.cli("keys", "rotate", "audit-subject", code=0)  # reaches all of them through two supervisors
        wait_for(lambda: "the running processes have it" in crew.house.text(), 60)
        with crew.connections(token, subject.fresh) as clients:
            for client in clients:
                assert client.post(INFER, json=question(subject.fresh[:1])).status_code == 200
            crew.house.kill("gateway")
            wait_for(lambda: not any(lives(pid) for pid in pids.values()), 60, crew.house.text)
        wait_for(lambda: all(now not in (0, pids[part]) for part, now in crew.pids().items()), 60, crew.house.text)
        crew.back(token, subject.fresh)
    finally:
        code = crew.house.stop()
    assert code == 0, crew.house.text()
    assert not any(lives(pid) for pid in crew.pids().values())
    crew.cli("log", "verify", code=0)
