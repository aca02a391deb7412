"""Which account's answers taught this suspect? One p-value per account, valid for any suspect made without the account's key.

For a suspect independent of the key, every symbol is uniform given the questions and earlier symbols. With scores M_i[a]
that use no other answer, prod_i exp(l M_i[a_i]) / mean_a exp(l M_i[a]) is a martingale with mean 1, for every l, also when a
thief chose his questions by earlier answers; so is its mean over a fixed grid of l. The smooth symbols are read on probes
that do not depend on the key. Fine and smooth symbols have independent keys, so the product of their e-values is one too; so
have the epochs of an account, of which the run that says most is taken and corrected for how many runs there are. By Markov's
inequality p = 1 / e is a p-value. Source: Vovk and Wang 2021, "E-values: calibration, combination and applications", section 2.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction.deceive import is_false
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.flips import Flipper, Spots, Told, first_of, flip_scores, spots_of
from modelkeep.extraction.perturb import Cells, Code, Marker
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]

GRID = tuple(2.0**k for k in range(-5, 5))
"""Values of l, fixed beforehand; scores are clipped to -1 ... 1."""
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
SMALLEST = 1e-300
WORTH = math.log(10.0)
"""Of an epoch, as the log of an e-value: less than that, and its key is better not opened."""
USUALLY = 0.9
"""In this share of its answers a suspect that tells its leading classes alone tells as many as it ever does."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """Inputs ``x`` (n, d), what the model answers to them without a mark, ``clean`` (n, k), and what the suspect does, ``read``
    (n, k)."""

    x: Floats
    clean: Floats
    read: Floats


@dataclass(frozen=True, slots=True, eq=False)
class AccountTrail:
    """What one account asked in one epoch: ``x`` (n, d) in order, ``key`` its 32-byte account key then; ``deceived``: of these
    the rows that it asked while a review had it answered falsely in a ``share`` of the regions, 0 = it never was; ``flipped``,
    ``flips``: the same of flipped labels; ``epochs``: how many keys it ever had.
    """

    subject: str
    key: bytes
    x: Floats
    share: float = 0.0
    deceived: Floats | None = None
    flips: float = 0.0
    flipped: Floats | None = None
    epoch: int = 0
    epochs: int = 1


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


@dataclass(frozen=True, slots=True, eq=False)
class EpochRead:
    """What the key of one ``epoch`` says. ``statistics``: log10 of the e-values, by kind, and how many questions and probes
    they rest on, and of all together (``all``); ``heard``: the distinct questions, and both models' answers, None where nothing
    was asked; ``lied``, ``flipped``: those of a deceived account."""

    epoch: int
    statistics: dict[str, float]
    heard: Heard | None = None
    lied: Lied | None = None
    flipped: Flipped | None = None


@dataclass(frozen=True, slots=True)
class TraceResult:
    """``p_value``: chance of evidence this strong for a suspect independent of the account's keys; ``p_bonferroni``: times the
    number of accounts, at most 1; ``statistics``: as of an epoch, summed over ``run``, and ``all`` less what the choice of that
    run costs; ``run``: the epochs in a row that say most, in which it asked something; ``epochs``: how many keys it ever had.
    """

    subject: str
    p_value: float
    p_bonferroni: float
    statistics: dict[str, float]
    run: tuple[EpochRead, ...] = ()
    epochs: int = 1


def probe_seed(beacon: bytes, suspect: bytes) -> int:
    """The seed of probes for a suspect with the SHA-256 ``suspect`` (32 bytes) by a value that nobody could know when the
    suspect was fixed: SHA-256 over a domain tag, the beacon's SHA-256 and the suspect's."""
    said = b"modelkeep/probes/1" + hashlib.sha256(beacon).digest() + suspect
    return int.from_bytes(hashlib.sha256(said).digest(), "big")


def draw_probes(profile: Profile, count: int, seed: int) -> Floats:
    """``count`` inputs (count, d) like natural rows, from the profile alone: points between a remembered row and one of its
    near neighbours. Draw them once the suspect is fixed, with a seed that neither side chose alone (a public beacon).
    """
    rng = np.random.default_rng(seed)
    memory = profile.embedding.memory
    first = rng.integers(len(memory), size=count)
    gaps = ((memory[first][:, None] - memory[None]) ** 2).sum(axis=2)
    second = np.argsort(gaps, axis=1)[np.arange(count), rng.integers(1, min(6, len(memory)), size=count)]
    mix = rng.uniform(0.0, 0.5, size=(count, 1))
    points = (1 - mix) * memory[first] + mix * memory[second]
    rows = profile.embedding.mean + profile.embedding.scale * (points @ profile.embedding.basis.T)
    return np.clip(rows, profile.embedding.low, profile.embedding.high).astype(np.float32).astype(np.float64)


class Reading:
    """How a suspect is read: functions fitted on answers to probes, without any key, and the scores of the probes."""

    def __init__(self, probes: Heard, epsilon: float) -> None:
        """``epsilon``: as served. Raises Invalid (answers of another shape, fewer than two classes)."""
        clean, read = probes.clean, probes.read
        if clean.shape != read.shape or clean.ndim != 2 or clean.shape[1] < 2:
            raise Invalid(
                f"the suspect answers {read.shape} and the model {clean.shape}: both must give the same two or more classes"
            )
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
        fine = [0.0 for _ in self._readers]
        if asked is not None:
            code = marker.code(asked.x, asked.clean)
            whole = _completed(asked.clean, asked.read) if self._named else asked.read
            for at, (name, reader) in enumerate(self._readers.items()):
                read = whole if name.startswith("named") else asked.read
                fine[at] = _fine_evidence(code, reader.scores(asked.clean, read))
        known, false = len(TRANSFORMS), 0.0
        first, later = either(fine[:known], smooth[:known]), either(fine[known:], smooth[known:])
        total = float(np.logaddexp(math.log1p(-LATER) + first, math.log(LATER) + later))
        if lied is not None:
            false = _false_evidence(marker, lied, self._probes)
            total = _log_mean(np.array([total, false]))
        flips = 0.0 if flipped is None else _flip_evidence(key, flipped, self._probes)
        if flipped is not None:  # by a key of its own, of questions in their order: the product is an e-value, too
            total = _log_mean(np.array([total, flips, total + flips]))
        p = p_of(total)
        statistics = {"questions": float(0 if asked is None else len(asked.x)), "probes": float(len(self._probes.x))}
        statistics |= {f"fine-{name}": value / math.log(10) for name, value in zip(self._readers, fine, strict=True)}
        statistics |= {f"smooth-{name}": value / math.log(10) for name, value in zip(self._readers, smooth, strict=True)}
        statistics |= {"false": false / math.log(10)} if lied is not None else {}
        statistics |= {"flips": flips / math.log(10)} if flipped is not None else {}
        return p, statistics | {"all": total / math.log(10)}

    def _regions_of(self, marker: Marker, decimals: int) -> "Regions":
        """The probes by region, which are the same for every key: one of a hundred thousand accounts is weighed in no time."""
        name = marker.cells, decimals
        if name not in self._regions:
            cell, top = marker.cells_of(self._probes.x), self._probes.clean.argmax(axis=1)
            self._regions[name] = regions_of(cell, top, marker.sizes(self._probes.clean), self._scores)
        return self._regions[name]


def hear(suspect: Predict, victim: Predict, x: Floats) -> Heard:
    """What both answer to ``x`` (n, d). Raises Invalid (answers that are not finite (rows, classes))."""
    return Heard(x, _answers(victim, x), _answers(suspect, x))


def trace(
    suspect: Predict,
    victim: Predict,
    accounts: Sequence[AccountTrail],
    profile: Profile,
    *,
    probes: Floats | Heard,
    epsilon: float = 0.05,
    decimals: int = 4,
) -> list[TraceResult]:
    """Test every account, smallest p-value first: by the run of its epochs that says most, corrected for how many there are.

    ``suspect``, ``victim``: (b, d) to probabilities (b, k), the victim's without mark; ``probes``: (m, d), not chosen with
    any key, or what both answered to them; ``epsilon``, ``decimals``: as served. Raises Invalid (a model without classes,
    answers of another shape, an epoch of an account twice).
    """
    heard = probes if isinstance(probes, Heard) else hear(suspect, victim, probes)
    reading = Reading(heard, epsilon)

    def read(trail: AccountTrail) -> EpochRead:
        x = trail.x[first_asked(trail.x)]
        asked = hear(suspect, victim, x) if len(x) else None
        lied = None
        if trail.share and trail.deceived is not None and len(trail.deceived):
            lied = Lied(trail.share, hear(suspect, victim, trail.deceived[first_asked(trail.deceived)]))
        flipped = None
        if trail.flips and trail.flipped is not None and len(trail.flipped):
            told = hear(suspect, victim, trail.flipped[first_asked(trail.flipped)])
            flipped = Flipped(trail.flips, spots_of(profile), told)
        _, statistics = reading.weigh(trail.key, profile, asked, lied=lied, flipped=flipped, decimals=decimals)
        return EpochRead(trail.epoch, statistics, asked, lied, flipped)

    return results_of(accounts, read)


def results_of(accounts: Sequence[AccountTrail], read: Callable[[AccountTrail], EpochRead]) -> list[TraceResult]:
    """What ``read`` says of every trail, joined by account, smallest p-value first. Raises Invalid (an epoch twice)."""
    if len({(trail.subject, trail.epoch) for trail in accounts}) != len(accounts):
        raise Invalid("an account appears twice in the trace: join its questions first")
    by_subject: dict[str, list[EpochRead]] = {}
    for trail in accounts:
        by_subject.setdefault(trail.subject, []).append(read(trail))
    epochs = {trail.subject: trail.epochs for trail in accounts}
    results = [_result(subject, found, epochs[subject], len(by_subject)) for subject, found in by_subject.items()]
    return sorted(results, key=lambda result: (result.p_value, result.subject))


def _result(subject: str, read: list[EpochRead], epochs: int, accounts: int) -> TraceResult:
    logs = [0.0] * max(epochs, *(one.epoch + 1 for one in read))
    for one in read:
        logs[one.epoch] = one.statistics["all"] * math.log(10)
    first, last = strongest_run(logs, {one.epoch for one in read})
    run = tuple(sorted((one for one in read if first <= one.epoch <= last), key=lambda one: one.epoch))
    names = dict.fromkeys(name for one in run for name in one.statistics)
    statistics = {name: sum(one.statistics.get(name, 0.0) for one in run) for name in names}
    statistics["probes"] = run[0].statistics["probes"]
    log_e = sum(logs[first : last + 1]) - math.log(runs_of(len(logs)))
    statistics["all"] = log_e / math.log(10)
    p = p_of(log_e)
    return TraceResult(subject, p, min(1.0, p * accounts), statistics, run, len(logs))


def runs_of(epochs: int) -> int:
    """How many runs of epochs there are, which corrects the p-value of the one that says most."""
    return epochs * (epochs + 1) // 2


def strongest_run(logs: Sequence[float], asked: Collection[int]) -> tuple[int, int]:
    """First and last of the epochs in a row with the largest product of e-values, where each that was ``asked`` in must be
    worth a factor of ten, or its key stays closed; the shortest of equal ones. ``logs``: log e-value by epoch, 0 where nothing
    was asked."""
    worth = [log - WORTH if epoch in asked else 0.0 for epoch, log in enumerate(logs)]
    sums = np.concatenate([[0.0], np.cumsum(worth)])
    ends = sorted(asked)
    found = [(-(sums[last + 1] - sums[first]), last - first, first) for first in ends for last in ends if first <= last]
    _, length, first = min(found)
    return first, first + length


def p_of(log_e: float) -> float:
    """The p-value 1 / e, at most 1."""
    return max(min(1.0, math.exp(-max(log_e, 0.0))) if log_e < 690 else SMALLEST, SMALLEST)


def _answers(model: Predict, x: Floats) -> Floats:
    out = np.asarray(model(x), dtype=np.float64)
    if out.ndim != 2 or len(out) != len(x) or not np.isfinite(out).all():
        raise Invalid(f"a traced model must answer finite (rows, classes), not shape {out.shape} for {len(x)} rows")
    return np.clip(out, 0.0, 1.0)


def first_asked(x: Floats) -> Ints:
    """Where each distinct row (as the marker sees it) of ``x`` (n, d) stands first, ascending."""
    if len(x) == 0:
        return np.empty(0, dtype=np.int64)
    _, first = np.unique(fingerprints(x), return_index=True)
    out: Ints = np.sort(first)
    return out


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


class Bets:
    """Scores (n, symbols) of n symbols, to be weighed for any number of keys."""

    def __init__(self, scores: Floats) -> None:
        self._scores, self._norms = scores, []
        for rate in GRID:
            tilted = rate * scores
            high = tilted.max(axis=1)
            self._norms.append(float((high + np.log(np.exp(tilted - high[:, None]).mean(axis=1))).sum()))

    def log_e(self, symbols: Ints) -> float:
        """Log of the mean over ``GRID`` of prod_i exp(l M_i[a_i]) / mean_a exp(l M_i[a]), for ``symbols`` a (n,)."""
        placed = float(self._scores[np.arange(len(symbols)), symbols].sum())
        return _log_mean(np.array([rate * placed - norm for rate, norm in zip(GRID, self._norms, strict=True)]))


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Probes by region (``cell``, ``top``), (regions,) each: the score of its one smooth symbol is the root-scaled sum over the
    probes there. ``bets``: one for each way to read."""

    cell: Ints
    top: Ints
    bets: list[Bets]


