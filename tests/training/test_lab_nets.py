"""ONNX classifiers as PyTorch modules: the same numbers as onnxruntime, and gradients."""

import warnings

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.convert import from_sklearn
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.torch import to_onnx
from modelkeep.training.lab import nets

torch.set_num_threads(1)
DIGITS = tuple(np.asarray(one) for one in load_digits(return_X_y=True))
CANCER = tuple(np.asarray(one) for one in load_breast_cancer(return_X_y=True))
MODELS = {
    "mlp": (MLPClassifier((8,), max_iter=4, random_state=0), DIGITS),
    "logistic mlp": (MLPClassifier((8, 4), activation="logistic", max_iter=4, random_state=0), DIGITS),
    "two classes": (
        make_pipeline(StandardScaler(), MLPClassifier((8,), activation="tanh", max_iter=4, random_state=0)),
        CANCER,
    ),
    "linear": (make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=50)), DIGITS),
    "linear, two classes": (make_pipeline(StandardScaler(), LogisticRegression()), CANCER),
    "unit rows": (make_pipeline(Normalizer(), MLPClassifier((8,), max_iter=4, random_state=0)), DIGITS),
}


def sklearn_onnx(name):
    estimator, (x, y) = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they need not converge
        return from_sklearn(estimator.fit(x, y), x[:50].astype(np.float32)), x.astype(np.float32)


class Pictures(torch.nn.Module):
    """Most of what small networks for pictures hold."""

    def __init__(self):
        super().__init__()
        parts = torch.nn
        self.stack = parts.Sequential(
            *(parts.Unflatten(1, (1, 8, 8)), parts.Conv2d(1, 4, 3, padding=1), parts.BatchNorm2d(4), parts.ReLU()),
            *(parts.MaxPool2d(2), parts.Conv2d(4, 4, 3, padding=1, groups=2), parts.GELU(), parts.AvgPool2d(2)),
            *(parts.Flatten(), parts.Dropout(), parts.Linear(16, 8), parts.LayerNorm(8), parts.SiLU(), parts.Linear(8, 8)),
            *(parts.ELU(), parts.Softplus(), parts.LeakyReLU(), parts.Hardtanh(), parts.Tanh(), parts.Linear(8, 3)),
        )

    def forward(self, x):
        return self.stack((x - 0.5) / 0.25)


@pytest.fixture(scope="module")
def pictures():
    torch.manual_seed(0)
    module = Pictures()
    module.stack[2].running_mean += 0.1
    return module, to_onnx(module, torch.rand(3, 64), logits=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_net_answers_as_the_file_does_and_has_gradients(name):
    data, rows = sklearn_onnx(name)
    net = nets.load(data, rows)
    wanted = OnnxRuntime(data).run({"X": rows})["probabilities"]
    assert nets.compare(net, rows, wanted) < 1e-5
    assert net.exact and net.scores == "probabilities"
    x = torch.from_numpy(rows[:4]).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
    assert gradient.abs().sum() > 0


def test_a_convolutional_net_is_the_module_it_was_exported_from(pictures):
    module, data = pictures
    x = torch.rand(7, 64)
    net = nets.load(data, x.numpy())
    with torch.no_grad():
        assert torch.allclose(net(x), module.eval()(x), atol=1e-5)
    assert nets.compare(net, x.numpy(), OnnxRuntime(data).run({"x": x.numpy()})["probabilities"]) < 1e-5
    learnt = sum(one.numel() for one in net.parameters())
    assert learnt == sum(one.numel() for one in module.parameters()) - 8  # the batch norm is part of its convolution now
    again = to_onnx(net, x, logits=True)  # what was trained on can be exported
    assert np.allclose(OnnxRuntime(again).run({"x": x.numpy()})["probabilities"], torch.softmax(net(x), 1).detach(), atol=1e-5)


def graph_bytes(nodes, tensors, width, classes):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, w]) for n, w in (("x", width), ("scores", classes))]
    constants = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_scores_without_a_softmax_are_logits():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(9, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["scores"], alpha=0.5, transB=1),
    ]
    tensors = {"w": draw.normal(size=(4, 5)).astype(np.float32), "v": draw.normal(size=(3, 5)).astype(np.float32)}
    data = graph_bytes(nodes, tensors, 4, 3)
    net = nets.load(data, rows)
    assert net.scores == "logits" and net.exact
    assert nets.compare(net, rows, OnnxRuntime(data).run({"x": rows})["scores"]) < 1e-5


def test_a_softmax_that_is_not_recognised_gives_logarithms():
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("ReduceSum", ["e", "one"], ["t"], keepdims=1),
        helper.make_node("Div", ["e", "t"], ["scores"]),
    ]
    data = graph_bytes(nodes, {"one": np.array([1])}, 4, 4)
    net = nets.load(data, rows)
    assert not net.exact and net.scores == "probabilities"
    assert nets.compare(net, rows, OnnxRuntime(data).run({"x": rows})["scores"]) < 1e-5


def test_trees_are_black_boxes():
    x, y = DIGITS
    data = from_sklearn(DecisionTreeClassifier(max_depth=3, random_state=0).fit(x, y), x[:20].astype(np.float32))
    with pytest.raises(Invalid, match=r"black box only: no gradient goes through .*TreeEnsembleClassifier"):
        nets.load(data, x)


def test_an_answer_that_differs_is_not_trusted():
    data, rows = sklearn_onnx("mlp")
    net = nets.load(data, rows)
    wanted = OnnxRuntime(data).run({"X": rows[:5]})["probabilities"].copy()
    wanted[3, 2] += 2e-4
    with pytest.raises(NotTrusted, match="differs by"):
        nets.compare(net, rows[:5], wanted)


@pytest.mark.parametrize("name", ["alpha", "gamma"])
def test_an_operator_with_other_constants_than_are_computed_is_a_black_box(name):
    """On rows that meet only one side of zero both would answer alike."""
    node = helper.make_node("Selu", ["x"], ["h"], **{name: 3.0})
    with pytest.raises(Invalid, match=f"black box only: a Selu with another {name}"):
        nets.load(graph_bytes([node, helper.make_node("Softmax", ["h"], ["scores"], axis=1)], {}, 3, 3), np.ones((2, 3)))
