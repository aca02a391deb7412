"""Uniform questions: the thief knows nothing but the ranges of the columns."""

import numpy as np

from modelkeep.extraction.attacks.base import Knowledge, Plan


def uniform(known: Knowledge, rng: np.random.Generator, *, step: int = 64) -> Plan:
    """Ask rows drawn uniformly from the box of valid values.

    Also the query set of equation solving, where any points in general position will do.
    Source: Tramer et al. 2016, "Stealing Machine Learning Models via Prediction APIs", sections 4.1 and 5.2.1.
    """
    while True:
        yield known.snap(rng.uniform(known.lower, known.upper, size=(step, len(known.lower))))
