"""Small classifiers that are trained in a millisecond, for tests that need many: random hidden units and least squares."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

CLASSES, WIDTH = 3, 6


def rows(seed, count):
    """Rows (count, 6) of three classes that overlap, with labels (count,)."""
    rng = np.random.default_rng([7, seed])
    centres = np.random.default_rng(1).normal(size=(CLASSES, WIDTH))
    labels = rng.integers(CLASSES, size=count)
    x = centres[labels] + rng.normal(size=(count, WIDTH))
    return x.astype(np.float32).astype(np.float64), labels


@dataclass(frozen=True, eq=False)
class Network:
    """``predict(x)`` are probabilities (n, 3)."""

    inner: np.ndarray
    offset: np.ndarray
    outer: np.ndarray

    def predict(self, x):
        scores = np.tanh(x @ self.inner + self.offset) @ self.outer
        powers = np.exp(4.0 * (scores - scores.max(axis=1, keepdims=True)))
        return powers / powers.sum(axis=1, keepdims=True)

    def onnx(self):
        """The same as an ONNX file."""
        weights = {"inner": self.inner, "offset": self.offset, "outer": 4.0 * self.outer}
        nodes = [
            helper.make_node("Gemm", ["x", "inner", "offset"], ["a"]),
            helper.make_node("Tanh", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "outer"], ["c"]),
            helper.make_node("Softmax", ["c"], ["probabilities"], axis=1),
        ]
        ends = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
            for name, size in (("x", WIDTH), ("probabilities", CLASSES))
        ]
        kept = [numpy_helper.from_array(one.astype(np.float32), name) for name, one in weights.items()]
        graph = helper.make_graph(nodes, "network", *ends, kept)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def fit(seed, x, y, units=60, weights=None):
    """A network of its own hidden units, for labels (n,) or wanted answers (n, 3)."""
    rng = np.random.default_rng([8, seed])
    inner, offset = rng.normal(size=(WIDTH, units)) / 2.0, rng.normal(size=units)
    hidden = np.tanh(x @ inner + offset)
    wanted = np.eye(CLASSES)[y] if y.ndim == 1 else y
    outer = np.linalg.solve(hidden.T @ hidden + 0.1 * np.eye(units), hidden.T @ wanted)
    return Network(inner, offset, outer)


def independent(seed, units=60):
    """A network trained on rows of its own."""
    return fit(seed, *rows(seed, 300), units)


def nudged(network, seed, amount):
    """The network with noise on its last weights: a copy that was trained on a little."""
    rng = np.random.default_rng([9, seed])
    noise = amount * network.outer.std() * rng.normal(size=network.outer.shape)
    return Network(network.inner, network.offset, network.outer + noise)
