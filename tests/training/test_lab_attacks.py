"""Attacks on a small network of digits: in the ball and the box, as strong as pyautoattack's; and certificates that hold."""

import math
import warnings

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.convert import from_sklearn
from modelkeep.errors import Invalid
from modelkeep.training.lab import nets
from modelkeep.training.lab.attacks import cascade, fab
from modelkeep.training.lab.attacks.apgd import Plan, checkpoints
from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.attacks.lanes import Attacked
from modelkeep.training.lab.attacks.losses import cross_entropy, targeted_dlr
from modelkeep.training.lab.attacks.square import Space, share_at, square
from modelkeep.training.lab.certify import certified, logit_bounds
from modelkeep.training.smoothing import smooth

torch.set_num_threads(1)
EPSILON = {"linf": 0.1, "l2": 0.6}
LOW, HIGH = np.zeros(64, np.float32), np.ones(64, np.float32)


@pytest.fixture(scope="module")
def digits():
    """A network, and 200 rows that it answers rightly."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge
        net = nets.load(from_sklearn(MLPClassifier((32,), max_iter=20, random_state=0).fit(x[:1200], y[:1200]), x[:50]), x[:8])
    answers = net(torch.from_numpy(x[1200:])).argmax(dim=1).numpy()
    right = answers == y[1200:]
    return net, x[1200:][right][:200], y[1200:][right][:200]


def ask(net):
    return lambda rows: net(torch.from_numpy(rows.astype(np.float32))).detach().double().numpy()


def distance(norm, moved):
    return np.abs(moved).max(axis=1) if norm == "linf" else np.linalg.norm(moved, axis=1)


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("name", cascade.GRADIENT)
def test_as_strong_as_the_reference_and_within_bounds(digits, norm, name):
    net, x, y = digits
    ball = cascade.ball_of(net, norm, EPSILON[norm], LOW, HIGH)
    out = cascade.attack(net, x, y, ball, [name], Plan(steps=20, width=150))
    fallen = out.broken[name]
    assert (distance(norm, out.adversarial - x) <= EPSILON[norm] + 1e-5).all()
    assert out.adversarial.min() >= 0.0 and out.adversarial.max() <= 1.0
    answers = ask(net)(out.adversarial).argmax(axis=1)
    assert np.array_equal(answers != y, fallen)  # what it says fell is fooled, and no other row was touched
    assert np.array_equal(out.adversarial[~fallen], x[~fallen])
    given = {"n_iter": 20, "norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": EPSILON[norm]}
    theirs = {
        "apgd-ce": lambda: APGDAttack(net, loss="ce", **given),
        "apgd-t": lambda: APGDAttack_targeted(net, **given),
        "fab": lambda: FABAttack_PT(net, targeted=True, **given),
    }[name]()
    with cascade.frozen(net):
        moved = theirs.perturb(torch.from_numpy(x), torch.from_numpy(y))
        stand = (net(moved).argmax(dim=1).numpy() == y).mean()
    assert 1 - fallen.mean() <= stand + 0.0151  # three rows: both are random


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("picture", [(1, 8, 8), None])
def test_square_attacks_by_answers_alone(digits, norm, picture):
    net, x, y = digits
    space = Space(norm, EPSILON[norm], LOW.astype(float), HIGH.astype(float), picture)
    wide = x.astype(np.float64)
    moved, fallen = square(ask(net), wide, y, space, queries=150)
    assert fallen.mean() > 0.2
    assert (distance(norm, moved - wide) <= EPSILON[norm] + 1e-9).all() and moved.min() >= 0 and moved.max() <= 1
    assert np.array_equal(ask(net)(moved).argmax(axis=1) != y, fallen)
    again = square(ask(net), wide, y, space, queries=150)
    assert np.array_equal(moved, again[0])  # the seed decides


def test_a_cascade_breaks_no_row_twice_and_more_than_any_alone(digits):
    net, x, y = digits
    ball = cascade.ball_of(net, "linf", 0.1, LOW, HIGH)
    told = []
    out = cascade.attack(net, x, y, ball, plan=Plan(steps=10), told=lambda *what: told.append(what))
    counts = np.sum(list(out.broken.values()), axis=0)
    assert counts.max() == 1 and list(dict.fromkeys(name for name, _, _ in told)) == list(cascade.GRADIENT)
    for name in cascade.GRADIENT:  # how much is done grows from nothing to all
        done = [(one, whole) for said, one, whole in told if said == name]
        assert done == sorted(done) and done[0][0] == 0 and done[-1][0] == done[-1][1] > 0
    alone = cascade.attack(net, x, y, ball, ["apgd-ce"], Plan(steps=10)).broken["apgd-ce"]
    assert counts.sum() >= alone.sum() and np.array_equal(alone, out.broken["apgd-ce"])
    assert all(one.requires_grad for one in net.parameters())  # as it was


def test_rows_that_fall_at_different_times_leave_the_others_in_step(digits):
    net, x, y = digits
    ball = cascade.ball_of(net, "linf", 0.05, LOW, HIGH)
    narrow, wide = (
        cascade.attack(net, x, y, ball, ["apgd-t"], Plan(steps=6, width=width)).broken["apgd-t"] for width in (37, 4000)
    )
    assert abs(narrow.sum() - wide.sum()) <= 3 and wide.sum() > 20


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_restarts_break_more_rows(digits, name):
    net, x, y = digits
    ball = cascade.ball_of(net, "linf", 0.07, LOW, HIGH)
    once, again = (cascade.attack(net, x, y, ball, [name], Plan(steps=2, restarts=n)).broken[name] for n in (1, 3))
    assert again.sum() > once.sum()


def test_restarts_of_fab_begin_elsewhere():
    def logits(x):  # flat around the row
        return torch.cat([0.0 * x + 0.02, torch.relu(x - 0.6) + torch.relu(0.4 - x)], dim=1)

    ball = Ball("linf", 0.3, torch.zeros(1), torch.ones(1))
    fallen = []
    for restarts in (1, 2):
        known = Attacked(torch.full((4, 1), 0.5), torch.zeros(4, dtype=torch.long))
        nearest = fab.fab(logits, known, ball, Plan(steps=5, restarts=restarts))
        fallen.append(int(known.fallen.sum()))
    assert fallen == [0, 4] and (nearest >= 0.12).all() and (nearest < 0.3).all()


def test_threads_and_gradients_are_left_as_they_were(digits):
    net, x, y = digits
    torch.set_num_threads(2)
    try:
        cascade.attack(net, x[:5], y[:5], cascade.ball_of(net, "linf", 0.1, LOW, HIGH), ["apgd-ce"], Plan(steps=1))
        assert torch.get_num_threads() == 2 and all(one.requires_grad for one in net.parameters())
    finally:
        torch.set_num_threads(1)


def test_an_attack_that_is_not_known(digits):
    net, x, y = digits
    with pytest.raises(Invalid, match="no gradient attack 'square'"):
        cascade.attack(net, x, y, cascade.ball_of(net, "linf", 0.1, LOW, HIGH), ["square"])


@pytest.mark.parametrize(("norm", "epsilon", "high"), [("l1", 0.1, HIGH), ("linf", 0.0, HIGH), ("l2", 1.0, LOW)])
def test_a_ball_that_is_none(digits, norm, epsilon, high):
    with pytest.raises(Invalid):
        cascade.ball_of(digits[0], norm, epsilon, LOW, high)


def test_checkpoints_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]  # p_j of section 3.1: 0.22, then 0.03 less, 0.06 at least


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("loss", [cross_entropy, targeted_dlr])
def test_gradients_of_losses_are_their_differences(loss, classes):
    torch.manual_seed(classes)
    logits = torch.randn(6, classes, dtype=torch.float64)
    labels = torch.randint(classes, (6,))
    targets = (labels + 1) % classes
    value, slope = loss(logits, labels, targets)
    for at in range(classes):
        step = 1e-6 * torch.eye(classes, dtype=torch.float64)[at]
        rise = (loss(logits + step, labels, targets)[0] - loss(logits - step, labels, targets)[0]) / 2e-6
        assert torch.allclose(slope[:, at], rise, atol=1e-6)
    if loss is cross_entropy:
        assert torch.allclose(value, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


def test_the_gradient_of_a_saturated_softmax_is_not_lost():
    logits = torch.tensor([[60.0, 0.0, 1.0]])
    _, slope = cross_entropy(logits, torch.tensor([0]), None)
    assert slope[0, 0] < 0 < slope[0, 1] < slope[0, 2]


@pytest.mark.parametrize("norm", EPSILON)
def test_projections_on_a_plane_in_the_box(norm):
    ours, theirs = (fab.project_linf, projection_linf) if norm == "linf" else (fab.project_l2, projection_l2)
    draw = np.random.default_rng(3)
    x, normal = (torch.from_numpy(one) for one in (draw.random((300, 9)), draw.standard_normal((300, 9))))
    normal[:, 4] = 0.0
    offset = torch.from_numpy(draw.standard_normal(300) * 2)
    ball = Ball(norm, 1.0, torch.zeros(9, dtype=torch.float64), torch.ones(9, dtype=torch.float64))
    step = ours(x, normal, offset, ball)
    assert (x + step).min() >= -1e-12 and (x + step).max() <= 1 + 1e-12
    reach = torch.where(normal * offset[:, None] < 0, 1 - x, x) * normal.abs()
    within = reach.sum(dim=1) >= offset.abs()
    assert 50 < within.sum() < 300
    assert torch.allclose(((step * normal).sum(dim=1) + offset)[within], torch.zeros(1, dtype=torch.float64), atol=1e-9)
    wanted = theirs(x.float(), normal.float(), ((normal * x).sum(dim=1) - offset).float())
    size = (lambda one: one.abs().amax(1)) if norm == "linf" else (lambda one: one.norm(dim=1))
    assert torch.allclose(size(step)[within].float(), size(wanted)[within], atol=2e-3)


def test_squares_shrink_as_in_the_paper():
    assert [share_at(turn, 10_000) for turn in (0, 10, 11, 51, 201, 501, 8001)] == [
        0.8 / 2**halved for halved in (0, 0, 1, 2, 3, 4, 9)
    ]


@pytest.mark.parametrize("epsilon", [0.005, 0.02])
def test_interval_bounds_certify_nothing_that_an_attack_breaks(digits, epsilon):
    net, x, y = digits
    ball = cascade.ball_of(net, "linf", epsilon, LOW, HIGH)
    safe = certified(net, x, y, ball)
    broken = np.any(list(cascade.attack(net, x, y, ball, plan=Plan(steps=20)).broken.values()), axis=0)
    assert safe.any() and broken.any() and not (safe & broken).any()


def test_interval_bounds_hold_everywhere_in_the_box():
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    shapes = {"k": (3, 1, 3, 3), "kb": (3,), "n": (3,), "nb": (3,), "nm": (3,), "a": (27, 8), "ab": (8,), "c": (8, 4)}
    tensors = [numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    tensors += [numpy_helper.from_array(np.ones(3, np.float32), "nv"), numpy_helper.from_array(np.array([-1, 1, 6, 6]), "s")]
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["1"]),
        helper.make_node("Conv", ["1", "k", "kb"], ["2"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["2", "n", "nb", "nm", "nv"], ["3"]),
        helper.make_node("LeakyRelu", ["3"], ["4"]),
        helper.make_node("MaxPool", ["4"], ["5"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["5"], ["6"]),
        helper.make_node("Gemm", ["6", "a", "ab"], ["7"]),
        helper.make_node("Tanh", ["7"], ["8"]),
        helper.make_node("MatMul", ["8", "c"], ["scores"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, wide]) for name, wide in (("x", 36), ("scores", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = draw.random((4, 36), np.float32)
    net = nets.load(data, rows)
    assert nets.compare(net, rows, OnnxRuntime(data).run({"x": rows})["scores"]) < 1e-5
    centre = torch.rand(5, 36)
    low, high = logit_bounds(net, centre - 0.05, centre + 0.05)
    for _ in range(50):
        found = net(centre + 0.05 * (2 * torch.rand_like(centre) - 1)).detach()
        assert (found >= low).all() and (found <= high).all()


def test_no_bounds_are_given_of_what_is_not_known(digits):
    net, x, y = digits
    with pytest.raises(Invalid, match="L-infinity"):
        certified(net, x, y, cascade.ball_of(net, "l2", 0.1, LOW, HIGH))


def test_smoothing_certifies_the_true_radius_of_a_plane():
    """A half space, where the smoothed classifier's radius is the distance to the plane (Cohen et al. 2019, section 3.2)."""
    rows = np.array([[0.5, 0.0], [-0.2, 3.0], [0.001, 1.0]])
    found = smooth(lambda x: (x[:, 0] > 0).astype(np.int64), rows, 0.25, 20_000, count=2, seed=1)
    assert [one.label for one in found] == [1, 0, -1]  # it abstains beside the plane
    assert 0.45 < found[0].radius <= 0.5 and 0.18 < found[1].radius <= 0.2


