"""harden from the command line: a model that stands better afterwards, a report, and a statement about exactly its bytes."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from commandline import Cli, copy_keep
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import modelkeep.convert
from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.hardening import Plan, Rules, _split, harden_file, parse_rules
from modelkeep.app.keep import Keep
from modelkeep.app.labelled import labelled_npz
from modelkeep.custody.salting import salted
from modelkeep.errors import Invalid

WIDTH = 12
TRAINED = ("--epochs", "12", "--rate", "0.02", "--epsilon", "0.4", "--widen", "1")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Two classes: one column tells them apart from far, and eleven, together better, from near (Tsipras et al. 2019)."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 500)
    side = (2 * y - 1)[:, None]
    return np.hstack([1.5 * side + 0.8 * rng.normal(size=(500, 1)), 0.3 * side + 0.3 * rng.normal(size=(500, 11))]).astype(
        np.float32
    ), y


def network(x: np.ndarray, y: np.ndarray) -> bytes:
    """A trained classifier of two classes with 16 hidden units, as bytes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(WIDTH, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        adam = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(150):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(y)).backward()
            adam.step()
    tensors = [numpy_helper.from_array(one.detach().numpy(), f"w{at}") for at, one in enumerate(module.parameters())]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "w1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "w3"], ["s"], transB=1),
        helper.make_node("Softmax", ["s"], ["probabilities"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, w]) for n, w in (("x", WIDTH), ("probabilities", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with model.onnx and data.npz."""
    folder = tmp_path_factory.mktemp("hardening")
    x, y = rows()
    (folder / "model.onnx").write_bytes(network(x, y))
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


@pytest.fixture(scope="module")
def hardened(place, template, desk, tmp_path_factory):
    """A keep that logged a hardening, and what the command said."""
    cli = Cli(copy_keep(template, tmp_path_factory.mktemp("hardened") / "keep"), desk / "pass")
    files = ("--data", str(place / "data.npz"), "--out", str(place / "out.onnx"), "--report", str(place / "out.html"))
    return cli, cli("--json", "harden", str(place / "model.onnx"), *files, *TRAINED, "--log", code=0).json


def test_the_model_stands_better_and_answers_any_number_of_rows(place, hardened):
    _, said = hardened
    before, after = said["before"], said["after"]
    assert after["robust"]["value"] > before["robust"]["value"] + 0.3
    assert after["clean"]["value"] > 0.85
    assert before["robust"]["low"] < before["robust"]["value"] < before["robust"]["high"]
    assert said["rows"] == [350, 50, 100] and after["robust"]["examples"] == 100
    assert [one["epoch"] for one in said["history"]] == list(range(1, 13))
    x, y = rows()
    for count in (1, 500):
        found = OnnxRuntime((place / "out.onnx").read_bytes()).run({"x": x[:count]})
        assert found["probabilities"].shape == (count, 2)
    assert (found["label"] == y).mean() > 0.8


def test_the_statement_is_about_exactly_the_bytes_of_the_file(place, hardened):
    cli, said = hardened
    made = hashlib.sha256((place / "out.onnx").read_bytes()).hexdigest()
    assert said["digest"] == f"sha256:{made}"
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    proof = cli("log", "prove", "--entry", str(said["log_index"]), code=0).out
    entry = next(base64.b64decode(word) for word in re.findall(r"[A-Za-z0-9+/=]{400,}", proof))
    statement = json.loads(base64.b64decode(json.loads(entry)["payload"]))
    assert statement["subject"][0]["digest"] == {"sha256": made}
    logged = statement["predicate"]
    data = hashlib.sha256((place / "data.npz").read_bytes()).hexdigest()
    salt = keep.premises.data_salts().salt("data.npz")
    assert logged["dataset"] == {"name": "data.npz", "digest": salted(salt, f"sha256:{data}"), "files": 0}
    assert logged["source"] == "sha256:" + hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()
    under = {"name": "apgd-ce+apgd-t", "norm": "linf", "epsilon": 0.4, "steps": 100, "knowledge": "white-box"}
    assert (logged["seed"], logged["attack"], logged["robust"]) == (0, under, said["after"]["robust"])
    assert len(logged["code"]) == 64 and set(logged["versions"]) == {"modelkeep", "torch"}


def test_the_report_is_one_page_that_asks_nothing_of_a_network(place, hardened):
    _, said = hardened
    page = (place / "out.html").read_text()
    assert said["digest"] in page and "epoch" in page and "upper bound" in page
    assert "http" not in page.replace("http://www.w3.org", "")


EACH = """
import hashlib, json, os, sys
from pathlib import Path
from modelkeep.app.hardening import Plan, harden_file, leads
from modelkeep.app.labelled import labelled_npz

def export(module, _example, **_more):
    return b"".join(one.detach().numpy().tobytes() for one in module.parameters())

model, data, folder = map(Path, sys.argv[1:])
plan = Plan(epochs=12, rate=0.02, epsilon=0.4, widen=1.0, device="cpu")
done = harden_file(model.read_bytes(), labelled_npz(data.read_bytes(), "data.npz"), plan, export)
(folder / os.environ["RANK"]).write_text(done.digest)
if leads():
    print(json.dumps(done.predicate))
"""


def test_two_processes_make_one_model_and_the_first_says_so(place, hardened, tmp_path):
    (tmp_path / "each.py").write_text(EACH)
    run = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "each.py"))
    given = (str(place / "model.onnx"), str(place / "data.npz"), str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*run, *given], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    said, alone = json.loads(ran.stdout), hardened[1]["predicate"]  # one document, of one process
    assert said["robust"]["value"] == pytest.approx(alone["robust"]["value"], abs=0.1)
    same = ("method", "attack", "source", "dataset", "seed", "code", "versions")
    assert {name: said[name] for name in same} == {name: alone[name] for name in same}


def test_what_an_attacker_may_not_change_he_does_not(place):
    model, data = (place / "model.onnx").read_bytes(), (place / "data.npz").read_bytes()
    plan = Plan(epochs=1, epsilon=0.4, rules=Rules(frozen=tuple(range(WIDTH))))
    done = harden_file(model, labelled_npz(data, "data.npz"), plan, lambda *_given, **_more: b"onnx")
    assert done.before.robust == done.before.clean
    assert done.predicate["parameters"]["rules"].startswith("sha256:")
    assert done.predicate["attack"]["name"] == "pgd-ce+margin", "APGD keeps no rules"
    some = harden_file(
        model,
        labelled_npz(data, "data.npz"),
        Plan(epochs=1, epsilon=0.4, rules=Rules(frozen=(0, 1, 2), ranges={3: (-9.0, 9.0)}, epsilon={4: 0.3})),
        lambda *_given, **_more: b"onnx",
    )
    all_free = harden_file(model, labelled_npz(data, "data.npz"), Plan(epochs=1, epsilon=0.4), lambda *_given, **_more: b"onnx")
    assert all_free.before.robust.value <= some.before.robust.value <= done.before.robust.value


def test_a_logistic_regression_is_trained_by_its_coefficients(place):
    x, y = rows()
    estimator = LogisticRegression().fit(x, y)
    linear = modelkeep.convert.from_sklearn(estimator, x[:50])
    seen = []
    data, plan = (place / "data.npz").read_bytes(), Plan(epochs=3, rate=0.05)

    def export(module, example, **_more):
        seen.extend(one.detach().numpy().copy() for one in module.parameters())
        return b"onnx"

    done = harden_file(linear, labelled_npz(data, "data.npz"), plan, export)
    assert done.before.clean.value > 0.7
    assert [one.shape for one in seen] == [(WIDTH, 2), (2,)]
    assert not np.allclose(seen[0][:, 1], estimator.coef_[0], atol=1e-4)


def test_trees_are_refused_in_one_sentence(place, bare, tmp_path):
    x, y = rows()
    forest = modelkeep.convert.from_sklearn(RandomForestClassifier(3, max_depth=3, random_state=0).fit(x, y), x[:50])
    (tmp_path / "forest.onnx").write_bytes(forest)
    asked = ("harden", str(tmp_path / "forest.onnx"), "--data", str(place / "data.npz"), "--out", str(tmp_path / "no.onnx"))
    line = bare(*asked, code=2).line()
    assert "cannot be hardened" in line and "Trees" in line and "black-box attack" in line
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(held=0.9), "at most 0.5"),
        (Plan(held=0.05), "too few"),
        (Plan(rules=Rules(frozen=(WIDTH,))), f"column {WIDTH}"),
        (Plan(rules=Rules(one_hot=((0, 1), (1, 2)))), "one-hot"),
        (Plan(low=1.0, high=0.0), "low end"),
        (Plan(device="quantum"), "cannot train on"),
        (Plan(rate=0.0), "rate"),
    ],
)
def test_a_plan_that_does_not_hold_is_refused(place, plan, said):
    model, data = (place / "model.onnx").read_bytes(), (place / "data.npz").read_bytes()
    with pytest.raises(Invalid, match=said):
        harden_file(model, labelled_npz(data, "data.npz"), plan, lambda *_given, **_more: b"")


def test_classes_that_the_model_does_not_know_are_refused(place, tmp_path):
    x, y = rows()
    np.savez(tmp_path / "odd.npz", x=x, y=y + 1)
    with pytest.raises(Invalid, match="labels go from 1 to 2"):
        harden_file(
            (place / "model.onnx").read_bytes(),
            labelled_npz((tmp_path / "odd.npz").read_bytes(), "odd"),
            Plan(),
            lambda *_g: b"",
        )


def test_rules_are_read_from_json():
    found = parse_rules(b'{"frozen": [0], "one_hot": [[1, 2]], "ranges": {"3": [0, 1]}, "epsilon": {"4": 0.5}}')
    assert found == Rules(frozen=(0,), one_hot=((1, 2),), ranges={3: (0.0, 1.0)}, epsilon={4: 0.5})
    for bad in (b"{", b'{"frosen": [1]}', b'{"ranges": {"x": [0, 1]}}'):
        with pytest.raises(Invalid, match="no rules for columns"):
            parse_rules(bad)


def test_a_statement_that_cannot_be_logged_is_kept(place, bare, tmp_path):
    out = tmp_path / "kept.onnx"
    asked = ("--data", str(place / "data.npz"), "--out", str(out), "--epochs", "1", "--log")
    ran = bare("harden", str(place / "model.onnx"), *asked)
    assert ran.code != 0 and out.exists()
    kept = json.loads((tmp_path / "kept.onnx.hardening.json").read_bytes())
    assert kept["method"] == "pgd-at" and "modelkeep attest" in ran.err


def test_no_row_is_measured_on_that_was_learnt_or_twice():
    x = np.random.default_rng(0).normal(size=(500, 2))
    learnt, chosen, exam = _split(x, Plan())
    assert [len(learnt), len(chosen), len(exam)] == [350, 50, 100] and len({*learnt, *chosen, *exam}) == 500
    copied = np.concatenate([x[:400], x[:100]])
    learnt, chosen, exam = _split(copied, Plan())
    known = {tuple(row) for row in copied[np.concatenate([learnt, chosen])]}
    measured = [tuple(row) for row in copied[exam]]
    assert 50 < len(measured) == len(set(measured)) < 100 and known.isdisjoint(measured)
    with pytest.raises(Invalid, match="are no copies of others: 20 are needed"):
        _split(np.repeat(x[:50], 10, axis=0), Plan())


def test_what_cannot_be_hardened_is_refused_in_a_sentence_and_leaves_nothing(bare, place, tmp_path):
    x, y = rows()
    np.savez(tmp_path / "narrow.npz", x=x[:, :5], y=y)
    np.savez(tmp_path / "one.npz", x=x, y=np.zeros(len(y), np.int64))
    np.savez(tmp_path / "empty.npz", x=np.zeros((500, 0)), y=y)
    np.savez(tmp_path / "three.npz", x=x, y=np.arange(500) % 3)
    data = str(place / "data.npz")
    for given, said in (
        (("--data", str(tmp_path / "narrow.npz")), "the model takes 12 values a row, and the rows have 5"),
        (("--data", str(tmp_path / "one.npz")), "all rows that are learnt from are of class 0"),
        (("--data", str(tmp_path / "empty.npz")), "array 'x' needs shape"),
        (("--data", str(tmp_path / "three.npz")), "the labels go from 0 to 2, and the model has 2 classes, numbered from 0"),
        (("--data", data, "--epsilon", "0"), "epsilon is above 0 and at most 1e+30"),
        (("--data", data, "--epsilon", "nan"), "epsilon is above 0 and at most 1e+30"),
        (("--data", data, "--epsilon", "1e308"), "epsilon is above 0 and at most 1e+30"),
    ):
        ran = bare("harden", str(place / "model.onnx"), "--out", str(tmp_path / "out.onnx"), *given, code=2)
        assert said in ran.line()
    (tmp_path / "junk.onnx").write_bytes(b"no model")
    ran = bare("harden", str(tmp_path / "junk.onnx"), "--out", str(tmp_path / "out.onnx"), "--data", data, code=1)
    assert "refused: the model is not run, because it is not clean" in ran.line()
    assert not list(tmp_path.glob("*out.onnx*"))
