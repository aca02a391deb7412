"""data check and data purge on real files: what is found, what is written, and what is left."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from modelkeep.adapters.datarows import without_rows
from modelkeep.adapters.tables import pictures
from modelkeep.adapters.tarred import TarFolder
from modelkeep.container.reader import BytesReader, read_bytes
from modelkeep.core.values import digest_of
from modelkeep.errors import Invalid

HEAD = "id,income,note,default\r\n"


def line(at):
    rng = np.random.default_rng(at)
    income = int(rng.integers(10_000, 90_000))
    note = '"said ""no"",\r\ntwice"' if at % 50 == 7 else f"case {at % 40}"
    return f"{at},{income}.{at % 100:02},{note},{int(income < 30_000) ^ (at % 9 == 0)}\r\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line(at) for at in range(300)]
    (tmp_path / "loans.csv").write_bytes((HEAD + "".join(lines)).encode())
    spoilt = [*lines[:299], lines[299].replace("case", "mail jo@example.org about")]
    spoilt[120] = spoilt[120].replace(",0\r", ",7\r").replace(",1\r", ",7\r")
    (tmp_path / "spoilt.csv").write_bytes((HEAD + "".join(spoilt)).encode())
    return tmp_path


def test_a_schema_is_pinned_followed_and_broken_and_the_rows_that_break_it_are_purged(bare, folder):
    first = bare(
        "data", "check", "loans.csv", "--label", "default", "--quick", "--pin", "loans.schema", "--report", "page.html", code=0
    )
    assert "a value of its own in every row" in first.out
    assert "nothing to mend, 1 warning" in first.out
    assert (folder / "page.html").read_bytes().startswith(b"<!doctype html>")
    assert [one["name"] for one in json.loads((folder / "loans.schema").read_bytes())["columns"]] == [
        "id",
        "income",
        "note",
        "default",
    ]

    found = bare("--json", "data", "check", "spoilt.csv", "--schema", "loans.schema", "--quarantine", "rows.json", code=1).json
    said = {(one["check"], one["level"], one["column"]) for one in found["findings"]}
    assert {("schema", "error", "default"), ("personal", "error", "note")} <= said
    assert "jo@example.org" not in json.dumps(found)
    assert not found["clean"]
    assert [one["row"] for one in json.loads((folder / "rows.json").read_bytes())["quarantined"]] == [120, 299]

    done = bare("--json", "data", "purge", "spoilt.csv", "--quarantine", "rows.json", "--out", "clean.csv", code=0).json
    assert (done["rows"], done["removed"], done["before"]) == (298, 2, found["digest"])
    assert (folder / "clean.csv").read_bytes().decode() == HEAD + "".join(line(at) for at in range(299) if at != 120)
    again = bare("--json", "data", "check", "clean.csv", "--schema", "loans.schema", code=0).json
    assert again["digest"] == done["after"]
    assert "as declared" in bare("data", "check", "spoilt.csv", "--personal", "note", code=0).out


def test_a_test_set_that_leaks_is_an_error(bare, folder):
    (folder / "test.csv").write_bytes((HEAD + "".join(line(at) for at in range(250, 330))).encode())
    found = bare("data", "check", "loans.csv", "--label", "default", "--quick", "--against", "test.csv", code=1)
    assert "50 rows of the test set" in found.out
    (folder / "apart.csv").write_bytes((HEAD + "".join(line(at) for at in range(300, 380))).encode())
    bare("data", "check", "loans.csv", "--label", "default", "--quick", "--against", "apart.csv", code=0)


def quarantine(folder, bare, source, rows):
    digest = bare("--json", "data", "check", source).json["digest"]
    count = bare("--json", "data", "check", source).json["rows"]
    rows = [{"row": row, "why": ["planted"]} for row in rows]
    (folder / "q.json").write_text(json.dumps({"data": digest, "rows": count, "version": 1, "quarantined": rows}))


def test_arrays_parquet_and_pictures_are_purged_in_their_own_format(bare, folder):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 6, 6), dtype=np.uint8)
    labels = np.arange(30, dtype=np.int16) % 2
    np.savez(folder / "a.npz", x=pixels, y=labels)
    quarantine(folder, bare, "a.npz", [0, 29])
    bare("data", "purge", "a.npz", "--quarantine", "q.json", "--out", "b.npz", code=0)
    with np.load(folder / "b.npz") as left:
        assert (left["x"] == pixels[1:29]).all()
        assert (left["y"] == labels[1:29]).all()
        assert (left["x"].dtype, left["y"].dtype) == (np.uint8, np.int16)

    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"n": list(range(25)), "t": [f"k{at % 3}" for at in range(25)]}), "a.parquet")
    quarantine(folder, bare, "a.parquet", [3])
    bare("data", "purge", "a.parquet", "--quarantine", "q.json", "--out", "b.parquet", code=0)
    assert parquet.read_table("b.parquet").column("n").to_pylist() == [0, 1, 2, *range(4, 25)]

    for at, picture in enumerate(pixels[:24]):
        place = folder / "shots" / f"class{at % 2}" / f"{at:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    quarantine(folder, bare, "shots", [0, 13])
    bare("data", "purge", "shots", "--quarantine", "q.json", "--out", "left", code=0)
    assert sorted(one.name for one in (folder / "left").rglob("*.png")) == [
        f"{at:02}.png" for at in range(24) if at not in {0, 3}
    ]


def test_what_cannot_be_purged_is_left_alone(bare, folder):
    quarantine(folder, bare, "loans.csv", [5])
    assert "is of" in bare("data", "purge", "spoilt.csv", "--quarantine", "q.json", "--out", "c.csv", code=1).line()
    assert "exists" in bare("data", "purge", "loans.csv", "--quarantine", "q.json", "--out", "spoilt.csv", code=2).line()
    for rows in ([5, 5], [300], [-1], list(range(300))):
        quarantine(folder, bare, "loans.csv", rows)
        bare("data", "purge", "loans.csv", "--quarantine", "q.json", "--out", "c.csv", code=2).line()
    (folder / "q.json").write_bytes(b"\xff")
    bare("data", "purge", "loans.csv", "--quarantine", "q.json", "--out", "c.csv", code=2).line()
    assert not (folder / "c.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent.csv",), "no file or folder"),
        (("loans.csv", "--label", "absent"), "no column"),
        (("loans.csv", "--personal", "absent"), "no column"),
        (("loans.csv", "--schema", "loans.csv"), "no schema"),
        (("loans.csv", "--schema", "absent"), "no file"),
        (("loans.csv", "--pin", "loans.csv"), "exists"),
        (("loans.csv", "--schema", "a", "--pin", "b"), "check first"),
        (("loans.csv", "--against", "absent.csv"), "no file or folder"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_line(bare, folder, arguments, said):
    assert said in bare("data", "check", *arguments, code=2).line()
    assert sorted(one.name for one in folder.iterdir()) == ["loans.csv", "spoilt.csv"]


def test_lines_of_a_csv_file_stay_as_they_are_whatever_they_hold(bare, folder):
    rows = [["1", "a\nb"], ["2", 'say "x"'], ["3", ""], ["4", "e"], *[[str(at), "f"] for at in range(5, 30)]]
    packed = io.StringIO(newline="")
    csv.writer(packed, lineterminator="\n").writerows([["n", "t"], *rows])
    whole = packed.getvalue().replace("4,e\n", "4,e\n\n")
    (folder / "odd.csv").write_text("\ufeff" + whole, newline="")
    quarantine(folder, bare, "odd.csv", [1, 4])
    bare("data", "purge", "odd.csv", "--quarantine", "q.json", "--out", "left.csv", code=0)
    assert (folder / "left.csv").read_bytes().decode() == whole.replace('2,"say ""x"""\n', "").replace("\n5,f\n", "\n")


