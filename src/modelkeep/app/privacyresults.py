"""What the verbs about privacy answer."""

from msgspec import Struct

from modelkeep.app.results import Attested
from modelkeep.training.membership import Interval, OneRun


class PrivacyRun(Struct, frozen=True):
    """A run that was charged to a data set. ``run``: its name, "" of one that was attested and not reserved; ``state``:
    ``reserved`` (it counts in full until it is known what it did), ``spent`` or ``returned``; ``epsilon`` at ``delta``: alone;
    ``noise_multiplier`` ... ``steps``: of DP-SGD, 0 where only epsilon is known; ``at``: Unix nanoseconds."""

    log_index: int
    run: str
    state: str
    dataset: str
    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    models: tuple[str, ...]
    actor: str
    at: int


class PrivacyLedger(Struct, frozen=True):
    """What is spent of a data set: ``epsilon`` of all runs together, at ``delta``, which is the budget's where one is set.
    ``budget``: the most that it may be, -1 = none is set."""

    name: str
    epsilon: float
    delta: float
    budget: float
    runs: tuple[PrivacyRun, ...]


class PrivacyReserved(Struct, frozen=True):
    """A run that may begin: its name, and what the data set's ledger says with it."""

    run: str
    ledger: PrivacyLedger


class PrivacyBudgeted(Struct, frozen=True):
    """A budget that was set, and the log entry that says so."""

    ledger: PrivacyLedger
    log_index: int


class PrivateModel(Struct, frozen=True):
    """A model that was trained privately. ``repairs``: what was changed in the architecture; ``way``: how gradients were
    clipped; ``noise``: where it came from; ``accuracy``: on the test rows, ``audit``: of the canaries, None without; ``run``,
    ``ledger``, ``logged``: in the keep, "" and None where none was asked."""

    file: str
    digest: str
    rows: int
    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    accountant: str
    repairs: tuple[str, ...]
    way: str
    noise: str
    accuracy: Interval | None = None
    audit: OneRun | None = None
    run: str = ""
    ledger: PrivacyLedger | None = None
    logged: Attested | None = None


class MembershipAudit(Struct, frozen=True):
    """How well a model's answers tell ``members`` (rows that it was trained on) from ``others``. ``attack``: ``loss``,
    ``lira`` or ``rmia``; ``caught``: share of members found at each rate of false positives; ``one_run``: bound of epsilon from
    guessing them, where each row was a member by the toss of a coin."""

    model: str
    members: int
    others: int
    attack: str
    shadows: int
    area: Interval
    caught: dict[str, Interval]
    one_run: OneRun | None = None
