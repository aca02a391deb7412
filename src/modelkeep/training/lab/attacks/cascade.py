"""Attacks one after the other, each on the rows that the ones before it left standing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.lab.attacks.apgd import USUAL, Plan, Trail, apgd_ce, apgd_t
from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.attacks.fab import fab
from modelkeep.training.lab.attacks.lanes import Attacked

Floats = NDArray[np.floating]
SMALL = 50_000
"""Weights of a network that is attacked on one thread."""
GRADIENT = ("apgd-ce", "apgd-t", "fab")
"""Attacks that need gradients, in the order in which they are run."""


class Outcome(NamedTuple):
    """``adversarial``: (n, d), what fooled the model in place of fallen rows; ``broken``: by attack, (n,) bool, the rows that
    it broke and those before it did not; ``trail``: of both APGDs."""

    adversarial: Floats
    broken: dict[str, NDArray[np.bool_]]
    trail: Trail


def attack(
    net: Any,
    x: Floats,
    y: NDArray[np.int64],
    ball: Ball,
    names: Sequence[str] = GRADIENT,
    plan: Plan = USUAL,
    told: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> Outcome:
    """Attack rows that the net answers rightly.

    ``net``: a module with ``kind``, the type that it takes; ``x``: (n, d); ``y``: (n,); ``told``: is given the name of an
    attack, how much of it is done, and of how much. Raises Invalid (an attack that is not known).
    """
    unknown = set(names) - set(GRADIENT)
    if unknown:
        raise Invalid(f"there is no gradient attack {sorted(unknown)[0]!r}: there are {', '.join(GRADIENT)}")
    known = Attacked(torch.from_numpy(np.ascontiguousarray(x)).to(net.kind), torch.from_numpy(np.asarray(y, np.int64)))
    broken, trail = {}, Trail(torch.ones_like(known.fallen), torch.ones_like(known.fallen))
    with frozen(net), few_threads(net):
        for name in names:
            known.told = partial(told, name)
            before = known.fallen.clone()
            found = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab": fab}[name](net, known, ball, plan)
            if isinstance(found, Trail):
                trail = Trail(trail.flat & found.flat, trail.still & found.still)
            broken[name] = (known.fallen & ~before).numpy()
    return Outcome(known.adversarial.numpy(), broken, trail)


class Shaped(torch.nn.Module):
    """A module that takes rows of the shape ``tail``, as one of flat rows (n, d)."""

    kind = torch.float32

    def __init__(self, module: Any, tail: Sequence[int]) -> None:
        """``module``: is asked as for evaluation while it is attacked."""
        super().__init__()
        self.module, self.tail = module, tuple(tail)

    def forward(self, x: Any) -> Any:
        """Logits."""
        return self.module(x.reshape(len(x), *self.tail))


def answers(net: Any, x: Floats, width: int = 512) -> NDArray[np.int64]:
    """The answered classes of rows (n, d)."""
    rows = torch.from_numpy(np.ascontiguousarray(x)).to(net.kind)
    with torch.no_grad(), frozen(net):
        return np.asarray(torch.cat([net(part).argmax(dim=1) for part in rows.split(width)]).numpy())


@contextmanager
def few_threads(net: Any) -> Iterator[None]:
    """One thread for a small network: its steps are so short that several would spend their time waiting for each other."""
    before = torch.get_num_threads()
    if sum(one.numel() for one in net.parameters()) <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def frozen(net: Any) -> Iterator[None]:
    """Gradients of the input alone, of the module as for evaluation: weights need none meanwhile."""
    training = net.training
    net.eval()
    learnt = [one for one in net.parameters() if one.requires_grad]
    for one in learnt:
        one.requires_grad_(False)
    try:
        yield
    finally:
        net.train(training)
        for one in learnt:
            one.requires_grad_()


def ball_of(net: Any, norm: str, epsilon: float, low: Floats, high: Floats) -> Ball:
    """The ball, from numpy bounds of shape (d,), in the type that the net takes. Raises Invalid."""
    return Ball(norm, epsilon, *(torch.from_numpy(np.ascontiguousarray(one)).to(net.kind) for one in (low, high)))
