"""The account marks' keys: one per account, release and epoch, committed to in the releases log before it marks an answer.

The log says which epoch an account is in: that of the last commitment. Whoever follows the log marks with its key from the next
look on, so that all workers and gateways of a keep agree within the second that a look is good for, and each answer's record
says which epoch's key marked it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelkeep.core.hidden import holds_secrets
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.kdf import hkdf
from modelkeep.custody.evidence import Committed
from modelkeep.errors import NotTrusted, Unavailable
from modelkeep.extraction.perturb import Marker, commitment
from modelkeep.extraction.regression import NumberMarker
from modelkeep.ledger.predicates import Commitment

Logged = Callable[[str, ReleaseRef], Sequence[Committed]]
"""What the releases log says now of the keys of a subject for a release, by epoch."""


def account_key(master: bytes, subject: str, ref: ReleaseRef, epoch: int = 0) -> bytes:
    """The watermark key of one account for one release in one epoch: k_u = HKDF(master, subject ‖ release ‖ epoch), 32 bytes.

    ``master``: the secret of the ``watermark`` family. One key can be opened to a judge without any other.
    """
    name = f"modelkeep/account-mark/2\0{subject}\0{ref}\0{epoch}" if epoch else f"modelkeep/account-mark/1\0{subject}\0{ref}"
    return hkdf(master, salt=b"", info=name.encode())


def first_marks(master: bytes, ref: ReleaseRef, subjects: Iterable[str]) -> list[Commitment]:
    """What the log is to say of each subject's first key for ``ref``."""
    return [_committing(master, subject, ref, 0) for subject in subjects]


def next_marks(
    master: bytes, ref: ReleaseRef, subjects: Iterable[str], logged: Logged, *, before: int | None = None
) -> list[Commitment]:
    """What the log is to say of the next epoch of each subject that has a key for ``ref``.

    ``before``: only of those whose epoch began earlier than that, Unix nanoseconds.
    """
    due = [(subject, known) for subject in subjects if (known := logged(subject, ref))]
    return [_committing(master, subject, ref, len(known)) for subject, known in due if before is None or known[-1].at < before]


def _committing(master: bytes, subject: str, ref: ReleaseRef, epoch: int) -> Commitment:
    return Commitment(subject, commitment(account_key(master, subject, ref, epoch)).hex(), epoch)


@holds_secrets("epoch")
@dataclass(frozen=True, slots=True, repr=False)
class EpochKey:
    """A watermark key that the log commits to, and its epoch."""

    epoch: int
    key: bytes


class Marking(NamedTuple):
    """What marks an account's answers, and the epoch of its key. ``marker``: of those with classes, ``numbers``: of those that
    are one number; None = nothing marks them."""

    epoch: int
    marker: Marker | None
    numbers: NumberMarker | None = None


UNMARKED = Marking(0, None)


@holds_secrets()
class Marks:
    """The account marks: keys from the master key, each used only once the log holds its commitment."""

    def __init__(self, master: bytes, logged: Logged) -> None:
        self._master, self._logged = master, logged

    def epoch(self, subject: str, ref: ReleaseRef) -> int:
        """The epoch that ``subject`` is in for ``ref``; -1 while the log does not commit to any key."""
        return len(self._logged(subject, ref)) - 1

    def key(self, subject: str, ref: ReleaseRef) -> EpochKey:
        """The key of ``subject`` for ``ref`` now. Raises Unavailable (not committed yet), NotTrusted (another one is)."""
        logged = self._logged(subject, ref)
        if not logged:
            raise Unavailable(f"the watermark key of {subject} for {ref} is not in the releases log yet: ask again in a second")
        found = EpochKey(len(logged) - 1, account_key(self._master, subject, ref, len(logged) - 1))
        if logged[-1].commitment != commitment(found.key).hex():
            raise NotTrusted(f"the releases log commits to another watermark key of {subject} for {ref}")
        return found
