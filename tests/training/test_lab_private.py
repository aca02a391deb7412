"""Private training: clipped sums against gradients row by row, noise against its law, and what a run may depend on."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from modelkeep.errors import Invalid
from modelkeep.training.accountant import epsilon_of
from modelkeep.training.budgets import PrivacySpent, Recipe, plan_run
from modelkeep.training.lab.architectures import architecture, by_word, layers_of
from modelkeep.training.lab.clipping import HOOKS, OWN, Clipper
from modelkeep.training.lab.private import Bounded, Noise, prepare, tensor, train_planned, train_private, within_bounds


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Twice(nn.Module):
    """Uses a layer twice, which book-keeping does not see through."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class InPlace(nn.Module):
    """Changes what a layer gave, so that its gradient is that of something else."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.first(x).mul_(3.0))


class Sequence(nn.Module):
    """A layer at several places of each row, and a normalisation of the last axis."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x)))).mean(dim=1)


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (6,), OWN),
    "without bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), (6,), OWN),
    "few places": (Sequence, (2, 3), OWN),
    "many places": (Sequence, (30, 3), OWN),
    "pictures": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        ),
        (2, 6, 6),
        OWN,
    ),
    "series": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), (2, 8), OWN),
    "used twice": (Twice, (6,), HOOKS),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3)), (2, 6, 6), HOOKS),
}


@pytest.mark.parametrize("clip", [0.3, 50.0])
@pytest.mark.parametrize("name", list(MODULES))
def test_clipped_sums_are_those_of_gradients_one_by_one(name, clip):
    make, shape, way = MODULES[name]
    torch.manual_seed(1)
    module, x, y = make(), torch.randn(9, *shape), torch.randint(0, 3, (9,))
    wanted = [torch.zeros_like(one) for one in module.parameters()]
    norms = []
    for row, label in zip(x, y, strict=True):
        module.zero_grad()
        functional.cross_entropy(module(row[None]), label[None]).backward()
        grads = [one.grad.clone() for one in module.parameters()]
        norms.append(torch.cat([one.flatten() for one in grads]).norm().item())
        for total, one in zip(wanted, grads, strict=True):
            total.add_(one * min(1.0, clip / norms[-1]))
    clipper = Clipper(module, torch.zeros(2, *shape), clip)
    found = clipper.sums(x, y)
    assert clipper.way == way
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    clipper.close()
    assert not any(layer._forward_hooks for layer in module.modules())


def test_what_has_no_gradients_of_single_rows_is_refused():
    with pytest.raises(Invalid, match="cannot be trained privately"):
        Clipper(InPlace(), torch.zeros(2, 6), 0.1)


def test_one_row_moves_the_sum_by_no_more_than_the_clip():
    torch.manual_seed(0)
    module = by_word("mlp:7", (4,), 3)
    x, y = 100.0 * torch.randn(30, 4), torch.randint(0, 3, (30,))
    clipper = Clipper(module, torch.zeros(2, 4), 0.1)
    whole, less = clipper.sums(x, y), clipper.sums(x[1:], y[1:])
    moved = torch.cat([(a - b).flatten() for a, b in zip(whole, less, strict=True)]).norm().item()
    assert 0.01 < moved <= 0.1 * (1 + 1e-4)


