"""Data-free extraction: a generator learns to ask where victim and copy disagree; gradients come from forward differences."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, SurrogateMaker


def data_free(  # the papers' parameters
    known: Knowledge,
    rng: np.random.Generator,
    surrogate: SurrogateMaker,
    *,
    batch: int = 8,
    directions: int = 2,
    step: float = 0.05,
    explore: int = 16,
    turns: int = 4,
) -> Plan:
    """Ask generated rows and their shifted neighbours, move the generator uphill in |victim - copy|, retrain the copy, repeat.

    Nothing of the thief's rows is used but ranges and which columns are whole. One turn of the generator asks ``batch`` rows x
    and x + ``step`` * range * u for ``directions`` random sign vectors u; every ``turns`` turns ``explore`` fresh rows follow
    and the copy is trained on all answers (the papers' experience replay). The loss is the L1 distance of DFME, its gradient
    MAZE's: the mean of (L(x + step u) - L(x)) / step * u. Shifts that snapping undoes count for nothing.
    Source: Kariyappa et al. 2021, "MAZE: Data-Free Model Stealing Attack Using Zeroth-Order Gradient Estimation", section 4 and
    algorithm 1; Truong et al. 2021, "Data-Free Model Extraction", section 3 (L1 loss).
    """
    maker, columns = Generator(known, rng), len(known.lower)
    x = known.snap(maker.rows(rng, 2 * explore)[0])
    answers = yield x
    width = np.where(known.width > 0, known.width, 1.0)
    while True:
        copy = surrogate()
        copy.fit(x, answers)
        for _ in range(turns):
            made, inside = maker.rows(rng, batch)
            signs = rng.choice([-1.0, 1.0], size=(directions, batch, columns))
            shifted = known.snap(made + known.stride(step) * signs).reshape(-1, columns)
            made = known.snap(made)
            asked = np.concatenate([made, shifted])
            got = yield asked
            loss = np.round(np.abs(got - copy.predict(asked)).sum(axis=1), 9)  # less is arithmetic, not disagreement
            rise = loss[batch:].reshape(directions, batch) - loss[:batch]
            moved = (shifted.reshape(directions, batch, columns) - made) / width
            maker.climb(inside, (rise[:, :, None] * np.sign(moved)).mean(axis=0) / step)
            x, answers = np.concatenate([x, asked]), np.concatenate([answers, got])
        fresh = known.snap(maker.rows(rng, explore)[0])
        x, answers = np.concatenate([x, fresh]), np.concatenate([answers, (yield fresh)])


class Generator:
    """A network z -> tanh -> sigmoid -> row, with Adam: 16 random numbers, 32 hidden units, output inside the ranges."""

    def __init__(self, known: Knowledge, rng: np.random.Generator, *, inputs: int = 16, hidden: int = 32) -> None:
        self._lower, self._width = known.lower, known.width
        self._weights = [
            rng.normal(size=(inputs + 1, hidden)) / np.sqrt(inputs),
            rng.normal(size=(hidden + 1, len(known.lower))) * 2.0 / np.sqrt(hidden),
        ]
        self._first = [np.zeros_like(one) for one in self._weights]
        self._second = [np.zeros_like(one) for one in self._weights]
        self._steps = 0

    def rows(self, rng: np.random.Generator, count: int) -> tuple[Array, tuple[Array, Array, Array]]:
        """``count`` generated rows (count, d), not snapped, and what ``climb`` needs to know of them."""
        z = _with_ones(rng.normal(size=(count, len(self._weights[0]) - 1)))
        hidden = _with_ones(np.tanh(z @ self._weights[0]))
        out = 1.0 / (1.0 + np.exp(-hidden @ self._weights[1]))
        return self._lower + self._width * out, (z, hidden, out)

    def climb(self, inside: tuple[Array, Array, Array], slope: Array, rate: float = 0.02) -> None:
        """One step of Adam uphill along ``slope`` (count, d), the gradient with respect to the rows in units of the ranges."""
        z, hidden, out = inside
        above = slope * out * (1.0 - out) / len(z)
        below = ((above @ self._weights[1].T) * (1.0 - hidden**2))[:, :-1]
        self._steps += 1
        for at, gradient in enumerate((z.T @ below, hidden.T @ above)):
            self._first[at] = 0.9 * self._first[at] + 0.1 * gradient
            self._second[at] = 0.999 * self._second[at] + 0.001 * gradient**2
            mean, square = self._first[at] / (1 - 0.9**self._steps), self._second[at] / (1 - 0.999**self._steps)
            self._weights[at] = self._weights[at] + rate * mean / (np.sqrt(square) + 1e-8)


def _with_ones(x: Array) -> Array:
    """A last column of ones, for what does not depend on the input."""
    return np.column_stack([x, np.ones(len(x))])
