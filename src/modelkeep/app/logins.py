"""Who an account is, proven to control: logins, tokens and their refreshing, step-up, passkeys.

Everything here is asked by people who are not known yet, so the order is the same everywhere: the limit of the caller's
address, then the lockout of the account, then what is dear (Argon2id, signatures). What somebody who is known gets, and a
login that is refused, is recorded before it is told.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelkeep.access.accounts import ACCOUNT, REQUIRED, Account, parse_account
from modelkeep.access.challenges import (
    CHALLENGE,
    forget_challenges,
)
from modelkeep.access.externals import forget_spent_tokens
from modelkeep.access.limits import address_key
from modelkeep.access.presented import Presented
from modelkeep.access.quotas import QUOTA
from modelkeep.access.refresh import (
    REFRESH,
    REUSED,
    Family,
    Lifetimes,
    Scope,
    begin_family,
    check_current,
    end_family,
    family_of,
    forget_families,
    parse_family,
    rotate_family,
    was_used,
    with_session,
    write_family,
)
from modelkeep.access.sessions import (
    LONGEST_LIFETIME,
    REVOCATION,
    SESSION,
    Proof,
    Session,
    SessionTerms,
    forget_ended,
    forget_old_revocations,
    index_session,
    parse_issued,
    revoke_session,
)
from modelkeep.access.stepup import forget_old_events
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Record
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from modelkeep.app.control import Control

OWN_FACTORS = "mfa.own"
"""The action of adding factors to one's own account: all that a session may do whose account must use one and has not."""
RESTRICTED = (OWN_FACTORS,)
PASSING = (CHALLENGE, SESSION, REFRESH, QUOTA)
"""Kinds of records that come and go with every login."""
REUSE = "refresh-reuse"
"""Kind of an incident: a refresh token was shown twice."""
BUSY = "the refresh tokens of one login change too fast: try again in a moment"
RETRIES = 16


@never_pickled
class Tokens(NamedTuple):
    """What a token endpoint gives. ``refresh``: "" = none."""

    access: str
    session: Session
    refresh: str

    def __repr__(self) -> str:
        return f"Tokens({self.session.sub})"


class Asked(NamedTuple):
    """What a client wants of its sessions; empty = all, 0 = as the settings say."""

    models: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    max_requests: int = 0


