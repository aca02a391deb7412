"""Who there is: accounts, API keys, certificates, ended sessions, held in memory and kept fresh from the records.

``refresh`` is called about four times a second by a background task; ``authenticate`` never waits for anything. A view older
than ``LEASE`` seconds answers nobody (Unavailable): so a disabled account or a revoked credential is refused after at most that
long, and at once by the process that refreshed.
"""

import contextlib
import hmac
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NoReturn

from modelkeep.access.credentials import check_secret, key_id_of
from modelkeep.access.dpop import NONCE, Proofs
from modelkeep.access.externals import CREDENTIAL, PENDING, REASONS, Newcomer, announce, quota_id
from modelkeep.access.issuers import MAX_TOKEN, Binding, Issuer, Issuers, NotYet, check_claims
from modelkeep.access.limits import Limiter, address_key
from modelkeep.access.presented import Certificate, Presented
from modelkeep.access.sessions import SessionVerifier, check_time
from modelkeep.access.steady import NANOSECONDS, SteadyTime
from modelkeep.access.view import KINDS, PARSERS, Grant, View, remember
from modelkeep.core.ports import Clock, Records
from modelkeep.core.values import Principal
from modelkeep.errors import Conflict, Denied, NotTrusted, Unauthenticated, Unavailable

LEASE = 1.0
"""Seconds for which a view answers after the moment at which it was read."""

_CLOCK_JUMP = 0.5  # seconds: a wall clock that ran further ahead than this between two refreshes may have ended credentials

_NOT_TAKEN = "this token is not taken here: get a new one from your identity provider"
_NO_PROOF = "the token is bound to a key or a certificate, and that was not proven"
_FIRST_VISIT = "this account comes for the first time and is being made known: ask again in a second"
_TELL_SECONDS = 1.0


