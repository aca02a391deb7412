"""The trace code: a small keyed mark on every answer, different for every account, that never changes a top-1.

The *fine* symbol is fresh for every distinct query; the *smooth* symbol is shared by all queries of one (cell, top class), so
that a copy learns it and shows it on inputs nobody ever asked. A share of the queries that the key draws carries the fine
symbol alone, every other one the smooth, each with the whole room; by profiles of before, each answer carries both, with half.
With k > 2 classes a symbol names the non-top class that receives mass from the top; with k = 2 it says whether the top gives
or takes. Symbols are uniform and independent under HMAC-like keyed hashing (BLAKE2b with a key, RFC 7693), which is all that
the trace's p-values rest on.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modelkeep.crypto.kdf import hkdf
from modelkeep.errors import Invalid
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_ZERO = np.float32(0.0)


def commitment(key: bytes) -> bytes:
    """32 bytes that bind the owner to the account key ``key`` and say nothing about it: SHA-256 over a domain tag and the key.
    It goes to the log before the account's first answer; opening it later reveals this one key and no other."""
    return hashlib.sha256(b"modelkeep/trace-commitment/1" + key).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """What a key says about n queries. ``fine``, ``smooth``: (n,) symbols 0 ... k-2 (k > 2) or 0, 1 (k = 2); ``cell``, ``top``:
    (n,), which the smooth symbol belongs to; ``size``: (n,) share of its full room that one symbol has, 0 ... 1, the same
    for every key, and 0 where the fine symbol is not placed.
    """

    fine: Ints
    smooth: Ints
    cell: Ints
    top: Ints
    size: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Nearest-centre search as one product: cell = argmax((x - mean) @ slope + offset). ``mean``: (d,); ``slope``: (d, cells);
    ``offset``: (cells,); ``fine``: share of the queries that carry the fine symbol alone, 0 = each carries both. It is all of a
    profile that a mark needs, and no secret."""

    mean: NDArray[np.float32]
    slope: NDArray[np.float32]
    offset: NDArray[np.float32]
    fine: float = 0.0

    def of(self, x: NDArray[np.floating]) -> Ints:
        """Cell of each row of ``x`` (n, d)."""
        out: Ints = (((x - self.mean).astype(np.float32, copy=False) @ self.slope) + self.offset).argmax(axis=1)
        return out

    def of_one(self, row: NDArray[np.float32]) -> int:
        """Cell of one row (d,): the same in half the time."""
        return int(((row - self.mean).dot(self.slope) + self.offset).argmax())


@lru_cache(maxsize=64)
def cells_of(profile: Profile) -> Cells:
    """The cells of a profile's trace code."""
    embedding = profile.embedding
    slope = (embedding.basis / embedding.scale[:, None]) @ profile.cells.T
    offset = -0.5 * (profile.cells**2).sum(axis=1)
    return Cells(embedding.mean.astype(np.float32), slope.astype(np.float32), offset.astype(np.float32), profile.fine)


