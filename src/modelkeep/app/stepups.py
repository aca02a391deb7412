"""Second factors shown to control: step-up by a code or a passkey, approvals, and the registration of passkeys."""

from collections.abc import Callable
from types import ModuleType

from modelkeep.access.accounts import ACCOUNT, Account, step_up
from modelkeep.access.authorize import authorize
from modelkeep.access.challenges import APPROVE, PURPOSES, REGISTER, SECONDS, STEP_UP, make_challenge, take_challenge
from modelkeep.access.factors import (
    AMR,
    FACTOR,
    NONE,
    PASSKEY,
    Factors,
    Passkey,
    add_passkey,
    parse_factors,
    passkey_at,
    passkey_used,
    write_factors,
)
from modelkeep.access.presented import Presented
from modelkeep.access.refresh import Scope, with_session, write_family
from modelkeep.access.sessions import SESSION, Proof, Session, index_session, parse_issued
from modelkeep.access.view import Grant
from modelkeep.app.logins import BUSY, OWN_FACTORS, RESTRICTED, RETRIES, Asked, Identity, Tokens
from modelkeep.core.values import Principal
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, Unauthenticated, Unavailable
from modelkeep.policy.engine import account as account_target


class StepUps(Identity):
    """The logins of one control process, and what its people do with their second factors."""

    def by_code(self, token: str, code: str, address: str) -> Tokens:
        """A fresh access token for the session ``token``, a code having been shown now. Raises Unauthenticated, OverBudget."""
        grant, account, session = self._known(token, address)
        proof = self._factor(account, lambda: self._control.logins.prove_factor(account, code, _proof(session)))
        return self._stepped(account, grant, session, proof)

    def by_passkey(self, token: str, challenge: str, answer: bytes, address: str) -> Tokens:
        """The same, a passkey having signed ``challenge``. Raises Unauthenticated, OverBudget."""
        grant, account, session = self._known(token, address)
        proof = self._factor(account, lambda: self._signed(account, grant, challenge, STEP_UP, answer, _proof(session)))
        return self._stepped(account, grant, session, proof)

    def approve(self, token: str, challenge: str, answer: bytes, address: str) -> None:
        """Let everything of one's own account go on, its keys too, a passkey having signed ``challenge``.

        Raises Unauthenticated, Denied, OverBudget.
        """
        grant, account, session = self._known(token, address)
        self._may(grant.principal, "step-up.approve", address)
        self._factor(account, lambda: self._signed(account, grant, challenge, APPROVE, answer, _proof(session)))
        acting = self._control.keep.acting_as(grant.principal, address)
        acting.change(lambda: step_up(self._here.records.scan(ACCOUNT), account.name, self._now()))
        acting.act("step-up.approve", account.subject)
        self._control.record("step-up", account.subject, "", "ok")

    def _stepped(self, account: Account, grant: Grant, before: Session, proof: Proof) -> Tokens:
        scope = Scope(before.max_requests, before.models, before.operations)
        if _was_held_back(before) and self.must_use_factor(account):
            scope = self._scope(account, proof, Asked())
        made = self._session(account, proof, scope, self._control.settings.access.token_seconds)
        self._join_family(before.jti, made.session)
        self._control.record("step-up", grant.principal.subject, "", "ok")
        return made

    def _join_family(self, jti: str, session: Session) -> None:
        """List ``session`` with the family of session ``jti``, so that what ends that one ends it, too."""
        records, now = self._here.records, self._now()
        for _ in range(RETRIES):
            try:
                id_ = parse_issued(records.get(SESSION, jti)).family
            except Missing:
                id_ = ""
            changes = [index_session(session, id_)]
            if id_:
                record, family = self._family(id_)
                if family.ended:
                    raise Unauthenticated("this session was ended: log in again")
                changes.append(write_family(id_, with_session(family, session, now), record.revision))
            try:
                records.commit(changes)
            except Conflict:
                continue
            return
        raise Unavailable(BUSY)

    def _factor(self, account: Account, prove: Callable[[], Proof]) -> Proof:
        try:
            return prove()
        except ModelkeepError as refusal:
            self._control.record("step-up", account.subject, "", refusal.code)
            raise

    # -- passkeys --

    def options(self, token: str, purpose: str, address: str) -> tuple[str, bytes]:
        """The id of a fresh challenge, and what the browser is to ask its user, as JSON.

        Raises Unauthenticated, Denied, Invalid (another purpose; no passkey to ask for), OverBudget.
        """
        if purpose not in PURPOSES:
            raise Invalid(f"{purpose[:40]!r} is no purpose of a challenge: use {', '.join(PURPOSES)}")
        grant, account, session = self._known(token, address)
        if purpose != STEP_UP:  # which widens nothing, so that a session scoped to a model can do it, too
            self._may(grant.principal, OWN_FACTORS if purpose == REGISTER else "step-up.approve", address)
        kept, party = self._factors(account.name)[0], self._control.party()
        known = [each.id for each in kept.passkeys]
        if purpose == REGISTER:
            _may_add(kept, session)
        elif not known:
            raise Invalid("this account has no passkey: register one first")
        id_, made, change = make_challenge(purpose, grant.principal.credential, self._now() + SECONDS, self._here.entropy)
        self._here.records.commit([change])
        if purpose == REGISTER:
            return id_, _passkeys().creation_options(party, account.name, account.subject, made.value, known, seconds=SECONDS)
        return id_, _passkeys().request_options(party, made.value, known, seconds=SECONDS)

    def register(self, token: str, challenge: str, answer: bytes, label: str, address: str) -> None:
        """Add the passkey that a browser made to one's own account. Raises Unauthenticated, Denied, Invalid, OverBudget."""
        grant, account, session = self._known(token, address)
        self._may(grant.principal, OWN_FACTORS, address)
        value = take_challenge(self._here.records, challenge, REGISTER, grant.principal.credential, self._now())
        found = _passkeys().check_registration(answer, value, self._control.party())
        kept, revision = self._factors(account.name)
        _may_add(kept, session)
        passkey = Passkey(id=found.id, public=found.public, signed=found.signed, created=self._now(), label=label[:64])
        self._here.records.commit([write_factors(account.name, add_passkey(kept, passkey), revision)])
        self._control.keep.acting_as(grant.principal, address).act("mfa.passkey", account.subject)
        self._control.record("mfa", account.subject, "", "ok")

    def _signed(self, account: Account, grant: Grant, challenge: str, purpose: str, answer: bytes, proof: Proof) -> Proof:
        """Check that a passkey of ``account`` signed, once. Raises Unauthenticated."""
        forget = self._control.logins.count_factor(account)
        value = take_challenge(self._here.records, challenge, purpose, grant.principal.credential, self._now())
        kept, revision = self._factors(account.name)
        try:
            mine = passkey_at(kept, _passkeys().credential_of(answer))
        except Missing as cause:
            raise Unauthenticated(str(cause)) from None
        known = _passkeys().Registered(mine.id, mine.public, mine.signed)
        signed = _passkeys().check_assertion(answer, value, self._control.party(), known)
        try:
            self._here.records.commit([write_factors(account.name, passkey_used(kept, mine, signed), revision)])
        except Conflict:
            raise Unauthenticated("this passkey was used elsewhere at this moment: begin again") from None
        forget()
        return proof.with_factor(AMR[PASSKEY], self._now())

    def _factors(self, name: str) -> tuple[Factors, int]:
        try:
            record = self._here.records.get(FACTOR, name)
        except Missing:
            return NONE, 0
        return parse_factors(record), record.revision

    # -- what they share --

    def _known(self, token: str, address: str) -> tuple[Grant, Account, Session]:
        """Who a session speaks for. Raises Unauthenticated, Invalid (an API key), OverBudget."""
        grant = self._control.authenticate(Presented(token, address))
        if grant.kind != "session":
            raise Invalid("an API key has no second factor: use a session")
        found = self._account(grant.principal.account)
        if found is None:
            raise Unauthenticated("this session was ended: log in again")
        return grant, found, self._control.verifier.verify(token)

    def _may(self, principal: Principal, action: str, address: str) -> None:
        authorize(self._here.access, principal, action, account_target(principal.account), address)


def _passkeys() -> ModuleType:
    try:
        from modelkeep.adapters import passkeys
    except ImportError as cause:
        raise Invalid("passkeys need 'pip install modelkeep[mfa]' where control runs") from cause
    return passkeys


def _proof(session: Session) -> Proof:
    return Proof(session.auth_time, session.amr or ("pwd",), bool(session.mfa_at))


def _was_held_back(session: Session) -> bool:
    """Whether a session may only add factors because it came without one, and not because its client asked for no more."""
    return session.operations == RESTRICTED and not session.models and not session.mfa_at


def _may_add(kept: Factors, session: Session) -> None:
    """Whoever has a second factor shows it before he adds another: else a stolen password could. Raises Unauthenticated."""
    if kept.kinds and not session.mfa_at:
        raise Unauthenticated("show the second factor that this account has before adding another: step up first")
