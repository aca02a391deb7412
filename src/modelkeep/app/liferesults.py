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


class BackedUp(Struct, frozen=True):
    """A backup. ``size``: bytes of the sealed file; ``parts``: files in it; ``log_size``: entries of the releases log in it;
    ``outside``: sealed bodies that are in a store outside the folder, and not in it.
    """

    file: str
    size: int
    parts: int
    log_size: int
    outside: int


class BackupChecked(Struct, frozen=True):
    """A backup that opens and holds: of which keep, ``made`` Unix nanoseconds, files, entries of its releases log, logs."""

    file: str
    origin: str
    made: int
    parts: int
    log_size: int
    logs: int


class Restored(Struct, frozen=True):
    """A keep made of a backup. ``log``: origin of its releases log, which succeeds ``before`` after ``log_size`` entries;
    ``lost``: entries of ``before`` that are known to have followed; ``erased``: erasures that were done again;
    ``log_index``: of the succession.
    """

    directory: str
    log: str
    before: str
    log_size: int
    lost: int
    erased: int
    log_index: int


class ErasureRow(Struct, frozen=True):
    """One erasure that the releases log holds: what, the pseudonym or data set, its log index, Unix nanoseconds, by whom."""

    what: str
    name: str
    log_index: int
    at: int
    actor: str
