"""What the verbs about the life of logs and data answer: erasure, archive, backup."""

from msgspec import Struct


class ErasedNow(Struct, frozen=True):
    """An erasure. ``what``: ``subject`` or ``dataset``; ``name``: the pseudonym or the data set; ``log_index``: of the act;
    ``forgotten``: the account, too; ``copies``: files beside the records that still hold what was erased.
    """

    what: str
    name: str
    log_index: int
    forgotten: bool
    copies: tuple[str, ...]


class ErasureRow(Struct, frozen=True):
    """One erasure that the releases log holds: what, the pseudonym or data set, its log index, Unix nanoseconds, by whom."""

    what: str
    name: str
    log_index: int
    at: int
    actor: str