def regions_of(cell: Ints, top: Ints, size: Floats, scores: Sequence[Floats]) -> Regions:
    """``cell``, ``top``, ``size``: (m,), as in ``Code``; ``scores``: (m, symbols) each."""
    names = cell * 100_000 + top
    _, first, group, counts = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    bets = []
    for each in scores:
        sums = np.zeros((len(first), each.shape[1]))
        np.add.at(sums, group, each * size[:, None])
        bets.append(Bets(sums / np.sqrt(counts)[:, None]))
    return Regions(cell[first], top[first], bets)


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
    return _log_mean(np.array([_log_false(scores, false, lied.share) for scores in (asked, probed, asked + probed)]))


def _flip_evidence(key: bytes, flipped: Flipped, probes: Heard) -> float:
    """Log e-value of flipped labels: each spot is flipped with the probability ``share`` for a suspect independent of the key.

    The first question in each spot counts. Mean of the e-values of the two ways to read a suspect.
    """
    flipper, heard = Flipper(key, flipped.spots), flipped.heard
    names = flipper.names(heard.x)
    first = first_of(names)
    scores = flip_scores(Told(heard.clean[first], heard.read[first]), Told(probes.clean, probes.read))
    placed = flipper.flips([names[i] for i in first], flipped.share)
    return _log_mean(np.array([_log_false(each, placed, flipped.share) for each in scores]))


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


def _log_false(scores: Floats, false: NDArray[np.bool_], share: float) -> float:
    """Log of the mean over ``GRID`` of prod exp(l S F) / (1 - share + share exp(l S)). ``scores``, ``false``: (regions,)."""
    share, logs = min(share, 1.0 - 1e-12), []
    for rate in GRID:
        tilted = rate * scores
        logs.append(float((tilted * false - np.logaddexp(math.log1p(-share), math.log(share) + tilted)).sum()))
    return _log_mean(np.array(logs))


def either(fine: Sequence[float], smooth: Sequence[float]) -> float:
    """Log of the mean e-value of the fine symbols, of the smooth ones, and of both (independent keys), by every way to read."""
    return _log_mean(np.array([*fine, *smooth, *(f + s for f in fine for s in smooth)]))


def _log_mean(logs: Floats) -> float:
    high = float(logs.max())
    return high + math.log(float(np.exp(logs - high).mean()))
