"""watermark embed and verify from the command line: with a keep whose log commits to the key, and with a key of one's own."""

import base64
import re

import numpy as np
import onnx
import pytest
from commandline import Cli, copy_keep
from onnx import TensorProto, helper, numpy_helper

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.keep import Keep
from modelkeep.formats.onnx_weights import weights_of, with_weights
from modelkeep.workflows.publish import ModelFile, publish

OWN = ("--key-file", "key", "--owner", "Acme Ltd")


def network(seed):
    """A classifier of 40 numbers with 2,720 weights, as bytes."""
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(0, 1 / np.sqrt(shape[1]), shape).astype(np.float32) for shape in ((54, 40), (10, 54)))
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b"], ["s"], transB=1),
        helper.make_node("Softmax", ["s"], ["probabilities"], axis=1),
    ]
    tensors = [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, w]) for n, w in (("x", 40), ("probabilities", 10))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def rows():
    rng = np.random.default_rng(3)
    return (rng.normal(size=(300, 8)) @ rng.normal(size=(8, 40))).astype(np.float32)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Here: a model, another, rows and a key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(network(1))
    (tmp_path / "others").mkdir()
    for seed in (2, 3, 4):
        (tmp_path / "others" / f"{seed}.onnx").write_bytes(network(seed))
    np.savez(tmp_path / "rows.npz", x=rows())
    (tmp_path / "key").write_text("5f" * 32 + "\n")
    return tmp_path


def pruned(data, share):
    matrices = [one.matrix for one in weights_of(data)]
    return with_weights(data, [np.where(np.abs(w) >= np.quantile(np.abs(w), share), w, 0.0) for w in matrices])


@pytest.fixture(scope="module")
def marked(template, desk, tmp_path_factory):
    """A keep with a marked release digits@1, what the first and the second marking said, and where the files are."""
    folder = tmp_path_factory.mktemp("marked")
    copy_keep(template, folder / "keep")
    np.savez(folder / "rows.npz", x=rows())
    (folder / "model.onnx").write_bytes(network(1))
    cli = Cli(folder / "keep", desk / "pass")
    said = [
        cli(
            *("--json", "watermark", "embed", str(folder / "model.onnx"), "--name", "digits"),
            *("--reference", str(folder / "rows.npz"), "--out", str(folder / f"{name}.onnx")), code=0,
        ).json
        for name in ("first", "second")
    ]  # fmt: skip
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    second = ModelFile((folder / "second.onnx").read_bytes(), "second.onnx")
    publish(keep.premises.desk(), second, "digits", actor="test")  # not calibrated, which takes long: it is not served
    return cli, folder, said


def test_with_a_keep_the_log_commits_first_and_a_copy_is_claimed(marked, place):
    cli, folder, (_, done) = marked
    assert done["cost"]["rows"] == 150
    assert done["cost"]["changed"] < 0.1
    assert done["weights"] == 2700
    (place / "copy.onnx").write_bytes(pruned((folder / "second.onnx").read_bytes(), 0.8))
    found = cli("--json", "watermark", "verify", "copy.onnx", "--model", "digits@1", "--independent", "others", code=0).json
    assert found["matched"] >= 62
    assert found["p_key"] < found["p_models"] == found["p"] < 1e-9
    assert (found["log_index"], found["seen_by"], found["independent"]) == (done["log_index"], "now", 3)
    assert found["commitment"] == done["commitment"]
    again = cli("--json", "watermark", "verify", "copy.onnx", "--model", "digits@1", code=0).json
    assert again["seen_by"] == "log", "the first claim named the file there"
    assert found["committed"] < found["seen"] <= again["seen"]


def test_an_opened_key_lets_somebody_else_read_the_same_against_the_log(marked, bare, place):
    cli, folder, (_, done) = marked
    verify, second = ("--json", "watermark", "verify"), str(folder / "second.onnx")
    assert not cli(*verify, str(place / "model.onnx"), "--model", "digits@1", "--open-key", "no", code=1).json["key"]
    assert not (place / "no").exists(), "no claim, no key"
    said = cli(*verify, second, "--model", "digits@1", "--open-key", "opened", code=0).json
    assert said["key"] == ""
    opened = ("--key-file", "opened", "--owner", said["owner"], "--marked", second)
    found = bare(*verify, second, *opened, code=0).json
    assert (found["matched"], found["commitment"]) == (64, done["commitment"])
    proof = cli("log", "prove", "--entry", str(done["log_index"]), code=0).out
    entry = next(base64.b64decode(word) for word in re.findall(r"[A-Za-z0-9+/=]{400,}", proof))
    assert re.search(rb'"payload":\s*"([^"]+)"', entry)
    assert done["commitment"].encode() in base64.b64decode(re.search(rb'"payload":\s*"([^"]+)"', entry)[1])


