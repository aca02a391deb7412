"""The red team: query strategies of published extraction attacks, pure, each behind the one Protocol ``Strategy``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks.active_thief import active_thief, dfal, entropy, k_centre
from modelkeep.extraction.attacks.adaptive import adaptive
from modelkeep.extraction.attacks.bandit import bandit
from modelkeep.extraction.attacks.base import Array, Knowledge, Lesson, Plan, Planned, Strategy, Surrogate, SurrogateMaker
from modelkeep.extraction.attacks.copycat import copycat
from modelkeep.extraction.attacks.data_free import data_free
from modelkeep.extraction.attacks.equations import SolvedOr, equations
from modelkeep.extraction.attacks.explanations import Attributed, explanations, parts
from modelkeep.extraction.attacks.guise import Coarsened, Guise
from modelkeep.extraction.attacks.in_distribution import in_distribution
from modelkeep.extraction.attacks.jacobian import jacobian
from modelkeep.extraction.attacks.jb_tr import jb_tr
from modelkeep.extraction.attacks.knockoff import knockoff
from modelkeep.extraction.attacks.line_search import line_search
from modelkeep.extraction.attacks.path_finding import path_finding
from modelkeep.extraction.attacks.recovery import Recovering
from modelkeep.extraction.attacks.t_rnd import t_rnd
from modelkeep.extraction.attacks.uniform import uniform

__all__ = [
    "ATTACKS",
    "STRATEGIES",
    "Array",
    "Attack",
    "Guise",
    "Knowledge",
    "Lesson",
    "Plan",
    "Planned",
    "Recovering",
    "Strategy",
    "Surrogate",
    "SurrogateMaker",
    "copy_maker",
    "make_strategy",
    "parts",
]


@dataclass(frozen=True)
class Attack:
    """One row of the table of attacks.

    ``does``: in one line; ``needs``: what the thief must have; ``copy``: makes the attack's own copy, where it has one, from
    what the thief would train otherwise; ``labels_only``: it looks at nothing but top classes; ``explains``: it asks for
    explanations; ``numbers``: it works against a model that answers with numbers, too, and not only where there are classes.
    """

    plan: Callable[[Knowledge, np.random.Generator, SurrogateMaker], Plan]
    does: str
    needs: str
    source: str
    copy: Callable[[Knowledge, SurrogateMaker], Surrogate] | None = None
    labels_only: bool = False
    explains: bool = False
    numbers: bool = False

    @property
    def against(self) -> str:
        """The answers that it can make something of."""
        return "classes, numbers" if self.numbers else "classes"


def _alone(
    plan: Callable[[Knowledge, np.random.Generator], Plan],
) -> Callable[[Knowledge, np.random.Generator, SurrogateMaker], Plan]:
    """A plan that trains nothing on the way."""
    return lambda known, rng, _: plan(known, rng)


_RANGES, _ROWS, _FOREIGN = "ranges of the columns", "natural rows", "foreign rows, or natural ones to shuffle"
_PAL, _TRAMER = "Pal et al. 2020", "Tramer et al. 2016"

ATTACKS: dict[str, Attack] = {
    "uniform": Attack(_alone(uniform), "rows uniform in the ranges", _RANGES, f"{_TRAMER}, 4.1.3 and 5.2.1", numbers=True),
    "equation-solving": Attack(
        _alone(equations),
        "solve a linear, logistic or softmax model from d + 1 answers; others by random rows",
        _ROWS,
        f"{_TRAMER}, 4.1",
        copy=lambda known, make: SolvedOr(make, numbers=known.numbers),
        numbers=True,
    ),
    "line-search": Attack(
        _alone(line_search), "bisect between rows of two classes", _ROWS, f"Lowd and Meek 2005; {_TRAMER}, 5.2.1"
    ),
    "path-finding": Attack(
        _alone(path_finding),
        "walk from leaf to leaf of a tree, bisecting where each ends",
        _ROWS,
        f"{_TRAMER}, 4.2",
        numbers=True,
    ),
    "adaptive-retraining": Attack(adaptive, "rows on the copy's own boundary, retrain, repeat", _ROWS, f"{_TRAMER}, 5.2.1"),
    "jacobian": Attack(
        jacobian, "steps along the signs of the copy's gradient (JBDA)", _ROWS, "Papernot et al. 2017", numbers=True
    ),
    "jb-tr": Attack(jb_tr, "steps towards a random other class of the copy (JBDA-TR)", _ROWS, "Juuti et al. 2019"),
    "t-rnd": Attack(_alone(t_rnd), "steps in random directions", _ROWS, "Juuti et al. 2019", numbers=True),
    "knockoff": Attack(_alone(knockoff), "foreign rows at random", _FOREIGN, "Orekondy et al. 2019, 4.1", numbers=True),
    "knockoff-adaptive": Attack(
        bandit, "foreign rows chosen by a gradient bandit", _FOREIGN, "Orekondy et al. 2019, 4.2", numbers=True
    ),
    "copycat": Attack(
        _alone(copycat), "foreign rows, top classes only", _FOREIGN, "Correia-Silva et al. 2018", labels_only=True
    ),
    "activethief-entropy": Attack(partial(active_thief, choose=entropy), "pool rows of most entropy", _FOREIGN, _PAL),
    "activethief-k-centre": Attack(
        partial(active_thief, choose=k_centre), "pool rows far from those asked", _FOREIGN, _PAL, numbers=True
    ),
    "activethief-dfal": Attack(
        partial(active_thief, choose=dfal), "pool rows nearest to the boundary", _FOREIGN, f"{_PAL}; Ducoffe 2018"
    ),
    "data-free": Attack(
        data_free,
        "rows of a generator that learns where copy and victim differ",
        _RANGES,
        "MAZE and DFME, 2021",
        numbers=True,
    ),
    "explanations": Attack(
        _alone(explanations),
        "weights read off the attributions of made-up rows",
        "permission 'explain', natural rows",
        "Milli et al. 2019",
        copy=Attributed,
        explains=True,
    ),
    "in-distribution": Attack(
        _alone(in_distribution), "own natural rows, each once", "many natural rows", "Karchmer 2023", numbers=True
    ),
}
"""Every attack by its name, as the command line spells it."""

STRATEGIES = tuple(ATTACKS)


def attack_called(name: str) -> Attack:
    """The row of the table. Raises Invalid (no attack of that name)."""
    if name not in ATTACKS:
        raise Invalid(f"there is no attack called {name[:40]!r}: choose one of {', '.join(STRATEGIES)}")
    return ATTACKS[name]


def make_strategy(name: str, known: Knowledge, *, seed: int, surrogate: SurrogateMaker) -> Strategy:
    """The attack called ``name``; the same ``seed`` and answers give the same questions.

    ``surrogate`` makes the copies that adaptive attacks train on the way. Raises Invalid (no attack of that name, or one that
    needs classes, of a model that answers with numbers).
    """
    attack = attack_called(name)
    if known.numbers and not attack.numbers:
        able = ", ".join(one for one, row in ATTACKS.items() if row.numbers)
        raise Invalid(f"{name} needs classes, and the model answers with numbers: choose one of {able}")
    planned = Planned(attack.plan(known, np.random.default_rng(seed), surrogate))
    return Coarsened(planned) if attack.labels_only else planned


def copy_maker(name: str, known: Knowledge, surrogate: SurrogateMaker) -> SurrogateMaker:
    """What makes the copies of the attack called ``name``: its own where it has one, else ``surrogate``. Raises Invalid."""
    copy = attack_called(name).copy
    return surrogate if copy is None else lambda: copy(known, surrogate)
