"""Staging: bodies that are stored before anything refers to them, by a process that is alive.

A publisher leaves a pending release; whoever seals something else (a model card) leaves a stage. While its claim is held,
nobody removes bodies that nothing names; when its process died, the stage is cleared and what it left behind is removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from modelkeep.core.ports import Change
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict, ModelkeepError
from modelkeep.workflows.registry import Desk

STAGE = "stage"
"""Record kind; the key is the claim of whoever stores a body."""


class _Stage(msgspec.Struct, frozen=True):
    began: int


@contextmanager
def stage(desk: Desk) -> Iterator[None]:
    """Bodies stored in this block are not removed before it ends. Raises Unavailable."""
    claim = desk.entropy.token(16).hex()
    with desk.claims.hold(claim):
        desk.registry.records.commit([Change(STAGE, claim, to_json(_Stage(desk.clock.now_ns())), 0)])
        try:
            yield
        except ModelkeepError:
            _clear(desk, claim)
            raise
        _clear(desk, claim)


def clear_stages(desk: Desk) -> tuple[str, ...]:
    """Clear the stages of processes that are gone; those of live ones, as ``stage <claim>``. Raises Unavailable."""
    alive = []
    for record in desk.registry.records.scan(STAGE):
        try:
            with desk.claims.hold(record.key):
                _clear(desk, record.key)
        except Conflict:
            alive.append(f"stage {record.key}")
    return tuple(alive)


def _clear(desk: Desk, claim: str) -> None:
    desk.registry.records.commit([Change(STAGE, claim, None)])
