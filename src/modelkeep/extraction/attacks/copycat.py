"""Copycat: foreign rows, each once, and nothing of the answers but the top class."""

import numpy as np

from modelkeep.extraction.attacks.base import Knowledge, Plan
from modelkeep.extraction.attacks.knockoff import knockoff


def copycat(known: Knowledge, rng: np.random.Generator) -> Plan:
    """The questions of ``knockoff``; that the copy learns hard labels is the attack's ``labels_only`` in the table of attacks.

    The paper balances classes by repeating training rows, which the copies here do without.
    Source: Correia-Silva et al. 2018, "Copycat CNN: Stealing Knowledge by Persuading Confession with Random Non-Labeled Data",
    section III.
    """
    return knockoff(known, rng)