class FirstVisit(Unavailable):
    """A good token of somebody who has no pseudonym yet: he was announced, and asking again soon helps."""


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
        issuers: Issuers | None = None,
        proofs: Proofs | None = None,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Call ``refresh`` before the first ``authenticate``.

        ``token_public_keys``: 32-byte Ed25519 keys that may have signed session tokens. ``origin``: the keep's name.
        ``failures``: limit on bad credentials per address, asked before any signature is looked at. ``issuers``: others whose
        tokens are taken; ``proofs``: judges those of tokens bound to a key, None = no such token is taken; ``report``: told
        why a token of another issuer was refused, which its sender is not.
        """
        self._records = records
        self._monotonic = clock.monotonic
        self._time = SteadyTime(clock)
        self._issuers, self._proofs, self._report = Issuers() if issuers is None else issuers, proofs, report
        self._trusted, self._origin = tuple(token_public_keys), origin
        self._verifier = SessionVerifier(token_public_keys, origin, self._issuers.own)
        self._failures = failures
        self._key_version = self._issuers.version
        self._newcomers: dict[str, Newcomer] = {}
        self._told = float("-inf")
        self._view = View({kind: {} for kind in KINDS}, 0)
        self._loaded = False
        self._fresh_until = float("-inf")
        self._clock_offset = self._offset()
        self._lock = threading.Lock()

    def trust(self, token_public_keys: Sequence[bytes]) -> None:
        """From now on, session tokens count when one of these 32-byte Ed25519 keys signed them; no answer of before does."""
        with self._lock:
            if tuple(token_public_keys) != self._trusted:
                self._trusted = tuple(token_public_keys)
                self._verifier = SessionVerifier(token_public_keys, self._origin, self._issuers.own)
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
            offset, version = self._offset(), self._issuers.version
            if offset > self._clock_offset + _CLOCK_JUMP or version != self._key_version:
                self._view = self._view.changed((), self._view.revision)
            self._clock_offset, self._key_version = offset, version
            self._fresh_until = began + LEASE

    def authenticate(self, presented: Presented) -> Grant:
        """Who the credential speaks for.

        Raises Unauthenticated; OverBudget (too many bad credentials from its address); FirstVisit; Denied (control gives this
        newcomer no account); Unavailable (the view is too old).
        """
        now = self._monotonic()
        if now > self._fresh_until:
            raise Unavailable("accounts and keys could not be read for a second: nobody is let in until they can")
        view, token = self._view, presented.token
        if len(token) > MAX_TOKEN or not token.isascii():
            return self._refuse(presented.address, "this is neither an API key nor a token")
        digest = sha256(token.encode()).digest()
        known = view.accepted.get(digest)
        if known is not None and now < known[0] and presented.proof is None:
            return known[1]
        held = view.bound.get(digest)
        if held is not None and now < held[0]:
            return self._prove(presented, held[1], held[2])
        if not token:
            return self._from_certificate(view, presented)
        return self._examine(view, presented, digest)

    def announce(self) -> None:
        """Tell control who came for the first time, and so has no pseudonym yet. Raises Unavailable."""
        for digest, newcomer in list(self._newcomers.items()):
            with contextlib.suppress(Conflict):  # another gateway did, or he is there by now
                self._records.commit([announce(newcomer)])
            self._newcomers.pop(digest, None)

    def clock_ahead(self) -> float:
        """Seconds by which the machine's clock was set back since this process began (credentials expire that much early)."""
        return self._time.ahead_seconds()

    def _offset(self) -> float:
        return self._time.now_ns() / NANOSECONDS - self._monotonic()

    def _read_all(self) -> View:
        revision = self._records.revision()  # first: what is committed while we scan is read again by the next refresh
        return self._view.changed([record for kind in KINDS for record in self._records.scan(kind)], revision)

    def _read(self) -> View:
        view, latest = self._view, self._records.revision()
        if latest < view.revision:
            raise NotTrusted(f"the records went back from revision {view.revision} to {latest}: restart once you know why")
        if latest == view.revision:
            return view
        records = self._records.since(view.revision)
        latest = max([latest, *(record.revision for record in records)])
        relevant = [record for record in records if record.kind in PARSERS]
        if relevant:
            return view.changed(relevant, latest)
        view.revision = latest
        return view

    def _examine(self, view: View, presented: Presented, digest: bytes) -> Grant:
        token, address = presented.token, presented.address
        if self._failures is not None and address:
            self._failures.check(address_key(address))
        refused = view.refused.get(digest)
        if refused is not None:
            return self._refuse(address, refused)
        if digest in view.pending:
            raise _unknown(view.pending[digest])
        issuer, until = self._issuers.of(token), float("inf")
        binding: Binding | None = None
        try:
            if token.startswith("mk_"):
                grant, binding = _key_grant(view, token)
            elif issuer is None:
                grant = self._session_grant(view, token, digest)
            else:
                grant, binding = self._external_grant(view, issuer, token, digest)
                until = issuer.keys.until
        except Unauthenticated as cause:
            return self._refuse(address, str(cause), cause)
        now_ns = self._time.now_ns()
        left = grant.expires - now_ns / NANOSECONDS
        if left <= 0:
            return self._refuse(address, "this credential has expired: get a new one")
        end = min(self._monotonic() + left, until)
        if binding is not None:
            remember(view.bound, digest, (end, grant, binding))
            return self._prove(presented, grant, binding)
        remember(view.accepted, digest, (end, grant))
        if presented.proof is not None:
            return self._refuse(address, "this credential is bound to no key: send it as 'authorization: Bearer …'")
        return grant

    def _external_grant(self, view: View, issuer: Issuer, token: str, digest: bytes) -> tuple[Grant, Binding | None]:
        claims = None
        try:
            claims = self._issuers.check_signed(issuer, token)
            found = check_claims(claims, issuer.terms, self._time.now())
        except (NotTrusted, Unauthenticated) as cause:
            # All but a key that may be published yet and a time that may come stays as bad as it is.
            if isinstance(cause, NotTrusted) or (claims is not None and not isinstance(cause, NotYet)):
                remember(view.refused, digest, _NOT_TAKEN)
            self._tell(f"a token of {issuer.terms.alias} was refused: {cause}")
            raise Unauthenticated(_NOT_TAKEN, fault="invalid_token") from cause
        account = view.externals.get(found.subject)
        if account is None:
            reason = view.turned_away.get(found.subject, "")
            if not reason and len(self._newcomers) < PENDING:
                self._newcomers[found.subject] = Newcomer(found.name, found.subject)
            remember(view.pending, digest, reason)
            raise _unknown(reason)
        if account.disabled:
            self._tell(f"a token of {issuer.terms.alias} was refused: {account.name} is blocked here")
            raise Unauthenticated(_NOT_TAKEN, fault="invalid_token")
        credential = f"{CREDENTIAL}{digest.hex()[:32]}"
        principal = Principal(account.name, account.subject, found.roles, credential)
        requests = found.terms.token_requests
        return Grant(
            principal, "external", found.expires, requests, quota_id(credential, found.expires), found.mfa_at
        ), found.binding

    def _from_certificate(self, view: View, presented: Presented) -> Grant:
        """Who a client certificate that came alone speaks for."""
        shown = presented.certificate
        if shown is None or presented.proof is not None:
            return self._refuse(presented.address, "this is neither an API key nor a token")
        known = view.accepted.get(shown.digest)
        if known is not None and self._monotonic() < known[0]:
            return known[1]
        if self._failures is not None and presented.address:
            self._failures.check(address_key(presented.address))
        try:
            grant = _certificate_grant(view, shown)
        except Unauthenticated as cause:
            return self._refuse(presented.address, str(cause), cause)
        left = grant.expires - self._time.now_ns() / NANOSECONDS
        if left <= 0:
            return self._refuse(presented.address, "this certificate has expired, or its entry here has")
        remember(view.accepted, shown.digest, (self._monotonic() + left, grant))
        return grant

    def _prove(self, presented: Presented, grant: Grant, binding: Binding) -> Grant:
        """Check that who presents a bound token holds what it is bound to."""
        try:
            self._check_held(presented, binding)
        except Unauthenticated as cause:
            if cause.fault == NONCE:  # every client's first request comes without one
                raise
            if self._failures is not None and presented.address:
                self._failures.charge(address_key(presented.address))
            self._tell(f"a credential of {grant.principal.account} was refused: {cause}")
            raise Unauthenticated(_NO_PROOF, fault=cause.fault or "invalid_token", nonce=cause.nonce) from cause
        return grant

    def _check_held(self, presented: Presented, binding: Binding) -> None:
        shown, proof = presented.certificate, presented.proof
        if binding.certificate and not hmac.compare_digest(shown.digest if shown else b"", binding.certificate):
            raise Unauthenticated("it is bound to a client certificate that was not shown")
        if bool(binding.key) != (proof is not None):
            raise Unauthenticated("it was sent with the scheme DPoP or Bearer, and its binding asks for the other one")
        if proof is not None and not proof.accepted:
            if self._proofs is None:
                raise Unauthenticated("no proofs of possession are taken here")
            self._proofs.check(proof, presented.token, binding.key, self._time.now())

    def _tell(self, text: str) -> None:
        """Say why a credential was refused, once a second at most: its sender decides how often it is."""
        now = self._monotonic()
        if now >= self._told + _TELL_SECONDS:
            self._told = now
            self._report(text)

    def _session_grant(self, view: View, token: str, digest: bytes) -> Grant:
        try:
            session = self._verifier.verify(token)
        except Unauthenticated as cause:
            remember(view.refused, digest, str(cause))  # a signature is dear to check, and a bad one never becomes good
            raise
        check_time(session, self._time.now())
        account = view.accounts.get(session.sub)
        if account is None or account.disabled or account.generation != session.gen or session.jti in view.revoked:
            raise Unauthenticated("this session was ended: log in again")
        if session.iat < account.created:  # of somebody who had this name before, and was forgotten
            raise Unauthenticated("this session was ended: log in again")
        credential = f"session:{session.jti}"
        scope, mfa_at = (session.models, session.operations), max(session.mfa_at, account.stepped_up)
        principal = Principal(account.name, account.subject, account.roles, credential, *scope, session.mfa_at > 0)
        return Grant(principal, "session", session.exp, session.max_requests, credential, mfa_at)

    def _refuse(self, address: str, message: str, cause: Unauthenticated | None = None) -> NoReturn:
        if self._failures is not None and address:
            self._failures.charge(address_key(address))
        raise Unauthenticated(message, fault=(cause and cause.fault) or "invalid_token") from cause


