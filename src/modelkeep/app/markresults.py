"""What the verbs about weight marks answer."""

from msgspec import Struct


class MarkCost(Struct, frozen=True):
    """What a mark changes in the answers to ``rows`` that had no part in placing it. ``changed``: share of the top classes, 0
    for a model without classes; ``largest``: change of a probability, or of a number."""

    rows: int
    changed: float
    largest: float


class MarkEmbedded(Struct, frozen=True):
    """A model with a mark in its weights: its bytes and their digest. ``weights``: that carry it; ``change``: root mean square
    of the change over that of the weights; ``largest``: change of one weight, in root mean squares of its matrix; ``cost``:
    None where no rows were given; ``log_index``: of the commitment, -1 where no keep was asked."""

    model: bytes
    digest: str
    commitment: str
    weights: int
    change: float
    largest: float
    cost: MarkCost | None
    log_index: int = -1


class MarkVerified(Struct, frozen=True):
    """What a suspect shows of a mark. ``matched`` of ``bits``; ``p_key``: over the key's randomness, times the ``marks`` that
    the log commits to; ``p_models``: against so many ``independent`` models, 1 where there are none to compare, and no bound
    then; ``p``: the larger of both, of those that there are.

    ``release``, ``log_index``, ``committed``: of the commitment, "" and -1 and 0 where no keep was asked; ``seen``: when the
    suspect was there, and ``seen_by``: who says so (given, log or now); times in Unix nanoseconds. ``owner``: the statement
    that the bits are derived from; ``key``: opened, as hex, where that was asked for.
    """

    suspect: str
    commitment: str
    matched: int
    bits: int
    p: float
    p_key: float
    marks: int = 1
    independent: int = 0
    p_models: float = 1.0
    release: str = ""
    log_index: int = -1
    committed: int = 0
    seen: int = 0
    seen_by: str = ""
    owner: str = ""
    key: str = ""