class Identity:
    """The logins of one control process. Thread-safe."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._here = control.keep.premises

    # -- passwords --

    def login(self, name: str, password: str, new_password: str | None, code: str, address: str) -> Tokens:
        """A session as the command line has it: without a refresh token.

        Raises Unauthenticated, Denied (the password was a one-time one), Invalid, OverBudget.
        """
        account, proof = self._prove(name, password, new_password, code, address)
        seconds = self._control.settings.limits.session_seconds
        made = self._session(account, proof, self._scope(account, proof, Asked()), seconds)
        self._here.records.commit([index_session(made.session)])
        self._control.record("login", account.subject, "", "ok")
        return made

    def by_password(self, name: str, password: str, code: str, asked: Asked, address: str) -> Tokens:
        """An access token and, unless the session may only add factors, a refresh token. Raises what ``login`` raises."""
        account, proof = self._prove(name, password, None, code, address)
        scope = self._scope(account, proof, asked)
        made = self._session(account, proof, scope, self._control.settings.access.token_seconds)
        if scope.operations == RESTRICTED:
            self._here.records.commit([index_session(made.session)])
            refresh = ""
        else:
            refresh = self._begin(account, scope, proof, made.session)
        self._control.record("login", account.subject, "", "ok")
        return made._replace(refresh=refresh)

    def _prove(self, name: str, password: str, new: str | None, code: str, address: str) -> tuple[Account, Proof]:
        self._control.addresses.take(address_key(address))
        self._control.renew()
        try:
            return self._control.logins.prove_how(name, password, new_password=new, code=code)
        except ModelkeepError as refusal:
            self._control.record("login", self._control.subject_of(name), "", refusal.code)
            raise

    def must_use_factor(self, account: Account) -> bool:
        """Whether an account or one of its roles requires a second factor."""
        return account.mfa == REQUIRED or bool(set(account.roles) & set(self._control.settings.access.mfa_roles))

    def _scope(self, account: Account, proof: Proof, asked: Asked) -> Scope:
        requests = asked.max_requests or self._control.settings.limits.key_requests
        if self.must_use_factor(account) and not proof.multi:
            return Scope(requests, (), RESTRICTED)
        return Scope(requests, asked.models, asked.operations)

    def _session(self, account: Account, proof: Proof, scope: Scope, seconds: int) -> Tokens:
        limits = self._control.settings.limits
        terms = SessionTerms(
            models=scope.models,
            operations=scope.operations,
            max_requests=min(scope.max_requests, limits.session_requests or limits.key_requests),
            lifetime=seconds,
            proof=proof,
        )
        token, session = self._control.issuer.issue(account, terms)
        return Tokens(token, session, "")

    def _begin(self, account: Account, scope: Scope, proof: Proof, session: Session) -> str:
        settings, now = self._control.settings.access, session.iat
        lives = Lifetimes(settings.refresh_seconds, settings.refresh_idle_seconds)
        made = begin_family(account, scope, proof, lives, now, self._here.entropy)
        family = with_session(made.family, session, now)
        self._here.records.commit([write_family(made.id, family, 0), index_session(session, made.id)])
        return made.text

    # -- refreshing --

    def by_refresh(self, text: str, code: str, asked: Asked | None, address: str) -> Tokens:
        """Another access token, and the next refresh token; with ``code``, a second factor shown now.

        ``asked``: a narrower scope of this one access token. Raises Unauthenticated (also: it was used before, and then its
        whole family ends), Invalid (a wider scope), OverBudget.
        """
        failures = self._control.failures
        failures.check(address_key(address))
        self._control.renew()
        try:
            return self._refresh(text, code, asked)
        except Unauthenticated:
            failures.charge(address_key(address))
            raise

    def _refresh(self, text: str, code: str, asked: Asked | None) -> Tokens:
        id_, proof = family_of(text), None
        for _ in range(RETRIES):
            record, family = self._family(id_)
            account, now = self._account(family.account), self._now()
            if was_used(text, family):
                self._reuse(id_, account)
            found = check_current(text, family, account, now)
            if self.must_use_factor(found) and not (family.proof.multi or code):
                raise Unauthenticated("this account must use a second factor by now: log in again")
            scope = _narrowed(family.scope, asked)
            if proof is None:
                proof = self._control.logins.prove_factor(found, code, family.proof) if code else family.proof
            made = self._session(found, proof, scope, self._control.settings.access.token_seconds)
            next_ = rotate_family(id_, msgspec.structs.replace(family, proof=proof), self._here.entropy, now)
            after = with_session(next_.family, made.session, now)
            try:
                self._here.records.commit([write_family(id_, after, record.revision), index_session(made.session, id_)])
            except Conflict:
                continue  # the same token was shown at this moment, or the family got a session by step-up: look again
            self._control.record("refresh", found.subject, "", "ok")
            return made._replace(refresh=next_.text)
        raise Unavailable(BUSY)

    def _reuse(self, id_: str, account: Account | None) -> None:
        """End a family whose token was shown twice, tell people, and refuse. Raises Unauthenticated always."""
        ended = self._end(id_)
        subject = account.subject if account else ""
        if ended and subject:
            self._control.acting().raise_incident(REUSE, subject, "a refresh token was used twice: one of the two stole it")
        self._control.record("refresh", subject, "", "reused")
        raise Unauthenticated(REUSED)

    def _end(self, id_: str) -> bool:
        """End a family and its sessions; whether it still lived."""
        for _ in range(RETRIES):
            record, family = self._family(id_)
            if family.ended:
                return False
            try:
                self._here.records.commit(end_family(id_, family, record.revision, self._now()))
            except Conflict:
                continue
            return True
        raise Unavailable(BUSY)

    def _family(self, id_: str) -> tuple[Record, Family]:
        try:
            record = self._here.records.get(REFRESH, id_)
        except Missing:
            raise Unauthenticated("the refresh token is not valid: log in again") from None
        return record, parse_family(record)

    # -- ending --

    def revoke(self, text: str, address: str) -> None:
        """End what ``text`` is, a refresh token with its family or an access token; silent when it is neither (RFC 7009).

        Raises OverBudget, Unavailable.
        """
        self._control.failures.check(address_key(address))
        try:
            subject = self._revoke_family(text) if text.startswith("mkr_") else self._revoke_session(text, address)
        except Unauthenticated:
            self._control.failures.charge(address_key(address))
            return
        self._control.record("logout", subject, "", "ok")

    def _revoke_family(self, text: str) -> str:
        id_ = family_of(text)
        family = self._family(id_)[1]
        account = self._account(family.account)
        if not was_used(text, family):  # a used one ends its family, too: whoever has it must not be able to go on
            check_current(text, family, account, self._now())
        self._end(id_)
        return account.subject if account else ""

    def _revoke_session(self, token: str, address: str) -> str:
        grant = self._control.authenticate(Presented(token, address))
        if grant.kind == "session":
            session = self._control.verifier.verify(token)
            self._here.records.commit(revoke_session(session))
            self.end_family_of(session.jti)
        return grant.principal.subject

    def end_family_of(self, jti: str) -> None:
        """End the refresh tokens that session ``jti`` belongs to, if there are any, with all their sessions."""
        try:
            family = parse_issued(self._here.records.get(SESSION, jti)).family
        except Missing:
            return
        if family:
            self._end(family)

    # -- what the others share --

    def tidy(self) -> None:
        """Drop what no token and no challenge that still counts can need. Raises NotTrusted, Unavailable."""
        records, now = self._here.records, self._now()
        records.prune(PASSING)  # what the round before deleted, and every process has seen by now
        longest = self._control.settings.access.refresh_seconds + 2 * LONGEST_LIFETIME
        for changes in (
            forget_challenges(records.scan(CHALLENGE), now),
            forget_ended(records.scan(SESSION), now),
            forget_families(records.scan(REFRESH), now),
            forget_old_revocations(records.scan(REVOCATION), now),
            forget_spent_tokens(records.scan(QUOTA), now),
            forget_old_events(records.scan(QUOTA), now, longest),
        ):
            for change in changes:
                try:
                    records.commit([change])
                except Conflict:
                    continue  # it changed meanwhile: the next round sees it

    def _account(self, name: str) -> Account | None:
        try:
            return parse_account(self._here.records.get(ACCOUNT, name))
        except Missing:
            return None

    def _now(self) -> int:
        return self._control.now()


def _narrowed(scope: Scope, asked: Asked | None) -> Scope:
    """The scope of one access token of a family. Raises Invalid (wider than the family's; RFC 6749, section 6)."""
    if asked is None:
        return scope
    models = _subset(scope.models, asked.models)
    return Scope(
        min(asked.max_requests or scope.max_requests, scope.max_requests), models, _subset(scope.operations, asked.operations)
    )


def _subset(whole: Sequence[str], asked: tuple[str, ...]) -> tuple[str, ...]:
    if whole and not set(asked) <= set(whole):
        raise Invalid("a refresh cannot widen the scope of its login: ask for less, or log in again")
    return asked or tuple(whole)
