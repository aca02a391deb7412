"""Attacks one after the other, each on the rows that the ones before it left standing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.lab.attacks.apgd import USUAL, Plan, Trail, apgd_ce, apgd_t
from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.attacks.fab import fab
from modelkeep.training.lab.attacks.lanes import Attacked
from modelkeep.training.lab.nets import Net

Floats = NDArray[np.floating]
GRADIENT = ("apgd-ce", "apgd-t", "fab")
"""Attacks that need gradients, in the order in which they are run."""


class Outcome(NamedTuple):
    """``adversarial``: (n, d), what fooled the model in place of fallen rows; ``broken``: by attack, (n,) bool, the rows that
    it broke and those before it did not; ``trail``: of both APGDs."""

    adversarial: Floats
    broken: dict[str, NDArray[np.bool_]]
    trail: Trail


def attack(
    net: Net,
    x: Floats,
    y: NDArray[np.int64],
    ball: Ball,
    names: Sequence[str] = GRADIENT,
    plan: Plan = USUAL,
    told: Callable[[str, float], None] = lambda _name, _share: None,
) -> Outcome:
    """Attack rows that the net answers rightly. ``x``: (n, d); ``y``: (n,); ``told``: is given the name of each attack before
    it runs, and the share of rows that stand. Raises Invalid (an attack that is not known).
    """
    unknown = set(names) - set(GRADIENT)
    if unknown:
        raise Invalid(f"there is no gradient attack {sorted(unknown)[0]!r}: there are {', '.join(GRADIENT)}")
    known = Attacked(torch.from_numpy(np.ascontiguousarray(x)).to(net.kind), torch.from_numpy(np.asarray(y, np.int64)))
    broken, trail = {}, Trail(torch.ones_like(known.fallen), torch.ones_like(known.fallen))
    with frozen(net):
        for name in names:
            told(name, float((~known.fallen).float().mean()))
            before = known.fallen.clone()
            found = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab": fab}[name](net, known, ball, plan)
            if isinstance(found, Trail):
                trail = Trail(trail.flat & found.flat, trail.still & found.still)
            broken[name] = (known.fallen & ~before).numpy()
    return Outcome(known.adversarial.numpy(), broken, trail)


@contextmanager
def frozen(net: Any) -> Iterator[None]:
    """Gradients of the input alone: weights need none meanwhile."""
    learnt = [one for one in net.parameters() if one.requires_grad]
    for one in learnt:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in learnt:
            one.requires_grad_()


def ball_of(net: Net, norm: str, epsilon: float, low: Floats, high: Floats) -> Ball:
    """The ball, from numpy bounds of shape (d,), in the type that the net takes. Raises Invalid."""
    return Ball(norm, epsilon, *(torch.from_numpy(np.ascontiguousarray(one)).to(net.kind) for one in (low, high)))
