"""The attack that a hardened model is measured under: APGD where the threat is a ball in a box, else one that keeps rules."""

from typing import NamedTuple

import torch
from torch import Tensor

from modelkeep.training.lab.adversarial import standing
from modelkeep.training.lab.attacks.apgd import Plan, apgd_ce, apgd_t
from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.attacks.cascade import frozen
from modelkeep.training.lab.attacks.lanes import Attacked
from modelkeep.training.lab.constraints import Threat
from modelkeep.training.lab.nets import Net

STEPS = 50
"""Of each of the two ascents of ``standing``."""


class Examined(NamedTuple):
    """``attack``: its name, and its ``steps``; ``clean``, ``robust``: masks (n,) of rows that are right, and right under it."""

    attack: str
    steps: int
    clean: Tensor
    robust: Tensor


def examine(net: Net, x: Tensor, y: Tensor, threat: Threat, *, ruled: bool, seed: int) -> Examined:
    """How ``net`` does on rows that nobody learnt from. ``x``: (n, ...), on the device of the net; ``ruled``: the threat is no
    mere ball of one radius in a box.
    """
    radius = torch.as_tensor(threat.epsilon).flatten()[0]
    if ruled or not radius > 0:
        return Examined("pgd-ce+margin", 2 * STEPS, *standing(net, x, y, threat, steps=STEPS, seed=seed))
    flat, plan = x.flatten(1), Plan(seed=seed)
    low, high = (torch.as_tensor(one).to(flat).flatten().expand(flat.shape[1]) for one in (threat.low, threat.high))
    ball = Ball(threat.norm, float(radius), low, high)
    with torch.no_grad():
        clean = torch.cat([net(part).argmax(dim=1) for part in flat.split(plan.wide(flat))]) == y
    known = Attacked(flat[clean].clone(), y[clean])
    with frozen(net):
        apgd_ce(net, known, ball, plan)
        apgd_t(net, known, ball, plan)
    robust = clean.clone()
    robust[clean] = ~known.fallen
    return Examined("apgd-ce+apgd-t", plan.steps, clean, robust)
