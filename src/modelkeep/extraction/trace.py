"""Which account's answers taught this suspect? One p-value per account, valid for any suspect made without the account's key.

For a suspect independent of the key, every symbol is uniform given the questions and earlier symbols, also when a thief chose
his questions by earlier answers, and the smooth symbols are read on probes that do not depend on the key (``probes``). Fine and
smooth symbols have independent keys, so the product of their e-values (``evalues``) is one too; so have the epochs of an
account, of which the run that says most is taken and corrected for how many runs there are.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction.evalues import p_of
from modelkeep.extraction.flips import spots_of
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.reading import Flipped, Heard, Lied, Predict, Reading, first_asked, hear

Floats = NDArray[np.float64]

WORTH = math.log(10.0)
"""Of an epoch, as the log of an e-value: less than that, and its key is better not opened."""


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
