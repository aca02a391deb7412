"""Pictures that a thief of a picture model asks: foreign ones, and its own ones moved about. Rows (n, side * side)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.datasets import load_digits, load_sample_images

Floats = NDArray[np.float64]
Change = Callable[[Floats, np.random.Generator], Floats]


def _patches_shuffled(rows: Floats, rng: np.random.Generator) -> Floats:
    """The sixteen patches of each picture in another order."""
    count, side, _ = rows.shape
    patch = side // 4
    cut = rows.reshape(count, 4, patch, 4, patch).transpose(0, 1, 3, 2, 4).reshape(count, 16, patch, patch)
    cut = cut[np.arange(count)[:, None], rng.permuted(np.tile(np.arange(16), (count, 1)), axis=1)]
    return cut.reshape(count, 4, 4, patch, patch).transpose(0, 1, 3, 2, 4).reshape(count, side, side)


TURNS: dict[str, Change] = {
    "turned": lambda rows, _: np.transpose(rows, (0, 2, 1)),
    "upside down": lambda rows, _: rows[:, ::-1],
    "mirrored": lambda rows, _: rows[:, :, ::-1],
    "patches shuffled": _patches_shuffled,
}
"""What is done to pictures (n, side, side) of the thief's own."""


def photographs(side: int, highest: float, count: int, rng: np.random.Generator) -> Floats:
    """Square cuts, grey, of the two photographs that come with scikit-learn, values 0 ... ``highest``."""
    grey = [picture.mean(axis=2) * (highest / 255.0) for picture in load_sample_images().images]
    out = np.empty((count, side, side))
    for at in range(count):
        picture = grey[rng.integers(len(grey))]
        grain = int(rng.integers(1, min(picture.shape) // (2 * side) + 1))
        top, left = (int(rng.integers(edge - grain * side + 1)) for edge in picture.shape)
        cut = picture[top : top + grain * side, left : left + grain * side]
        out[at] = cut.reshape(side, grain, side, grain).mean(axis=(1, 3))
    return out.reshape(count, -1)


def digits(count: int, rng: np.random.Generator) -> Floats:
    """Handwritten digits, enlarged to 28 by 28, each moved by up to two pixels, values 0 ... 1."""
    drawn = load_digits().images[rng.integers(1797, size=count)] / 16.0
    large = np.pad(zoom(drawn, (1, 3, 3), order=1), ((0, 0), (2, 2), (2, 2)))
    moves = rng.integers(-2, 3, size=(count, 2))
    return np.stack([np.roll(row, tuple(move), axis=(0, 1)) for row, move in zip(large, moves, strict=True)]).reshape(count, -1)
