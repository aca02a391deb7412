"""A data scientist records a training run from afar: the command runs here, control checks, salts, signs and logs."""

import json
from dataclasses import replace
from pathlib import Path

from repositories import Repository

from modelkeep.core.values import digest_of


def test_a_run_is_recorded_through_control(open_house, tmp_path, monkeypatch):
    here = open_house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    added = here("user", "add", "carol", "--role", "data_scientist", "--json", code=0).json
    (tmp_path / "old").write_text(added["password"])
    (tmp_path / "new").write_text("four quite ordinary words of carol")
    afar = replace(here, keep=tmp_path / "nothing", passphrase_file=tmp_path / "nothing")
    server = ("--server", open_house.control)
    ca = str(open_house.keep / "tls" / "ca.pem")
    passwords = ("--password-file", str(tmp_path / "old"), "--new-password-file", str(tmp_path / "new"))
    afar(*server, "login", "--user", "carol", "--ca", ca, *passwords, code=0)

    project = Repository.new(tmp_path / "project", **{".gitignore": "data\n", "train.py": "train\n"})
    project.write("data/a.csv", "a")
    monkeypatch.chdir(project.folder)
    command = ("--data", "data", "--output", "model.bin", "--out", "run.jsonl", "--", "sh", "-c", "cat data/a.csv > model.bin")
    done = afar(*server, "--json", "run", *command, code=0).json
    assert done["models"][0]["digest"] == digest_of(b"a")
    assert done["commit"] == project("rev-parse", "HEAD")
    shown = here("log", "show", "--json", code=0).json
    row = next(one for one in shown if one["index"] == done["models"][0]["log_index"])
    assert (row["type"], row["actor"]) == ("training-run", "carol")
    assert json.loads(Path("run.jsonl").read_text())["payloadType"] == "application/vnd.in-toto+json"
