"""The ladder: what an account gets at each rung, as one table that an owner can edit.

No rung below the last changes a top-1 answer. The rungs below the alarm are silent and reversible; the alarm waits for a
person; only a person's decision leads to the last rung.
"""

import math
import tomllib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]


class Rung(IntEnum):
    """Where an account stands. Higher is stricter."""

    MARK = 0
    COARSE = 1
    QUANTISED = 2
    LABELS = 3
    CHALLENGE = 4
    ALARM = 5
    SANCTION = 6

    @property
    def text(self) -> str:
        """Its name in the table, such as ``quantised``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Step:
    """What one rung means.

    ``odds``: evidence (M + R) / 2 from which it holds; ``spent``: share of the information budget from which it holds (infinity
    = it never leads here). The alarm holds from 1 / alpha, the last rung by a review. ``grain``: confidences are multiples of
    1 / grain, 0 = only the label is told; ``rate``: factor on the account's rate limits; ``step_up``: a recent second factor
    is asked for; ``work``: each row is answered for 2^work hashes, 0 = for none (with ``step_up``, either does); ``refuse``:
    nothing is answered; ``deceive``: share of the regions whose answers are false; ``flips``: share of the spots whose labels
    are flipped, as one account's review says, and no table.
    """

    odds: float
    spent: float
    grain: int
    rate: float
    step_up: bool = False
    refuse: bool = False
    deceive: float = 0.0
    work: int = 0
    flips: float = 0.0

    told: str = field(init=False)
    """What an API user is told about the answers here; made once, for it goes with answers."""
    asks_factor: bool = field(init=False)
    """Whether nothing but a recent second factor does."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "asks_factor", self.step_up and not self.work)
        object.__setattr__(self, "told", self._words())

    def _words(self) -> str:
        decimals = round(math.log10(self.grain)) if self.grain else 0
        if self.refuse:
            answers = "this account waits for a review"
        elif not self.grain:
            answers = "answers are labels only"
        elif self.grain == 10**decimals:
            answers = f"confidences have {decimals} decimals"
        else:
            answers = f"confidences are multiples of 1/{self.grain}"
        return answers if self.refuse else ", ".join((answers, *self._price()))

    def _price(self) -> tuple[str, ...]:
        """What an answer takes here that it does not take usually."""
        rate = () if self.rate == 1.0 else (f"at {self.rate:g} of the usual rate",)
        instead = " or a recent second factor" if self.step_up else ""
        return (*rate, f"for {1 << self.work:,} hashes of work a row{instead}") if self.work else rate

    def tells(self, *, confidences: bool) -> str:
        """``told``, or of a model without confidences what is left of it: the price. "" when the answers are as usual."""
        if confidences or self.refuse:
            return self.told
        price = ", ".join(self._price())
        return price and f"answers come {price}"


class Ladder(NamedTuple):
    """The table. ``steps``: one for each ``Rung``; ``held``: the rungs below the alarm that there are, ascending;
    ``questions``: natural questions that an account may learn from in a period of ``days``; ``caution``: factor on the budget
    of an account that matches threat intelligence; ``case``: on that of one in a cluster that is accused, until its review;
    ``cluster``: times one account's questions that the accounts of a cluster may learn from together (infinity = any)."""

    steps: tuple[Step, ...]
    held: tuple[Rung, ...]
    questions: float
    days: int
    caution: float
    case: float
    cluster: float = math.inf

    @property
    def drifting(self) -> Rung:
        """The highest rung that evidence leads to while the population drifts: up to ``quantised``, where answers still have
        confidences."""
        told = (rung for rung in self.held if rung <= Rung.QUANTISED and self.steps[rung].grain)
        return max(told, default=Rung.MARK)

    def rung(self, evidence: float, spent: float, *, alarmed: bool, drifting: bool = False) -> Rung:
        """The rung for evidence (M + R) / 2 and the share of the budget that is spent; more of either never leads lower.

        The budget alone never reaches ALARM, and nothing but a review reaches SANCTION. ``drifting``: the account is part of a
        population that drifted, and its evidence counts for no more than the rung ``drifting``.
        """
        if alarmed:
            return Rung.ALARM
        most = self.drifting if drifting else Rung.ALARM
        for rung in reversed(self.held):
            step = self.steps[rung]
            if (evidence >= step.odds and rung <= most) or spent >= step.spent:
                return rung
        return Rung.MARK


