"""Training a classifier on the neighbours of its rows that it gets most wrong, and how it stands against a short attack.

Sources: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks" (``pgd``); Zhang et al. 2019,
"Theoretically Principled Trade-off between Robustness and Accuracy" (``trades``); Wu et al. 2020, "Adversarial Weight
Perturbation Helps Robust Generalization" (``shift``); Zheng et al. 2020, "Efficient Adversarial Training with Transferable
Adversarial Examples" (``carry``).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from modelkeep.errors import Invalid
from modelkeep.training.lab.constraints import Reach, Threat

METHODS = ("pgd", "trades")
Told = Callable[["Epoch"], None]
_SIZE = 2.5
"""Radii that all steps of an attack go together, after Madry et al."""
_SHARE = 4096
"""Rows that are asked at once where nothing is learnt."""


@dataclass(frozen=True)
class Recipe:
    """How to train. ``steps`` of the inner attack are reached from 1 over the first third of the ``epochs``, the radius too.

    ``rate``: the largest of AdamW, after a linear rise and before a cosine fall; ``decay``: of the weights; ``beta``: what the
    neighbours weigh beside the rows in TRADES; ``shift``: size of the adversarial weight perturbation beside the weights, 0 for
    none; ``average``: decay a step of the averaged weights, which are what is returned, 0 for none; ``carry``: begin each
    attack where the one of the last epoch ended; ``smoothing``: of the labels; ``widen``: radii of the threat to train in, for
    what holds in more than the radius holds better in it; ``looks``: how often the held-out rows are attacked; ``patience``:
    looks without a better robust accuracy after which training ends, 0 to go on to the end.
    """

    method: str = "trades"
    epochs: int = 40
    batch: int = 128
    rate: float = 3e-3
    steps: int = 5
    beta: float = 6.0
    shift: float = 0.0
    average: float = 0.99
    decay: float = 1e-4
    smoothing: float = 0.0
    carry: bool = False
    widen: float = 1.0
    looks: int = 8
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises Invalid."""
        if self.method not in METHODS:
            raise Invalid(f"{self.method[:40]!r} is no method of hardening: use {' or '.join(METHODS)}")
        counts = self.epochs, self.batch, self.steps, self.looks
        if min(counts) < 1 or min(self.rate, self.widen) <= 0 or min(self.beta, self.shift, self.decay, self.patience) < 0:
            raise Invalid("epochs, batch, steps, looks, rate and widen are above 0, and nothing of a recipe is below")
        if not (0 <= self.average < 1 and 0 <= self.smoothing < 1):
            raise Invalid("the decay of averaged weights and the smoothing of labels are from 0 to below 1")


@dataclass(frozen=True)
class Epoch:
    """One epoch, from 1: mean ``loss``; ``clean`` and ``robust`` accuracy on the held-out rows, NaN where nobody looked."""

    number: int
    of: int
    loss: float
    clean: float = math.nan
    robust: float = math.nan


@dataclass(frozen=True, eq=False)
class Hardened:
    """``module``: with the weights of the epoch ``best``; ``history``: every epoch, in order."""

    module: nn.Module
    history: tuple[Epoch, ...]
    best: int


def harden(
    module: nn.Module,
    rows: tuple[Tensor, Tensor],
    threat: Threat,
    recipe: Recipe | None = None,
    *,
    held: tuple[Tensor, Tensor] | None = None,
    told: Told = lambda _epoch: None,
) -> Hardened:
    """A hardened copy of ``module``, which gives scores of classes (n, k) and is trained on from the weights that it has.

    ``rows``: what it is given, shape (n, ...), and its classes (n,), on the device of the module, all in memory; ``held``: the
    same, to choose by and never to learn from: the weights with the best robust accuracy on them are returned. Where the
    processes of a ``torch.distributed`` group call this with the same arguments, each learns from its share of every batch
    and all return the same weights. PyTorch's random state is left as it was. Raises Invalid.
    """
    x, y = rows
    recipe = recipe or Recipe()
    if len(x) != len(y) or not len(x) or (held is not None and not len(held[0])):
        raise Invalid("hardening needs rows, and a class for each")
    with _seeded(recipe.seed, x.device):
        run = _Run(copy.deepcopy(module), threat.to(x.device), recipe, x, y)
        return run.whole(held, told)


