"""Rows that are pictures: how that is known, and what is measured of them beside their principal components.

Pictures of something else, and pictures that were turned, shifted or cut up, have pixels as any and lie about where real ones
do: the network for all rows hardly tells them. So pictures have a network of their own, which learns them (``forgeries``).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.discriminator import Discriminator, fit_discriminator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = 4
"""Steps between neighbouring pixels are averaged over the cells of a grid of so many by so many."""
MEASURES = 2 * GRID * GRID + 4
SMALLEST = 6
"""Pixels that a side has at least."""
COLOURS = (1, 3, 4)
"""Channels that pictures have."""
ALIKE, APART = 0.25, 0.15
"""Least mean correlation of neighbouring pixels, and the least share of what pixels half a side apart lack to a correlation of
one that neighbours have on top."""
LOOKED_AT = 1000
"""Rows at most by which it is found out whether they are pictures."""
STEPS = 1500
"""Of the network's training: twice those of the network for all rows, since what it tells apart is more alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What rows (b, d) are pictures of ``height`` by ``width`` pixels: ``channels`` first or ``last`` in a row, values between
    ``low`` and ``high``."""

    height: int
    width: int
    channels: int
    last: bool
    low: float = 0.0
    high: float = 1.0

    @property
    def pixels(self) -> int:
        """Values of a row."""
        return self.height * self.width * self.channels

    def planes(self, x: Floats) -> Floats:
        """Rows (b, d) as (b, channels, height, width)."""
        if self.last:
            return x.reshape(len(x), self.height, self.width, self.channels).transpose(0, 3, 1, 2)
        return x.reshape(len(x), self.channels, self.height, self.width)

    def rows(self, planes: Floats) -> Floats:
        """``planes`` undone."""
        return (planes.transpose(0, 2, 3, 1) if self.last else planes).reshape(len(planes), -1)

    def measures(self, x: Floats) -> Floats:
        """Of the grey picture of each row (b, d): log mean steps between neighbours across and down, in each cell of the grid
        (total variation); log energy of the Laplacian; shares of lowest, nearly lowest and nearly highest pixels. (b, 36)."""
        grey = self.planes(x).mean(axis=1) if self.channels > 1 else self.planes(x)[:, 0]
        pixels = np.clip((grey.reshape(len(x), -1) - self.low) / (self.high - self.low), -2.0, 3.0).astype(np.float32)
        row, across_in, down_in, bend_in = self.width, *_cells(self.height, self.width)
        across, down = pixels[:, 1:] - pixels[:, :-1], pixels[:, row:] - pixels[:, :-row]
        bend = across[:, row : 1 - row] - across[:, row - 1 : -row] + down[:, row:] - down[:, :-row]
        logs = np.log(
            np.concatenate([np.abs(across) @ across_in, np.abs(down) @ down_in, (bend * bend) @ bend_in], axis=1) + 1e-3
        )
        even = np.full((pixels.shape[1], 1), 1.0 / pixels.shape[1], dtype=np.float32)
        shares = [some.astype(np.float32) @ even for some in (pixels <= 1e-4, pixels <= 0.04, pixels >= 0.96)]
        return np.concatenate([logs, *shares], axis=1, dtype=np.float64)


@lru_cache
def _cells(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Matrices that average what is at the pixels of a picture, one row of them after the other: over the cells of the grid
    what lies between a pixel and the next (height · width - 1, GRID²) and the one below ((height - 1) · width, GRID²), and over
    all pixels inside what is there ((height - 2) · width, 1). From the end of a row to the begin of the next there is no step.
    """
    row, column = np.divmod(np.arange(height * width), width)

    def average(pixels: Ints, cell: Ints, cells: int) -> NDArray[np.float32]:
        inside = cell[pixels, None] == np.arange(cells)
        out: NDArray[np.float32] = (inside / inside.sum(axis=0)).astype(np.float32)
        return out

    across = np.where(column < width - 1, row * GRID // height * GRID + column * GRID // (width - 1), -1)
    down = row * GRID // (height - 1) * GRID + column * GRID // width
    bend = np.where((column > 0) & (column < width - 1), 0, -1)
    at = np.arange(height * width)
    return average(at[:-1], across, GRID * GRID), average(at[:-width], down, GRID * GRID), average(at[width:-width], bend, 1)


# -- real or made? --


@dataclass(frozen=True, slots=True, eq=False)
class PictureJudge:
    """A network that tells real pictures from made ones, by a row's features and measures; ``centre``, ``width``: (36,) that
    standardise the measures over real rows."""

    picture: Picture
    centre: Floats
    width: Floats
    discriminator: Discriminator

    def suspicion(self, x: Floats, features: Floats) -> Floats:
        """Mean log odds that each row (b, d), of ``features`` (b, r + 10), is a made picture. Shape (b,)."""
        return self.discriminator.suspicion(self.shown(x, features))

    def shown(self, x: Floats, features: Floats) -> Floats:
        """What the network sees: features and standardised measures, the latter clipped to ±8. Shape (b, r + 46)."""
        measures = np.clip((self.picture.measures(x) - self.centre) / self.width, -8.0, 8.0)
        return np.concatenate([features, measures], axis=1)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Named arrays for the profile's file."""
        p = self.picture
        layout = np.array([p.height, p.width, p.channels, p.last], dtype=np.int64)
        out: dict[str, NDArray[np.generic]] = {"picture.layout": layout, "picture.range": np.array([p.low, p.high])}
        out |= {"picture.centre": self.centre, "picture.width": self.width}
        return out | {f"picture.discriminator.{i}": w for i, w in enumerate(self.discriminator.weights)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> "PictureJudge | None":
        """Rebuild from ``to_arrays``; None when there are none of them. Raises KeyError, ValueError (they do not fit)."""
        if "picture.layout" not in arrays:
            return None
        height, width, channels, last = (int(v) for v in arrays["picture.layout"])
        low, high = (float(v) for v in arrays["picture.range"])
        weights = tuple(arrays[f"picture.discriminator.{i}"] for i in range(6))
        picture = Picture(height, width, channels, bool(last), low, high)
        found = cls(picture, arrays["picture.centre"], arrays["picture.width"], Discriminator(weights))
        measured = found.centre.shape == found.width.shape == (MEASURES,) and (found.width > 0.0).all()
        if not low < high or min(height, width) < SMALLEST or channels < 1 or not measured or weights[0].ndim != 3:
            raise ValueError("picture")
        return found


def fit_picture_judge(
    picture: Picture,
    real: Sequence[Floats],
    made: Iterable[Floats],
    features: Callable[[Floats], Floats],
    rng: np.random.Generator,
) -> PictureJudge:
    """Learn to tell ``real`` rows (n, d), the first as they are and others as they are handled, from ``made`` ones.
    ``features``: of rows (b, d), as the judge will be given them. Deterministic in ``rng``."""
    measures = picture.measures(real[0])
    blank = PictureJudge(picture, measures.mean(axis=0), measures.std(axis=0) + 0.05, Discriminator(()))
    true, false = (np.concatenate([blank.shown(rows, features(rows)) for rows in side]) for side in (real, made))
    return replace(blank, discriminator=fit_discriminator(true, false, rng, steps=STEPS))


# -- are they pictures? --


def find_picture(rows: Floats, shape: Sequence[int] = ()) -> Picture | None:
    """Whether ``rows`` (n, d) are pictures, by a look at the pixels: None for a table.

    ``shape``: what the model takes of each, such as (channels, height, width), (height, width, channels) or (height, width);
    of any other shape, flat rows of one or three squares are looked at. Pixels have one scale, and are like their neighbours
    across *and* down, more so than like pixels half a side away: in a table, or a series of times, they are not.
    """
    some = np.asarray(rows[:: max(1, len(rows) // LOOKED_AT)], dtype=np.float64)
    low, high = float(some.min()), float(some.max())
    spans = np.ptp(some, axis=0)
    if not low < high or np.median(spans) < 0.5 * (high - low):
        return None
    found = [Picture(*layout, low, high) for layout in _layouts(rows.shape[1], shape)]
    likeness = [_likeness(picture, some) for picture in found]
    best = max(range(len(found)), key=likeness.__getitem__, default=None)
    return found[best] if best is not None and likeness[best] >= APART else None


def _layouts(width: int, shape: Sequence[int]) -> Iterator[tuple[int, int, int, bool]]:
    """Height, width, channels, whether they are last: all that rows of ``width`` values may be."""
    match shape if math.prod(shape) == width else ():
        case (height, wide):
            tried = [(height, wide, 1, False)]
        case (first, second, third):
            tried = [(second, third, first, False), (first, second, third, True)]
        case _:
            one, three = math.isqrt(width), math.isqrt(width // 3)
            tried = [(one, one, 1, False), (three, three, 3, False), (three, three, 3, True)]
    for height, wide, channels, last in tried:
        if height * wide * channels == width and min(height, wide) >= SMALLEST and channels in COLOURS:
            yield height, wide, channels, last


def _likeness(picture: Picture, rows: Floats) -> float:
    """By how much neighbours across and down, the less alike of both, are more alike than pixels half a side apart, as a share
    of what these could be more alike; -1 where neighbours are not alike at all."""
    spread = rows.std(axis=0)
    alive = spread > 1e-9 * max(1.0, float(spread.max()))
    z = picture.planes(np.where(alive, (rows - rows.mean(axis=0)) / np.where(alive, spread, 1.0), 0.0))
    live = picture.planes(alive[None].astype(np.float64))

    def alike(axis: int, apart: int) -> float:
        size = z.shape[axis]
        here, there = np.arange(size - apart), np.arange(apart, size)
        pairs = (live.take(here, axis) * live.take(there, axis)).sum()
        return float((z.take(here, axis) * z.take(there, axis)).sum() / (len(z) * max(pairs, 1.0)))

    near = min(alike(2, 1), alike(3, 1))
    far = max(alike(2, picture.height // 2), alike(3, picture.width // 2))
    return (near - far) / max(1.0 - far, 0.01) if near >= ALIKE else -1.0
