"""scan: files and folders without a keep, SARIF, and the models of releases judged again."""

import json
import os
import socket
from pathlib import Path

import jsonschema
import msgspec
import pytest
from commandline import PASSPHRASE
from scanners import FILES, REAL

from modelkeep.app.keep import Keep
from modelkeep.app.scanning import scan_paths
from modelkeep.cli.sarif import sarif
from modelkeep.core.values import Principal, Role
from modelkeep.custody.opinions import Scanner
from modelkeep.custody.scan import scan
from modelkeep.errors import Denied
from modelkeep.ledger.predicates import Finding

SCHEMA = json.loads((Path(__file__).parents[1] / "vectors" / "sarif" / "sarif-schema-2.1.0.json").read_text("utf-8"))


@pytest.fixture
def folder(tmp_path, subject):
    """Models of all kinds, with a folder below and a link."""
    made = tmp_path / "models"
    (made / "more").mkdir(parents=True)
    (made / "good.onnx").write_bytes(subject.onnx)
    (made / "more" / "bad [1].pkl").write_bytes(FILES["harmful pickle"][1])
    (made / "more" / "cut.onnx").write_bytes(subject.onnx[:-1])
    (made / "more" / "weights.safetensors").write_bytes(FILES["weights"][1])
    (made / "link.onnx").symlink_to("good.onnx")
    return made


def found(ran):
    return {Path(file["path"]).name: file for file in ran.json["files"]}


def test_a_clean_file_and_one_that_is_not(bare, folder):
    ran = bare("scan", str(folder / "good.onnx"), code=0)
    assert "clean" in ran.out and "onnx" in ran.out and "1 clean, 0 not clean, 0 unreadable" in ran.err
    ran = bare("scan", str(folder / "good.onnx"), str(folder / "more" / "cut.onnx"), code=1)
    assert "not-clean" in ran.out and "malformed" in ran.out and "1 clean, 1 not clean" in ran.err


def test_an_empty_name_is_not_the_whole_folder(bare, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "is empty" in bare("scan", "", code=2).line()


def test_a_folder_with_all_below_it_and_no_link_followed(bare, folder):
    ran = bare("--json", "scan", str(folder), code=1)
    files = found(ran)
    assert {name: file["verdict"] for name, file in files.items()} == {
        "good.onnx": "clean",
        "link.onnx": "not-clean",
        "bad [1].pkl": "not-clean",
        "cut.onnx": "not-clean",
        "weights.safetensors": "clean",
    }
    assert [finding["rule"] for finding in files["link.onnx"]["findings"]] == ["link"]
    assert files["good.onnx"]["digest"].startswith("sha256:") and files["link.onnx"]["digest"] == ""
    assert list(files) == sorted(files, key=lambda name: files[name]["path"])


def test_picklescan_is_asked_where_it_is_installed(bare, folder):
    bad = found(bare("--json", "scan", str(folder / "more" / "bad [1].pkl"), code=1))["bad [1].pkl"]
    assert [(one["tool"], one["verdict"]) for one in bad["opinions"]] == [("picklescan", "not-clean")]
    assert {finding["rule"] for finding in bad["findings"]} >= {"second-opinion"}
    off = found(bare("--json", "scan", "--opinions", "off", str(folder / "more"), code=1))["bad [1].pkl"]
    assert off["opinions"] == [] and off["verdict"] == "not-clean"


def test_with_both_scanners_of_another_environment(bare, folder):
    both = bare.with_environment(MODELKEEP_SCAN_PYTHON=REAL)
    ran = both("scan", str(folder / "good.onnx"), "--opinions", "require", code=0)
    assert "modelaudit agree" in ran.out and "also asked: modelaudit 0." in ran.err
    assert "second-opinion-missing" in bare("scan", str(folder / "good.onnx"), "--opinions", "require", code=1).out


def test_the_settings_of_a_downloaded_folder_are_not_read(bare, folder, monkeypatch):
    """They name a program to run, and ``--dir`` is the working folder unless told otherwise."""
    trap = folder / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {folder}/sprung\n")
    trap.chmod(0o755)
    (folder / "modelkeep.toml").write_text(f'[scan]\npython = "{trap}"\n')
    monkeypatch.chdir(folder)
    for arguments in (("scan", "."), ("--dir", ".", "scan", "."), ("--dir", str(folder), "scan", "good.onnx")):
        bare(*arguments)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("size", [0, 1, 17 << 20])
def test_files_of_no_format_of_any_size(bare, tmp_path, size):
    """Large ones are mapped."""
    (tmp_path / "zeros").write_bytes(bytes(size))
    file = found(bare("--json", "scan", str(tmp_path / "zeros"), code=1))["zeros"]
    assert (file["format"], file["size"], file["verdict"]) == ("unknown", size, "not-clean")


def test_what_is_no_file_is_not_opened(bare, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # whoever opened it to read would wait for ever
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    files = found(bare("--json", "scan", str(tmp_path), code=1))
    assert {name: [finding["rule"] for finding in file["findings"]] for name, file in files.items()} == {
        "pipe": ["not-a-file"],
        "socket": ["not-a-file"],
    }
    assert "a device" in bare("scan", "/dev/null", code=1).out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name files or folders"),
        (("{folder}/nowhere",), "there is no file or folder"),
        (("{folder}/empty",), "there is no file in these folders"),
        (("{folder}", "--stale"), "one of them"),
        (("--stale", "--release", "risk@1"), "one of them"),
        (("--stale", "--sarif"), "go with files"),
        (("--release", "risk@1", "--opinions", "off"), "go with files"),
    ],
)
def test_bad_usage(bare, folder, arguments, says):
    (folder / "empty").mkdir()
    assert says in bare("scan", *(text.format(folder=folder) for text in arguments), code=2).line()


