"""Jacobian-based dataset augmentation: step from known rows in the direction that the copy finds most telling."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker


def jacobian(
    known: Knowledge,
    rng: np.random.Generator,
    surrogate: SurrogateMaker,
    *,
    start: int = 100,
    step: float = 0.1,
    reservoir: int = 200,
) -> Plan:
    """Ask ``start`` natural rows, train a copy, ask x + step * range * sign(dF_y/dx) of up to ``reservoir`` known rows, repeat.

    ``step`` is the paper's lambda, a share of each column's range, and changes its sign every third round.
    Source: Papernot et al. 2017, "Practical Black-Box Attacks against Machine Learning", algorithm 1 and section 5.2
    (reservoir sampling, periodical step size).
    """
    x = known.draw(rng, min(start, len(known.seeds)))
    answers = yield x
    stride = known.stride(step)
    for turn in range(1, 1_000_000):
        copy = surrogate()
        copy.fit(x, answers)
        base = x[rng.permutation(len(x))[:reservoir]]
        forward = 1.0 if turn % 3 else -1.0
        asked = known.snap(base + forward * stride * np.sign(gradient(copy, base, 0.01 * known.width)))
        x, answers = np.concatenate([x, asked]), np.concatenate([answers, (yield asked)])


def gradient(copy: Surrogate, x: Array, width: Array) -> Array:
    """Central differences of the probability of each row's own top class, shape (n, d); zero where ``width`` (d,) is zero."""
    top = copy.predict(x).argmax(axis=1)
    return differences(copy, x, width)[np.arange(len(x)), :, top]


def differences(copy: Surrogate, x: Array, width: Array) -> Array:
    """Central differences of all probabilities over steps of ``width`` (d,) in each column, shape (n, d, k)."""
    rows, columns = x.shape
    moves = np.diag(width)
    around = np.concatenate([x[:, None, :] + moves, x[:, None, :] - moves]).reshape(-1, columns)
    up, down = copy.predict(around).reshape(2, rows, columns, -1)
    return up - down
