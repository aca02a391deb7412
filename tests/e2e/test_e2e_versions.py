"""Versions under load, over HTTP and gRPC: a promotion, a rollback and a quarantine take no request away."""

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from e2e_house import Load, check_receipts, running, wait_for
from peers import HERE, PYTHON

RISK = "/v2/models/risk"


class Said(NamedTuple):
    """One answer over gRPC: seconds (monotonic), ``ok`` or the status, receipt, version that answered, code, version asked."""

    start: float
    end: float
    status: str
    receipt: str
    version: str
    code: str
    asked: str


@pytest.fixture
def house(cli, tmp_path):
    with running(cli, tmp_path, MODELKEEP_GATEWAY_GRPC_PORT="0") as house:
        yield house
        house.check_output()


def grpc_address(house) -> str:
    return json.loads((house.keep / "run" / "gateway.json").read_bytes())["grpc"]


@contextmanager
def grpc_load(house, token: str, rows, versions: list[str]) -> Iterator[list[Said]]:
    """A stock gRPC client that asks without a pause, for each of ``versions`` in turn ("" = none named)."""
    told = {"grpc": grpc_address(house), "ca": str(house.keep / "tls" / "ca.pem"), "key": token, "rows": rows.tolist()}
    process = subprocess.Popen([PYTHON, str(HERE / "triton_load.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps({**told, "versions": versions}) + "\n")
    process.stdin.flush()
    events: list[Said] = []

    def read() -> None:
        for line in process.stdout:
            events.append(Said(*json.loads(line)))  # noqa: PERF401  # they are looked at as they come

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield events
    finally:
        process.stdin.close()
        assert process.wait(30) == 0
        reader.join()
        process.stdout.close()


def test_no_request_is_lost_when_versions_come_and_go(house, cli, desk, subject):
    """Every answer is of a version that was admitted when it was given; only who insists on the quarantined one is refused."""
    assert grpc_address(house).startswith("127.0.0.1:") and f"gRPC on {grpc_address(house)}" in house.text()
    token = cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60)
    cli("alias", "set", "risk", "champion", "1", code=0)
    cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    champion = f"{RISK}/versions/champion/infer"
    wait_for(lambda: house.ask(token, subject.fresh[:1], champion).status_code == 200, 60)
    at: dict[str, float] = {}

    def act(name: str, *arguments: str) -> None:
        at[f"before {name}"] = time.monotonic()
        cli(*arguments, code=0)
        at[name] = time.monotonic()

    newest = Load(house, token, subject.fresh, threads=2)
    named = Load(house, token, subject.fresh, threads=2, where=champion)
    with newest, named, grpc_load(house, token, subject.fresh[:20], ["", "champion"]) as rpc:

        def answers(version: str) -> bool:
            return all(
                any(event.version == version for event in list(events)[-4:])
                for events in (newest.events, [e for e in list(rpc) if not e.asked])
            )

        wait_for(lambda: answers("1"), 60)
        act("promote", "promote", "risk@2")
        wait_for(lambda: answers("2"), 60)
        act("move", "alias", "set", "risk", "champion", "2", "--expect", "1")
        wait_for(lambda: named.events[-1].version == "2", 60)
        act("back", "alias", "set", "risk", "champion", "1", "--expect", "2")
        wait_for(lambda: named.events[-1].version == "1", 60)
        with Load(house, token, subject.fresh, threads=1, where=f"{RISK}/versions/2/infer") as insisting:
            wait_for(lambda: len(insisting.answered) > 3, 60)
            act("quarantine", "quarantine", "risk@2", "--reason", "odd answers")
            wait_for(lambda: sum(event.start > at["quarantine"] for event in insisting.events) > 3, 60)
        wait_for(lambda: answers("1"), 60)
    assert {event.status for event in newest.events + named.events} == {200}
    assert {event.status for event in rpc} == {"ok"}, [event for event in rpc if event.status != "ok"][:3]
    assert {(event.status, event.code) for event in insisting.events} == {(200, ""), (423, "quarantined")}
    unnamed = [*newest.events, *(event for event in rpc if not event.asked)]
    aliased = [*named.events, *(event for event in rpc if event.asked)]
    for event in (*unnamed, *insisting.answered):
        assert event.version in ("1", "2")
        assert event.version == "1" or (event.end > at["before promote"] and event.start < at["quarantine"])
    for event in aliased:
        assert event.version == "1" or (event.end > at["before move"] and event.start < at["back"])
    for events in (newest.events, named.events):
        assert {event.version for event in events} == {"1", "2"}
    assert all(event.start < at["quarantine"] for event in insisting.answered)
    for asked, events in itertools.groupby(sorted(rpc, key=lambda e: (e.asked, e.start)), key=lambda e: e.asked):
        versions = [version for version, _ in itertools.groupby(event.version for event in events)]
        assert versions in (["1", "2", "1"], ["1"]) and (asked or len(versions) == 3)
    house.stop()
    receipts = [event.receipt for event in (*newest.answered, *named.answered, *insisting.answered, *rpc)]
    assert check_receipts(cli.keep / "log", cli.keep / "trust.toml", receipts) > 100