@pytest.fixture
def deep(tmp_path):
    """A folder with 1,200 folders in each other, which go away whatever happens: pytest itself cannot remove so many."""
    made = tmp_path / "deep"
    made.mkdir()
    at = made
    for _ in range(1200):
        at /= "d"
        at.mkdir()
    yield made
    while at != tmp_path:
        for path in at.iterdir():
            path.unlink()
        at.rmdir()
        at = at.parent


def test_names_that_are_no_text_in_folders_that_hardly_end(bare, deep):
    Path(os.fsdecode(b"%s/\xff\xfe.onnx" % os.fsencode(deep))).write_bytes(b"x")
    for arguments in (("--json", "scan"), ("scan", "--sarif"), ("scan",)):
        assert "xff" in bare(*arguments, str(deep), code=1).out


def test_names_that_would_steer_a_terminal(bare, tmp_path):
    (tmp_path / "a\x1b[2J\nb.onnx").write_bytes(b"x")
    ran = bare("scan", str(tmp_path), code=1)
    assert "\x1b" not in ran.out and "file-name" in ran.out


# -- SARIF --


def check(document):
    jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(document)


def sarif_of(cli, *paths, code):
    document = cli("scan", "--sarif", *map(str, paths), code=code).json
    check(document)
    return document["runs"][0]


