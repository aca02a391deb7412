"""Random directions: step from known rows along random signs; synthetic rows for a thief who trains nothing on the way."""

import numpy as np

from modelkeep.extraction.attacks.base import Knowledge, Plan


def t_rnd(known: Knowledge, rng: np.random.Generator, *, start: int = 100, step: float = 0.1, round_size: int = 64) -> Plan:
    """Ask ``start`` natural rows, then x + step * range * (random signs) of rows asked before, for ever.

    The moves add up: a row may be a step away from one that was itself a step away from a natural row.
    Source: Juuti et al. 2019, "PRADA: Protecting against DNN Model Stealing Attacks", synthetic samples by random perturbation:
    what the gradient of JBDA is worth is the difference between the two.
    """
    x = known.draw(rng, min(start, len(known.seeds)))
    yield x
    stride = known.stride(step)
    while True:
        base = x[rng.integers(len(x), size=round_size)]
        asked = known.snap(base + stride * rng.choice([-1.0, 1.0], size=base.shape))
        yield asked
        x = np.concatenate([x, asked])