class Marker:
    """Marks the answers of one account to one release.

    ``key``: the account key k_u, 32 bytes; ``epsilon``: most L1 change of an answer; ``decimals``: what the answer is
    rounded to afterwards (a symbol that rounding would swallow is not placed). ``falsity``: key of false answers. Raises
    Invalid (key length, epsilon outside 0 ... 0.5).
    """

    def __init__(self, key: bytes, cells: Profile | Cells, epsilon: float = 0.05, decimals: int = 4) -> None:
        if len(key) != 32 or not 0.0 <= epsilon <= 0.5:
            raise Invalid(f"a marker needs a 32-byte key and epsilon in 0 ... 0.5, not {len(key)} bytes and {epsilon}")
        self.key = key
        self._fine = hkdf(key, salt=b"", info=b"modelkeep/trace-fine/1")
        self._smooth = hkdf(key, salt=b"", info=b"modelkeep/trace-smooth/1")
        self.falsity = hkdf(key, salt=b"", info=b"modelkeep/deceive/1")
        self.cells = cells if isinstance(cells, Cells) else cells_of(cells)
        self._chosen = int(self.cells.fine * 2.0**64)
        self._room = epsilon / 2.0
        self._unit = 10.0**-decimals
        self._table: dict[tuple[int, int], int] = {}

    def cells_of(self, x: Floats) -> Ints:
        """The cell of each row of ``x`` (b, d)."""
        return self.cells.of(np.asarray(x, dtype=np.float32))

    def apply(self, x: Floats, probs: Floats) -> Floats:
        """Marked answers (b, k) for inputs ``x`` (b, d) and the model's answers ``probs`` (b, k); a new array.

        The first-index argmax of every row stays strictly first, rows keep their sums, no entry leaves [0, 1], and the L1
        change is at most epsilon. Rows too close to a tie are left alone, and so are answers with fewer than two columns.
        """
        if probs.shape[1] < 2 or self._room == 0.0:
            return np.array(probs, dtype=np.float64)
        rows = np.asarray(x, dtype=np.float32)
        cells = self.cells.of(rows).tolist()
        return np.array([self._mark(*each) for each in zip(rows, cells, probs.tolist(), strict=True)])

    def apply_one(self, x: NDArray[np.floating], answer: list[float]) -> list[float]:
        """``apply`` for one input ``x`` (1, d): the marked answer, a list, which is quicker on one short row."""
        if len(answer) < 2 or self._room == 0.0:
            return answer
        row = np.asarray(x, dtype=np.float32)[0]
        return self._mark(row, self.cells.of_one(row), answer)

    def _mark(self, row: NDArray[np.float32], cell: int, answer: list[float]) -> list[float]:
        marked, high = answer.copy(), max(answer)
        top, classes = answer.index(high), len(answer)
        if classes == 2:
            shift = self._shift(high, row, cell, top)
            if shift:
                marked[top], marked[1 - top] = high - shift, answer[1 - top] + shift
            return marked
        marked[top] = -1.0
        half = self._half(high - max(marked))
        marked[top] = high
        if half:
            for symbol in self._symbols(row, cell, top, classes - 1):
                marked[symbol + (symbol >= top)] += half
            marked[top] = high - 2.0 * half
        return marked

    def code(self, x: Floats, probs: Floats) -> Code:
        """The symbols that ``apply`` places on inputs ``x`` (n, d) with answers ``probs`` (n, k), k >= 2, for the trace."""
        classes = probs.shape[1]
        rows = np.asarray(x, dtype=np.float32)
        cell = self.cells.of(rows)
        top = probs.argmax(axis=1)
        fine, placed = self.fine(rows, max(2, classes - 1))
        return Code(
            fine=fine,
            smooth=self.smooth(cell, top, classes),
            cell=cell,
            top=top,
            size=self.sizes(probs) * placed,
        )

    def fine(self, x: NDArray[np.floating], alphabet: int) -> tuple[Ints, NDArray[np.bool_]]:
        """The fine symbols of inputs ``x`` (n, d) of so large an ``alphabet``, and which of these carry theirs, (n,) each."""
        found = [self._fine_symbol(row, alphabet) for row in np.asarray(x, dtype=np.float32)]
        symbols, placed = [symbol for symbol, _ in found], [carries for _, carries in found]
        return np.array(symbols, dtype=np.int64), np.array(placed, dtype=np.bool_)

    def signs(self, x: Floats) -> Floats:
        """What moves the answers of a model without classes, (b,): -1 or 1 for each row of ``x`` (b, d), the symbol that it
        carries of two; by profiles of before, which have it carry two, their mean."""
        rows = np.asarray(x, dtype=np.float32)
        cells = self.cells.of(rows).tolist()
        return np.array([sum(self._symbols(row, cell, 0, 2)) - 1.0 for row, cell in zip(rows, cells, strict=True)])

    def smooth(self, cell: Ints, top: Ints, classes: int) -> Ints:
        """The smooth symbols of the regions (``cell``, ``top``), (n,) each, of a model of so many ``classes``."""
        alphabet = max(2, classes - 1)
        regions = zip(cell.tolist(), top.tolist(), strict=True)
        return np.array([self._smooth_symbol(*region, alphabet) for region in regions], dtype=np.int64)

    def sizes(self, probs: Floats) -> Floats:
        """Mass that one symbol moves (for two classes, half the span between its two values), over the most it can, whatever
        the key."""
        two = np.partition(np.asarray(probs, dtype=np.float64), -2, axis=1)[:, -2:]
        if probs.shape[1] == 2:
            moved = [0.25 * sum(self._rooms(high)) for high in two[:, 1].tolist()]
        else:
            moved = [self._half(gap) for gap in (two[:, 1] - two[:, 0]).tolist()]
        return np.array(moved) / max(0.5 * self._room, 1e-12)

    def _half(self, gap: float) -> float:
        """Room of one symbol when the top leads by ``gap``, k > 2: two symbols may hit one class, which then gains 2 · half."""
        half = 0.5 * min(self._room, 0.45 * gap)
        return half if half >= self._unit else 0.0

    def _rooms(self, high: float) -> tuple[float, float]:
        """How far the top probability may fall and rise, k = 2."""
        down, up = min(self._room, 0.95 * (high - 0.5)), min(self._room, 0.8 * (1.0 - high))
        return (down, up) if down >= 4.0 * self._unit else (0.0, 0.0)

    def _shift(self, high: float, row: NDArray[np.float32], cell: int, top: int) -> float:
        down, up = self._rooms(high)
        if not down:
            return 0.0
        gives = sum(self._symbols(row, cell, top, 2))
        return 0.5 * (gives * down - (2 - gives) * up)

    def _symbols(self, row: NDArray[np.float32], cell: int, top: int, alphabet: int) -> tuple[int, int]:
        """The two that an answer carries, each with half of the room."""
        symbol, chosen = self._fine_symbol(row, alphabet)
        if not self._chosen:
            return symbol, self._smooth_symbol(cell, top, alphabet)
        if not chosen:
            symbol = self._smooth_symbol(cell, top, alphabet)
        return symbol, symbol

    def _fine_symbol(self, row: NDArray[np.float32], alphabet: int) -> tuple[int, bool]:
        """The fine symbol, and whether the answer carries it."""
        plain = (row + _ZERO).tobytes()  # a zero has one sign only
        if not self._chosen:
            return int.from_bytes(hashlib.blake2b(plain, digest_size=8, key=self._fine).digest(), "little") % alphabet, True
        drawn = hashlib.blake2b(plain, digest_size=16, key=self._fine).digest()
        return int.from_bytes(drawn[:8], "little") % alphabet, int.from_bytes(drawn[8:], "little") < self._chosen

    def _smooth_symbol(self, cell: int, top: int, alphabet: int) -> int:
        symbol = self._table.get((cell, top))
        if symbol is None:
            name = cell.to_bytes(4, "little") + top.to_bytes(4, "little")
            symbol = int.from_bytes(hashlib.blake2b(name, digest_size=8, key=self._smooth).digest(), "little") % alphabet
            self._table[(cell, top)] = symbol
        return symbol
