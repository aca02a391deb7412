"""The trace code of a model that answers with one number (research): the last digits of each answer carry the account's sign.

An answer is rounded to a unit that is small beside the mark, and then moved up or down by a whole number of units: by the fine
sign of the question, or by the smooth sign of its cell, under the rule by which answers with classes carry theirs
(``perturb``). Signs are uniform and independent under keyed hashing, with a key that is derived for numbers alone; the p-values
rest on nothing else. Source of the e-values: as of ``trace``.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from modelkeep.crypto.kdf import hkdf
from modelkeep.errors import Invalid
from modelkeep.extraction.evalues import Bets, Regions, either, p_of, regions_of
from modelkeep.extraction.perturb import Cells, Marker
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.reading import Heard, first_asked
from modelkeep.extraction.trace import AccountTrail, EpochRead, TraceResult, results_of

Floats = NDArray[np.float64]
Predict = Callable[[Floats], Floats]

STEPS = 8
"""The mark has at least so many units: what rounding adds beside it is small."""
LARGEST = 1e6
"""An answer of more units than that is not marked: its float32 would not hold them."""
WAYS = {"near": (False, 2.0), "plain": (False, 8.0), "far": (False, 32.0), "fitted": (True, 8.0), "fitted-far": (True, 32.0)}
"""How a suspect is read: whether less what is usual, and where the residual is clipped, in sizes of the mark. A copy that holds
every answer it got is read as it is and near; one that is in another unit, or shrinks to the mean, less what is usual."""


def own_error(answers: Floats, truth: Floats) -> float:
    """The model's own error: the root mean square of ``answers`` (n,) less what was ``truth`` (n,). Raises Invalid (another
    shape, not finite, or beyond 1e±100)."""
    if answers.shape != truth.shape or answers.ndim != 1 or not len(answers):
        raise Invalid(f"{answers.shape} answers have no error against {truth.shape} true numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.sqrt(np.mean((answers - truth) ** 2)))
    if found and not 1e-100 < found < 1e100:
        raise Invalid(
            f"the model's error on the reference rows is {found:g}, which is none: look at the array 'y' and its unit"
        )
    return found


class NumberMarker:
    """Marks the answers of one account to one release, one number each.

    ``key``: the account key k_u, 32 bytes; ``size``: the most that an answer changes, above 0, in its own unit. Raises Invalid
    (key length, size, cells of before version 6).
    """

    def __init__(self, key: bytes, cells: Profile | Cells, size: float) -> None:
        if len(key) != 32 or not 1e-300 < size < 1e300:
            raise Invalid(f"a marker of numbers needs a 32-byte key and a size above 0, not {len(key)} bytes and {size}")
        self._marker = Marker(hkdf(key, salt=b"", info=b"modelkeep/trace-numbers/1"), cells, 0.0)
        self.cells = self._marker.cells
        if not self.cells.fine:
            raise Invalid("numbers are marked by profiles of version 7: publish the model again")
        self.decimals = math.ceil(math.log10(STEPS / size))
        self._moved = math.floor(size * 10.0**self.decimals - 0.6) * 10.0**-self.decimals  # half a unit is for rounding

    def apply(self, x: Floats, answers: Floats) -> Floats:
        """Marked answers (b,) for inputs ``x`` (b, d) and the model's finite ``answers`` (b,); a new array.

        No answer changes by more than ``size``, and each that is marked does change; the mean over keys is the answer,
        rounded. Answers of more than ``LARGEST`` units are left alone, and so is what is no number.
        """
        small = np.abs(answers) < LARGEST * 10.0**-self.decimals
        rounded = np.round(np.where(small, answers, 0.0), self.decimals)
        marked = np.round(rounded + self._moved * self._marker.signs(x), self.decimals)
        return np.where(small, marked, answers)

    def fine(self, x: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The fine symbols 0, 1 of inputs ``x`` (n, d), and which of these carry theirs, (n,) each."""
        return self._marker.fine(x, 2)

    def smooth(self, cell: NDArray[np.int64]) -> NDArray[np.int64]:
        """The smooth symbols 0, 1 of cells (n,)."""
        return self._marker.smooth(cell, np.zeros_like(cell), 2)

    def cells_of(self, x: Floats) -> NDArray[np.int64]:
        """The cell of each row of ``x`` (n, d)."""
        return self._marker.cells_of(x)


