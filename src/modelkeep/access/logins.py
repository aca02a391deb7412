"""Proving a password and a second factor: without telling who has an account, and without letting anyone try for long.

- One message and one cost for a wrong password, an unknown account, a disabled account and a locked one: each counts the
  attempt in the records and runs Argon2id once.
- A second factor is looked at with the password, whether that is right or not: one message for either, and none that says that
  a code would be needed. A wrong or missing code is a failed attempt like any other.
- An attempt is counted *before* the password is looked at, with compare-and-set, so that guesses in parallel, on several
  processes too, cannot outrun the count.
- After ``FREE_ATTEMPTS`` failures an account is locked for 2, 4, 8 ... seconds, up to ``LONGEST_LOCK``; a success forgets them.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from modelkeep.access.accounts import ACCOUNT, LOGIN, Account, parse_account, set_password
from modelkeep.access.factors import AMR, FACTOR, NONE, Factors, parse_factors, use_code, write_factors
from modelkeep.access.passwords import Passwords, check_new
from modelkeep.access.sessions import Proof
from modelkeep.access.steady import SteadyTime
from modelkeep.core.ports import Change, Clock, Entropy, Record, Records, WrappingKeys
from modelkeep.core.records import parse_record
from modelkeep.core.values import parse_name, to_json
from modelkeep.errors import Conflict, Denied, Invalid, Missing, Sealed, Unauthenticated, Unavailable

FREE_ATTEMPTS = 5
LONGEST_LOCK = 900
"""Seconds."""

_REFUSED = (
    "the account, the password or the one-time code is wrong or missing, or there were too many attempts: "
    "wait a while and try again"
)
_RETRIES = 16


class Attempts(msgspec.Struct, frozen=True):
    """``failures`` in a row (the attempt under way included); no other attempt counts before ``locked_until``, Unix seconds."""

    failures: int = 0
    locked_until: int = 0


def _no_factor_keys() -> WrappingKeys:
    raise Sealed("this process does not hold the keys of second factors")


class Proven(NamedTuple):
    """An account that has just proven itself, and how."""

    account: Account
    proof: Proof


class _Counted(NamedTuple):
    record_key: str
    revision: int
    locked: bool


def next_attempt(attempts: Attempts, now: int) -> tuple[Attempts, bool]:
    """Count one attempt at Unix second ``now``: what to keep, and whether the account was locked already.

    An attempt on a locked account changes nothing, so that hammering does not prolong the lock.
    """
    if now < attempts.locked_until:
        return attempts, True
    failures = attempts.failures + 1
    excess = failures - FREE_ATTEMPTS
    lock = min(2 ** min(excess + 1, 30), LONGEST_LOCK) if excess >= 0 else 0
    return Attempts(failures, now + lock if lock else 0), False


class Logins:
    """Checks passwords against the records. Safe to use from several threads and several processes."""

    def __init__(
        self,
        records: Records,
        passwords: Passwords,
        *,
        entropy: Entropy,
        clock: Clock,
        factor_keys: Callable[[], WrappingKeys] = _no_factor_keys,
    ) -> None:
        """``factor_keys``: the ``second-factor`` family, asked for when a code has to be looked at."""
        self._records = records
        self._passwords = passwords
        self._entropy = entropy
        self._factor_keys = factor_keys
        self._time = SteadyTime(clock)

    def prove(self, name: str, password: str, *, new_password: str | None = None, code: str = "") -> Account:
        """The account of ``prove_how``."""
        return self.prove_how(name, password, new_password=new_password, code=code).account

    def prove_how(self, name: str, password: str, *, new_password: str | None = None, code: str = "") -> Proven:
        """Check the password of account ``name``, and its second factor where it has one; with ``new_password`` change it, too.

        ``code``: a one-time or recovery code. Raises Unauthenticated (one message for every reason); Denied (the one-time
        password is right and ``new_password`` was not given); Invalid (``new_password`` is not acceptable); OverBudget,
        Unavailable.
        """
        if new_password is not None:
            check_new(new_password, name)  # before anything is looked up: it says nothing about the account
        record = self._account(name)
        account = parse_account(record) if record else None
        counted = self._count(name, known=account is not None)
        right = self._passwords.matches(account.password if account else "", password)
        kept, revision, used = self._look(name, code)
        if not right or record is None or account is None or account.disabled or counted.locked:
            raise Unauthenticated(_REFUSED)
        if account.codes and (used is None or not kept.secret):  # an account with codes and no record of them is refused, too
            raise Unauthenticated(_REFUSED)
        if account.one_time and new_password is None:
            self._forget(counted)
            raise Denied(f"the one-time password of {name} is right and must be replaced: log in with it and a new password")
        proof = Proof(self._time.now())
        if account.codes and used is not None:
            proof = self._spend(name, used, revision, proof)
        self._forget(counted)
        if new_password is not None:
            return Proven(self._change(record, new_password, password), proof)
        return Proven(self._renewed(record, account, password), proof)

    def prove_factor(self, account: Account, code: str, proof: Proof) -> Proof:
        """Check a second factor of an account that is known already; ``proof`` with it. It counts like a login.

        Raises Unauthenticated (one message for every reason), Unavailable.
        """
        counted = self._count(account.name, known=True)
        kept, revision, used = self._look(account.name, code)
        if counted.locked or account.disabled or not account.codes or used is None or not kept.secret:
            raise Unauthenticated(_REFUSED)
        proof = self._spend(account.name, used, revision, proof)
        self._forget(counted)
        return proof

    def count_factor(self, account: Account) -> Callable[[], None]:
        """Count an attempt at a second factor that is checked elsewhere; call what this returns once it was right.

        Raises Unauthenticated (the account is locked or disabled), Unavailable.
        """
        counted = self._count(account.name, known=True)
        if counted.locked or account.disabled:
            raise Unauthenticated(_REFUSED)
        return lambda: self._forget(counted)

    def _look(self, name: str, code: str) -> tuple[Factors, int, tuple[str, Factors] | None]:
        """What is kept of the second factors of ``name``, and what ``code`` is of them: (kind, what to keep then)."""
        try:
            record = self._records.get(FACTOR, parse_name(name))
        except (Missing, Invalid):
            return NONE, 0, None
        kept = parse_factors(record)
        return kept, record.revision, use_code(kept, name, code, self._time.now(), self._factor_keys())

    def _spend(self, name: str, used: tuple[str, Factors], revision: int, proof: Proof) -> Proof:
        """Use up what was shown. Raises Unauthenticated (another process took it at this moment)."""
        kind, after = used
        try:
            self._records.commit([write_factors(name, after, revision)])
        except Conflict:
            raise Unauthenticated(_REFUSED) from None
        return proof.with_factor(AMR[kind], self._time.now())

    def _account(self, name: str) -> Record | None:
        try:
            return self._records.get(ACCOUNT, parse_name(name))
        except (Missing, Invalid):
            return None

    def _count(self, name: str, *, known: bool) -> _Counted:
        # Names without an account share 256 records: they cost the same write, and cannot fill the store.
        bucket = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[0]
        key = f"account/{name}" if known else f"unknown/{bucket:02x}"
        for _ in range(_RETRIES):
            attempts, revision = self._attempts(key)
            kept, locked = next_attempt(attempts, self._time.now())
            try:
                # Written when locked, too: a locked account must not answer faster.
                return _Counted(key, self._records.commit([Change(LOGIN, key, to_json(kept), revision)]), locked)
            except Conflict:
                continue
        raise Unavailable("too many logins at once for one account: try again in a moment")

    def _attempts(self, key: str) -> tuple[Attempts, int]:
        try:
            record = self._records.get(LOGIN, key)
        except Missing:
            return Attempts(), 0
        return parse_record(record, Attempts, f"logins {key!r}", "reset the password of the account"), record.revision

    def _forget(self, counted: _Counted) -> None:
        try:
            self._records.commit([Change(LOGIN, counted.record_key, None, counted.revision)])
        except Conflict:
            return  # others are trying at this moment: their count stands

    def _renewed(self, record: Record, account: Account, password: str) -> Account:
        """Keep the password under today's Argon2 parameters, if it was hashed under others."""
        if not self._passwords.is_outdated(account.password):
            return account
        renewed = msgspec.structs.replace(account, password=self._passwords.hash(password, self._entropy))
        try:
            self._records.commit([Change(ACCOUNT, account.name, to_json(renewed), record.revision)])
        except Conflict:
            return account  # it changed meanwhile: the next login will do it
        return renewed

    def _change(self, record: Record, new: str, old: str) -> Account:
        changed, changes = set_password(record, new, old, passwords=self._passwords, entropy=self._entropy)
        self._records.commit(changes)  # Conflict: the account changed meanwhile, and the login fails
        return changed
