"""A whole keep on PostgreSQL and S3: the main road, two publishers at once, damage, and stores that fail under it."""

import json
import os
import subprocess
import sys

import msgspec
import pytest
from commandline import Cli
from services import S3_ENVIRONMENT

from modelkeep.app.keep import Keep
from modelkeep.app.settings import FILE_NAME, Settings, load, template
from modelkeep.app.stores import RECORDS_FILE, open_blobs, open_records
from modelkeep.errors import Invalid


@pytest.fixture
def places(outside, s3_server):
    """The bucket, and the URLs of the stores."""
    return outside.bucket, s3_server.url(outside.bucket), outside.database


@pytest.fixture
def released(outside):
    """The command line on the keep, which has risk@1 promoted."""
    return outside.cli


def publish(cli, desk, **terms):
    return cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), "--json", **terms)


def objects(s3_server, bucket):
    found = s3_server.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return [item["Key"] for item in found if item["Key"] != "keep/origin"]


def model_object(s3_server, bucket, desk):
    """The key of the model's body: the smallest object that is no smaller than the model. The profile's may be larger."""
    client, least = s3_server.client(), (desk / "model.onnx").stat().st_size
    sizes = {key: client.head_object(Bucket=bucket, Key=key)["ContentLength"] for key in objects(s3_server, bucket)}
    return min((key for key, size in sizes.items() if size >= least), key=sizes.__getitem__)


# -- the main road ------------------------------------------------------------------------------------------------------------


def test_init_publish_promote_verify_export(released, desk, subject, s3_server, places, tmp_path):
    bucket, blobs_url, records_url = places
    released("verify", "risk@1", code=0)
    released("export", "risk@1", "--out", str(tmp_path / "out.onnx"), code=0)
    assert (tmp_path / "out.onnx").read_bytes() == subject.onnx
    assert len(objects(s3_server, bucket)) == 2
    assert not (released.keep / RECORDS_FILE).exists() and not list((released.keep / "blobs").iterdir())
    settings = load(released.keep)
    assert (settings.blobs.url, settings.records.url) == (blobs_url, records_url)
    row = released("list", "--json", code=0).json[0]
    assert (row["ref"], row["state"]) == ("risk@1", "promoted")
    released("log", "verify", code=0)
    assert released("integrity", "--json", code=0).json["findings"] == []
    done = released("upgrade", "--json", code=0).json
    assert (done["before"], done["after"], done["backup"]) == (1, 1, "")


def test_only_sealed_bytes_and_no_names_of_weights_leave_the_machine(released, subject, s3_server, postgres, places):
    bucket, _, records_url = places
    stored = b"".join(
        s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read() for key in objects(s3_server, bucket)
    )
    rows = postgres.run(records_url, "SELECT kind, key, body FROM modelkeep.record")
    stored += b"".join(kind.encode() + key.encode() + (body or b"") for kind, key, body in rows)
    assert len(stored) > len(subject.onnx) and not any(window in stored for window in subject.windows)
    log = b"".join(path.read_bytes() for path in postgres.folder.glob("log"))
    assert not any(window in log for window in subject.windows)


def test_the_settings_hold_the_urls_and_the_environment_wins(tmp_path, places, released):
    text = template("keep.example/x", 's3://b"ucket\\/é', "")
    (tmp_path / FILE_NAME).write_text(text)
    assert load(tmp_path, {}).blobs.url == 's3://b"ucket\\/é' and load(tmp_path, {}).records.url == ""
    (tmp_path / FILE_NAME).write_text(template("keep.example/x", "", "postgresql://u:hunter2@h/db"))
    assert load(tmp_path, {}).records.url.endswith("hunter2@h/db") and "hunter2" not in repr(load(tmp_path, {}))
    other = released.with_environment(MODELKEEP_RECORDS_URL="postgresql:///elsewhere?host=/nowhere")
    assert "the database postgresql:///nowhere/elsewhere failed" in other("list", code=3).line()


# -- refusals -----------------------------------------------------------------------------------------------------------------


def test_init_never_takes_what_is_anothers_and_leaves_nothing_behind(released, desk, tmp_path, postgres, s3_server, places):
    _, blobs_url, records_url = places
    second = Cli(tmp_path / "second", desk / "pass")
    other_bucket, other_database = s3_server.bucket(), postgres.database()
    refused = second("init", str(second.keep), "--blobs", s3_server.url(other_bucket), "--records", records_url, code=1).line()
    assert "holds the records of the keep modelkeep.local/" in refused and not second.keep.exists()
    assert not s3_server.client().list_objects_v2(Bucket=other_bucket).get("Contents")
    refused = second("init", str(second.keep), "--blobs", blobs_url, "--records", other_database, code=1).line()
    assert "is not empty" in refused and not second.keep.exists()
    assert postgres.run(other_database, "SELECT to_regclass('modelkeep.meta')") == [(None,)]
    second("init", str(second.keep), "--blobs", s3_server.url(other_bucket), "--records", other_database, code=0)
    released("verify", "risk@1", code=0)


