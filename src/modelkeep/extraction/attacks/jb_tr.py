"""JBDA-TR: step from known rows towards a random other class, as the copy sees it."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker
from modelkeep.extraction.attacks.jacobian import differences


def jb_tr(  # the paper's parameters
    known: Knowledge,
    rng: np.random.Generator,
    surrogate: SurrogateMaker,
    *,
    start: int = 100,
    step: float = 0.1,
    iterations: int = 3,
    reservoir: int = 200,
) -> Plan:
    """Ask ``start`` natural rows, train a copy, move up to ``reservoir`` known rows towards a random class each, ask, repeat.

    A move is iterated FGSM on the copy: ``iterations`` signed steps that add up to ``step``, a share of each column's range.
    Source: Juuti et al. 2019, "PRADA: Protecting against DNN Model Stealing Attacks", the T-RND I-FGSM synthetic samples.
    """
    x = known.draw(rng, min(start, len(known.seeds)))
    answers = yield x
    stride = known.stride(step)
    while True:
        copy = surrogate()
        copy.fit(x, answers)
        base = x[rng.permutation(len(x))[:reservoir]]
        other = (copy.predict(base).argmax(axis=1) + rng.integers(1, answers.shape[1], len(base))) % answers.shape[1]
        asked = known.snap(towards(copy, base, other, stride, 0.01 * known.width, iterations))
        x, answers = np.concatenate([x, asked]), np.concatenate([answers, (yield asked)])


def towards(copy: Surrogate, x: Array, target: np.ndarray, stride: Array, width: Array, iterations: int) -> Array:
    """Rows moved ``stride`` (d,) in all towards their ``target`` classes (n,); ``width`` (d,): of the finite differences."""
    for _ in range(iterations):
        uphill = differences(copy, x, width)[np.arange(len(x)), :, target]
        x = x + stride / iterations * np.sign(uphill)
    return x