def test_a_sealed_data_set_is_checked_and_its_next_version_has_the_others(cli, folder):
    cli("data", "check", "loans.csv", "--pin", "loans.schema", code=0)
    cli("data", "add", "loans", "spoilt.csv", "--purpose", "scoring", "--personal", code=0)
    asked = ("--schema", "loans.schema", "--quarantine", "rows.json", "--purpose", "scoring")
    found = cli("--json", "data", "check", "loans@1", *asked, code=1).json
    assert {(one["check"], one["level"]) for one in found["findings"] if one["column"] == "note"} == {
        ("schema", "error"),
        ("personal", "note"),
    }
    assert (found["data"], found["suspects"]) == (
        "loans@1",
        {"column note: a value never seen before": 1, "column default: outside its range": 1},
    )
    done = cli("--json", "data", "purge", "loans@1", "--quarantine", "rows.json", "--purpose", "scoring", code=0).json
    assert (done["out"], done["rows"], done["removed"]) == ("loans@2", 298, 2)
    cli("data", "purge", "spoilt.csv", "--quarantine", "rows.json", "--out", "clean.csv", code=0)
    assert digest_of((folder / "clean.csv").read_bytes()) == done["after"]
    shown = cli("--json", "data", "show", "loans@2", code=0).json
    assert (shown["parents"], shown["row"]["rows"], shown["row"]["personal"]) == (["loans@1"], 298, True)
    assert [(one["name"], one["parameters"]) for one in shown["steps"]] == [("purge", {"removed": "2"})]
    cli("data", "check", "loans@2", "--schema", "loans.schema", "--purpose", "scoring", "--against", "loans@1", code=1)
    assert "purpose" in cli("data", "check", "loans@2", "--purpose", "marketing", code=1).err
    assert "--out names" in cli("data", "purge", "loans@1", "--quarantine", "rows.json", "--out", "x.csv", code=2).line()
    assert "--out names" in cli("data", "purge", "loans.csv", "--quarantine", "rows.json", code=2).line()


def test_a_sealed_archive_of_pictures_keeps_the_others_as_they_are(folder):
    rng = np.random.default_rng(0)
    for at in range(12):
        place = folder / "shots" / f"class{at % 2}" / f"{at:02}{'long' * 40 if at == 4 else ''}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (5, 5), dtype=np.uint8)).save(place)
    names = list(pictures(folder / "shots"))
    left = b"".join(without_rows("images", TarFolder(folder / "shots", names), {0, 7}))
    others = TarFolder(folder / "shots", [name for row, name in enumerate(names) if row not in {0, 7}])
    assert left == bytes(read_bytes(others, 0, others.size))
    with pytest.raises(Invalid):
        list(without_rows("images", BytesReader(b"no archive" * 100), {0}))