@pytest.mark.parametrize(
    ("option", "url", "said"),
    [
        ("--blobs", "gs://bucket/x", "expected s3://"),
        ("--blobs", "s3://user:hunter2@bucket/x", "holds credentials"),
        ("--records", "mysql://root:hunter2@host/db", "expected postgresql://"),
        ("--records", "postgresql://u:hunter2@h:port/db", "port"),
        ("--records", "/var/lib/records.db", "expected postgresql://"),
    ],
)
def test_urls_that_name_no_store(bare, option, url, said):
    line = bare("init", str(bare.keep), option, url, code=2).line()
    assert said in line and "hunter2" not in line and not bare.keep.exists()


def test_stores_of_another_keep_are_not_used(released, bare, tmp_path, places, s3_server, postgres):
    """Two settings files that name the same place: the second keep must not collect the first one's bodies."""
    bare("init", str(bare.keep), code=0)
    for section, url in (("blobs", places[1]), ("records", places[2])):
        mistaken = bare.with_environment(**{f"MODELKEEP_{section.upper()}_URL": url})
        found = mistaken("integrity" if section == "records" else "export", *(["risk@1"] * (section == "blobs")))
        assert found.code == 2
    with pytest.raises(Invalid, match="holds the blobs of the keep"):
        Keep.open(bare.keep, b"a passphrase of several words").premises  # noqa: B018
        os.environ["MODELKEEP_BLOBS_URL"] = places[1]
        try:
            Keep.open(bare.keep, b"a passphrase of several words").settle()
        finally:
            del os.environ["MODELKEEP_BLOBS_URL"]
    released("verify", "risk@1", code=0)


def test_a_missing_extra_is_said_in_one_line(tmp_path, monkeypatch):
    for section, module, url in (("blobs", "obstore", "s3://bucket/x"), ("records", "psycopg", "postgresql:///x")):
        ours = ("modelkeep.adapters.blobs.s3", "modelkeep.adapters.records.postgres", "modelkeep.adapters.records.pool")
        for name in [name for name in sys.modules if name.partition(".")[0] == module or name in ours]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        found = msgspec.convert({section: {"url": url}}, Settings)
        with pytest.raises(Invalid, match=r"needs 'pip install modelkeep\[(s3|postgres)\]'"):
            (open_blobs if section == "blobs" else open_records)(tmp_path, found, "x")


# -- damage in the store ------------------------------------------------------------------------------------------------------


def truncated(client, bucket, key):
    body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.put_object(Bucket=bucket, Key=key, Body=body[:-100])


def extended(client, bucket, key):
    body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.put_object(Bucket=bucket, Key=key, Body=body + bytes(100))


def flipped(client, bucket, key):
    body = bytearray(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=bucket, Key=key, Body=bytes(body))


def emptied(client, bucket, key):
    client.put_object(Bucket=bucket, Key=key, Body=b"")


def replaced(client, bucket, key):
    client.put_object(Bucket=bucket, Key=key, Body=b"\x08\x08 a model in the clear" * 1000)


def deleted(client, bucket, key):
    client.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize("damage", [truncated, extended, flipped, emptied, replaced, deleted])
def test_a_damaged_object_is_not_trusted_and_quarantined(released, desk, s3_server, places, damage):
    bucket = places[0]
    damage(s3_server.client(), bucket, model_object(s3_server, bucket, desk))
    assert "sealed model of risk@1" in released("verify", "risk@1", code=1).line()
    found = released("integrity", "--json").json
    assert found["quarantined"] == ["risk@1"]
    assert released("show", "risk@1", "--json", code=0).json["release"]["state"] == "quarantined"


def test_a_store_that_is_down_quarantines_nothing(released, desk, s3_server, places, tmp_path):
    s3_server.stop()
    try:
        for words in (("verify", "risk@1"), ("integrity",), ("export", "risk@1", "--out", str(tmp_path / "x"))):
            line = released(*words, code=3).line()
            assert "s3://" in line and "failed" in line
        assert not (tmp_path / "x").exists()
        assert "s3://" in publish(released, desk, code=3).line()
    finally:
        s3_server.start()
    assert released("show", "risk@1", "--json", code=0).json["release"]["state"] == "promoted"
    assert publish(released, desk, code=0).json["ref"] == "risk@3"  # a number is never given twice
    s3_server.stop()
    try:
        assert "s3://" in released("promote", "risk@3", code=3).line()
    finally:
        s3_server.start()
    released("verify", "risk@1", code=0)
    deleted(s3_server.client(), places[0], model_object(s3_server, places[0], desk))
    assert "is gone" in released("promote", "risk@3", code=1).line()


def test_a_database_that_is_down(released, postgres):
    postgres.stop()
    try:
        assert "the database postgresql://" in released("list", code=3).line()
    finally:
        postgres.start()
    released("verify", "risk@1", code=0)


# -- two at once --------------------------------------------------------------------------------------------------------------


def test_two_publishers_in_two_processes_get_different_versions(released, desk, s3_server, places):
    environment = {
        **os.environ, **S3_ENVIRONMENT, "OMP_NUM_THREADS": "1",
        "MODELKEEP_DIR": str(released.keep), "MODELKEEP_PASSPHRASE_FILE": str(released.passphrase_file),
    }  # fmt: skip
    words = ["publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), "--json"]
    publishers = [
        subprocess.Popen([sys.executable, "-m", "modelkeep", *words], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    made = [json.loads(publisher.communicate(timeout=120)[0])["ref"] for publisher in publishers]
    assert sorted(made) == ["risk@2", "risk@3"]
    for ref in made:
        released("verify", ref, code=0)
