"""Publishing into PostgreSQL and S3: the whole road, and the process ended at every request that it makes of them."""

import contextlib

import pytest
from test_publish import FIRST, check_settled
from workflow_house import ORIGIN, Cut, Faults, Faulty, House

from modelkeep.adapters.blobs import s3
from modelkeep.adapters.blobs.s3 import S3Blobs
from modelkeep.adapters.records.postgres import PostgresRecords
from modelkeep.core.values import ReleaseState
from modelkeep.errors import Unavailable
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.release_state import export_release

REQUESTS = ("put", "copy", "delete")


class Dead(Faults):
    """As a process that is gone: after the fault nothing happens any more, no tidying up either."""

    def step(self, act):
        if self.at and self.count >= self.at:
            raise self.error("the disk is full")
        return super().step(act)


@pytest.fixture
def outside(tmp_path, ring, postgres, s3_server, monkeypatch):
    """A house on PostgreSQL and S3, where every body is large: a temporary object, a copy, and its removal are steps too."""
    made = House(tmp_path, ring)
    made.faults = Dead()
    made.bucket = s3_server.bucket()
    database = postgres.database()
    made.records = PostgresRecords.create(database, ORIGIN)
    made.blobs = S3Blobs.create(s3_server.url(made.bucket), ORIGIN)
    monkeypatch.setattr(s3, "ONE_REQUEST", 0)
    monkeypatch.setattr(s3, "obstore", Faulty(s3.obstore, made.faults, *REQUESTS))
    yield made
    made.records.close()
    postgres.take_back(database)


def temporary(s3_server, outside):
    found = s3_server.client().list_objects_v2(Bucket=outside.bucket, Prefix="keep/new/")
    return [item["Key"] for item in found.get("Contents", [])]


def test_the_whole_road(outside, model, calibration, s3_server):
    desk = outside.desk()
    made = publish(desk, model, "credit", actor="ada", calibration=calibration)
    assert (made.ref, made.state) == (FIRST, ReleaseState.PUBLISHED)
    assert check_settled(outside, model) and not temporary(s3_server, outside)
    assert bytes(export_release(desk, FIRST, actor="ada")) == model.data
    assert settle(outside.desk()).bodies == 0
    outside.faults.arm(0)
    publish(desk, model, "other", actor="ada", calibration=calibration)
    assert outside.faults.count < 22, "more steps than the tests below cut off at"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 22))
def test_ended_at_every_step_then_settled(outside, model, calibration, s3_server, at, after):
    outside.faults.arm(at, after=after)
    returned = False
    with contextlib.suppress(Cut):
        publish(outside.desk(), model, "credit", actor="ada", calibration=calibration)
        returned = True
    outside.faults.arm(0)
    logged = len(list(outside.registry().refresh().releases())) == 1
    settle(outside.desk())
    assert check_settled(outside, model) is logged and (logged or not returned)
    assert len(temporary(s3_server, outside)) <= 1  # without a digest's name; a lifecycle rule removes it
    again = publish(outside.desk(), model, "credit", actor="ada", calibration=calibration)
    assert again.ref.version == (2 if at > 1 or after else 1)


@pytest.mark.parametrize("what", ["s3", "postgres"])
def test_stores_that_are_down_while_publishing(outside, model, calibration, s3_server, postgres, what):
    """They end in the middle, at each of the three bodies of work: reserving, sealing, completing."""
    server = s3_server if what == "s3" else postgres
    for at in (1, 4, 8):
        seen = []

        def step(act, at=at, seen=seen):
            seen.append(1)
            if len(seen) == at:
                server.stop()
            return act()

        outside.faults.step = step
        try:
            with contextlib.suppress(Unavailable):
                publish(outside.desk(), model, f"credit-{at}", actor="ada", calibration=calibration)
        finally:
            server.stop()
            server.start()
            outside.faults.step = lambda act: act()
        settle(outside.desk())
        refs = {str(found.ref) for found in outside.registry().refresh().releases()}
        assert {record.key for record in outside.records.scan("release")} == refs
    publish(outside.desk(), model, "credit", actor="ada", calibration=calibration)
