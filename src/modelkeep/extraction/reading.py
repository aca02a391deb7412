"""How a suspect is read: what it answers beside the model, as scores of the symbols that a key may have placed.

The scores come from functions that are fitted on answers to probes, without any key. They are weighed for as many keys as there
are: the fine symbols on what an account asked, the smooth ones on the probes, false answers and flipped labels where there
were."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction.deceive import is_false
from modelkeep.extraction.evalues import Bets, Regions, either, log_false, log_mean, p_of, regions_of
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.flips import Flipper, Spots, Told, first_of, flip_scores
from modelkeep.extraction.foreseen import surprises
from modelkeep.extraction.perturb import Cells, Code, Marker
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]

TRANSFORMS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "probability": (lambda p: p, 1.6),
    "root": (np.sqrt, 6.0),
    "log": (lambda p: np.log(p + 2e-3), 50.0),
}
"""How a suspect's probabilities are read: a function, and the clip of its residual in units of epsilon."""
DEEP: tuple[Callable[[Floats], Floats], float] = (lambda p: np.log(p + 1e-7), 50.0)
"""The same for a copy that was trained on, on labels: its probabilities are extreme, and the mark is in their logarithms."""
LATER = 0.04
"""Weight of the readings that came later: little, so that p of the reports of before rises by less than they may differ."""
FORESEEN = 0.005
"""Weight of what was not foreseen of two classes, which came later still."""
DOUBTFUL = (math.log(3.0), math.log(1e30))
"""Log e-values between which that is looked at, for it takes seconds; left out it counts as 0, which raises p and no more."""
USUALLY = 0.9
"""In this share of its answers a suspect that tells its leading classes alone tells as many as it ever does."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """Inputs ``x`` (n, d), what the model answers to them without a mark, ``clean`` (n, k), and what the suspect does, ``read``
    (n, k); ``silent``: rows that it answered with no numbers, where ``read`` is the clean answer."""

    x: Floats
    clean: Floats
    read: Floats
    silent: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Lied:
    """What an account asked while it was answered falsely in a ``share`` of the regions, in order."""

    share: float
    heard: Heard


@dataclass(frozen=True, slots=True, eq=False)
class Flipped:
    """What an account asked while the labels in a ``share`` of the ``spots`` were flipped for it, in order."""

    share: float
    spots: Spots
    heard: Heard


class Reading:
    """How a suspect is read: functions fitted on answers to probes, without any key, and the scores of the probes."""

    def __init__(self, probes: Heard, epsilon: float, doubtful: tuple[float, float] = DOUBTFUL) -> None:
        """``epsilon``: as served; ``doubtful``: log e-values between which a key is weighed by what was not foreseen, too.
        Raises Invalid (answers of another shape, fewer than two classes, or none)."""
        clean, read = probes.clean, probes.read
        if clean.shape != read.shape or clean.ndim != 2 or clean.shape[1] < 2:
            raise Invalid(
                f"the suspect answers {read.shape} and the model {clean.shape}: both must give the same two or more classes"
            )
        if probes.silent == len(probes.x):
            raise Invalid("the suspect answers no probe with finite numbers")
        self._probes, self._epsilon, self._named = probes, epsilon, _named(read)
        ways = {**TRANSFORMS, "deep": DEEP}
        self._readers = {name: _fit_reader(way, clean, read, epsilon) for name, way in ways.items()}
        self._scores = [reader.scores(clean, read) for reader in self._readers.values()]
        if self._named:
            whole = _completed(clean, read)
            told = {f"named-{name}": _fit_reader(way, clean, whole, epsilon) for name, way in TRANSFORMS.items()}
            self._readers |= told
            self._scores += [reader.scores(clean, whole) for reader in told.values()]
        self._regions: dict[tuple[Cells, int], Regions] = {}
        self._doubtful = doubtful
        self._surprised: tuple[Heard, Floats, Floats] | None = None

    def __len__(self) -> int:
        """How many probes."""
        return len(self._probes.x)

    def weigh(
        self,
        key: bytes,
        cells: Profile | Cells,
        asked: Heard | None,
        *,
        lied: Lied | None = None,
        flipped: Flipped | None = None,
        decimals: int = 4,
    ) -> tuple[float, dict[str, float]]:
        """The p-value for one account key, and log10 of its e-values by kind.

        ``asked``: the account's distinct questions, None = read the probes alone; ``lied``, ``flipped``: what it asked while it
        was deceived; ``decimals``: as served.
        """
        marker = Marker(key, cells, self._epsilon, decimals)
        regions = self._regions_of(marker, decimals)
        symbols = marker.smooth(regions.cell, regions.top, self._probes.clean.shape[1])
        smooth = [bets.log_e(symbols) for bets in regions.bets]
        fine, code = [0.0 for _ in self._readers], None
        if asked is not None:
            code = marker.code(asked.x, asked.clean)
            whole = _completed(asked.clean, asked.read) if self._named else asked.read
            for at, (name, reader) in enumerate(self._readers.items()):
                read = whole if name.startswith("named") else asked.read
                fine[at] = _fine_evidence(code, reader.scores(asked.clean, read))
        known, false = len(TRANSFORMS), 0.0
        first, later = either(fine[:known], smooth[:known]), either(fine[known:], smooth[known:])
        total = float(np.logaddexp(math.log1p(-LATER) + first, math.log(LATER) + later))
        unforeseen = None
        if asked is not None and code is not None and asked.clean.shape[1] == 2:
            doubt = self._doubtful[0] <= total <= self._doubtful[1]
            unforeseen = self._unforeseen(code, asked) if doubt else -math.inf
            total = float(np.logaddexp(math.log1p(-FORESEEN) + total, math.log(FORESEEN) + unforeseen))
        if lied is not None:
            false = _false_evidence(marker, lied, self._probes)
            total = log_mean(np.array([total, false]))
        flips = 0.0 if flipped is None else _flip_evidence(key, flipped, self._probes)
        if flipped is not None:  # by a key of its own, of questions in their order: the product is an e-value, too
            total = log_mean(np.array([total, flips, total + flips]))
        p = p_of(total)
        statistics = {"questions": float(0 if asked is None else len(asked.x)), "probes": float(len(self._probes.x))}
        statistics |= {f"fine-{name}": value / math.log(10) for name, value in zip(self._readers, fine, strict=True)}
        statistics |= {f"smooth-{name}": value / math.log(10) for name, value in zip(self._readers, smooth, strict=True)}
        if unforeseen is not None and math.isfinite(unforeseen):
            statistics["fine-unforeseen"] = unforeseen / math.log(10)
        statistics |= {"false": false / math.log(10)} if lied is not None else {}
        statistics |= {"flips": flips / math.log(10)} if flipped is not None else {}
        return p, statistics | {"all": total / math.log(10)}

    def _unforeseen(self, code: Code, asked: Heard) -> float:
        """Log e-value of the fine symbols by what was not foreseen of the answers, which is the same for every key."""
        if self._surprised is None or self._surprised[0] is not asked:
            found = surprises((asked.x, asked.clean, asked.read), (self._probes.x, self._probes.clean))
            self._surprised = asked, *found
        _, surprise, error = self._surprised
        scores = surprise * np.minimum(1.0, 0.5 * self._epsilon * code.size / error)
        return Bets(np.stack([-scores, scores], axis=1)).log_e(code.fine)

    def _regions_of(self, marker: Marker, decimals: int) -> "Regions":
        """The probes by region, which are the same for every key: one of a hundred thousand accounts is weighed in no time."""
        name = marker.cells, decimals
        if name not in self._regions:
            cell, top = marker.cells_of(self._probes.x), self._probes.clean.argmax(axis=1)
            self._regions[name] = regions_of(cell, top, marker.sizes(self._probes.clean), self._scores)
        return self._regions[name]


def hear(suspect: Predict, victim: Predict, x: Floats) -> Heard:
    """What both answer to ``x`` (n, d). Raises Invalid (the model's answers are not finite (rows, classes), or the suspect's no
    (rows, classes))."""
    clean = _answers(victim, x)
    if not np.isfinite(clean).all():
        raise Invalid("the model itself does not answer with finite numbers")
    read, silent = filled(clean, _answers(suspect, x))
    return Heard(x, clean, read, silent)


def filled(clean: Floats, read: Floats) -> tuple[Floats, int]:
    """What a suspect answers, ``read`` (n, k), with the clean answer in rows that it answers with what is no number, and how
    many these are. Whoever refuses rows could otherwise forbid the trace; which rows it refuses, no key decides."""
    silent = np.logical_not(np.isfinite(read).all(axis=1))
    if clean.shape != read.shape or not silent.any():
        return read, int(silent.sum())
    return np.where(silent[:, None], clean, read), int(silent.sum())


def first_asked(x: Floats) -> Ints:
    """Where each distinct row (as the marker sees it) of ``x`` (n, d) stands first, ascending."""
    if len(x) == 0:
        return np.empty(0, dtype=np.int64)
    _, first = np.unique(fingerprints(x), return_index=True)
    out: Ints = np.sort(first)
    return out


def _answers(model: Predict, x: Floats) -> Floats:
    out = np.asarray(model(x), dtype=np.float64)
    if out.ndim != 2 or len(out) != len(x):
        raise Invalid(f"a traced model must answer (rows, classes), not shape {out.shape} for {len(x)} rows")
    return np.where(np.isfinite(out), np.clip(out, 0.0, 1.0), np.nan)


def _named(read: Floats) -> int:
    """How many classes a suspect names that tells its leading few (two or more) and no others; 0 = it is no such one."""
    counts = (read > 0.0).sum(axis=1)
    most = int(counts.max(initial=0))
    return most if 2 <= most < read.shape[1] and float((counts == most).mean()) >= USUALLY else 0


def _completed(clean: Floats, read: Floats) -> Floats:
    """``read`` (n, k) with the clean answer where a suspect that names few classes is silent, for silence says nothing: what it
    names shares what the clean answer gives to these classes."""
    silent = read <= 0.0
    shared = np.where(silent, 0.0, clean).sum(axis=1, keepdims=True)
    told = read / np.maximum(read.sum(axis=1, keepdims=True), 1e-12)
    return np.where(silent, clean, told * shared)


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """A fixed function from (clean answer, suspect's answer) to one score per symbol; fitted on the probes alone, without a
    key.

    ``offset``: (k, k) mean residual by (top, class); ``slope``: (2,) on the clean value and its square; ``clip``: of the
    residual.
    """

    change: Callable[[Floats], Floats]
    offset: Floats
    slope: Floats
    clip: float

    def scores(self, clean: Floats, read: Floats) -> Floats:
        """M (n, symbols) within -1 ... 1: the residual of each non-top class; for two classes, minus and plus its fall."""
        top = clean.argmax(axis=1)
        before = self.change(clean)
        residual = self.change(read) - _shape(before, self.slope) - self.offset[top]
        residual = np.clip(residual, -self.clip, self.clip) / self.clip
        rows = np.arange(len(clean))
        if clean.shape[1] == 2:
            fall = residual[rows, 1 - top]
            return np.stack([-fall, fall], axis=1)
        keep = np.ones(clean.shape, dtype=bool)
        keep[rows, top] = False
        out: Floats = residual[keep].reshape(len(clean), -1)
        return out


def _shape(before: Floats, slope: Floats) -> Floats:
    out: Floats = slope[0] * before + slope[1] * before * before
    return out


def _fit_reader(way: tuple[Callable[[Floats], Floats], float], clean: Floats, read: Floats, epsilon: float) -> _Reader:
    change, wide = way
    before, after = change(clean), change(read)
    top, classes = clean.argmax(axis=1), clean.shape[1]
    others = np.ones(clean.shape, dtype=bool)
    others[np.arange(len(clean)), top] = False
    terms = np.stack([before[others], before[others] ** 2], axis=1)
    centred = terms - terms.mean(axis=0)
    slope = np.linalg.solve(centred.T @ centred + 0.05 * np.eye(2), centred.T @ (after[others] - after[others].mean()))
    offset = np.zeros((classes, classes))
    residual = after - _shape(before, slope)
    typical = float(np.median(residual[others]))
    for t in range(classes):
        mine = residual[top == t]
        offset[t] = (mine.sum(axis=0) + 5.0 * typical) / (len(mine) + 5.0)
    return _Reader(change, offset, slope, wide * epsilon)


def _fine_evidence(code: Code, scores: Floats) -> float:
    """Log e-value of the fine symbols over an account's distinct questions."""
    return Bets(scores * code.size[:, None]).log_e(code.fine)


def _false_evidence(marker: Marker, lied: Lied, probes: Heard) -> float:
    """Log e-value of false answers, which labels alone show.

    For a suspect independent of the key each region (cell, top class) is false with the probability ``share``, whatever it
    answers there: on the first question that the account asked there, for only later ones may depend on what was answered, and
    on the probes. Mean of the e-values of the first, of the second, and of both.
    """
    first, there = _told_instead(marker, lied.heard), _told_instead(marker, probes)
    regions = sorted(first.keys() | there.keys())
    false = np.array([is_false(marker.falsity, cell, top, lied.share) for cell, top in regions])
    asked = np.array([first[region][0] if region in first else 0.0 for region in regions])
    probed = np.array([np.sum(there[region]) / np.sqrt(len(there[region])) if region in there else 0.0 for region in regions])
    return log_mean(np.array([log_false(scores, false, lied.share) for scores in (asked, probed, asked + probed)]))


def _flip_evidence(key: bytes, flipped: Flipped, probes: Heard) -> float:
    """Log e-value of flipped labels: each spot is flipped with the probability ``share`` for a suspect independent of the key.

    The first question in each spot counts. Mean of the e-values of the two ways to read a suspect.
    """
    flipper, heard = Flipper(key, flipped.spots), flipped.heard
    names = flipper.names(heard.x)
    first = first_of(names)
    scores = flip_scores(Told(heard.clean[first], heard.read[first]), Told(probes.clean, probes.read))
    placed = flipper.flips([names[i] for i in first], flipped.share)
    return log_mean(np.array([log_false(each, placed, flipped.share) for each in scores]))


def _told_instead(marker: Marker, heard: Heard) -> dict[tuple[int, int], list[float]]:
    """Whether the suspect tells the second class in place of the top, 1 or 0, for the rows of each region, in order."""
    rows = np.arange(len(heard.x))
    told: dict[tuple[int, int], list[float]] = {}
    cell, top = marker.cells_of(heard.x), heard.clean.argmax(axis=1)
    rest = np.array(heard.clean)
    rest[rows, top] = -1.0
    hits = (heard.read.argmax(axis=1) == rest.argmax(axis=1)).astype(np.float64)
    for region, hit in zip(zip(cell.tolist(), top.tolist(), strict=True), hits.tolist(), strict=True):
        told.setdefault(region, []).append(hit)
    return told