class NumberReading:
    """How a suspect is read: its answers in the model's unit, less what is usual where the model answers so, fitted on answers
    to probes without any key."""

    def __init__(self, probes: Heard, size: float) -> None:
        """``probes``: both models' answers (m, 1); ``size``: of the mark, as served. Raises Invalid (other shapes)."""
        clean, read = probes.clean, probes.read
        if clean.shape != read.shape or clean.ndim != 2 or clean.shape[1] != 1:
            raise Invalid(f"the suspect answers {read.shape} and the model {clean.shape}: both must give one number a row")
        self._probes, self._size = probes, size
        self._unit = _fit(np.stack([np.ones(len(read)), read[:, 0]], axis=1), clean[:, 0])
        middle, spread = float(clean.mean()), float(clean.std())
        self._middle, self._spread = middle, spread if spread > 0.0 else 1.0
        self._usual = _fit(self._terms(clean[:, 0]), self._in_unit(read[:, 0]) - clean[:, 0])
        self._scores = self._read(probes)
        self._regions: dict[Cells, Regions] = {}

    def __len__(self) -> int:
        """How many probes."""
        return len(self._probes.x)

    def weigh(self, key: bytes, cells: Profile | Cells, asked: Heard | None) -> tuple[float, dict[str, float]]:
        """The p-value for one account key, and log10 of its e-values by kind. ``asked``: the account's distinct questions."""
        marker = NumberMarker(key, cells, self._size)
        regions = self._regions_of(marker)
        symbols = marker.smooth(regions.cell)
        smooth = [bets.log_e(symbols) for bets in regions.bets]
        fine = [0.0 for _ in WAYS]
        if asked is not None:
            told, placed = marker.fine(asked.x)
            fine = [Bets(scores[placed]).log_e(told[placed]) for scores in self._read(asked)]
        total = either(fine, smooth)
        statistics = {"questions": float(0 if asked is None else len(asked.x)), "probes": float(len(self))}
        statistics |= {f"fine-{name}": value / math.log(10) for name, value in zip(WAYS, fine, strict=True)}
        statistics |= {f"smooth-{name}": value / math.log(10) for name, value in zip(WAYS, smooth, strict=True)}
        return p_of(total), statistics | {"all": total / math.log(10)}

    def _read(self, heard: Heard) -> list[Floats]:
        """Scores (n, 2) within -1 ... 1 of a fall and of a rise, in every way."""
        clean = heard.clean[:, 0]
        fitted = self._in_unit(heard.read[:, 0]) - clean - self._terms(clean) @ self._usual
        plain = heard.read[:, 0] - clean
        ways = [((fitted if less else plain) / (times * self._size)) for less, times in WAYS.values()]
        found = [np.clip(each, -1.0, 1.0) for each in ways]
        return [np.stack([-each, each], axis=1) for each in found]

    def _in_unit(self, read: Floats) -> Floats:
        out: Floats = self._unit[0] + self._unit[1] * read
        return out

    def _terms(self, clean: Floats) -> Floats:
        scaled = (clean - self._middle) / self._spread
        return np.stack([np.ones(len(scaled)), scaled, scaled**2], axis=1)

    def _regions_of(self, marker: NumberMarker) -> Regions:
        name = marker.cells
        if name not in self._regions:
            cell = marker.cells_of(self._probes.x)
            self._regions[name] = regions_of(cell, np.zeros_like(cell), np.ones(len(cell)), self._scores)
        return self._regions[name]


def hear_numbers(suspect: Predict, victim: Predict, x: Floats) -> Heard:
    """What both answer to ``x`` (n, d), one number a row. Raises Invalid (answers that are not finite (rows, 1))."""
    return Heard(x, one_number(victim(x), len(x)), one_number(suspect(x), len(x)))


def one_number(found: Floats, rows: int) -> Floats:
    """Answers as finite (rows, 1). Raises Invalid."""
    out = np.asarray(found, dtype=np.float64)
    if out.shape not in ((rows,), (rows, 1)) or not np.isfinite(out).all():
        raise Invalid(f"the suspect of a regression must answer one finite number a row, not shape {out.shape} for {rows} rows")
    return out.reshape(rows, 1)


def trace_numbers(
    suspect: Predict, victim: Predict, accounts: Sequence[AccountTrail], profile: Profile, *, probes: Heard, size: float
) -> list[TraceResult]:
    """Test every account, as ``trace.trace`` does; ``probes``: what both models answered to inputs not chosen with any key;
    ``size``: of the mark, as served. Raises Invalid (answers that are no numbers, an epoch of an account twice)."""
    reading = NumberReading(probes, size)

    def read(trail: AccountTrail) -> EpochRead:
        x = trail.x[first_asked(trail.x)]
        asked = hear_numbers(suspect, victim, x) if len(x) else None
        return EpochRead(trail.epoch, reading.weigh(trail.key, profile, asked)[1], asked)

    return results_of(accounts, read)


def _fit(terms: Floats, wanted: Floats) -> Floats:
    found = np.linalg.lstsq(terms, wanted, rcond=None)[0]
    return np.asarray(found, dtype=np.float64)
