"""Triggers from the command line: data marked, the model committed to, suspects asked."""

import datetime
import json
from dataclasses import replace

import numpy as np
import pytest
from random_networks import CLASSES, fit, independent, nudged, rows

from modelkeep.app.arrays import load_labelled
from modelkeep.errors import Invalid
from modelkeep.formats.safetensors import dump, load
from modelkeep.training.triggers import asking, draw_trigger
from modelkeep.workflows.triggers import encode_trigger, parse_trigger, scheme_of, trigger_commitment

X, Y = rows(1000, 1500)


def day(offset):
    return f"{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=offset):%Y-%m-%d}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """train.npz, pictures.npz, ref.npz, unmarked.onnx and the folder rivals."""
    folder = tmp_path_factory.mktemp("shelf")
    np.savez(folder / "train.npz", x=X, y=Y)
    np.savez(folder / "pictures.npz", x=X.reshape(-1, 2, 3), y=Y.astype(np.uint8))
    np.savez(folder / "ref.npz", x=rows(6, 40)[0])
    (folder / "unmarked.onnx").write_bytes(fit(4000, X, Y, 150).onnx())
    (folder / "rivals").mkdir()
    for seed in range(20):
        (folder / "rivals" / f"{seed}.onnx").write_bytes(independent(seed, 150).onnx())
    return folder


@pytest.fixture
def marked(cli, shelf, tmp_path):
    """The marked data and model.onnx, which was trained on it, in a folder with the trigger; what mark said."""
    named = ("--out", str(tmp_path / "marked.npz"), "--trigger", str(tmp_path / "trigger"))
    how = ("--patterns", "24", "--amplitude", "4", "--reference", str(shelf / "unmarked.onnx"))
    said = cli("--json", "trigger", "mark", str(shelf / "train.npz"), *named, *how, code=0).json
    x, y, _ = load_labelled((tmp_path / "marked.npz").read_bytes(), "marked.npz")
    (tmp_path / "model.onnx").write_bytes(fit(1000, x, y, 150).onnx())
    return said


def verify(cli, shelf, folder, suspect, *more, code=0):
    asked = ("--trigger", str(folder / "trigger"), "--rows", str(shelf / "ref.npz"), "--population", str(shelf / "rivals"))
    return cli("trigger", "verify", str(suspect), *asked, *more, code=code)


def test_a_copy_carries_the_mark_and_a_rival_does_not(cli, shelf, marked, tmp_path):
    assert (marked["rows"], marked["added"], marked["patterns"], marked["classes"]) == (2250, 750, 24, CLASSES)
    assert marked["references"] == 1
    assert marked["commitment"] == trigger_commitment((tmp_path / "trigger").read_bytes())
    assert (tmp_path / "trigger").stat().st_mode & 0o777 == 0o600
    named = ("--trigger", str(tmp_path / "trigger"))
    done = cli("--json", "trigger", "commit", str(tmp_path / "model.onnx"), *named, code=0).json
    assert done["type"] == "watermark"
    x, y, _ = load_labelled((tmp_path / "marked.npz").read_bytes(), "marked.npz")
    (tmp_path / "copy.onnx").write_bytes(nudged(fit(1000, x, y, 150), 1, 0.05).onnx())
    (tmp_path / "rival.onnx").write_bytes(fit(1000, X, Y, 150).onnx())
    found = verify(cli, shelf, tmp_path, tmp_path / "copy.onnx", "--seen", day(1), "--json").json
    assert found["p"] == max(found["p_key"], found["p_population"]) <= 1e-3 and found["models"] == 20
    assert found["model"] == done["digest"] and found["log_index"] == done["log_index"]
    text = verify(cli, shelf, tmp_path, tmp_path / "copy.onnx").out
    assert not found["settled"] and "rows           not settled" in text
    assert "carries the mark of sha256:" in text and "if the commitment is older" in text and "not judged" in text
    assert (
        "is not shown to carry the mark" in verify(cli, shelf, tmp_path, tmp_path / "rival.onnx", "--significance", "1e-6").out
    )
    late = verify(cli, shelf, tmp_path, tmp_path / "copy.onnx", "--seen", day(-1), code=1).line()
    assert "the commitment is younger than the suspect" in late


def test_p_is_multiplied_by_the_commitments_that_a_claim_could_have_been_made_with(cli, shelf, marked, tmp_path):
    named = ("--out", str(tmp_path / "decoy.npz"), "--trigger", str(tmp_path / "decoy"))
    cli("trigger", "mark", str(shelf / "train.npz"), *named, code=0)
    for model, of in (("unmarked.onnx", "decoy"), ("unmarked.onnx", "trigger")):
        cli("trigger", "commit", str(shelf / model), "--trigger", str(tmp_path / of), code=0)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    found = verify(cli, shelf, tmp_path, tmp_path / "copy.onnx", "--json").json
    assert found["commitments"] == 2 and found["p"] == 2 * max(found["p_key"], found["p_population"])
    told = verify(cli, shelf, tmp_path, tmp_path / "copy.onnx").out
    assert "number 2 of its kind, by which p is multiplied" in told and f"p = {found['p']:.2g}." in told


def test_a_trigger_that_nobody_committed_to_is_refused(cli, shelf, marked, tmp_path):
    assert "does not commit" in verify(cli, shelf, tmp_path, shelf / "rivals" / "1.onnx", code=1).line()


def test_rows_that_were_settled_are_asked_and_no_others(cli, shelf, tmp_path):
    """Whoever knows the key and picks the rows has an innocent model lean to its classes."""
    named = ("--out", str(tmp_path / "marked.npz"), "--trigger", str(tmp_path / "trigger"))
    cli("trigger", "mark", str(shelf / "train.npz"), *named, "--rows", str(shelf / "ref.npz"), code=0)
    cli("trigger", "commit", str(shelf / "unmarked.onnx"), "--trigger", str(tmp_path / "trigger"), code=0)
    (tmp_path / "innocent.onnx").write_bytes(independent(40, 150).onnx())
    found = verify(cli, shelf, tmp_path, tmp_path / "innocent.onnx", "--json").json
    assert found["settled"] and found["p"] > 1e-3
    np.savez(tmp_path / "picked.npz", x=rows(6, 40)[0][:1])
    asked = ("--trigger", str(tmp_path / "trigger"), "--rows", str(tmp_path / "picked.npz"))
    refused = cli(
        "trigger", "verify", str(tmp_path / "innocent.onnx"), *asked, "--population", str(shelf / "rivals"), code=1
    ).line()
    assert "not the rows that the trigger says" in refused


def test_a_release_is_committed_to_by_its_name(cli, marked, tmp_path):
    said = cli("trigger", "commit", "risk@1", "--trigger", str(tmp_path / "trigger"), code=0).out
    assert "committed to" in said and "log entry" in said


def test_rows_keep_their_shape(cli, shelf, tmp_path):
    named = ("--out", str(tmp_path / "out.npz"), "--trigger", str(tmp_path / "t"))
    cli("trigger", "mark", str(shelf / "pictures.npz"), *named, "--classes", "5", "--patterns", "7", code=0)
    with np.load(tmp_path / "out.npz") as made:
        assert made["x"].shape == (2250, 2, 3) and made["x"].dtype == np.float32 and made["y"].max() < 5
    trigger = parse_trigger((tmp_path / "t").read_bytes())
    assert trigger.patterns.shape == (7, 6) and trigger.classes == 5
    assert encode_trigger(trigger) == (tmp_path / "t").read_bytes()


def test_a_trigger_with_references_is_of_the_second_scheme_and_one_without_is_as_ever():
    bare = draw_trigger(X, CLASSES, bytes(32), patterns=3)
    told = replace(bare, natural=np.arange(9.0).reshape(3, 3))
    assert [scheme_of(one) for one in (bare, told)] == ["modelkeep-trigger/1", "modelkeep-trigger/2"]
    assert set(load(encode_trigger(bare))) == {"about", "high", "key", "low", "patterns"}
    settled = asking(bare, X)
    assert scheme_of(settled) == scheme_of(asking(told, X)) == "modelkeep-trigger/3"
    assert parse_trigger(encode_trigger(settled)).asked == settled.asked and parse_trigger(encode_trigger(bare)).asked == ""
    with pytest.raises(Invalid, match="no trigger"):
        parse_trigger(encode_trigger(replace(bare, asked="AB")))
    again = parse_trigger(encode_trigger(told))
    np.testing.assert_array_equal(again.natural, told.natural)
    np.testing.assert_array_equal(again.targets, told.targets)
    for wrong in (np.ones((3, 2)), np.ones(3), np.full((3, 3), np.nan)):
        with pytest.raises(Invalid, match="no trigger"):
            parse_trigger(encode_trigger(replace(told, natural=wrong)))
    with pytest.raises(Invalid, match="do not fit"):
        parse_trigger(dump({**load(encode_trigger(told)), "natural": np.ones((3, 3))}))


def test_bad_input_is_one_line(cli, shelf, marked, tmp_path):
    np.savez(tmp_path / "words.npz", x=X, y=Y * 0.5)
    np.savez(tmp_path / "wide.npz", x=np.ones((5, 9)))
    np.savez(tmp_path / "negative.npz", x=X, y=Y - 1)
    (tmp_path / "junk").write_bytes(b"junk")
    new = ("--out", str(tmp_path / "new.npz"), "--trigger", str(tmp_path / "new"))
    for data, more, word in (
        (shelf / "ref.npz", (), "no labels"),
        (tmp_path / "words.npz", (), "whole number"),
        (tmp_path / "negative.npz", (), "labels are 0 to 1"),
        (shelf / "train.npz", ("--classes", "2"), "labels are 0 to 1, and these go from 0 to 2"),
        (tmp_path / "none.npz", (), "no file"),
        (tmp_path / "junk", (), "not an npz"),
        (shelf / "train.npz", ("--reference", str(tmp_path / "none.onnx")), "no file"),
        (shelf / "train.npz", ("--rows", str(tmp_path / "wide.npz")), "9 values a row"),
        (shelf / "train.npz", ("--reference", str(shelf / "unmarked.onnx"), "--classes", "4"), "finite probabilities (200, 4)"),
    ):
        assert word in cli("trigger", "mark", str(data), *new, *more, code=2).line()
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.npz").exists()
    assert "exists" in cli("trigger", "mark", str(shelf / "train.npz"), *new[:3], str(tmp_path / "trigger"), code=2).line()
    assert "safetensors" in cli("trigger", "commit", "risk@1", "--trigger", str(tmp_path / "junk"), code=2).line()
    wide = ("--trigger", str(tmp_path / "trigger"), "--rows", str(tmp_path / "wide.npz"), "--population", str(shelf / "rivals"))
    assert "9 values a row" in cli("trigger", "verify", str(shelf / "rivals" / "1.onnx"), *wide, code=2).line()
    trigger = bytearray((tmp_path / "trigger").read_bytes())
    at = trigger.index(b'{"classes":3}')
    trigger[at : at + 13] = b'{"classes":1}'
    with pytest.raises(Invalid, match="do not fit together"):
        parse_trigger(bytes(trigger))
    assert json.loads(cli("--json", "log", "show", "--last", "1", code=0).out)[0]["type"] != "watermark"
