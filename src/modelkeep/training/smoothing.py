"""Randomized smoothing: a certificate for the majority answer to noisy copies of a row, for any function that answers rows.

Source: Cohen, Rosenfeld and Kolter 2019, "Certified adversarial robustness via randomized smoothing".
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.training.robustness import lower_bound

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Classes = Callable[[Floats], Ints]
"""Rows (n, d) to the number of the class that the model answers, shape (n,)."""
PICKED = 100
ALPHA = 0.001


class Certificate(NamedTuple):
    """Of one row: the class that the smoothed model answers, -1 when it abstains, and the L2 radius in which it keeps it."""

    label: int
    radius: float


def certify_counts(picked: Ints, counted: Ints, sigma: float, alpha: float) -> Certificate:
    """The certificate of one row. ``picked``, ``counted``: answers of each class to rows with Gaussian noise of ``sigma``, two
    draws that know nothing of each other, shape (k,): the first picks the class, the second bounds how likely it is.

    ``alpha``: the probability that the certificate does not hold. Source: Cohen, Rosenfeld and Kolter 2019, "Certified
    adversarial robustness via randomized smoothing", CERTIFY and Theorem 1.
    """
    top = int(picked.argmax())
    least = lower_bound(int(counted[top]), int(counted.sum()), 1.0 - alpha)
    return Certificate(top, sigma * normal_quantile(least)) if least > 0.5 else Certificate(-1, 0.0)


def reach(draws: int, sigma: float, alpha: float = ALPHA) -> float:
    """The radius of a row to which every one of so many draws gives the same class: no certificate is larger."""
    return certify_counts(np.array([PICKED]), np.array([draws]), sigma, alpha).radius


def normal_quantile(p: float) -> float:
    """The standard normal's quantile at 0 < ``p`` < 1, by bisection on erfc: the lower end of the last interval."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2.0)) < p else (low, middle)
    return low


def smooth(
    classes: Classes, x: Floats, sigma: float, draws: int, *, count: int, seed: int = 0, alpha: float = ALPHA, batch: int = 2048
) -> list[Certificate]:
    """The certificates of rows (n, d) under Gaussian noise of ``sigma``, ``draws`` of them a row, and 100 to pick the class.

    ``count``: of classes; ``batch``: noisy rows that are asked at once. Noise is not cut to the box: the certificate is of the
    model as it answers beyond it, too. Raises: ValueError (no noise, or too few draws to certify anything).
    """
    if not sigma > 0 or draws < math.ceil(math.log(alpha) / math.log(0.5)):
        raise ValueError(f"smoothing needs noise, and {math.ceil(math.log(alpha) / math.log(0.5))} draws or more")
    rng = np.random.default_rng(seed)

    def votes(row: Floats, left: int) -> Ints:
        found = np.zeros(count, np.int64)
        while left:
            some = min(left, batch)
            noisy = row + sigma * rng.standard_normal((some, len(row)))
            found += np.bincount(classes(noisy), minlength=count)
            left -= some
        return found

    return [certify_counts(votes(row, PICKED), votes(row, draws), sigma, alpha) for row in x]
