"""evaluate from the command line: numbers with intervals, a report, statements that admission reads, alarms that it heeds."""

import warnings

import numpy as np
import pytest
import torch
from commandline import Cli, copy_keep
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier

import modelkeep
from modelkeep.app.keep import Keep
from modelkeep.convert import from_sklearn
from modelkeep.custody.admission import attributes
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.workflows.publish import ModelFile, publish

QUICK = ("--steps", "10", "--queries", "20", "--rows", "120")


@pytest.fixture(scope="module")
def models():
    """A network of digits, the same with saturated probabilities and no way to see its logits, and a tree; test rows."""
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge
        net = MLPClassifier((32,), max_iter=20, random_state=0).fit(x[:1200], y[:1200])
    tree = DecisionTreeClassifier(max_depth=8, random_state=0).fit(x[:1200], y[:1200])
    made = {"net": from_sklearn(net, x[:20]), "tree": from_sklearn(tree, x[:20]), "masked": masked(net)}
    return made, x[1200:], y[1200:]


def masked(net):
    """A network whose scores are rounded up to powers that saturate: a softmax by hand, of 4000 times the logits."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = {"a": net.coefs_[0], "b": net.intercepts_[0], "c": net.coefs_[1] * 4000, "d": net.intercepts_[1] * 4000}
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "c", "d"], ["s"]),
        helper.make_node("ReduceMax", ["s"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["s", "m"], ["less"]),
        helper.make_node("Exp", ["less"], ["e"]),
        helper.make_node("ReduceSum", ["e", "one"], ["t"], keepdims=1),
        helper.make_node("Div", ["e", "t"], ["probabilities"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, w]) for n, w in (("x", 64), ("probabilities", 10))]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """Here: the models, and test rows as pictures."""
    monkeypatch.chdir(tmp_path)
    made, x, y = models
    for name, data in made.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
    np.savez("test.npz", x=x.reshape(-1, 8, 8), y=y)
    return tmp_path


def test_numbers_a_page_and_what_was_certified(bare, place):
    more = ("--smoothing", "0.2", "--draws", "40", "--bounds", "--corruptions", "--report", "page.html")
    found = bare("--json", "evaluate", "net.onnx", "--data", "test.npz", *QUICK, *more, code=0).json
    names = [one["name"] for one in found["attacks"]]
    assert names == ["apgd-ce", "apgd-t", "fab", "square"] and found["black_box"] == "" and found["alarms"] == []
    assert found["clean"]["examples"] == 120 and found["difference"] < 1e-5
    left = [found["clean"]["value"], *(one["accuracy"]["value"] for one in found["attacks"])]
    assert left == sorted(left, reverse=True) and found["robust"]["value"] == left[-1] < 0.7
    broken = sum(one["broken"] for one in found["attacks"])
    assert round((left[0] - left[-1]) * 120) == broken
    assert all(one["accuracy"]["low"] <= one["accuracy"]["value"] <= one["accuracy"]["high"] for one in found["attacks"])
    assert [one["epsilon"] for one in found["curve"]] == pytest.approx([0, 0.025, 0.05, 0.1, 0.2, 0.4])
    smoothed = [one["epsilon"] for one in found["certified"] if one["method"] == "smoothing"]
    assert smoothed == [0, 0.1, 0.2]  # 40 draws certify nothing as far off as 0.4
    methods = {one["method"] for one in found["certified"]}
    assert methods == {"interval-bounds", "smoothing"} and len(found["corrupted"]) == 21
    page = (place / "page.html").read_text()
    assert "Robustness of net.onnx" in page and "gaussian-noise" in page and "interval-bounds" in page
    again = bare("--json", "evaluate", "net.onnx", "--data", "test.npz", *QUICK, code=0).json
    assert [one["broken"] for one in again["attacks"]] == [one["broken"] for one in found["attacks"]]  # by the seed


def test_a_tree_is_a_black_box_and_the_page_says_so(bare, place):
    how = ("--attack", "apgd,square,transfer", "--report", "page.html")
    ran = bare("evaluate", "tree.onnx", "--data", "test.npz", *QUICK[:4], "--rows", "50", *how, code=0)
    assert "black box only: no gradient goes through" in ran.out and "after transfer" in ran.out and "apgd" not in ran.out
    assert "as a black box only" in (place / "page.html").read_text()


def test_masked_gradients_ring_an_alarm(bare, place):
    ran = bare("evaluate", "masked.onnx", "--data", "test.npz", *QUICK, "--attack", "apgd,square", code=0)
    assert "ALARM loss-does-not-rise" in ran.out and "do not trust these numbers" in ran.out


def test_what_is_logged_is_what_admission_counts(template, desk, models, place, tmp_path):
    cli = Cli(copy_keep(template, tmp_path / "own"), desk / "pass")
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    for name in ("net", "masked"):
        publish(keep.premises.desk(), ModelFile(models[0][name], f"{name}.onnx"), name, actor="test")

    def seen(name):
        view = attributes(keep.premises.registry().book, keep.ref(f"{name}@1"))
        return view["robust_accuracy"], view["accuracy"], view["robust_alarms"]

    assert seen("net") == ("0.0000", "0.0000", 0)
    run = ("--json", "evaluate", "--data", "test.npz", "--attack", "apgd", *QUICK, "--log")
    found = cli(*run, "net@1", code=0).json
    assert len(found["logged"]) == 3 and found["model"] == "net@1"
    wanted = [f"{int(one['low'] * 1e4) / 1e4:.4f}" for one in (found["robust"], found["clean"])]
    assert seen("net") == (*wanted, 0)
    cli("alias", "set", "net", "champion", "1", code=0)
    asked = ("--data", "test.npz", "--attack", "square", "--queries", "1", "--rows", "5")
    assert cli("--json", "evaluate", "net@champion", *asked, code=0).json["model"] == "net@1"
    masked_run = cli(*run, "masked.onnx", code=0).json  # the file, not the release: the statement is about its bytes
    assert masked_run["robust"]["low"] > 0.5 and masked_run["alarms"]
    assert seen("masked")[0] == "0.0000" and seen("masked")[2] > 0


def test_what_cannot_be_evaluated(bare, place):
    run = ("evaluate", "net.onnx", "--data", "test.npz")
    assert "no attack 'pgd'" in bare(*run, "--attack", "pgd", code=2).line()
    assert "do not hold them" in bare(*run, "--high", "0.5", code=2).line()
    assert "epsilon above 0" in bare(*run, "--epsilon", "0", code=2).line()
    np.savez("wrong.npz", x=np.zeros((5, 64)) + np.eye(5, 64), y=np.full(5, 77))
    assert "none of these rows rightly" in bare("evaluate", "net.onnx", "--data", "wrong.npz", code=2).line()
    (place / "x.onnx").write_bytes(b"not a model")
    assert "not clean" in bare("evaluate", "x.onnx", "--data", "test.npz", code=1).line()
    assert "need gradients" in bare("evaluate", "tree.onnx", "--data", "test.npz", *QUICK, "--bounds", code=2).line()


def test_the_laboratory_in_python(models):
    made, x, y = models
    x, y = x[:60], y[:60]
    net = modelkeep.lab.load_net(made["net"], x)
    limits = modelkeep.lab.Limits(0.1)
    found = modelkeep.lab.attack(net, x, y, limits, steps=10)
    assert found.adversarial.shape == x.shape and 0 < found.standing.sum() < 60
    assert np.array_equal(net(torch.from_numpy(found.adversarial)).argmax(dim=1).numpy() == y, found.standing)

    def scores(rows):
        return net(torch.from_numpy(rows.astype(np.float32))).detach().double().numpy()

    asked = modelkeep.lab.square(scores, x, y, limits, queries=30)
    assert np.array_equal(scores(asked.adversarial).argmax(axis=1) == y, asked.standing)
    safe = modelkeep.lab.certify(net, x, y, modelkeep.lab.Limits(0.005))
    assert safe.sum() > 20 and not (safe & ~modelkeep.lab.attack(net, x, y, modelkeep.lab.Limits(0.005)).standing).any()
    held = modelkeep.lab.smooth(lambda rows: scores(rows).argmax(axis=1), x[:5], sigma=0.1, count=10, draws=50)
    assert len(held) == 5 and max(one.radius for one in held) > 0
    whole = modelkeep.lab.evaluate(made["tree"], x, y, attacks=("square",), queries=10)
    assert whole.attacks[0].knowledge == "black-box" and modelkeep.lab.report(whole).startswith(b"<!doctype html>")
    with pytest.raises(Invalid, match="one bound, or one for each of 64"):
        modelkeep.lab.attack(net, x, y, modelkeep.lab.Limits(0.1, high=[1.0, 2.0]))
    with pytest.raises((Invalid, NotTrusted)):
        modelkeep.lab.load_net(b"nothing", x)


def test_hardening_and_private_training_in_python(models):
    made, x, y = models
    net, limits, rest = modelkeep.lab.load_net(made["net"], x[:60]), modelkeep.lab.Limits(0.1), slice(0, 60)
    hardened = modelkeep.lab.harden(net, x[60:], y[60:], limits, held=(x[rest], y[rest]), method="pgd", epochs=6, steps=3)
    assert len(hardened.history) == 6 and hardened.module is not net
    before, after = (modelkeep.lab.attack(one, x[rest], y[rest], limits, steps=10) for one in (net, hardened.module))
    assert after.standing.sum() > before.standing.sum()
    assert np.array_equal(before.standing, modelkeep.lab.attack(net, x[rest], y[rest], limits, steps=10).standing)  # untouched
    private = modelkeep.lab.train_private(torch.nn.Linear(64, 10), x, y, epsilon=2.0, delta=1e-5, epochs=3, seed=1)
    assert private.spent.epsilon <= 2.0 and private.module(torch.from_numpy(x[:5])).shape == (5, 10)
    with pytest.raises(Invalid, match="no method"):
        modelkeep.lab.harden(net, x, y, limits, method="hope")


def test_where_nothing_is_left_standing_the_next_attack_has_nothing_to_do(bare, place):
    far = ("--attack", "apgd,square,transfer", "--epsilon", "1", "--rows", "20", "--steps", "10", "--queries", "20")
    found = bare("--json", "evaluate", "net.onnx", "--data", "test.npz", *far, code=0).json
    assert found["robust"]["value"] == 0.0
    assert [(one["name"], one["broken"]) for one in found["attacks"][-2:]] == [("square", 0), ("transfer", 0)]
