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


class ArchivedRow(Struct, frozen=True):
    """A closed audit log that was archived. ``removed``: ``bodies``, ``everything`` or ``nothing``; ``log_index``: of the act,
    -1 when nothing was removed; ``to``: the folder that has it now, as far as is known here; ``checked``: what was, in words.
    """

    instance: str
    records: int
    removed: str
    log_index: int
    to: str
    checked: str


class ErasureRow(Struct, frozen=True):
    """One erasure that the releases log holds: what, the pseudonym or data set, its log index, Unix nanoseconds, by whom."""

    what: str
    name: str
    log_index: int
    at: int
    actor: str
