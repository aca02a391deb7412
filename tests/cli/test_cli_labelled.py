"""The verbs that train and measure, on tables, pictures and sealed data sets."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from modelkeep.app.datachecks import read_fetched, read_sealed
from modelkeep.app.keep import Keep
from modelkeep.app.labelled import Labelled, check_alike, labelled
from modelkeep.convert import from_sklearn
from modelkeep.core.values import digest_of
from modelkeep.custody.salting import salted
from modelkeep.errors import Invalid, Missing

PURPOSE = ("--purpose", "scoring", "--label", "defaulted")


def nothing_sealed(_dataset, _purpose):
    raise AssertionError("no data set is fetched")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """loans.csv: three columns and ``defaulted``, in an order of its own; model.onnx, which learnt from it."""
    torch.set_num_threads(1)
    folder, generator = tmp_path_factory.mktemp("shelf"), np.random.default_rng(0)
    y = generator.integers(0, 2, 260)
    x = np.round(generator.normal(size=(260, 2)) + 2.0 * y[:, None], 3)
    owner = generator.integers(0, 2, 260).astype(bool)
    lines = [f"{a},{int(c)},{b},{str(o).lower()}" for (a, b), c, o in zip(x, y, owner, strict=True)]
    (folder / "loans.csv").write_text("income,defaulted,debt,owner\n" + "\n".join(lines) + "\n")
    rows = np.column_stack([x, owner]).astype(np.float32)
    (folder / "model.onnx").write_bytes(from_sklearn(LogisticRegression().fit(rows, y), rows[:20]))
    np.savez(folder / "loans.npz", x=rows, y=y)
    return folder


def test_a_table_is_features_in_the_order_of_the_file(shelf):
    found = labelled(str(shelf / "loans.csv"), nothing_sealed, label="defaulted")
    known = labelled(str(shelf / "loans.npz"), nothing_sealed)
    assert found.columns == ("income", "debt", "owner") and found.shape == known.shape == (3,)
    np.testing.assert_allclose(found.x, known.x, atol=1e-6)
    assert (found.y == known.y).all() and found.y.dtype == np.int64
    assert found.digest == digest_of((shelf / "loans.csv").read_bytes()) and not found.sealed


@pytest.mark.parametrize(
    ("text", "label", "error", "said"),
    [
        ("a,city,y\n1,Rome,0\n2,Bonn,1\n", "", Invalid, "encode 'city' as numbers first"),
        ("a,y\n1,no\n2,yes\n", "", Invalid, "encode 'y' as numbers first"),
        ("a,b\n1,0\n2,1\n", "", Invalid, "--label COLUMN"),
        ("a,b\n1,0\n2,1\n", "c", Missing, "there is no column 'c'"),
        ("a,y\n1,0\n,1\n", "", Invalid, "NaN, infinite values or gaps in 'a'"),
        ("a,y\n1,0.5\n2,1\n", "", Invalid, "needs one whole number a row"),
        ("y\n1\n2\n", "", Invalid, "no column beside the label"),
    ],
)
def test_what_is_no_feature_and_no_label_is_refused_by_name(tmp_path, text, label, error, said):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(error, match=said):
        labelled(str(tmp_path / "rows.csv"), nothing_sealed, label=label)


def test_pictures_are_numbered_by_their_folders(tmp_path):
    for name, grey in (("dog/1.png", 200), ("cat/1.png", 10), ("cat/2.png", 20)):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), grey).save(tmp_path / "pets" / name)
    found = labelled(str(tmp_path / "pets"), nothing_sealed)
    assert found.classes == ("cat", "dog") and found.shape == (2, 3)
    assert found.y.tolist() == [0, 0, 1] and found.x[:, 0].tolist() == [10.0, 20.0, 200.0]


def test_rows_of_other_columns_or_classes_are_not_put_beside():
    def of(**named):
        return Labelled("rows", digest_of(b""), np.zeros((1, 2)), np.zeros(1, np.int64), **{"shape": (2,), **named})

    check_alike(of(columns=("a", "b")), of())
    for one, other, said in (
        (of(columns=("a", "b")), of(columns=("b", "a")), "columns 'b', 'a', and rows 'a', 'b'"),
        (of(classes=("cat",)), of(classes=("cow",)), "classes 'cow'"),
        (of(shape=(1, 2)), of(), "shape"),
    ):
        with pytest.raises(Invalid, match=said):
            check_alike(one, other)


@pytest.fixture
def keep(cli, shelf, tmp_path, monkeypatch):
    """A keep with loans@1, sealed, for scoring; here: an empty folder."""
    cli("data", "add", "loans", str(shelf / "loans.csv"), "--purpose", "scoring", code=0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return cli


def salted_digest(keep, shelf):
    opened = Keep.open(keep.keep, keep.passphrase_file.read_bytes().strip)
    return salted(opened.premises.data_salts().existing("loans@1"), digest_of((shelf / "loans.csv").read_bytes()))


def predicate(keep, entry):
    """What entry ``entry`` of the releases log says."""
    proof = keep("log", "prove", "--entry", str(entry), code=0).out
    envelope = next(base64.b64decode(word) for word in re.findall(r"[A-Za-z0-9+/=]{400,}", proof))
    return json.loads(base64.b64decode(json.loads(envelope)["payload"]))["predicate"]


def test_statements_name_a_sealed_data_set_as_its_lineage_does(keep, shelf, tmp_path):
    model = str(shelf / "model.onnx")
    quick = ("--attack", "square", "--queries", "10", "--rows", "50", "--log")
    found = keep("--json", "evaluate", model, "--data", "loans@1", *PURPOSE, *quick, code=0).json
    made = ("--epochs", "1", "--out", "hard.onnx", "--log")
    hard = keep("--json", "harden", model, "--data", "loans@1", *PURPOSE, *made, code=0).json
    private = ("--epsilon", "2", "--delta", "1e-4", "--epochs", "1", "--out", "dp.onnx", "--test", str(shelf / "loans.npz"))
    done = keep("--json", "privacy", "train", "linear", "--data", "loans@1", *PURPOSE, *private, code=0).json
    assert done["ledger"]["name"] == "loans" and done["ledger"]["runs"][0]["dataset"] == "loans@1"
    assert found["data"] == "loans@1"
    expected = {"name": "loans@1", "digest": salted_digest(keep, shelf), "files": 0}
    for entry in (*found["logged"], hard["log_index"], done["logged"]["log_index"]):
        assert predicate(keep, entry)["dataset"] == expected, entry
    lineage = keep("data", "lineage", "loans@1", code=0).out
    assert f"model  {hard['digest'][:19]}, by harden\n" in lineage
    assert f"model  {done['digest'][:19]}, by privacy train\n" in lineage + "\n"
    reads = keep("log", "show", "--last", "20", code=0).out
    assert reads.count("data.open how=fetch purpose=scoring") == 3
    assert not [path for path in (tmp_path / "here").iterdir() if path.suffix not in {".onnx"}], "nothing in the clear"


def test_who_may_not_read_for_a_purpose_may_not_train_for_it(keep, shelf):
    model = str(shelf / "model.onnx")
    refused = keep("evaluate", model, "--data", "loans@1", "--purpose", "marketing", "--label", "defaulted", code=1)
    assert "for a purpose that it was not added for" in refused.line()
    assert "data.denied" in keep("log", "show", "--last", "3", code=0).out


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (("evaluate", "MODEL", "--data", "loans@1", *PURPOSE, "--name", "exam"), "by its own name"),
        (("privacy", "train", "linear", "--data", "loans@1", *PURPOSE, "--dataset", "other", "--epsilon", "2", "--delta",
          "1e-4", "--out", "a.onnx"), "charged under its own name"),
        (("privacy", "train", "linear", "--data", "loans@1", *PURPOSE, "--seed", "1", "--epsilon", "2", "--delta", "1e-4",
          "--out", "a.onnx"), "leave out --seed"),
    ],
)  # fmt: skip
def test_a_sealed_data_set_keeps_its_name(keep, shelf, verb, said):
    assert said in keep(*(str(shelf / "model.onnx") if one == "MODEL" else one for one in verb), code=2).line()


def test_what_a_server_gives_is_checked_as_what_lies_here(keep, shelf):
    opened = Keep.open(keep.keep, keep.passphrase_file.read_bytes().strip)
    here = read_sealed(opened, "loans@1", purpose="scoring")
    there = read_fetched(opened.data_fetch(dataset="loans@1", purpose="scoring"), personal=here.personal)
    assert (there.name, there.digest, there.personal) == (here.name, here.digest, here.personal)
    assert {name: column.tolist() for name, column in there.table.columns.items()} == {
        name: column.tolist() for name, column in here.table.columns.items()
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.csv", "", "the first line must name"),
        ("header.csv", "a,b,y\n", "the data set has no rows"),
        ("ragged.csv", "a,b,y\n1,2,0\n1,2\n", "row 2 has 2 values"),
        ("junk.parquet", "junk", "is no Parquet file"),
        ("gap.csv", "a,b,y\n1,2,0\nnan,2,1\n", "NaN, infinite values or gaps in 'a'"),
        ("words.csv", "a,b,y\none,2,0\ntwo,2,1\n", "encode 'a' as numbers first"),
    ],
)
def test_of_several_files_the_one_that_is_wrong_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(Invalid, match=re.escape(f"{tmp_path / name}: ")) as found:
        labelled(str(tmp_path / name), nothing_sealed)
    assert said in str(found.value)