def test_noise_is_normal_and_its_key_is_nobodys():
    drawn = Noise(7).normal(20_001).numpy()
    assert stats.kstest(drawn, "norm").pvalue > 1e-3 and abs(np.corrcoef(drawn[:10_000], drawn[10_001:])[0, 1]) < 0.04
    assert stats.kstest(Noise(7).uniform(5000).numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(Noise(7).normal(9), Noise(7).normal(9)) and not torch.equal(Noise().normal(9), Noise().normal(9))
    assert "no privacy" in Noise(7).source and "system" in Noise().source


def test_a_step_without_signal_is_the_noise_that_was_planned():
    """On rows of zeros a layer without bias has no gradient: what moves it is the noise alone."""
    module = nn.Linear(400, 3, bias=False)
    plan = PrivacySpent(1.0, 1e-5, noise_multiplier=2.0, sample_rate=0.5, steps=1, max_grad_norm=0.1)
    done = train_planned(module, np.zeros((50, 400)), np.zeros(50, dtype=int), plan, recipe=Recipe(learning_rate=1.0), seed=3)
    start, _ = prepare(module, seed=3)
    moved = (done.module.weight - start.weight).detach().numpy().ravel()
    assert stats.kstest(moved / (2.0 * 0.1 / (0.5 * 50)), "norm").pvalue > 1e-3


def test_weights_begin_fresh_and_what_mixes_rows_is_replaced():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    before = {name: one.clone() for name, one in module.state_dict().items()}
    made, repairs = prepare(module.eval())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in made.modules()) and len(repairs) == 3
    assert not torch.equal(made[4].weight, before["4.weight"])
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.ones(3))

    with pytest.raises(Invalid, match="fresh weights"):
        prepare(nn.Sequential(nn.Linear(2, 3), Odd()))


def test_a_private_run_learns_and_keeps_its_promise():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 900)
    x = 3.0 * np.eye(3)[y] @ generator.normal(size=(3, 5)) + generator.normal(size=(900, 5))
    module = within_bounds(by_word("mlp:8", (5,), 3), np.full(5, -10.0), np.full(5, 10.0))
    done = train_private(module, x[:600], y[:600], epsilon=3.0, delta=1e-5, seed=0)
    assert (done.module(tensor(x[600:])).argmax(dim=1).numpy() == y[600:]).mean() > 0.75
    assert epsilon_of([done.spent.spend], 1e-5) == done.spent.epsilon <= 3.0
    again = train_private(module, x[:600], y[:600], epsilon=3.0, delta=1e-5, seed=0)
    assert all(map(torch.equal, done.module.state_dict().values(), again.module.state_dict().values()))
    assert done.way == OWN


@pytest.mark.parametrize("wrong", [{"delta": 0.01}, {"epsilon": 0.0}, {"epsilon": float("inf")}, {"delta": 0.0}])
def test_promises_that_are_none_are_refused(wrong):
    with pytest.raises(Invalid):
        plan_run(600, **{"epsilon": 1.0, "delta": 1e-5, **wrong})


def test_bounds_scale_and_clip():
    scale = Bounded(torch.tensor([0.0, -1.0]), torch.tensor([16.0, 1.0]))
    assert scale(torch.tensor([[0.0, 1.0], [20.0, -9.0]])).tolist() == [[-1.0, 1.0], [1.0, -1.0]]
    with pytest.raises(Invalid):
        Bounded(torch.tensor(1.0), torch.tensor(1.0))


def test_an_onnx_file_lends_its_layers_and_not_its_weights():
    from modelkeep.torch import to_onnx

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4))
    exported = to_onnx(module, torch.randn(3, 1, 8, 8), logits=True)
    found = layers_of(exported)
    assert [type(layer) for layer in found] == [type(layer) for layer in module]
    assert found(torch.randn(2, 1, 8, 8)).shape == (2, 4) and not torch.equal(found[4].weight, module[4].weight)
    scaled = to_onnx(within_bounds(nn.Linear(3, 2), np.zeros(3), np.ones(3)), torch.randn(3, 3), logits=True)
    with pytest.raises(Invalid, match="--bounds"):
        layers_of(scaled)
    with pytest.raises(Invalid, match="4 numbers"):
        architecture(exported, (1, 8, 8), 3)


@pytest.mark.parametrize("word", ["mlp", "linear:3", "mlp:0", "rnn:4", "mlp:4,", "cnn:4,4,4,4"])
def test_words_that_are_no_architecture(word):
    with pytest.raises(Invalid):
        by_word(word, (8, 8), 3)
    assert by_word("cnn:4", (8, 8), 3)(torch.zeros(2, 8, 8)).shape == (2, 3)
