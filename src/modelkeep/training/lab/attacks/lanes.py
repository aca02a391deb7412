"""Work on many rows at once, as they come and go: a fixed number of lanes, each with one job of one row.

A lane whose job is done, or whose row has fallen in another lane, takes the next job. So batches stay full while rows fall.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

STALE = 0.1
"""Share of lanes that may stand idle before they are filled anew: copying costs, too."""


class Jobs(NamedTuple):
    """What is to be done: the row of each job and the class that it is pushed towards, shape (jobs,) both."""

    rows: Any
    targets: Any


class Attacked:
    """What is known of rows. ``x``: (n, d); ``y``: (n,); ``adversarial``: the rows, in place of fallen ones what fooled the
    model; ``fallen``: (n,) bool; ``told``: is given how many jobs are done, of how many."""

    def __init__(self, x: Any, y: Any, told: Callable[[int, int], None] = lambda _done, _total: None) -> None:
        self.x, self.y, self.told = x, y, told
        self.adversarial, self.fallen = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def fell(self, rows: Any, points: Any) -> None:
        """Rows by number, and what fooled the model."""
        self.adversarial[rows], self.fallen[rows] = points, True


State = dict[str, Any]
"""Of the lanes: tensors whose first axis is the lane; ``row`` and ``done`` among them."""


def run(known: Attacked, jobs: Jobs, width: int, enter: Callable[[Any, Any], State], step: Callable[[State], None]) -> None:
    """Do all jobs, in their order, ``width`` at a time.

    ``enter``: rows and targets to the state of their lanes; ``step``: one step of every lane, which sets ``done`` where the job
    is done and tells ``known`` who fell.
    """
    queue = _Queue(known, jobs)
    state: State = {}
    while True:
        busy = ~(state["done"] | known.fallen[state["row"]]) if state else None
        held = int(busy.sum()) if busy is not None else 0
        if busy is None or held < len(busy) * (1 - STALE) or not held:
            fresh = queue.take(width - held)
            if busy is not None and held < len(busy):
                state = {name: one[busy] for name, one in state.items()} if held else {}
            if len(fresh.rows):
                entered = enter(fresh.rows, fresh.targets)
                state = {name: torch.cat([state[name], one]) for name, one in entered.items()} if state else entered
            known.told(queue.at - held - len(fresh.rows), len(jobs.rows))
            if not state:
                return
        step(state)


class _Queue:
    """The jobs that no lane has taken yet."""

    def __init__(self, known: Attacked, jobs: Jobs) -> None:
        self._known, self._jobs, self.at = known, jobs, 0

    def take(self, count: int) -> Jobs:
        """The next jobs of rows that still stand."""
        rows, targets = self._jobs
        standing = (~self._known.fallen[rows[self.at :]]).nonzero().squeeze(1)[:count] + self.at
        self.at = int(standing[-1]) + 1 if len(standing) == count else len(rows)
        return Jobs(rows[standing], targets[standing])


def targeted(rows: Any, logits: Any, labels: Any, most: int) -> Iterator[Jobs]:
    """Jobs for the ``most`` likeliest wrong classes of each row, the likeliest of all rows first. ``logits``: (rows, k)."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    ranked = wrong.topk(min(most, logits.shape[1] - 1), dim=1).indices
    for column in ranked.unbind(dim=1):
        yield Jobs(rows, column)


def joined(parts: Iterator[Jobs]) -> Jobs:
    """Several as one, in order."""
    held = list(parts)
    return Jobs(torch.cat([one.rows for one in held]), torch.cat([one.targets for one in held]))
