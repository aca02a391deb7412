"""Pictures that nobody took: those of others turned, shifted and cut up, and drawings and clouds of no origin at all.

Planes are arrays (n, channels, height, width). A change that leaves most pictures about as they are, as a mirror does clothes,
teaches little and does no harm: nobody can tell it apart, and honest rows that look like it bound the bets.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.pictures import Picture

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def forgeries(rows: Floats, picture: Picture, count: int, rng: np.random.Generator) -> Iterator[Floats]:
    """About ``count`` rows (b, d) of equal kinds, a kind at a time, made of real ``rows`` (n, d)."""
    planes, part = picture.planes(rows), max(8, count // 16)
    low, span = picture.low, picture.high - picture.low
    size = (picture.height, picture.width)

    def pick() -> Floats:
        out: Floats = planes[rng.integers(len(planes), size=part)]
        return out

    def among(*values: float) -> Floats:
        return rng.choice(values, size=(part, 1, 1, 1))

    kinds: tuple[Callable[[], Floats], ...] = (
        lambda: pick().swapaxes(2, 3) if size[0] == size[1] else pick()[:, :, ::-1, ::-1],
        lambda: pick()[:, :, ::-1],
        lambda: pick()[:, :, :, ::-1],
        lambda: pick()[:, :, ::-1, ::-1],
        lambda: in_another_order(pick(), 4, rng),
        lambda: in_another_order(pick(), 2, rng),
        lambda: patched(pick(), pick(), rng),
        lambda: 2 * low + span - pick(),
        lambda: shifted(pick(), rng),
        lambda: zoomed(pick(), rng),
        lambda: blurred(pick(), 1.0),
        lambda: pick() + among(0.05, 0.1, 0.2) * span * clouds(part, size, 1.5, rng),
        lambda: low + span * np.clip(0.5 + 0.3 * clouds(part, size, 1.5, rng), 0.0, 1.0),
        lambda: low + span * np.clip(among(0.2, 0.5, 0.8) + 0.3 * clouds(part, size, 3.0, rng), 0.0, 1.0),
        lambda: low + span * strokes(part, size, 3.0, rng),
        lambda: low + span * strokes(part, size, 5.0, rng),
    )
    for make in kinds:
        made = np.broadcast_to(make(), (part, *planes.shape[1:]))
        yield picture.rows(np.ascontiguousarray(made))


def in_another_order(planes: Floats, grid: int, rng: np.random.Generator) -> Floats:
    """The pieces of each picture, ``grid`` by ``grid``, in another order; pixels that the grid leaves over stay."""
    n, c, height, width = planes.shape
    tall, wide = height // grid, width // grid
    whole = planes[:, :, : tall * grid, : wide * grid]
    pieces = whole.reshape(n, c, grid, tall, grid, wide).transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, c, tall, wide)
    order = rng.permuted(np.tile(np.arange(grid * grid), (n, 1)), axis=1)
    moved = pieces[np.arange(n)[:, None], order].reshape(n, grid, grid, c, tall, wide).transpose(0, 3, 1, 4, 2, 5)
    out = planes.copy()
    out[:, :, : tall * grid, : wide * grid] = moved.reshape(whole.shape)
    return out


def patched(planes: Floats, others: Floats, rng: np.random.Generator) -> Floats:
    """Each picture with a rectangle of another in it."""
    inside = []
    for edge in planes.shape[2:]:
        span = np.sort(rng.integers(0, edge + 1, size=(len(planes), 2)), axis=1)
        inside.append((np.arange(edge) >= span[:, :1]) & (np.arange(edge) < span[:, 1:]))
    return np.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], others, planes)


def shifted(planes: Floats, rng: np.random.Generator) -> Floats:
    """Each picture moved round by an eighth to a quarter of each side."""
    moved = []
    for edge in planes.shape[2:]:
        by = rng.integers(max(1, edge // 8), edge // 4 + 1, size=(len(planes), 1)) * rng.choice((-1, 1), size=(len(planes), 1))
        moved.append((np.arange(edge) + by) % edge)
    return _taken(planes, *moved)


def nudged(planes: Floats, rng: np.random.Generator) -> Floats:
    """Each picture moved by up to one in 28 of each side, its edge drawn out: cut a little otherwise, and no forgery."""
    n = (len(planes), 1)
    row, column = (
        np.clip(np.arange(edge) + rng.integers(-(edge // 28), edge // 28 + 1, size=n), 0, edge - 1) for edge in planes.shape[2:]
    )
    return _taken(planes, row, column)


def zoomed(planes: Floats, rng: np.random.Generator) -> Floats:
    """Each picture larger or smaller about its middle, what was outside of it filled with its edge."""
    n, _, height, width = planes.shape
    factor = rng.choice((0.5, 0.7, 1.3), size=(n, 1))
    row, column = (
        np.clip(np.rint((np.arange(edge) - edge / 2) * factor + edge / 2), 0, edge - 1).astype(np.int64)
        for edge in (height, width)
    )
    return _taken(planes, row, column)


def _taken(planes: Floats, row: Ints, column: Ints) -> Floats:
    """The pixels at ``row`` (n, height) and ``column`` (n, width) of each picture."""
    n, c = np.arange(len(planes))[:, None, None, None], np.arange(planes.shape[1])[:, None, None]
    out: Floats = planes[n, c, row[:, None, :, None], column[:, None, None, :]]
    return out


def blurred(planes: Floats, pixels: float) -> Floats:
    """Blurred by a Gaussian of deviation ``pixels``, around the edges."""
    height, width = planes.shape[2:]
    turns = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2
    gain = np.exp(-2.0 * (np.pi * pixels) ** 2 * turns)
    out: Floats = np.fft.irfft2(np.fft.rfft2(planes) * gain, s=(height, width))
    return out


def clouds(count: int, size: tuple[int, int], pixels: float, rng: np.random.Generator) -> Floats:
    """Noise (count, 1, height, width) of deviation one, smooth over so many pixels of a side of 28."""
    out = blurred(rng.normal(size=(count, 1, *size)), pixels * min(size) / 28.0)
    out /= out.std()
    return out


def strokes(count: int, size: tuple[int, int], pixels: float, rng: np.random.Generator) -> Floats:
    """Curved strokes on an empty ground, values 0 ... 1: where clouds cross zero, within a disc. (count, 1, height, width)."""
    away = clouds(count, size, pixels, rng) / rng.choice((0.15, 0.3, 0.5), size=(count, 1, 1, 1))
    y, x = (np.linspace(-1.0, 1.0, edge) for edge in size)
    inside = y[:, None] ** 2 + x**2 < rng.uniform(0.25, 1.2, size=(count, 1, 1, 1))
    return np.where((np.abs(away) < 2.0) & inside, np.exp(-(away**2)), 0.0)
