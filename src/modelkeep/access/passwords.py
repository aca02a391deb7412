"""Passwords: what is acceptable, and how they are kept.

Sources: RFC 9106 (Argon2id; section 4, second recommended option: 64 MiB, 3 passes, 4 lanes), NIST SP 800-63B-4 section 3.1.1
(at least 15 characters when the password is the only factor, no composition rules, at least 64 allowed, NFKC).
"""

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from modelkeep.core.ports import Entropy
from modelkeep.errors import Invalid, NotTrusted, OverBudget

SHORTEST, LONGEST = 15, 256
"""Characters a password must and may have, after normalisation."""

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no 0/o, 1/i/l


class Passwords:
    """Argon2id with its parameters, and a bound on how many run at once (each takes ``memory_kib`` of memory)."""

    def __init__(self, *, passes: int = 3, memory_kib: int = 65_536, lanes: int = 4, at_once: int = 4) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        self._slots = threading.BoundedSemaphore(at_once)

    @cached_property
    def _nobody(self) -> str:
        """What an unknown account is checked against, so that it costs what a known one costs. Its password is not kept."""
        return self._hasher.hash(b"nobody", salt=b"modelkeep/nobody")

    def hash(self, password: str, entropy: Entropy) -> str:
        """The PHC string to keep: algorithm, parameters, salt and hash."""
        with self._slot():
            return self._hasher.hash(normalise(password), salt=entropy.token(16))

    def matches(self, stored: str, password: str) -> bool:
        """Whether ``password`` is the one kept as ``stored``; "" (no such account) costs the same and is never matched.

        Raises NotTrusted (the stored text is damaged), OverBudget (too many checks at once).
        """
        with self._slot():
            nobody = self._nobody  # made at the first check, whoever is checked: it must not tell who is known
            try:
                self._hasher.verify(stored or nobody, normalise(password))
            except VerifyMismatchError:
                return False
            except (VerificationError, InvalidHashError) as cause:
                raise NotTrusted("a stored password hash is damaged: reset the password of the account") from cause
        return bool(stored)

    def is_outdated(self, stored: str) -> bool:
        """Whether ``stored`` was made with other parameters and should be made anew at the next login."""
        return self._hasher.check_needs_rehash(stored)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=2.0):
            raise OverBudget("too many logins at once: try again in a moment", 2.0)
        try:
            yield
        finally:
            self._slots.release()


def normalise(password: str) -> bytes:
    """The bytes that are hashed: NFKC, UTF-8. Raises Invalid (longer than any password may be)."""
    if len(password) > 4 * LONGEST:
        raise Invalid(f"a password has at most {LONGEST} characters")
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def check_new(password: str, account: str) -> None:
    """Check that ``password`` may become the password of ``account``. Raises Invalid."""
    text = unicodedata.normalize("NFKC", password[: 4 * LONGEST + 1])
    if not SHORTEST <= len(text) <= LONGEST:
        raise Invalid(f"a password has {SHORTEST} to {LONGEST} characters: several words are easy to remember")
    if len(set(text)) < 5 or text.casefold() == account.casefold():
        raise Invalid("this password is too easy to guess: use several words")


def one_time_password(entropy: Entropy) -> str:
    """A random password for first use, easy to read out: 24 characters in groups of 4, 118 bits."""
    letters: list[str] = []
    limit = 256 - 256 % len(_ALPHABET)  # drop what would make some letters likelier
    while len(letters) < 24:
        letters += [_ALPHABET[byte % len(_ALPHABET)] for byte in entropy.token(32) if byte < limit]
    return "-".join("".join(letters[at : at + 4]) for at in range(0, 24, 4))