def _unknown(reason: str) -> FirstVisit | Denied:
    """What somebody is told who has a good token and no account. ``reason``: why he gets none, "" = he is being made known."""
    return Denied(REASONS[reason]) if reason else FirstVisit(_FIRST_VISIT)


def _key_grant(view: View, token: str) -> tuple[Grant, Binding | None]:
    key = view.keys.get(key_id_of(token))
    if key is None:
        raise Unauthenticated("this API key is unknown")
    check_secret(token, key)
    if key.revoked:
        raise Unauthenticated("this API key was revoked: get a new one")
    account = view.accounts.get(key.account)
    if account is None or account.disabled:
        raise Unauthenticated("the account of this API key is disabled")
    principal = Principal(account.name, account.subject, account.roles, f"key:{key.id}", key.models, key.actions)
    binding = Binding(certificate=bytes.fromhex(key.certificate)) if key.certificate else None
    return Grant(principal, "key", key.expires, key.quota, key.quota_id, account.stepped_up), binding


def _certificate_grant(view: View, shown: Certificate) -> Grant:
    names = (f"sha256:{shown.digest.hex()}", *shown.names)
    found = [view.certificates[name] for name in names if name in view.certificates]
    if not found:
        raise Unauthenticated("this client certificate speaks for nobody here")
    entry = found[0]  # the certificate itself before its names
    if entry.name != names[0] and len({one.account for one in found}) > 1:
        raise Unauthenticated("the names in this client certificate speak for more than one account")
    account = view.accounts.get(entry.account)
    if account is None or account.disabled:
        raise Unauthenticated("the account of this client certificate is disabled")
    principal = Principal(account.name, account.subject, account.roles, entry.quota_id, entry.models)
    until = min(entry.expires, shown.expires)
    return Grant(principal, "certificate", until, entry.quota, entry.quota_id, account.stepped_up)
