"""Knockoff nets: ask about data from elsewhere and let the victim label it."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan


def knockoff(known: Knowledge, rng: np.random.Generator, *, foreign: Array | None = None, step: int = 64) -> Plan:
    """Ask rows from another distribution: ``foreign`` (m, d), each once, or the thief's own rows with their columns shuffled.

    Shuffling keeps every column's own distribution, so that each value looks natural, and breaks what ties columns together.
    Source: Orekondy et al. 2019, "Knockoff Nets", section 4.1 (random strategy); Correia-Silva et al. 2018, "Copycat CNN".
    """
    if foreign is not None:
        order = rng.permutation(len(foreign))
        for at in range(0, len(order), step):
            yield known.snap(foreign[order[at : at + step]])
        return
    columns = np.arange(known.seeds.shape[1])
    while True:
        picks = rng.integers(len(known.seeds), size=(step, len(columns)))
        yield known.seeds[picks, columns]
