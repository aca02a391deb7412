"""The gateway's view of who there is: accounts, API keys and revoked sessions, held in memory and kept fresh from the records.

``refresh`` is called about four times a second by a background task; ``authenticate`` never waits for anything. A view older
than ``LEASE`` seconds answers nobody (Unavailable): so a disabled account or a revoked credential is refused after at most that
long, and at once by the process that refreshed. Each view is immutable but for its caches, which die with it: no answer that
was computed on an old view can survive a change.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from modelkeep.access.accounts import ACCOUNT, Account, parse_account
from modelkeep.access.credentials import KEY, ApiKey, check_secret, key_id_of, parse_key_record
from modelkeep.access.forgetting import FORGOTTEN
from modelkeep.access.limits import Limiter, address_key
from modelkeep.access.presented import Presented
from modelkeep.access.sessions import MAX_TOKEN, REVOCATION, Revocation, SessionVerifier, check_time, parse_revocation
from modelkeep.access.steady import NANOSECONDS, SteadyTime
from modelkeep.core.ports import Clock, Record, Records
from modelkeep.core.values import Principal
from modelkeep.errors import NotTrusted, Unauthenticated, Unavailable

LEASE = 1.0
"""Seconds for which a view answers after the moment at which it was read."""

_CLOCK_JUMP = 0.5  # seconds: a wall clock that ran further ahead than this between two refreshes may have ended credentials

CACHE_SIZE = 65_536
"""Accepted credentials remembered; refused ones are remembered in a table of the same size."""

_KINDS = (ACCOUNT, KEY, REVOCATION, FORGOTTEN)


class Grant(NamedTuple):
    """Who a credential speaks for, and its limits.

    ``kind``: "key" or "session". ``expires``: Unix seconds. ``quota``: requests in all, None = no quota; counted under
    ``quota_id`` by ``Quotas.take``.
    """

    principal: Principal
    kind: str
    expires: int
    quota: int | None
    quota_id: str


class _View:
    """The records at one revision, parsed, with the caches of answers computed from them."""

    __slots__ = ("accepted", "accounts", "forgotten", "keys", "refused", "revision", "revoked")

    def __init__(
        self,
        accounts: dict[str, Account],
        keys: dict[str, ApiKey],
        revoked: dict[str, Revocation],
        forgotten: dict[str, str],
        revision: int,
    ) -> None:
        self.accounts = accounts
        self.keys = keys
        self.revoked = revoked
        self.forgotten = forgotten  # pseudonyms: a process that missed an account's deletion drops it all the same
        self.revision = revision
        self.accepted: dict[bytes, tuple[float, Grant]] = {}  # by SHA-256 of the token: (monotonic second of its end, grant)
        self.refused: dict[bytes, str] = {}

    def changed(self, records: Iterable[Record], revision: int) -> "_View":
        """The view after ``records`` changed, with empty caches. Raises NotTrusted (a record is damaged)."""
        accounts, keys, revoked, forgotten = dict(self.accounts), dict(self.keys), dict(self.revoked), dict(self.forgotten)
        tables: dict[str, dict[str, Any]] = {ACCOUNT: accounts, KEY: keys, REVOCATION: revoked, FORGOTTEN: forgotten}
        for record in records:
            if record.body is None:
                tables[record.kind].pop(record.key, None)
            else:
                tables[record.kind][record.key] = _PARSERS[record.kind](record)
        known = {name: account for name, account in accounts.items() if account.subject not in forgotten}
        return _View(known, keys, revoked, forgotten, revision)


class Directory:
    """Answers who a credential speaks for. ``refresh`` may run in another thread than ``authenticate``, which keeps to one."""

    def __init__(
        self,
        records: Records,
        clock: Clock,
        token_public_keys: Sequence[bytes],
        origin: str,
        *,
        failures: Limiter | None = None,
    ) -> None:
        """Call ``refresh`` before the first ``authenticate``.

        ``token_public_keys``: 32-byte Ed25519 keys that may have signed session tokens. ``origin``: the keep's name.
        ``failures``: limit on bad credentials per address, asked before any signature is looked at.
        """
        self._records = records
        self._monotonic = clock.monotonic
        self._time = SteadyTime(clock)
        self._trusted, self._origin = tuple(token_public_keys), origin
        self._verifier = SessionVerifier(token_public_keys, origin)
        self._failures = failures
        self._view = _View({}, {}, {}, {}, 0)
        self._loaded = False
        self._fresh_until = float("-inf")
        self._clock_offset = self._offset()
        self._lock = threading.Lock()

    def trust(self, token_public_keys: Sequence[bytes]) -> None:
        """From now on, session tokens count when one of these 32-byte Ed25519 keys signed them; no answer of before does."""
        with self._lock:
            if tuple(token_public_keys) != self._trusted:
                self._trusted, self._verifier = tuple(token_public_keys), SessionVerifier(token_public_keys, self._origin)
                self._view = self._view.changed((), self._view.revision)

    def refresh(self) -> None:
        """Read what changed in the records and renew the lease; call it at least four times a second.

        Raises Unavailable (the records cannot be read) and NotTrusted (they are damaged or went back to an older revision); the
        lease then simply runs out.
        """
        with self._lock:
            began = self._monotonic()
            self._view = self._read() if self._loaded else self._read_all()
            self._loaded = True
            offset = self._offset()
            if offset > self._clock_offset + _CLOCK_JUMP:
                self._view = self._view.changed((), self._view.revision)
            self._clock_offset = offset
            self._fresh_until = began + LEASE

    def authenticate(self, presented: Presented) -> Grant:
        """Who the credential speaks for.

        Raises Unauthenticated; OverBudget (too many bad credentials from its address); Unavailable (the view is too old).
        """
        now = self._monotonic()
        if now > self._fresh_until:
            raise Unavailable("accounts and keys could not be read for a second: nobody is let in until they can")
        view, token = self._view, presented.token
        if len(token) > MAX_TOKEN or not token.isascii():
            return self._refuse(presented.address, "this is neither an API key nor a session token")
        digest = hashlib.sha256(token.encode()).digest()
        known = view.accepted.get(digest)
        if known is not None and now < known[0]:
            return known[1]
        return self._examine(view, token, digest, presented.address)

    def clock_ahead(self) -> float:
        """Seconds by which the machine's clock was set back since this process began (credentials expire that much early)."""
        return self._time.ahead_seconds()

    def _offset(self) -> float:
        return self._time.now_ns() / NANOSECONDS - self._monotonic()

    def _read_all(self) -> _View:
        revision = self._records.revision()  # first: what is committed while we scan is read again by the next refresh
        return self._view.changed([record for kind in _KINDS for record in self._records.scan(kind)], revision)

    def _read(self) -> _View:
        view, latest = self._view, self._records.revision()
        if latest < view.revision:
            raise NotTrusted(f"the records went back from revision {view.revision} to {latest}: restart once you know why")
        if latest == view.revision:
            return view
        records = self._records.since(view.revision)
        latest = max([latest, *(record.revision for record in records)])
        relevant = [record for record in records if record.kind in _PARSERS]
        if relevant:
            return view.changed(relevant, latest)
        view.revision = latest
        return view

    def _examine(self, view: _View, token: str, digest: bytes, address: str) -> Grant:
        if self._failures is not None and address:
            self._failures.check(address_key(address))
        refused = view.refused.get(digest)
        if refused is not None:
            return self._refuse(address, refused)
        try:
            grant = _key_grant(view, token) if token.startswith("mk_") else self._session_grant(view, token, digest)
        except Unauthenticated as cause:
            return self._refuse(address, str(cause), cause)
        now_ns = self._time.now_ns()
        left = grant.expires - now_ns / NANOSECONDS
        if left <= 0:
            return self._refuse(address, "this credential has expired: get a new one")
        _remember(view.accepted, digest, (self._monotonic() + left, grant))
        return grant

    def _session_grant(self, view: _View, token: str, digest: bytes) -> Grant:
        try:
            session = self._verifier.verify(token)
        except Unauthenticated as cause:
            _remember(view.refused, digest, str(cause))  # a signature is dear to check, and a bad one never becomes good
            raise
        check_time(session, self._time.now())
        account = view.accounts.get(session.sub)
        if account is None or account.disabled or account.generation != session.gen or session.jti in view.revoked:
            raise Unauthenticated("this session was ended: log in again")
        if session.iat < account.created:  # of somebody who had this name before, and was forgotten
            raise Unauthenticated("this session was ended: log in again")
        credential = f"session:{session.jti}"
        principal = Principal(account.name, account.subject, account.roles, credential, session.models)
        return Grant(principal, "session", session.exp, session.max_requests, credential)

    def _refuse(self, address: str, message: str, cause: Unauthenticated | None = None) -> NoReturn:
        if self._failures is not None and address:
            self._failures.charge(address_key(address))
        raise Unauthenticated(message) from cause


_PARSERS: dict[str, Callable[[Record], object]] = {
    ACCOUNT: parse_account,
    KEY: parse_key_record,
    REVOCATION: parse_revocation,
    FORGOTTEN: lambda record: record.key,
}


def _key_grant(view: _View, token: str) -> Grant:
    key = view.keys.get(key_id_of(token))
    if key is None:
        raise Unauthenticated("this API key is unknown")
    check_secret(token, key)
    if key.revoked:
        raise Unauthenticated("this API key was revoked: get a new one")
    account = view.accounts.get(key.account)
    if account is None or account.disabled:
        raise Unauthenticated("the account of this API key is disabled")
    principal = Principal(account.name, account.subject, account.roles, f"key:{key.id}", key.models)
    return Grant(principal, "key", key.expires, key.quota, key.quota_id)


def _remember(table: dict[bytes, Any], digest: bytes, value: object) -> None:
    """Add to a bounded table, dropping the oldest; only the thread that authenticates does so."""
    while len(table) >= CACHE_SIZE:
        del table[next(iter(table))]
    table[digest] = value
