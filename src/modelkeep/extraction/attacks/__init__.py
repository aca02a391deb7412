"""The red team: query strategies of published extraction attacks, pure, each behind the one Protocol ``Strategy``."""

from collections.abc import Callable

import numpy as np

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Planned, Strategy, Surrogate, SurrogateMaker
from modelkeep.extraction.attacks.in_distribution import in_distribution
from modelkeep.extraction.attacks.jacobian import jacobian
from modelkeep.extraction.attacks.knockoff import knockoff
from modelkeep.extraction.attacks.line_search import line_search
from modelkeep.extraction.attacks.uniform import uniform

__all__ = ["STRATEGIES", "Array", "Knowledge", "Plan", "Planned", "Strategy", "Surrogate", "SurrogateMaker", "make_strategy"]

_PLANS: dict[str, Callable[[Knowledge, np.random.Generator, SurrogateMaker], Plan]] = {
    "uniform": lambda known, rng, _: uniform(known, rng),
    "line-search": lambda known, rng, _: line_search(known, rng),
    "jacobian": jacobian,
    "knockoff": lambda known, rng, _: knockoff(known, rng),
    "in-distribution": lambda known, rng, _: in_distribution(known, rng),
}

STRATEGIES = tuple(_PLANS)
"""Names that ``make_strategy`` knows, as the command line spells them."""


def make_strategy(name: str, known: Knowledge, *, seed: int, surrogate: SurrogateMaker) -> Strategy:
    """The attack called ``name``; the same ``seed`` and answers give the same questions.

    ``surrogate`` makes the copies that adaptive attacks train on the way. Raises Invalid (no attack of that name).
    """
    if name not in _PLANS:
        raise Invalid(f"there is no attack called {name[:40]!r}: choose one of {', '.join(STRATEGIES)}")
    return Planned(_PLANS[name](known, np.random.default_rng(seed), surrogate))
