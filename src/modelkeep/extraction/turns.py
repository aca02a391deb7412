"""Turns: queries that depend on those before them, cut so that each turn can be worked out for everybody at once."""

from collections.abc import Hashable, Sequence


def turns(owners: Sequence[Hashable]) -> list[list[int]]:
    """Positions in ``owners`` (n,): the first of each owner, then the second of each that has one, and so on.

    Who has most comes first in every turn, so that the owners of a turn are the first ones of the turn before.
    """
    mine: dict[Hashable, list[int]] = {}
    for i, owner in enumerate(owners):
        mine.setdefault(owner, []).append(i)
    longest = sorted(mine.values(), key=len, reverse=True)
    out: list[list[int]] = [[] for _ in range(len(longest[0]) if longest else 0)]
    for positions in longest:
        for turn, i in enumerate(positions):
            out[turn].append(i)
    return out
