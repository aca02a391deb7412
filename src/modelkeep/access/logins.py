"""Proving a password: without telling who has an account, and without letting anyone try for long.

- One message and one cost for a wrong password, an unknown account, a disabled account and a locked one: each counts the
  attempt in the records and runs Argon2id once.
- An attempt is counted *before* the password is looked at, with compare-and-set, so that guesses in parallel, on several
  processes too, cannot outrun the count.
- After ``FREE_ATTEMPTS`` failures an account is locked for 2, 4, 8 ... seconds, up to ``LONGEST_LOCK``; a success forgets them.
"""

import hashlib
from typing import NamedTuple

import msgspec

from modelkeep.access.accounts import ACCOUNT, LOGIN, Account, parse_account, set_password
from modelkeep.access.passwords import Passwords, check_new
from modelkeep.access.steady import SteadyTime
from modelkeep.core.ports import Change, Clock, Entropy, Record, Records
from modelkeep.core.values import parse_name, to_json
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unauthenticated, Unavailable

FREE_ATTEMPTS = 5
LONGEST_LOCK = 900
"""Seconds."""

_REFUSED = "the account or the password is wrong, or there were too many attempts: wait a while and try again"
_RETRIES = 16


class Attempts(msgspec.Struct, frozen=True):
    """``failures`` in a row (the attempt under way included); no other attempt counts before ``locked_until``, Unix seconds."""

    failures: int = 0
    locked_until: int = 0


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

    def __init__(self, records: Records, passwords: Passwords, *, entropy: Entropy, clock: Clock) -> None:
        self._records = records
        self._passwords = passwords
        self._entropy = entropy
        self._time = SteadyTime(clock)

    def prove(self, name: str, password: str, *, new_password: str | None = None) -> Account:
        """Check the password of account ``name`` and return the account; with ``new_password`` change it, too.

        Raises Unauthenticated (one message for every reason); Denied (the one-time password is right and ``new_password`` was
        not given); Invalid (``new_password`` is not acceptable); OverBudget, Unavailable.
        """
        if new_password is not None:
            check_new(new_password, name)  # before anything is looked up: it says nothing about the account
        record = self._account(name)
        account = parse_account(record) if record else None
        counted = self._count(name, known=account is not None)
        right = self._passwords.matches(account.password if account else "", password)
        if not right or record is None or account is None or account.disabled or counted.locked:
            raise Unauthenticated(_REFUSED)
        self._forget(counted)
        if account.one_time and new_password is None:
            raise Denied(f"the one-time password of {name} is right and must be replaced: log in with it and a new password")
        if new_password is not None:
            return self._change(record, new_password, password)
        return self._renewed(record, account, password)

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
        try:
            return msgspec.json.decode(record.body or b"", type=Attempts), record.revision
        except msgspec.MsgspecError as cause:
            raise NotTrusted(f"the login record {key!r} is damaged: reset the password of the account") from cause

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
