"""Knockoff nets: ask about data from elsewhere and let the victim label it."""

import numpy as np

from modelkeep.extraction.attacks.base import Knowledge, Plan


def knockoff(known: Knowledge, rng: np.random.Generator, *, step: int = 64) -> Plan:
    """Ask foreign rows, each once; without any, the thief's own rows with their columns shuffled.

    Shuffling keeps every column's own distribution, so that each value looks natural, and breaks what ties columns together.
    Source: Orekondy et al. 2019, "Knockoff Nets", section 4.1 (random strategy).
    """
    if known.foreign is not None:
        rows = known.pool(rng)
        for at in range(0, len(rows), step):
            yield rows[at : at + step]
        return
    while True:
        yield known.shuffled(rng, step)
