"""A model of pictures that are no squares: publish tells the profile where pixels are, which rows alone do not show."""

import io

import numpy as np
import pytest
from gateway_support import make_keep, train
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_sample_images

from modelkeep.core.values import ReleaseRef
from modelkeep.workflows.follow import open_profile

HEIGHT, WIDTH = 8, 16


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", train())


def network(*tail: int) -> bytes:
    """One linear layer over inputs of shape (N, *tail)."""
    weights = np.random.default_rng(0).normal(size=(int(np.prod(tail)), 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["score"]),
        helper.make_node("Softmax", ["score"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *tail])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def packed() -> bytes:
    """Cuts of a photograph, a table of one row each."""
    rng, photograph = np.random.default_rng(1), load_sample_images().images[0] / 255.0
    corners = rng.integers(0, 400, size=(200, 2))
    file = io.BytesIO()
    np.savez(file, x=np.stack([photograph[a : a + HEIGHT, b : b + WIDTH].ravel() for a, b in corners]))
    return file.getvalue()


@pytest.mark.parametrize(("name", "tail"), [("shaped", (HEIGHT, WIDTH, 3)), ("flat", (HEIGHT * WIDTH * 3,))])
def test_the_shape_of_the_input_reaches_the_profile(keep, name, tail):
    keep.publish(name=name, filename="m.onnx", model=network(*tail), reference=packed())
    registry = keep.premises.registry(keep.premises.openers())
    judge = open_profile(registry, registry.release(ReleaseRef(name, 1))).pictures
    if name == "flat":
        assert judge is None
    else:
        assert (judge.picture.height, judge.picture.width, judge.picture.channels, judge.picture.last) == (
            HEIGHT,
            WIDTH,
            3,
            True,
        )