def test_smoothing_certifies_nothing_that_an_attack_breaks(digits):
    net, x, y = digits
    few, right = x[:40].astype(np.float64), y[:40]

    def classes(rows):
        return ask(net)(rows).argmax(axis=1)

    found = smooth(classes, few, 0.15, 500, count=10)
    radii = np.array([one.radius if one.label == label else 0.0 for one, label in zip(found, right, strict=True)])
    assert (radii > 0.1).sum() > 10

    def smoothed(rows):  # what the certificate is about: shares of noisy answers, with fresh noise
        noise = np.random.default_rng(9).standard_normal((200, 64)) * 0.15
        votes = classes((rows[:, None, :] + noise).reshape(-1, 64)).reshape(len(rows), -1)
        return np.stack([(votes == label).mean(axis=1) for label in range(10)], axis=1)

    safe = radii > 0.1
    space = Space("l2", 0.1, np.full(64, -9.0), np.full(64, 9.0))
    _, fallen = square(lambda rows: np.log(smoothed(rows) + 1e-9), few[safe], right[safe], space, queries=15)
    assert not fallen.any()


def test_too_few_draws_certify_nothing():
    with pytest.raises(ValueError, match="10 draws"):
        smooth(lambda x: np.zeros(len(x), np.int64), np.zeros((1, 2)), 0.1, 9, count=2)
    assert math.isclose(0.5**10, 0.001, rel_tol=0.03)