_Unit = Annotated[float, Meta(gt=0.0, le=1.0)]
_Decimals = Annotated[int, Meta(ge=1, le=6)]
_Levels = Annotated[int, Meta(ge=2, le=1000)]
_Share = Annotated[float, Meta(gt=0.0, le=1e6)]
_Bits = Annotated[int, Meta(ge=0, le=26)]
_LEAST_BITS = 8
_KEEP = msgspec.UNSET


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One rung as the table has it. What is left out is as on the rung below."""

    odds: Annotated[float, Meta(gt=1.0, le=1e12)] | None = None
    budget: _Share | None = None
    decimals: _Decimals | msgspec.UnsetType = _KEEP
    levels: _Levels | msgspec.UnsetType = _KEEP
    answer: Literal["confidences", "label-only", "refuse"] | msgspec.UnsetType = _KEEP
    rate: _Unit | msgspec.UnsetType = _KEEP
    step_up: bool | msgspec.UnsetType = _KEEP
    work: _Bits | msgspec.UnsetType = _KEEP
    deceive: _Unit | msgspec.UnsetType = _KEEP


class _Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    questions: Annotated[float, Meta(gt=0.0, le=1e9)] = 1000.0
    days: Annotated[int, Meta(ge=1, le=3650)] = 30
    caution: _Unit = 0.5
    case: _Unit = 0.25
    cluster: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alarm: _Row
    budget: _Budget = _Budget()
    mark: _Row = _Row(decimals=4)
    coarse: _Row | None = None
    quantised: _Row | None = None
    labels: _Row | None = None
    challenge: _Row | None = None
    sanction: _Row | None = None


SHIPPED = """\
# What an account gets, by its evidence ("odds" against an honest account) and the share of its information "budget" that is
# spent: the highest rung holds of which either is reached. What a rung leaves out is as on the one below.

[budget]
questions = 1000    # natural questions that an account may learn from
days = 30           # in so many days
caution = 0.5       # of that for an account that matches threat intelligence
case = 0.25         # of that for an account in a group that is accused of acting as one, until its review
cluster = 5         # times one account's questions for all accounts together that share a network or a sign-up hour (0 = any)

[mark]              # everybody: marked answers
decimals = 4

[coarse]
odds = 30
budget = 0.8
decimals = 2

[quantised]
odds = 200
budget = 1.0
levels = 4          # confidences are quarters
rate = 0.1          # of the usual limits

[labels]
odds = 500
budget = 2.0
answer = "label-only"

# [challenge]       # one more rung before the alarm
# odds = 700
# budget = 4.0
# step-up = true    # a recent second factor is asked for,
# work = 20         # or 2^20 hashes for each row, about a second of one core: machines have no person at hand

[alarm]             # from odds of 1 / extraction.alpha on, until a person has looked at the account
answer = "refuse"   # or "label-only"; while this ladder, which ships, holds, the setting extraction.on_alarm decides

