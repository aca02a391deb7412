"""``modelkeep data`` from end to end, on a real keep."""

import json

import numpy as np
import pytest

LINES = "id,income\n" + "".join(f"{number},{number / 7}\n" for number in range(200))
HALVE = """import sys
lines = open(sys.argv[1]).read().splitlines(keepends=True)
sys.stdout.write("".join([lines[0], *lines[1::2]]))
"""


@pytest.fixture
def loans(tmp_path):
    path = tmp_path / "loans.csv"
    path.write_text(LINES)
    return path


def test_from_a_file_to_a_grant_to_the_bytes_again(cli, loans, tmp_path):
    added = cli("--json", "data", "add", "loans", str(loans), "--purpose", "scoring", "--personal", code=0).json
    assert (added["ref"], added["kind"], added["rows"]) == ("loans@1", "csv", 200)
    assert "loans@1" in cli("data", "list", code=0).out
    assert "bob may read loans for scoring" in cli("data", "grant", "loans", "bob", "--purpose", "scoring", code=0).out
    shown = cli("data", "show", "loans", code=0).out
    assert "column    income  float64" in shown
    assert "granted   bob may read loans for scoring" in shown
    out = tmp_path / "out.csv"
    refused = cli("data", "open", "loans@1", "--out", str(out), code=1)
    assert "for a purpose that it was not added for" in refused.err
    assert not out.exists()
    assert "200" in cli("data", "open", "loans@1", "--purpose", "scoring", "--out", str(out), code=0).out or out.exists()
    assert out.read_text() == LINES
    assert "exists: name another file" in cli("data", "open", "loans@1", "--purpose", "scoring", "--out", str(out), code=2).err
    log = cli("log", "show", "--last", "10", code=0).out
    assert "data.open how=stream purpose=scoring" in log
    assert "data.denied" in log
    assert "may no longer read" in cli("data", "revoke", "loans", "bob", "--purpose", "scoring", code=0).out
    assert "is not granted to bob" in cli("data", "revoke", "loans", "bob", "--purpose", "scoring", code=2).err


def test_lineage_from_the_source_to_the_release(cli, loans, desk, tmp_path):
    cli("data", "add", "loans", str(loans), "--source", "the bank", code=0)
    step = tmp_path / "halve.py"
    step.write_text(HALVE)
    lines = LINES.splitlines(keepends=True)
    loans.write_text("".join([lines[0], *lines[1::2]]))
    cli("data", "add", "loans", str(loans), "--from", "loans@1", "--step", str(step), code=0)
    model = tmp_path / "model.onnx"
    run = ("run", "--no-code", "--input", f"loans@2={loans}", "--output", str(model), "--")
    cli(*run, "cp", str(desk / "model.onnx"), str(model), code=0)
    told = cli("data", "lineage", "loans@2", code=0).out
    assert "loans@1  csv, 200 rows" in told
    assert "by halve.py" in told
    assert "the bank" in told
    assert "run " in told
    assert "risk@1 (promoted)" in told
    assert "by name alone" not in told
    found = cli("--json", "data", "lineage", "loans@1", code=0).json
    kinds = [node["kind"] for node in found["lineage"]["nodes"]]
    assert {"dataset", "run", "model", "release", "source"} == set(kinds)
    replayed = cli("data", "replay", "loans@2", "--step", str(step), "--unconfined", code=0).out
    assert "loans@2 is what halve.py makes of loans@1" in replayed
    step.write_text(HALVE + "#")
    assert "not the code that loans@2 declares" in cli("data", "replay", "loans@2", "--step", str(step), code=1).err
    croissant = tmp_path / "loans.json"
    said = cli("data", "lineage", "loans@2", "--croissant", str(croissant), code=0).out
    assert f"metadata of loans@2 written to {croissant}" in said
    assert json.loads(croissant.read_text())["conformsTo"] == "http://mlcommons.org/croissant/1.0"


def test_a_file_without_a_header_line_is_named_when_it_is_added(cli, loans, tmp_path):
    bare = tmp_path / "bare.csv"
    bare.write_text(LINES.partition("\n")[2].replace("0,0.0\n", "17,0.0\n", 1))
    for verb in (("data", "add", "loans"), ("data", "check")):
        refused = cli(*verb, str(bare), code=2)
        assert "'17' in it is a number: put a line of names above the rows" in refused.err
        assert refused.err.count("\n") == 1
    for columns, why in (("id\nincome", "one line of names with commas"), ("id,in;come;a;year", "would be read as others")):
        assert why in cli("data", "add", "loans", str(bare), "--columns", columns, code=2).err
    assert "200 rows" in cli("data", "add", "loans", str(bare), "--columns", "id,income", code=0).out
    assert "column    income  float64" in cli("data", "show", "loans", code=0).out
    out = tmp_path / "out.csv"
    cli("data", "open", "loans@1", "--out", str(out), code=0)
    assert out.read_text() == "id,income\n" + bare.read_text()
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    assert "has names already" in cli("data", "add", "loans", str(tmp_path / "a.npz"), "--columns", "x", code=2).err


def test_mistakes_are_one_clear_line(cli, loans, tmp_path):
    for arguments, why in (
        (("data", "add", "Loans", str(loans)), "not a name of a data set"),
        (("data", "add", "loans", str(tmp_path / "none.csv")), "there is no file"),
        (("data", "add", "loans", str(tmp_path)), "no picture"),
        (("data", "add", "loans", str(loans), "--set", "x"), "write it once, as NAME=VALUE"),
        (("data", "show", "loans"), "there is no data set loans"),
        (("data", "show", "loans@x"), "no version of a data set"),
    ):
        ran = cli(*arguments, code=2)
        assert why in ran.err
        assert ran.err.count("\n") == 1
    np.savez(tmp_path / "bad.npz", x=np.array([{}], object))
    assert "nothing is unpickled" in cli("data", "add", "loans", str(tmp_path / "bad.npz"), code=2).err
    assert cli("data", "list", code=0).out.strip().startswith("no data sets")


def test_a_table_without_rows_is_no_data_set(cli, tmp_path):
    (tmp_path / "header.csv").write_text("a,b,y\n")
    assert (
        cli("data", "add", "rowless", str(tmp_path / "header.csv"), code=2)
        .line()
        .endswith("header.csv has no rows: there is nothing to keep")
    )
    assert "rowless" not in cli("data", "list").out
