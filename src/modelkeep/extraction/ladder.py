"""The ladder: what an account gets at each rung, as one table.

No rung changes a top-1 answer. Rungs 0 to 2 are silent and reversible; rung 3 is the alarm, which waits for a person.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Rung(IntEnum):
    """Where an account stands. Higher is stricter."""

    MARK = 0
    COARSE = 1
    QUANTISED = 2
    ALARM = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table.

    ``odds``: evidence (M + R) / 2 from which the rung holds, before the alarm threshold 1 / alpha; ``spent``: share of the
    information budget from which it holds (infinity = the budget never leads here); ``decimals``: most decimals answered;
    ``levels``: confidences are rounded to multiples of 1 / levels (0 = not); ``rate``: factor on the account's rate limit;
    ``told``: what the account is told.
    """

    odds: float
    spent: float
    decimals: int
    levels: int
    rate: float
    told: str


TABLE: dict[Rung, Step] = {
    Rung.MARK: Step(0.0, 0.0, 4, 0, 1.0, "confidences have four decimals"),
    Rung.COARSE: Step(30.0, 0.8, 2, 0, 1.0, "confidences have two decimals"),
    Rung.QUANTISED: Step(200.0, 1.0, 2, 4, 0.1, "confidences are coarse and the rate limit is a tenth"),
    Rung.ALARM: Step(math.inf, math.inf, 0, 1, 0.0, "the account waits for a review"),
}


def rung_of(evidence: float, spent: float, *, alarmed: bool) -> Rung:
    """The rung for evidence (M + R) / 2 and the share of the budget that is spent. The budget alone never reaches ALARM."""
    if alarmed:
        return Rung.ALARM
    held = Rung.MARK
    for rung in (Rung.COARSE, Rung.QUANTISED):
        if evidence >= TABLE[rung].odds or spent >= TABLE[rung].spent:
            held = rung
    return held


def respond(rung: Rung, probs: Floats, decimals: int = 4) -> Floats:
    """What leaves the house: ``probs`` as coarse as the rung asks, with the same top-1 in every row.

    ``probs``: shape (b, k), k >= 2 classes; a first-index argmax decides ties, before and after. ``decimals``: the model's own
    setting; the rung can only lower it. At ALARM the answer is one-hot (for ``on_alarm = "label-only"``; the gateway refuses
    instead when the setting is ``"refuse"``). Rows need not sum to 1 exactly after rounding.
    """
    step = TABLE[rung]
    top = probs.argmax(axis=1)
    if rung is Rung.ALARM:
        out = np.zeros_like(probs)
        out[np.arange(len(probs)), top] = 1.0
        return out
    places = min(decimals, step.decimals)
    unit = 1.0 / step.levels if step.levels else 10.0**-places
    out = np.rint(probs * step.levels) / step.levels if step.levels else np.round(probs, places)
    moved = out.argmax(axis=1) != top
    if moved.any():  # rounding made a tie that an earlier class would win: lift the true top by one unit
        hit = np.flatnonzero(moved)
        best = out[hit].max(axis=1)
        out[hit, top[moved]] = best + unit if step.levels else np.round(best + unit, places)
    return out


def respond_one(rung: Rung, answer: list[float], decimals: int = 4) -> list[float]:
    """``respond`` for one row, as a list: the same numbers, three times as quick."""
    step, high = TABLE[rung], max(answer)
    top = answer.index(high)
    if rung is Rung.ALARM:
        return [float(i == top) for i in range(len(answer))]
    scale = float(step.levels or 10 ** min(decimals, step.decimals))
    out = [round(value * scale) / scale for value in answer]
    best = max(out)
    if out.index(best) != top:
        out[top] = best + 1.0 / scale if step.levels else round((best + 1.0 / scale) * scale) / scale
    return out