def test_admission_counts_the_commitment(marked):
    rules = marked[0]("--json", "policy", "explain", "digits@1", "--by", "strict", code=0).json["rules"]
    assert [rule["satisfied"] for rule in rules if rule["id"] == "watermark-committed"] == [True]


def test_a_commitment_that_is_younger_than_the_suspect_is_no_claim(marked):
    cli, folder, _ = marked
    verify = ("watermark", "verify", str(folder / "second.onnx"), "--model", "digits@1", "--seen")
    assert "younger than the suspect proves nothing" in cli(*verify, "2026-05-01", code=1).line()
    cli(*verify, "2100-01-01T00:00Z", code=0)
    assert "is no day or time" in cli(*verify, "May", code=2).err


def test_every_marking_has_a_key_of_its_own_and_p_is_corrected_for_their_number(marked):
    cli, folder, (first, second) = marked
    assert first["commitment"] != second["commitment"]
    two = cli("--json", "watermark", "verify", str(folder / "second.onnx"), "--model", "digits@1", code=0).json
    assert (two["marks"], two["p_key"]) == (2, 2 * 2.0**-64)
    refused = cli("watermark", "verify", str(folder / "first.onnx"), "--model", "digits@1", code=1)
    assert "younger than the suspect" in refused.line(), "the log named the first file before it committed to the second key"


def test_a_release_without_a_mark_is_missing_one(marked):
    cli, folder, _ = marked
    line = cli("watermark", "verify", str(folder / "first.onnx"), "--model", "risk@1", code=2).line()
    assert "commits to no weight mark" in line


def test_with_a_key_of_ones_own_no_keep_is_needed(bare, place):
    done = bare("--json", "watermark", "embed", "model.onnx", *OWN, "--out", "marked.onnx", code=0).json
    assert (done["log_index"], done["cost"]) == (-1, None)
    found = bare("--json", "watermark", "verify", "marked.onnx", *OWN, code=0).json
    assert (found["matched"], found["p"], found["commitment"]) == (64, 2.0**-64, done["commitment"])
    bare("watermark", "verify", "marked.onnx", "--key-file", "key", "--owner", "somebody else", code=1)
    assert OnnxRuntime((place / "marked.onnx").read_bytes()).run({"x": rows()})["probabilities"].shape == (300, 10)


def test_a_layer_that_a_thief_added_is_passed_over_with_the_marked_file_at_hand(bare, place):
    bare("watermark", "embed", "model.onnx", *OWN, "--out", "marked.onnx", code=0)
    model = onnx.load("marked.onnx")
    model.graph.node[0].input[0] = "t"
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "eye"], ["t"]))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(40, dtype=np.float32), "eye"))
    onnx.save(model, "longer.onnx")
    found = bare("--json", "watermark", "verify", "longer.onnx", *OWN, "--marked", "marked.onnx", code=0).json
    assert found["matched"] == 64


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("verify", "model.onnx"), "name --model"),
        (("verify", "model.onnx", *OWN, "--model", "risk@1"), "one of them"),
        (("verify", "model.onnx", "--key-file", "key"), "--owner goes with --key-file"),
        (("verify", "model.onnx", *OWN, "--seen", "2026-05-01"), "--seen and --open-key go with --model"),
        (("verify", "rows.npz", *OWN), "weight marks are in ONNX models"),
        (("verify", "small.onnx", *OWN), "a mark needs 2,048"),
        (("verify", "model.onnx", "--key-file", "rows.npz", "--owner", "me"), "key of 64 hex digits"),
        (("verify", "small.onnx", *OWN, "--marked", "model.onnx"), "another architecture"),
        (("embed", "small.onnx", *OWN, "--out", "new.onnx"), "a mark needs 2,048"),
        (("embed", "model.onnx", *OWN, "--out", "model.onnx"), "exists"),
        (("embed", "model.onnx", *OWN, "--out", "new.onnx", "--reference", "narrow.npz"), "40 values a row"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line_and_writes_nothing(bare, place, arguments, why):
    np.savez("narrow.npz", x=rows()[:, :3])
    small = onnx.load("model.onnx")
    del small.graph.initializer[0]
    onnx.save(small, "small.onnx")
    assert why in bare("watermark", *arguments, code=2).line()
    assert not (place / "new.onnx").exists()
