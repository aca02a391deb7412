"""What the demo found out, as plain values: the table on the terminal and the report are both drawn from this."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One thing that had to hold: ``claim`` in a few words, and what was seen."""

    claim: str
    held: bool
    seen: str


@dataclass(frozen=True)
class ModelCard:
    """One protected model: ``release`` such as tumour@1, its source digest, its index in the releases log."""

    release: str
    title: str
    accuracy: float
    digest: str
    log_index: int
    sealed_bytes: int


@dataclass(frozen=True)
class Stand:
    """One model under the black-box attack of step 3: accuracy ``clean`` and ``attacked``, each with its interval (value, low,
    high)."""

    title: str
    clean: tuple[float, float, float]
    attacked: tuple[float, float, float]


@dataclass(frozen=True)
class ClientRow:
    """One honest account after the traffic: ``changed`` counts answers whose top class is not the bare model's."""

    name: str
    habit: str
    model: str
    answered: int
    changed: int
    alarms: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class ThiefRow:
    """One attack: ``queries`` answered until it ended for the reason ``stopped``; curves are (queries, fidelity) points.

    ``reached``: fidelity of the copy made of what was answered; ``undefended``: of the same attack against the bare model
    with its whole ``budget``; ``majority``: of a copy that always gives the commonest class.
    """

    name: str
    attack: str
    model: str
    queries: int
    stopped: str
    budget: int
    reached: float
    undefended: float
    majority: float
    curve: tuple[tuple[int, float], ...]
    undefended_curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Suspect:
    """One model that was traced: ``p_values`` after Bonferroni, smallest first; ``owner``: the account named, or ""."""

    title: str
    fidelity: float
    owner: str
    expected: str
    p_values: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Moment:
    """One line of the timeline: seconds since the start, and what happened."""

    at: float
    what: str


@dataclass
class Findings:
    """Everything, filled in as the story goes on."""

    models: list[ModelCard] = field(default_factory=list)
    stands: list[Stand] = field(default_factory=list)
    learnt: dict[str, str] = field(default_factory=dict)
    clients: list[ClientRow] = field(default_factory=list)
    thieves: list[ThiefRow] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    timeline: list[Moment] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def check(self, claim: str, held: bool, seen: str) -> bool:
        """Write down whether ``claim`` held, and give that back."""
        self.checks.append(Check(claim, held, seen))
        return held

    @property
    def held(self) -> bool:
        """True when there were checks and every one held."""
        return bool(self.checks) and all(check.held for check in self.checks)
