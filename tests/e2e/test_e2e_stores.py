"""A running keep on PostgreSQL and S3, of which either ends, hangs and comes back."""

import time

import pytest
from e2e_house import Load, running
from services import S3_ENVIRONMENT
from test_e2e_failures import back, denied_in_time


@pytest.fixture(scope="module")
def served(outside_template, postgres, s3_process, tmp_path_factory):
    """The keep, running; a key that may ask for ever; the keep's stores."""
    folder = tmp_path_factory.mktemp("outside-house")
    keep = outside_template.copy(postgres, s3_process, folder)
    token = keep.cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]
    with running(keep.cli, folder, **S3_ENVIRONMENT) as house:
        yield house, token, keep
        house.check_output()


def test_a_server_of_records_that_ends_and_comes_back(served, postgres, subject):
    """P5: denied at latest when the lease ends; served again by itself."""
    house, token, _ = served
    pids = [house.address(role)[1] for role in ("gateway", "control")]
    back(house, token, subject.fresh[:1])
    for how in (2, 9):
        postgres.stop(how)
        denied_in_time(house, token, subject.fresh)
        assert "the database postgresql://" in house.cli("user", "list", code=3).line()
        postgres.start()
        back(house, token, subject.fresh[:1])
    assert [house.address(role)[1] for role in ("gateway", "control")] == pids


def test_a_server_of_records_that_hangs(served, postgres, subject):
    house, token, _ = served
    back(house, token, subject.fresh[:1])
    postgres.pause()
    try:
        denied_in_time(house, token, subject.fresh)
    finally:
        postgres.pause(go_on=True)
    back(house, token, subject.fresh[:1])


def test_blobs_out_of_reach_stop_no_model_that_is_loaded_and_control_comes_up(served, s3_process, subject, desk):
    house, token, keep = served
    back(house, token, subject.fresh[:1])
    house.cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    s3_process.stop()
    try:
        with Load(house, token, subject.fresh, threads=1) as load:
            assert "s3://" in house.cli("promote", "risk@2", code=3).line()
            killed = house.kill("control")
            deadline = time.monotonic() + 60
            while house.address("control")[1] == killed and time.monotonic() < deadline:
                time.sleep(0.05)
            house.cli("user", "add", "carol", "--role", "analyst", code=0)
        assert house.address("control")[1] != killed, house.text()
        assert {event.status for event in load.events} == {200}
    finally:
        s3_process.start()
    house.cli("promote", "risk@2", code=0)

    def served_by(version):
        answer = house.ask(token, subject.fresh[:1])
        return answer.status_code == 200 and answer.json()["model_version"] == version

    deadline = time.monotonic() + 60
    while not served_by("2") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert served_by("2"), house.text()
    found = s3_process.client().list_objects_v2(Bucket=keep.bucket)["Contents"]
    largest = max(found, key=lambda item: item["Size"])["Key"]
    s3_process.client().put_object(Bucket=keep.bucket, Key=largest, Body=b"evil")
    assert house.cli("integrity", "--json").json["quarantined"]


def test_records_that_are_put_back(served, postgres, subject):
    """Whoever puts an old state back is noticed by what runs, and not believed until it was restarted."""
    house, token, keep = served
    postgres.run(keep.database, "UPDATE modelkeep.moment SET mark = '\\x00'")
    denied_in_time(house, token, subject.fresh)
    assert "put back or exchanged" in house.text()
    killed = [house.kill(role) for role in ("gateway", "control")]
    house.wait_ready(not_pid=killed[0])
