"""Two gateways of one keep, with records in PostgreSQL and limits in Redis: faults under load, and the promises after."""

import os
import signal
import time

import pytest
from e2e_house import House, Load, check_receipts, running, wait_for
from lease_history import most_above
from services import S3_ENVIRONMENT, Redis

RATE, BURST, REPLICAS = 40.0, 80.0, 2
WINDOW, ONE_LEASE, LEASE, MARGIN = BURST / RATE, BURST / 8, 1.0, 0.5


class At:
    """One of the gateways, for ``Load``: where it listened when it was last looked at."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.look()

    def look(self) -> None:
        """Where the gateway listens that has come up last."""
        self.url, self.pid = self._house.address("gateway")

    def client(self, token):
        made = self._house.client(token)
        made.base_url = self.url
        return made


@pytest.fixture
def shared(outside_template, postgres, s3_process, tmp_path):
    """A keep on PostgreSQL and Redis with control and two gateways, one kept running by ``up``; a key; the Redis server."""
    server, folder = Redis(), tmp_path / "second"
    folder.mkdir()
    keep = outside_template.copy(postgres, s3_process, tmp_path)
    token = keep.cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    environment = {
        **S3_ENVIRONMENT,
        "MODELKEEP_STATE_URL": server.url,
        "MODELKEEP_LIMITS_RATE": str(RATE),
        "MODELKEEP_LIMITS_BURST": str(int(BURST)),
    }
    try:
        with running(keep.cli, tmp_path, **environment) as first:
            one = At(first)
            alone = House(keep.cli, folder, **environment)
            try:
                alone.start("serve")
                wait_for(lambda: alone.url != one.url, 60, alone.text)
                yield first, alone, (one, At(alone)), token, server
            finally:
                alone.stop()
    finally:
        server.close()


def answered(loads):
    return [event for load in loads for event in load.answered]


def served(load, since):
    """Wait until something that was asked after ``since`` is answered."""
    wait_for(lambda: any(event.start > since for event in load.answered), 60)


def test_two_gateways_keep_their_promises_through_faults(shared, subject):
    """P1, P3, P5 and P6 on the recorded history: kill -9, a rotation, a store of limits that ends and forgets, a quarantine."""
    first, alone, (one, other), token, server = shared
    loads = [Load(at, token, subject.fresh, threads=2) for at in (one, other)]
    with loads[0], loads[1]:
        for load in loads:
            served(load, 0.0)
        time.sleep(0.5)

        os.kill(one.pid, signal.SIGKILL)
        wait_for(lambda: first.address("gateway")[1] not in {one.pid, other.pid}, 60, first.text)
        one.look()
        served(loads[0], time.monotonic())

        first.cli("keys", "rotate", "model-kek", code=0)
        for load in loads:
            served(load, time.monotonic())

        stopped = time.monotonic()
        server.stop()
        time.sleep(LEASE + MARGIN + 0.6)
        with one.client(None) as client:
            assert client.get("/v2/health/ready").status_code == 503
        server.start()
        back = time.monotonic()
        for load in loads:
            served(load, back)

        first.cli("quarantine", "risk@1", "--reason", "a test", code=0)
        quarantined = time.monotonic()
        wait_for(lambda: all(any(event.start > quarantined for event in load.events) for load in loads), 60)
        time.sleep(0.5)

    events = [event for load in loads for event in load.events]
    assert {event.status for event in events if event.start > quarantined} <= {423, 429}, "P3"
    dark = [event for event in events if stopped + LEASE + MARGIN < event.start and event.end < back]
    assert dark and {(event.status, event.code) for event in dark} == {(503, "unavailable")}, "P5"
    early = [event for event in answered(loads) if stopped + LEASE + MARGIN < event.start < back + WINDOW - MARGIN]
    assert early == [], "nothing until the window ends, for what had been granted was lost"
    uses = [(event.start, event.end, 1.0) for event in answered(loads)]
    assert most_above(uses, RATE) <= BURST + (REPLICAS + 1) * ONE_LEASE, "P6"
    assert sum(event.status == 429 for event in events) > 50, "the limit was reached"
    assert {event.code for event in events if event.status == 429} == {"over-budget"}

    assert alone.stop() == 0 and first.stop() == 0
    for house in (first, alone):
        house.check_output()
    receipts = [event.receipt for event in answered(loads)]
    found = check_receipts(first.cli.keep / "log", first.cli.keep / "trust.toml", receipts)
    assert found > BURST and len({receipt.partition("/")[0] for receipt in receipts}) == REPLICAS + 1, "P1"
    first.cli("log", "verify", code=0)
