"""The account marks' keys: one per account and release, committed to in the releases log before the account's first answer."""

from collections.abc import Iterable

from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.kdf import hkdf
from modelkeep.extraction.perturb import commitment
from modelkeep.ledger.predicates import Commitment


def account_key(master: bytes, subject: str, ref: ReleaseRef) -> bytes:
    """The watermark key of one account for one release: k_u = HKDF(master, subject ‖ release), 32 bytes.

    ``master``: the secret of the ``watermark`` family. One key can be opened to a judge without any other.
    """
    return hkdf(master, salt=b"", info=f"modelkeep/account-mark/1\0{subject}\0{ref}".encode())


def account_marks(master: bytes, ref: ReleaseRef, subjects: Iterable[str]) -> list[Commitment]:
    """What the log is to say of each subject's key for ``ref``."""
    return [Commitment(subject, commitment(account_key(master, subject, ref)).hex()) for subject in subjects]
