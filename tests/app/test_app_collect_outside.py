"""Sharing and collecting sealed bodies when they lie in S3 and the records in PostgreSQL; two collectors at once."""

import json
import os
import subprocess
import sys

import pytest
from services import S3_ENVIRONMENT


@pytest.fixture
def bodies(outside, s3_server):
    """The keys of the stored bodies."""

    def listed():
        found = s3_server.client().list_objects_v2(Bucket=outside.bucket).get("Contents", [])
        return {item["Key"] for item in found if item["Key"] != "keep/origin"}

    return listed


def publish(cli, desk, name):
    arguments = ("--name", name, "--reference", str(desk / "ref.npz"))
    return cli("publish", str(desk / "model.onnx"), *arguments, "--json", code=0).json["ref"]


def test_share_hold_and_collect(outside, desk, bodies):
    cli, before = outside.cli, bodies()
    assert publish(cli, desk, "risk") == "risk@2" and publish(cli, desk, "other") == "other@1"
    assert bodies() == before and len(before) == 2
    for ref in ("risk@1", "risk@2"):
        cli("retire", ref, "--reason", "replaced", code=0)
    hold = cli("hold", "add", "risk@2", "--reason", "case 7", "--json", code=0).json["id"]
    done = cli("collect", "--retired-for", "0s", "--json", code=0).json
    assert (done["releases"], done["bodies"], list(done["kept"])) == (["risk@1"], [], ["risk@2"])
    cli("verify", "other@1", code=0)
    cli("retire", "other@1", "--reason", "replaced", code=0)
    cli("hold", "remove", hold, "--reason", "closed", code=0)
    command = [sys.executable, "-m", "modelkeep", "collect", "--retired-for", "0s", "--json"]
    environment = {
        **os.environ, **S3_ENVIRONMENT,
        "MODELKEEP_DIR": str(cli.keep), "MODELKEEP_PASSPHRASE_FILE": str(cli.passphrase_file),
    }  # fmt: skip
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [json.loads(child.communicate(timeout=120)[0]) for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert sorted(ref for each in found for ref in each["releases"]) == ["other@1", "risk@2"]  # each by one of the two
    assert bodies() == set()
    for ref in ("risk@1", "risk@2", "other@1"):
        assert "given up" in cli("verify", ref, code=0).out
    assert publish(cli, desk, "risk") == "risk@3" and len(bodies()) == 2
