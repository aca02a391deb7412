"""Corruptions: what happens to inputs without anybody's intent. Rows are flat, (n, d)."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def corruptions(picture: tuple[int, int, int] | None) -> tuple[str, ...]:
    """The names of those that fit rows: pictures (channels, height, width), or not."""
    return (*_ANY, *(_PICTURES if picture is not None else ("rounding", "unit-shift")))


_ANY = ("gaussian-noise", "impulse-noise", "missing")
_PICTURES = ("contrast", "brightness", "blur", "shift")
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(
    name: str, x: Floats, severity: int, low: Floats, high: Floats, picture: tuple[int, int, int] | None, *, seed: int = 0
) -> Floats:
    """Rows (n, d) as they arrive after something happened to them; ``severity``: 1 to 5; ``low``, ``high``: the box, (d,).

    gaussian-noise: of 4 % of the range a step of severity; impulse-noise, missing: 3 % of the features a step at an end of the
    range, or at the mean of the column; contrast, brightness: towards the mean by 15 % a step, up by 8 % of the range; blur: a
    box filter, ``severity`` times; shift: by ``severity`` pixels in a random direction; rounding: to 2^(7 - severity) steps of
    the range; unit-shift: a feature of each row is ten times as large for every two steps, as when units were mixed up.
    Raises: ValueError for another name or severity.
    """
    if name not in corruptions(picture) or severity not in SEVERITIES:
        raise ValueError(f"there is no corruption {name} of severity {severity} for these rows")
    rng = np.random.default_rng((seed, severity))
    span = high - low
    match name:
        case "gaussian-noise":
            made = x + rng.standard_normal(x.shape) * 0.04 * severity * span
        case "impulse-noise":
            made = np.where(rng.random(x.shape) < 0.03 * severity, np.where(rng.random(x.shape) < 0.5, low, high), x)
        case "missing":
            made = np.where(rng.random(x.shape) < 0.03 * severity, x.mean(axis=0), x)
        case "contrast":
            middle = x.mean(axis=1, keepdims=True)
            made = middle + (x - middle) * (1 - 0.15 * severity)
        case "brightness":
            made = x + 0.08 * severity * span
        case "rounding":
            steps = 2.0 ** (7 - severity)
            made = low + np.round((x - low) / np.where(span > 0, span, 1.0) * steps) / steps * span
        case "unit-shift":
            made = x.copy()
            at = rng.integers(0, x.shape[1], len(x))
            made[np.arange(len(x)), at] *= 10.0 ** math.ceil(severity / 2)
            return made  # that it leaves the range is what happens
        case _:
            assert picture is not None
            shaped = x.reshape(len(x), *picture)
            made = (_blur(shaped, severity) if name == "blur" else _shifted(shaped, severity, rng)).reshape(x.shape)
    return np.clip(made, low, high)


def _blur(shaped: Floats, times: int) -> Floats:
    """A 3 by 3 box filter, edges repeated."""
    height, width = shaped.shape[2:]
    for _ in range(times):
        wide = np.pad(shaped, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        parts = [wide[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        shaped = np.mean(parts, axis=0)
    return shaped


def _shifted(shaped: Floats, most: int, rng: np.random.Generator) -> Floats:
    made = np.empty_like(shaped)
    for row, (down, right) in enumerate(rng.choice(np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]), len(shaped)) * most):
        made[row] = np.roll(shaped[row], (down, right), axis=(1, 2))
    return made
