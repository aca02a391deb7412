"""What the verbs about accounts' standing answer."""

from msgspec import Struct


class BudgetRow(Struct, frozen=True):
    """What an account, or the accounts of a cluster together, learnt of a release in this period, as last written down:
    ``learnt`` natural questions' worth of ``limit``; ``fidelity``: of a simple copy that learnt as much, and by which
    ``measure``: as ``Standing``; ``left``: days until it is spent at the rate of the last
    days, None = it lasts; ``said`` and ``forecast``: the same in words. ``accounts``: names of a cluster's."""

    name: str
    release: str
    learnt: float
    limit: float
    fidelity: float
    measure: str
    left: float | None
    said: str
    forecast: str
    accounts: tuple[str, ...] = ()


class AccountRow(Struct, frozen=True):
    """One account that is not on the lowest rung of the ladder, matches threat intelligence or has spent half of its budget, on
    one release; or a cluster that has spent half of its own. ``cautions``: indicators that it matches."""

    account: str
    release: str
    rung: str
    told: str
    cautions: tuple[str, ...] = ()
    budget: BudgetRow | None = None


class MoveRow(Struct, frozen=True):
    """A change of rung: when (Unix nanoseconds), from which to which, and the odds and the share of the budget behind it.

    ``record``: the audit record, ``<instance>/<index>``.
    """

    at: int
    before: str
    after: str
    odds: str
    share: float
    record: str


class Standing(Struct, frozen=True):
    """An account on one release, from its recorded questions. ``told``: what it is told about its answers; ``learnt`` natural
    questions' worth of ``limit`` in this period; ``fidelity``: of a simple copy that learnt as much, and by which ``measure``:
    "agreement" of top classes, "R²" where the model answers with numbers, "" = it was not measured; ``cases``: those that it is
    in, which lower the limit; ``drifting``: its evidence leads no further, since others' rises with it."""

    release: str
    rung: str
    told: str
    odds: str
    queries: int
    effective: int
    learnt: float
    limit: float
    fidelity: float
    forecast: str
    history: tuple[MoveRow, ...]
    measure: str = "agreement"
    left: float | None = None
    """Days until the budget is spent at the rate of the last days; None = it lasts."""
    said: str = ""
    """What was learnt, in words."""
    cases: tuple[str, ...] = ()
    drifting: bool = False


class AccountExplained(Struct, frozen=True):
    """What is held about an account. ``factor``: times the usual budget, until ``until`` (Unix nanoseconds, 0 = nothing was
    decided); ``reviews``: what people decided, oldest first; ``cautions``: indicators that it matches; ``shared``: budgets that
    it shares with other accounts, of which a tenth or more is spent."""

    account: str
    factor: float
    until: int
    reviews: tuple[str, ...]
    standings: tuple[Standing, ...]
    cautions: tuple[str, ...] = ()
    shared: tuple[BudgetRow, ...] = ()


class BudgetAllowed(Struct, frozen=True):
    """A larger budget: ``factor`` times the usual until ``until`` (Unix nanoseconds)."""

    account: str
    factor: float
    until: int
    log_index: int


class IndicatorsTaken(Struct, frozen=True):
    """What became of a file of indicators: how many are in force, were over already, or say what is not understood."""

    source: str
    in_force: int
    over: int
    passed_over: int
    log_index: int


class IndicatorRow(Struct, frozen=True):
    """One indicator in force: ``source`` and ``id`` say where it is from; it holds from ``since`` until ``until`` (Unix
    nanoseconds, 0 = without end), and does now if ``holds``."""

    kind: str
    value: str
    source: str
    id: str
    since: int
    until: int
    holds: bool
