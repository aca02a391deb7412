"""Tail probabilities that claims rest on, in plain Python: Student's t, the binomial, and the beta's quantiles."""

import math
from collections.abc import Sequence

SMALLEST = 1e-300
"""What a probability too small for a float is told as."""
_ALIKE = 1e-9


def student_tail(t: float, freedom: int) -> float:
    """P(T >= ``t``) for Student's t with so many degrees of ``freedom``.

    Raises: ValueError if ``freedom`` is not positive.
    Source: half of the regularised incomplete beta function at freedom / (freedom + t²) (DLMF 8.17), by its continued fraction
    (Lentz's method, Press et al., "Numerical Recipes", section 6.4).
    """
    if freedom < 1:
        raise ValueError("Student's t has one degree of freedom or more")
    if math.isnan(t):
        return 1.0
    if math.isinf(t):
        return SMALLEST if t > 0 else 1.0
    x = freedom / (freedom + t * t)
    half = 0.5 * _beta_share(0.5 * freedom, 0.5, x)
    return max(half, SMALLEST) if t > 0 else 1.0 - half


def prediction_tail(seen: Sequence[float], one: float) -> float:
    """P that one more of the normal law that n >= 2 numbers ``seen`` come from is ``one`` or more; 1 if they are all the same.

    Source: the prediction interval of Student's t (Hahn 1970, "Additional factors for calculating prediction intervals").
    """
    mean = math.fsum(seen) / len(seen)
    variance = math.fsum((each - mean) ** 2 for each in seen) / (len(seen) - 1)
    spread = math.sqrt(variance * (1.0 + 1.0 / len(seen)))
    return 1.0 if spread < _ALIKE else student_tail((one - mean) / spread, len(seen) - 1)


def binomial_tail(hits: int, trials: int, chance: float) -> float:
    """P(X >= ``hits``) for X of so many ``trials``, each a hit with probability ``chance``, summed in logarithms; to the last
    digit for one half and at most 1,000 trials.

    Raises: ValueError if it is no number of trials or no probability.
    """
    if not (0 <= hits <= trials and 0.0 <= chance <= 1.0):
        raise ValueError(f"{hits} hits of {trials} trials with probability {chance} are no binomial")
    if hits == 0 or chance == 1.0:
        return 1.0
    if chance == 0.0:
        return SMALLEST
    if chance == 0.5 and trials <= 1000:
        return max(SMALLEST, sum(math.comb(trials, k) for k in range(hits, trials + 1)) / (1 << trials))
    whole, yes, no = math.lgamma(trials + 1), math.log(chance), math.log1p(-chance)
    logs = [
        whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * yes + (trials - k) * no for k in range(hits, trials + 1)
    ]
    high = max(logs)
    return min(1.0, max(SMALLEST, math.exp(max(high, -700.0)) * math.fsum(math.exp(one - high) for one in logs)))


def beta_quantile(p: float, a: float, b: float) -> float:
    """Where the distribution function of Beta(``a``, ``b``) is ``p``, by bisection to the last bits.

    Raises: ValueError if ``p`` is not between 0 and 1, or a or b not positive.
    """
    if not (0.0 <= p <= 1.0 and a > 0.0 and b > 0.0):
        raise ValueError(f"no quantile {p} of Beta({a}, {b})")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_share(a, b, middle) < p else (low, middle)
    return (low + high) / 2


def _beta_share(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta_share(b, a, 1.0 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    return math.exp(front) * _fraction(a, b, x) if front > -700.0 else 0.0


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-30
    top, below = 1.0, 1.0 / _kept(1.0 - (a + b) * x / (a + 1.0), tiny)
    found = below
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            below = 1.0 / _kept(1.0 + term * below, tiny)
            top = _kept(1.0 + term / top, tiny)
            step = top * below
            found *= step
        if abs(step - 1.0) < 1e-14:
            break
    return found


def _kept(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
