"""What hardening a model answers."""

from typing import Any

from msgspec import Struct

from modelkeep.ledger.attestations import Measure


class Standing(Struct, frozen=True):
    """Accuracy on rows that nobody learnt from: ``clean``, and ``robust`` under attack, with their intervals."""

    clean: Measure
    robust: Measure


class Turn(Struct, frozen=True):
    """One epoch: mean ``loss``, and accuracy on the rows that are chosen by; None where nobody looked."""

    epoch: int
    loss: float
    clean: float | None
    robust: float | None


class ModelHardened(Struct, frozen=True):
    """A hardened model: its bytes and their digest, how it stood ``before`` and stands ``after``, every epoch and the ``best``.

    ``rows``: how many were learnt from, chosen by and measured on; ``seconds``: of it all; ``predicate``: of the statement,
    without who says it and when; ``log_index``: of that, -1 where nothing was logged.
    """

    model: bytes
    digest: str
    before: Standing
    after: Standing
    history: tuple[Turn, ...]
    best: int
    rows: tuple[int, ...]
    seconds: float
    predicate: dict[str, Any]
    log_index: int = -1
