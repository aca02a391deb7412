"""Coefficients of linear classifiers as weights: the same scores, and gradients to them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.convert import from_sklearn
from modelkeep.training.lab.linear import tensors, with_weights
from modelkeep.training.lab.nets import load


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_stay_the_same_and_every_coefficient_is_trained(classes):
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(120, 5)).astype(np.float32)
    y = np.argmax(x[:, :classes] + 0.3 * rng.normal(size=(120, classes)), axis=1)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    net = load(from_sklearn(pipeline, x[:20]), x[:20])
    rows, labels = tensors(net, x, y.astype(np.int64), torch.device("cpu"))
    before = net(rows)
    assert before.shape == (120, classes)
    opened = with_weights(net)
    assert torch.allclose(opened(rows), before, atol=1e-5)
    torch.nn.functional.cross_entropy(opened(rows), labels).backward()
    assert [tuple(one.shape) for one in opened.parameters()] == [(5, classes), (classes,)]
    assert all(bool((one.grad != 0).any()) for one in opened.parameters())