def test_sarif_is_what_its_schema_says(bare, folder):
    run = sarif_of(bare, folder, code=1)
    driver = run["tool"]["driver"]
    assert driver["name"] == "modelkeep" and run["invocations"][0]["executionSuccessful"] is True
    assert [extension["name"] for extension in run["tool"]["extensions"]] == ["picklescan"]
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
    assert any(artifact["location"]["uri"].endswith("/bad%20%5B1%5D.pkl") for artifact in run["artifacts"])
    prints = [result["partialFingerprints"]["modelkeep/finding/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints) >= 4
    assert prints == [one["partialFingerprints"]["modelkeep/finding/v1"] for one in sarif_of(bare, folder, code=1)["results"]]


def test_sarif_of_clean_files_has_no_result(bare, folder):
    run = sarif_of(bare, folder / "good.onnx", code=0)
    assert run["results"] == [] and run["tool"]["driver"]["rules"] == []
    assert len(run["artifacts"][0]["hashes"]["sha-256"]) == 64


def test_a_file_that_cannot_be_read(folder):
    """Root reads everything, so it goes away between the look into its folder and the look into it."""
    good = folder / "good.onnx"
    report = scan_paths([str(folder)], Scanner(), lambda path: good.unlink() if path == str(good) else None)
    document = msgspec.json.decode(msgspec.json.encode(sarif(report)))
    check(document)
    (invocation,) = document["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    (note,) = invocation["toolExecutionNotifications"]
    assert "good.onnx" in note["message"]["text"]
    assert [file.verdict for file in report.files if file.path == str(good)] == ["unreadable"]


def test_what_cannot_be_read_is_another_exit_code_than_what_is_bad(bare, tmp_path, monkeypatch):
    (tmp_path / "loop").mkdir()
    monkeypatch.chdir(tmp_path / "loop")
    Path("m.onnx").write_bytes(b"x")
    assert "m.onnx" in bare("scan", "m.onnx", code=1).out
    (tmp_path / "loop" / "m.onnx").unlink()
    assert "there is no file or folder" in bare("scan", "m.onnx", code=2).line()


# -- releases --


def rules(version, *findings):
    """Rules of another time, that find these things in every file."""

    def judge(data, filename):
        verdict = scan(data, filename)
        every = (*verdict.findings, *findings)
        return msgspec.structs.replace(verdict, clean=not every, findings=every, rules_version=version)

    return Scanner(rules=judge, rules_version=version)


OLD, STRICT = rules("1"), rules("900", Finding("new-rule", "w", "known to be bad"))


@pytest.fixture
def keep(cli):
    return Keep.open(cli.keep, PASSPHRASE.encode())


def scans(cli):
    return [row for row in cli("--json", "log", "show", "--last", "1000", code=0).json if row["type"] == "scan"]


def test_nothing_is_stale_of_a_fresh_keep(cli):
    assert "rules and scanners of now" in cli("scan", "--stale", code=0).out
    assert cli("--json", "scan", "--stale", code=0).json == []


def test_what_older_rules_judged_is_judged_again(cli, keep, desk):
    keep.premises.scanner = OLD
    keep.publish(
        name="old", filename="m.onnx", model=(desk / "model.onnx").read_bytes(), reference=(desk / "ref.npz").read_bytes()
    )
    before = len(scans(cli))
    (done,) = cli("--json", "scan", "--stale", code=0).json
    assert (done["ref"], done["outcome"], done["rules_version"], done["quarantined"]) == (
        "old@1", "clean", Scanner().rules_version, [],
    )  # fmt: skip
    rows = scans(cli)
    assert len(rows) == before + 1
    assert (rows[-1]["index"], rows[-1]["actor"], rows[-1]["summary"]) == (done["log_index"], "operator@local", "clean")


def test_one_release_when_asked_for(cli):
    ran = cli("scan", "--release", "risk@1", code=0)
    assert "risk@1" in ran.out and "clean" in ran.out and str(scans(cli)[-1]["index"]) in ran.out
    assert "no release" in cli("scan", "--release", "risk@9", code=2).line()


def test_a_release_found_bad_is_quarantined_with_an_incident(cli, keep):
    keep.premises.scanner = STRICT
    (stale,) = keep.stale_scans()
    assert (stale.ref, stale.rules_version) == ("risk@1", Scanner().rules_version)
    (done,) = keep.rescan_stale()
    assert (done.outcome, done.quarantined) == ("not-clean", ("risk@1",))
    shown = cli("--json", "show", "risk@1", code=0).json
    assert shown["release"]["state"] == "quarantined"
    said = [row["summary"] for row in shown["statements"]]
    assert "quarantine: scan by rules 900: known to be bad [new-rule at w]" in said
    (incident,) = cli("--json", "incident", "list", code=0).json
    assert (incident["id"], incident["state"]) == ("scan:risk@1", "open") and "new-rule" in incident["detail"]
    assert scans(cli)[-1]["summary"] == "not clean: 1 findings"
    cli("log", "verify", code=0)


def scanner_that_prints(tmp_path, text):
    """An interpreter that has modelaudit, and says this whenever it runs."""
    (tmp_path / "said").write_text(text)
    liar = tmp_path / "python"
    liar.write_text(f"#!/bin/sh\n[ \"$2\" = -c ] && printf '9.9\\n' && exit\ncat {tmp_path}/said\n")
    liar.chmod(0o755)
    return str(liar)


def modelaudit_says(*messages):
    issues = [{"message": message, "severity": "critical"} for message in messages]
    return json.dumps({"files_scanned": 1, "has_errors": False, "success": True, "issues": issues})


def test_a_newly_installed_scanner_finds_something(cli, tmp_path):
    """Every verdict without its opinion is stale; what it finds bad is taken away, through the command line alone."""
    armed = cli.with_environment(
        MODELKEEP_SCAN_PYTHON=scanner_that_prints(tmp_path, modelaudit_says("weights of a known trojan"))
    )
    ran = armed("scan", "--stale", code=1)
    assert "second-opinion at modelaudit 9.9: weights of a known trojan; in quarantine: risk@1" in " ".join(ran.out.split())
    assert armed("--json", "show", "risk@1", code=0).json["release"]["state"] == "quarantined"
    (row,) = [row for row in scans(armed) if row["summary"].startswith("not clean")]
    assert row["index"] > 0


def test_a_scanner_that_broke_quarantines_nothing_and_refuses_what_is_new(cli, tmp_path, desk):
    broken = cli.with_environment(MODELKEEP_SCAN_PYTHON=scanner_that_prints(tmp_path, "Traceback"))
    before = len(scans(cli))
    ran = broken("scan", "--stale", code=3)
    assert "undecided" in ran.out and len(scans(cli)) == before
    assert broken("--json", "show", "risk@1", code=0).json["release"]["state"] == "promoted"
    assert [one["id"] for one in broken("--json", "incident", "list", code=0).json] == ["scan:risk@1"]
    refused = broken("publish", str(desk / "model.onnx"), "--name", "new", "--reference", str(desk / "ref.npz"), code=1)
    assert "second-opinion-failed at modelaudit 9.9" in refused.line()


def test_opinions_are_signed_with_the_verdict(cli, tmp_path):
    agreed = cli.with_environment(MODELKEEP_SCAN_PYTHON=scanner_that_prints(tmp_path, modelaudit_says()))
    (done,) = agreed("--json", "scan", "--release", "risk@1", code=0).json
    assert done["opinions"] == [{"tool": "modelaudit", "version": "9.9", "verdict": "clean", "detail": ""}]
    assert scans(agreed)[-1]["summary"] == "clean, as modelaudit 9.9 says too"


def test_a_model_that_cannot_be_opened_is_a_line_and_not_the_end(cli, keep, desk):
    keep.premises.scanner = OLD
    model, reference = ((desk / name).read_bytes() for name in ("model.onnx", "ref.npz"))
    keep.publish(name="aaa", filename="m.onnx", model=model, reference=reference)
    keep.publish(name="zzz", filename="m.safetensors", model=FILES["weights"][1])
    body = keep.premises.registry().release(keep.ref("zzz@1")).body.sealed
    keep.premises.blobs.delete(body)
    done = {one["ref"]: one for one in cli("--json", "scan", "--stale", code=3).json}
    assert (done["aaa@1"]["outcome"], done["zzz@1"]["outcome"]) == ("clean", "unreadable")
    assert done["zzz@1"]["problem"] and done["zzz@1"]["log_index"] == -1
    assert "unreadable" not in {one.outcome for one in keep.rescan_stale() if one.ref == "aaa@1"}


def test_who_may_scan(keep):
    analyst = keep.acting_as(Principal("eve", "sub_1", (Role.ANALYST,), "key:1"))
    assert analyst.stale_scans() == ()
    for ask in (lambda: analyst.rescan(ref="risk@1"), analyst.rescan_stale):
        with pytest.raises(Denied):
            ask()
    assert keep.acting_as(Principal("bob", "sub_2", (Role.ML_ENGINEER,), "key:2")).rescan(ref="risk@1").outcome == "clean"


def test_no_plaintext_reaches_a_disk_while_others_look_at_it(cli, subject, tmp_path, monkeypatch):
    """P4 with the real scanner: canaries in every place that it or we could have written to."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(scratch))
    armed = cli.with_environment(MODELKEEP_SCAN_PYTHON=REAL)
    (done,) = armed("--json", "scan", "--release", "risk@1", code=0).json
    assert [one["verdict"] for one in done["opinions"]] == ["clean"]
    assert list(scratch.iterdir()) == []
    kept = [path for path in cli.keep.rglob("*") if path.is_file()]
    assert [path for path in kept for window in subject.windows if window in path.read_bytes()] == []
    assert not Path("/run/model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PYTHON", "python3"), ("PYTHON", "./python"), ("OPINIONS", "maybe"), ("OPINION_SECONDS", "0"), ("OPINION_MEMORY", "1")],
)
def test_settings_that_make_no_sense(bare, folder, name, value):
    ran = bare.with_environment(**{f"MODELKEEP_SCAN_{name}": value})("scan", str(folder / "good.onnx"), code=2)
    assert f"scan.{name.lower()}" in ran.line()
