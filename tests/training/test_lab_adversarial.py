"""Adversarial training: its losses by hand, its steps, and that a hardened model stands where another falls."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modelkeep.errors import Invalid
from modelkeep.training.lab.adversarial import (
    Hardened,
    Recipe,
    ascend,
    harden,
    restore_weights,
    shift_weights,
    standing,
    trades_loss,
)
from modelkeep.training.lab.constraints import Threat

EPSILON = 0.1
THREAT = Threat("linf", EPSILON, 0.0, 1.0)
QUICK = Recipe(method="pgd", epochs=15, batch=64, rate=1e-2, steps=3, average=0.98)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    return torch.tensor(bunch.data[order] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[order])


def perceptron(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def linear(weights: list[list[float]]) -> nn.Linear:
    made = nn.Linear(len(weights[0]), len(weights), bias=False)
    made.weight.data = torch.tensor(weights)
    return made


@pytest.fixture(scope="module")
def data():
    x, y = digits()
    return (x[:1000], y[:1000]), (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:])


@pytest.fixture(scope="module")
def hardened(data) -> Hardened:
    rows, held, _ = data
    return harden(perceptron(), rows, THREAT, QUICK, held=held)


def test_one_step_up_a_linear_model_is_its_sign():
    module = linear([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
    x, y = torch.tensor([[0.5, 0.5, 0.99]]), torch.tensor([0])
    reach = THREAT.around(x)
    found = ascend(module, reach, lambda scores: cross_entropy(scores, y), x, 1)
    assert torch.allclose(found, torch.tensor([[0.4, 0.6, 1.0]]))  # w1 - w0 = (-1, 3, .5), and the range ends at 1


def test_trades_loss_is_the_formula_of_the_paper():
    rng = np.random.default_rng(1)
    scores, others, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), np.array([0, 1, 2, 1, 0])
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in (scores, others))
    wanted = -np.log(p[np.arange(5), y]).mean() + 6.0 * (p * np.log(p / q)).sum(axis=1).mean()
    found = trades_loss(torch.tensor(scores), torch.tensor(others), torch.tensor(y), 6.0)
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_weights_are_shifted_by_their_own_norm_uphill_and_put_back(data):
    (x, y), _, _ = data
    module = perceptron()
    before = copy.deepcopy(module.state_dict())

    def loss() -> Tensor:
        return cross_entropy(module(x[:100]), y[:100])

    low = float(loss().detach())
    moved = shift_weights(module, loss, 0.05)
    assert float(loss().detach()) > low
    for name, was in before.items():
        apart = (module.state_dict()[name] - was).norm()
        wanted = 0.05 * was.norm() if was.dim() > 1 else torch.tensor(0.0)
        assert float(apart) == pytest.approx(float(wanted), rel=1e-4, abs=1e-7)
    restore_weights(moved)
    assert all(torch.equal(module.state_dict()[name], was) for name, was in before.items())


def test_a_hardened_model_stands_where_an_undefended_one_falls(data, hardened):
    rows, held, (x, y) = data
    plain = harden(perceptron(), rows, replace(THREAT, epsilon=0.0), QUICK, held=held).module
    assert float(standing(plain, x, y, THREAT)[1].float().mean()) < 0.55
    clean, robust = standing(hardened.module, x, y, THREAT)
    assert float(clean.float().mean()) > 0.93
    assert float(robust.float().mean()) > 0.7


def test_the_short_attack_is_not_far_from_autoattack(data, hardened):
    _, _, (x, y) = data
    attack = AutoAttack(hardened.module, norm="Linf", eps=EPSILON, version="custom", attacks=["apgd-ce", "apgd-t"], seed=0)
    attack.apgd.n_restarts = 1
    found, *_ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    with torch.no_grad():
        strong = (hardened.module(found).argmax(dim=1) == y).float().mean()
    short = standing(hardened.module, x, y, THREAT)[1].float().mean()
    assert -0.01 <= float(short - strong) <= 0.02


def test_the_history_tells_every_epoch_and_the_best_is_returned(data, hardened):
    _, held, _ = data
    assert [one.number for one in hardened.history] == list(range(1, QUICK.epochs + 1))
    looked = [one for one in hardened.history if not math.isnan(one.robust)]
    best = max(looked, key=lambda one: (one.robust, one.number))
    assert (hardened.best, looked[-1].number) == (best.number, QUICK.epochs)
    again = float(standing(hardened.module, *held, THREAT, steps=10, seed=QUICK.seed)[1].float().mean())
    assert again == pytest.approx(best.robust, abs=1e-6)
    assert hardened.history[-1].loss < hardened.history[4].loss


@pytest.mark.parametrize("more", [{"method": "trades"}, {"shift": 0.01}, {"carry": True, "smoothing": 0.1, "widen": 1.3}])
def test_same_seed_same_weights_and_nothing_else_is_touched(data, more):
    (x, y), _, _ = data
    module = perceptron()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    recipe = replace(QUICK, epochs=2, **more)
    one, two, other = (
        harden(module, (x[:256], y[:256]), THREAT, chosen).module for chosen in (recipe, recipe, replace(recipe, seed=1))
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(module.state_dict()[name], was) for name, was in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_training_ends_when_nothing_gets_better(data):
    (x, y), held, _ = data
    still = replace(QUICK, rate=1e-12, epochs=30, looks=30, patience=2)
    history = harden(perceptron(), (x[:64], y[:64]), Threat("linf", 0.0), still, held=held).history
    assert len(history) == 3  # equal is no better, and the first look is the first


def test_rows_of_training_keep_the_rules_of_their_columns(data):
    (x, y), _, _ = data
    frozen, whole = torch.zeros(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
    frozen[:32], whole[32:] = True, True
    threat = Threat("l2", 30.0, 0.0, 16.0, frozen=frozen, whole=whole)
    seen: list[Tensor] = []
    module = perceptron()
    kept = (x[:64] * 16).round()

    def look(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not given[0].requires_grad:
            seen.append(given[0].detach().clone())

    module.register_forward_pre_hook(look)
    harden(module, (kept, y[:64]), threat, replace(QUICK, epochs=1, batch=64, steps=2, average=0.0))
    learnt = seen[-1]
    assert not torch.equal(learnt.sort(dim=0).values, kept.sort(dim=0).values)
    assert torch.equal(learnt[:, :32].sort(dim=0).values, kept[:, :32].sort(dim=0).values)
    assert torch.equal(learnt[:, 32:], learnt[:, 32:].round())


@pytest.mark.parametrize(
    "given",
    [{"method": "magic"}, {"epochs": 0}, {"rate": 0.0}, {"average": 1.0}, {"smoothing": -0.1}, {"shift": -1.0}, {"widen": 0.0}],
)
def test_what_no_recipe_is(given):
    with pytest.raises(Invalid):
        Recipe(**given)


def test_a_training_that_runs_away_is_said(data):
    (x, y), _, _ = data
    with pytest.raises(Invalid, match="smaller rate than"):
        harden(perceptron(), (x[:128], y[:128]), THREAT, replace(QUICK, rate=1e30, epochs=4))


def test_rows_without_classes_are_refused():
    with pytest.raises(Invalid, match="a class for each"):
        harden(perceptron(), (torch.zeros(3, 64), torch.zeros(2, dtype=torch.long)), THREAT)