[sanction]          # only by 'modelkeep review --outcome deceived': answers that look right
deceive = 0.3       # and have another class on top for this share of the questions
"""
"""The ladder that ships, to read or to begin another from."""


def parse_ladder(text: str) -> Ladder:
    """Read a table. Raises Invalid: it is no table, loosens on a higher rung, or leaves the alarm without a consequence."""
    try:
        table = msgspec.convert(tomllib.loads(text), _Table)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as cause:
        raise Invalid(f"this is no ladder: {cause}") from cause
    steps: list[Step] = []
    held: list[Rung] = []
    for rung in Rung:
        row: _Row | None = getattr(table, rung.text)
        below = steps[-1] if steps else Step(0.0, 0.0, 10**6, 1.0)
        if row is None:
            steps.append(_absent(rung, below))
            continue
        _check_conditions(rung, row, [steps[each] for each in held])
        step = _read(rung, row, below)
        if rung is not Rung.SANCTION:
            _check_tightens(rung, step, below)
        steps.append(step)
        if Rung.MARK < rung < Rung.ALARM:
            held.append(rung)
    lent = table.budget
    if 0.0 < lent.cluster < 1.0:
        raise Invalid("[budget] gives a cluster less than one account alone: 'cluster' is 0 (it has none) or at least 1")
    cluster = lent.cluster or math.inf
    return Ladder(tuple(steps), tuple(held), lent.questions, lent.days, lent.caution, lent.case, cluster)


def _absent(rung: Rung, below: Step) -> Step:
    """A rung that the table leaves out: never reached; without a last rung a sanctioned account is refused."""
    refuse = below.refuse or rung is Rung.SANCTION
    return Step(math.inf, math.inf, below.grain, below.rate, below.step_up, refuse, work=below.work)


def _read(rung: Rung, row: _Row, below: Step) -> Step:
    said: dict[str, Any] = {name: value for name in row.__struct_fields__ if (value := getattr(row, name)) is not _KEEP}
    if rung is Rung.SANCTION:
        if set(said) - {"odds", "budget", "deceive", "rate", "decimals"} or "deceive" not in said:
            raise Invalid(
                "[sanction] says which share of the answers is false ('deceive'), and 'decimals' and 'rate' if need be"
            )
        return Step(math.inf, math.inf, 10 ** said.get("decimals", 2), said.get("rate", below.rate), deceive=said["deceive"])
    answer = said.get("answer", "")
    if answer == "refuse" and rung is not Rung.ALARM:
        raise Invalid(f"[{rung.text}] refuses: before the alarm an account is slowed and told less, and not refused")
    if rung is Rung.ALARM and answer not in ("refuse", "label-only"):
        raise Invalid("[alarm] must have a consequence: answer = 'refuse' or 'label-only'")
    if "deceive" in said:
        raise Invalid(f"[{rung.text}] deceives: that is only for [sanction], after a review that says so")
    if "levels" in said and "decimals" in said:
        raise Invalid(f"[{rung.text}] has decimals and levels: give one of them")
    if 0 < said.get("work", 0) < _LEAST_BITS:
        raise Invalid(f"[{rung.text}] asks for work that costs nothing: 'work' is 0 (none) or {_LEAST_BITS} to 26 bits")
    grain = below.grain
    if answer in ("refuse", "label-only"):
        grain = 0
    elif "levels" in said:
        grain = said["levels"]
    elif "decimals" in said:
        grain = 10 ** said["decimals"]
    elif answer == "confidences" and not grain:
        grain = 10**6
    start = 0.0 if rung is Rung.MARK else math.inf
    return Step(
        odds=start if row.odds is None else row.odds,
        spent=start if row.budget is None else row.budget,
        grain=grain,
        rate=said.get("rate", below.rate),
        step_up=said.get("step_up", below.step_up),
        refuse=answer == "refuse",
        work=said.get("work", below.work),
    )


def _check_conditions(rung: Rung, row: _Row, lower: list[Step]) -> None:
    """Raises Invalid: nothing or too much leads to the rung, or it is reached before a lower one."""
    if rung in (Rung.MARK, Rung.ALARM, Rung.SANCTION):
        if row.odds is not None or row.budget is not None:
            raise Invalid(f"[{rung.text}] has no condition of its own: leave 'odds' and 'budget' out")
        return
    if row.odds is None and row.budget is None:
        raise Invalid(f"nothing leads to [{rung.text}]: give it 'odds' or 'budget'")
    for name, mine, others in (("odds", row.odds, [s.odds for s in lower]), ("budget", row.budget, [s.spent for s in lower])):
        if mine is not None and any(mine < other < math.inf for other in others):
            raise Invalid(f"[{rung.text}] is reached at less {name} than a rung below it")


def _check_tightens(rung: Rung, step: Step, below: Step) -> None:
    """Raises Invalid when an account would get more on this rung than on the one below."""
    if rung is Rung.MARK:
        return
    if step.grain > below.grain:
        raise Invalid(f"[{rung.text}] tells more than the rung below it: confidences only become coarser upwards")
    if step.rate > below.rate:
        raise Invalid(f"[{rung.text}] has a higher rate than the rung below it")
    _check_asks(rung, step, below)


def _check_asks(rung: Rung, step: Step, below: Step) -> None:
    """Raises Invalid when what would not do on the rung below does here: a factor, work, less work, or neither."""
    if not (below.step_up or below.work):
        return
    if not (step.step_up or step.work):
        asked = "second factor" if below.step_up else "work"
        raise Invalid(f"[{rung.text}] asks for no {asked}, and the rung below it does")
    if step.work and (not below.work or step.work < below.work):
        raise Invalid(f"[{rung.text}] takes work that the rung below it does not: give that as much, or this none ('work = 0')")
    if step.step_up and not below.step_up:
        raise Invalid(f"[{rung.text}] takes a second factor for work, and the rung below it does not: let both, or neither")


DEFAULT = parse_ladder(SHIPPED)
LABEL_ONLY = parse_ladder(SHIPPED.replace('answer = "refuse"', 'answer = "label-only"'))
"""The ladder that ships with what the setting ``extraction.on_alarm`` says."""


def respond(step: Step, probs: Floats, decimals: int = 4) -> Floats:
    """What leaves the house: ``probs`` as coarse as ``step`` asks, with the same top-1 in every row.

    ``probs``: shape (b, k), k >= 2 classes; a first-index argmax decides ties, before and after. ``decimals``: the model's own
    setting; the step can only lower it. Without a grain the answer is one-hot. Rows need not sum to 1 exactly after rounding.
    """
    top = probs.argmax(axis=1)
    if not step.grain:
        out = np.zeros_like(probs)
        out[np.arange(len(probs)), top] = 1.0
        return out
    scale = float(min(step.grain, 10**decimals))
    out = np.rint(probs * scale) / scale
    moved = out.argmax(axis=1) != top
    if moved.any():  # rounding made a tie that an earlier class would win: lift the true top by one unit
        hit = np.flatnonzero(moved)
        out[hit, top[moved]] = np.rint((out[hit].max(axis=1) + 1.0 / scale) * scale) / scale
    return out


def respond_one(step: Step, answer: list[float], decimals: int = 4) -> list[float]:
    """``respond`` for one row, as a list: the same numbers, three times as quick."""
    top = answer.index(max(answer))
    if not step.grain:
        return [float(i == top) for i in range(len(answer))]
    scale = float(min(step.grain, 10**decimals))
    out = [round(value * scale) / scale for value in answer]
    best = max(out)
    if out.index(best) != top:
        out[top] = round((best + 1.0 / scale) * scale) / scale
    return out