class _Run:
    """The state of one training."""

    def __init__(self, module: nn.Module, threat: Threat, recipe: Recipe, x: Tensor, y: Tensor) -> None:
        self.module, self.threat, self.recipe, self.x, self.y = module, threat, recipe, x, y
        self.wide = threat.widened(recipe.widen)
        self.weights = [one for one in module.parameters() if one.requires_grad]
        alone = not dist.is_initialized()
        self.rank: int = 0 if alone else dist.get_rank()
        self.processes: int = 1 if alone else dist.get_world_size()
        self.batch = min(recipe.batch, len(x))
        if self.batch < self.processes:
            raise Invalid(f"{self.processes} processes cannot share {self.batch} rows a step")
        self.total = recipe.epochs * (len(x) // self.batch)
        self.averaged = copy.deepcopy(module) if recipe.average else module
        fused = x.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(self.weights, lr=recipe.rate, weight_decay=recipe.decay, fused=fused)
        self.last = torch.zeros_like(x) if recipe.carry else None
        self.done = 0

    def whole(self, held: tuple[Tensor, Tensor] | None, told: Told) -> Hardened:
        history, best, chosen, since = [], -1.0, 0, 0
        weights = copy.deepcopy(self.averaged.state_dict())
        order = torch.Generator().manual_seed(self.recipe.seed)
        for number in range(1, self.recipe.epochs + 1):
            loss = self.epoch(number, order)
            clean, robust = self.look(number, held)
            history.append(Epoch(number, self.recipe.epochs, loss, clean, robust))
            told(history[-1])
            if held is None or robust >= best:  # of equal ones the last: it has learnt longest
                weights, chosen = copy.deepcopy(self.averaged.state_dict()), number
            since = 0 if robust > best else since + (not math.isnan(robust))
            best = best if math.isnan(robust) else max(best, robust)
            if self.recipe.patience and since >= self.recipe.patience:
                break
        self.averaged.load_state_dict(weights)
        return Hardened(self.averaged.eval(), tuple(history), chosen)

    def epoch(self, number: int, order: torch.Generator) -> float:
        """One pass over the rows; its mean loss."""
        ramp = min(1.0, 3 * number / self.recipe.epochs)
        steps = max(1, round(self.recipe.steps * ramp))
        losses = []
        chosen = torch.randperm(len(self.x), generator=order).to(self.x.device)
        for rows in chosen.split(self.batch):
            if len(rows) == self.batch:
                self.optimizer.param_groups[0]["lr"] = self.recipe.rate * _rate(self.done / self.total)
                losses.append(self.update(rows[self.rank :: self.processes], steps, ramp))
                self.done += 1
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise Invalid(f"the loss of epoch {number} is no number: choose a smaller rate than {self.recipe.rate:g}")
        return loss

    def update(self, rows: Tensor, steps: int, ramp: float) -> Tensor:
        """One step of the optimizer; the loss before it."""
        x, y = self.x[rows], self.y[rows]
        near = self.attack(rows, x, y, steps, ramp)
        self.module.train()
        moved = shift_weights(self.module, lambda: self.loss(x, near, y), self.recipe.shift) if self.recipe.shift else None
        loss = self.loss(x, near, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if moved is not None:
            restore_weights(moved)
        self.share_gradients()
        self.optimizer.step()
        self.follow()
        return loss.detach()

    def attack(self, rows: Tensor, x: Tensor, y: Tensor, steps: int, ramp: float) -> Tensor:
        """The neighbours to learn from, in a radius that grows to its own."""
        reach = self.wide.around(x)
        self.module.eval()
        if self.recipe.method == "pgd":
            objective = _cross_entropy(y)
        else:
            with torch.no_grad():
                objective = _divergence(softmax(self.module(x), dim=1))
        start = reach.start() if self.last is None or not self.done else reach.relax(x + self.last[rows])
        found = ascend(self.module, reach, objective, start, steps)
        if self.last is not None:
            self.last[rows] = found - x
        return reach.settle(torch.lerp(x, found, ramp) if ramp < 1 else found)

    def loss(self, x: Tensor, near: Tensor, y: Tensor) -> Tensor:
        if self.recipe.method == "pgd":
            return cross_entropy(self.module(near), y, label_smoothing=self.recipe.smoothing)
        scores, others = self.module(torch.cat([x, near])).chunk(2)
        return trades_loss(scores, others, y, self.recipe.beta, self.recipe.smoothing)

    def share_gradients(self) -> None:
        """The mean of the gradients of all processes."""
        if self.processes > 1:
            given = [one for one in self.weights if one.grad is not None]
            flat = torch.cat([one.grad.flatten() for one in given])
            dist.all_reduce(flat)
            flat /= self.processes
            for one, part in zip(given, flat.split([one.numel() for one in given]), strict=True):
                one.grad.copy_(part.view_as(one))

    def follow(self) -> None:
        """Move the averaged weights towards those of this step, faster in the beginning."""
        if self.averaged is self.module:
            return
        kept = min(self.recipe.average, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.module.parameters()), 1 - kept)
            for mine, other in zip(self.averaged.buffers(), self.module.buffers(), strict=True):
                mine.copy_(other)

    def look(self, number: int, held: tuple[Tensor, Tensor] | None) -> tuple[float, float]:
        """Clean and robust accuracy on the held-out rows, every so many epochs and after the last."""
        every = max(1, self.recipe.epochs // self.recipe.looks)
        if held is None or (number % every and number != self.recipe.epochs):
            return math.nan, math.nan
        if self.processes > 1:
            for one in self.averaged.buffers():  # each process has its own: of the first they are returned, so of it they count
                dist.broadcast(one, 0)
        clean, robust = standing(self.averaged, *held, self.threat, steps=10, seed=self.recipe.seed)
        found = torch.stack([clean.float().mean(), robust.float().mean()])
        if self.processes > 1:
            dist.broadcast(found, 0)  # all have to choose alike
        return float(found[0]), float(found[1])


def ascend(module: nn.Module, reach: Reach, objective: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Projected gradient ascent on ``objective``, a function of scores (n, k) to a scalar; relaxed neighbours, as ``start``."""
    x, size = start, max(_SIZE / steps, 0.25) if steps > 2 else 1.0
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(module(x)), x)
        x = reach.step(x.detach(), gradient, size)
    return x


def trades_loss(scores: Tensor, others: Tensor, y: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the rows' ``scores``, and ``beta`` times the divergence KL(rows || neighbours); both shape (n, k).

    Source: Zhang et al. 2019, equation 5, with the divergence of their code.
    """
    apart = kl_div(log_softmax(others, dim=1), log_softmax(scores, dim=1), reduction="batchmean", log_target=True)
    return cross_entropy(scores, y, label_smoothing=smoothing) + beta * apart


def shift_weights(module: nn.Module, loss: Callable[[], Tensor], size: float) -> list[tuple[Tensor, Tensor]]:
    """Move every matrix and kernel of ``module`` uphill of ``loss`` by ``size`` times its own norm; for ``restore_weights``.

    Source: Wu et al. 2020, equations 9 and 10.
    """
    weights = [one for one in module.parameters() if one.requires_grad and one.dim() > 1]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    moved = [(weight, weight.detach().clone()) for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.add_(size * weight.norm() / gradient.norm().clamp(min=1e-12) * gradient)
    return moved


def restore_weights(moved: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Put the weights back to the bit."""
    with torch.no_grad():
        for weight, was in moved:
            weight.copy_(was)


def standing(
    module: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 20, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Which rows the module has right, and which under attack as well; two masks (n,).

    The attack is short and honest: ascent on the cross-entropy and on the margin to the best wrong class, each ``steps`` long
    with steps that grow smaller, every settled neighbour counting. What it finds is an upper bound of the robust accuracy.
    ``seed``: of where it starts, with PyTorch's random state left as it was; None takes from that state.
    """
    module.eval()
    threat = threat.to(x.device)
    with nullcontext() if seed is None else _seeded(seed, x.device):
        parts = [_standing(module, *part, threat, steps) for part in zip(x.split(_SHARE), y.split(_SHARE), strict=True)]
    return torch.cat([clean for clean, _ in parts]), torch.cat([robust for _, robust in parts])


def _standing(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        clean = module(x).argmax(dim=1) == y
    robust, reach = clean.clone(), threat.around(x)
    for objective in (_cross_entropy(y), _margin(y)):
        near, size = reach.start(), 1.0
        for step in range(steps):
            near = near.detach().requires_grad_()
            scores = module(near)
            (gradient,) = torch.autograd.grad(objective(scores), near)
            near = reach.step(near.detach(), gradient, size)
            size = 0.5 ** (4 * (step + 1) / steps)
            with torch.no_grad():
                robust &= module(reach.settle(near)).argmax(dim=1) == y
    return clean, robust


def _cross_entropy(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores: cross_entropy(scores, y, reduction="sum")


def _divergence(of: Tensor) -> Callable[[Tensor], Tensor]:
    """From the probabilities ``of`` the rows themselves."""
    return lambda scores: -(of * log_softmax(scores, dim=1)).sum()


def _margin(y: Tensor) -> Callable[[Tensor], Tensor]:
    """How far the best wrong class is above the right one, over the spread of the scores, so that scale hides nothing."""

    def objective(scores: Tensor) -> Tensor:
        right = scores.gather(1, y[:, None]).squeeze(1)
        wrong = scores.scatter(1, y[:, None], -math.inf).amax(dim=1)
        return ((wrong - right) / (scores.amax(dim=1) - scores.amin(dim=1)).clamp(min=1e-12)).sum()

    return objective


def _rate(share: float) -> float:
    """Share of the largest learning rate: a linear rise over a tenth of the steps, then a cosine to 0."""
    return share / 0.1 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + 7919 * rank)
        yield


@contextmanager
def together(device: str) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, for the length of a block; the device of this one, the n-th GPU or the CPU.

    A process that it did not start is alone. ``device``: "" for a GPU if there is one. Raises Invalid: there is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    launched = dist.is_torchelastic_launched()
    try:
        if launched:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        own = torch.device(device, dist.get_node_local_rank() if launched else 0) if device == "cuda" else torch.device(device)
        torch.zeros(1, device=own)
    except (RuntimeError, AssertionError, ValueError) as cause:
        raise Invalid(f"cannot train on {device[:40]!r}: {str(cause).partition(chr(10))[0][:200]}") from cause
    try:
        yield own
    finally:
        if launched:
            dist.destroy_process_group()
