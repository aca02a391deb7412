"""What ``calibrate`` answers."""

from msgspec import Struct

from modelkeep.ledger.predicates import DeclaredTool


class CostRow(Struct, frozen=True):
    """``share`` of an account's distinct questions is beyond every honest row: how many of them are expected until it is
    alarmed, before and after the calibration; 0 = it is never found."""

    share: float
    before: int
    after: int


class ScoreRow(Struct, frozen=True):
    """The bounds of one score at every tau, from the commonest event to the rarest, before and after."""

    score: str
    before: tuple[float, ...]
    after: tuple[float, ...]


class CalibrationDone(Struct, frozen=True):
    """A calibration. ``log_index``: -1 when nothing was logged; ``tools``: declared ones whose rows it was fitted over, in the
    order in which they were given; ``accounts``: real ones over whose ``rows`` it was fitted; ``short``: with too few distinct
    queries (``smallest`` are needed); ``left_out``: accused, or confirmed as thieves; ``widest``: who set how many of the
    bounds; ``smallest_share``: of far-out questions that is found within 500 queries, before and after."""

    ref: str
    log_index: int
    tools: tuple[DeclaredTool, ...]
    accounts: int
    rows: int
    smallest: int
    short: tuple[str, ...]
    left_out: tuple[str, ...]
    widest: dict[str, int]
    scores: tuple[ScoreRow, ...]
    costs: tuple[CostRow, ...]
    smallest_share: tuple[float, float]
