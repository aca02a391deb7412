"""Secrets that can be erased, and what a name may have again afterwards.

Every erasure that the releases log holds begins a new *epoch* of the name that was erased: the number after the erasure's log
index, 0 before the first. The record of a secret is named by both, and what wraps the secret is bound to that name. So a record
of an earlier epoch that somebody puts back, or a backup brings back, is one that nobody asks for.
"""

from collections.abc import Callable

from modelkeep.errors import NotTrusted

_LONGEST = 19  # digits of an index: Python reads no number of thousands
_SEPARATOR = "\x1f"  # ASCII's unit separator: no name has it, since none may hold what cannot be printed

Epochs = Callable[[str], int]
"""The epoch of a name now, as the releases log says."""


def never_erased(_name: str) -> int:
    """The epoch of every name in a keep that has erased nothing."""
    return 0


def epoch_key(name: str, epoch: int) -> str:
    """The record key of the secret that ``name`` has in ``epoch``."""
    return f"{name}{_SEPARATOR}{epoch}" if epoch else name


def split_epoch(key: str) -> tuple[str, int]:
    """Name and epoch of a record key that ``epoch_key`` made. Raises NotTrusted (it did not make this one)."""
    name, separator, epoch = key.rpartition(_SEPARATOR)
    if not separator:
        return key, 0
    if not epoch.isdecimal() or len(epoch) > _LONGEST or epoch_key(name, int(epoch)) != key:
        raise NotTrusted(f"{key[:120]!r} names no secret of this keep")
    return name, int(epoch)
