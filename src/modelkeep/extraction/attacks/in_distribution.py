"""In-distribution questions: the thief that no observer can tell from an honest client (only budget and trace hold it)."""

import numpy as np

from modelkeep.extraction.attacks.base import Knowledge, Plan


def in_distribution(known: Knowledge, rng: np.random.Generator, *, step: int = 64) -> Plan:
    """Ask the thief's own natural rows, each once, in random order; then stop, since a repeat teaches nothing.

    Source: Karchmer 2023, "Theoretical Limits of Provable Security Against Model Extraction by Efficient Observational
    Defenses".
    """
    order = rng.permutation(len(known.seeds))
    for at in range(0, len(order), step):
        yield known.seeds[order[at : at + step]]
