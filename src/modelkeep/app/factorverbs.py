"""Verbs about second factors, sessions, and letting an account go on."""

from modelkeep.access.accounts import ACCOUNT, LOGIN, Account, parse_account, require_factor, set_codes, step_up
from modelkeep.access.externals import is_external
from modelkeep.access.factors import FACTOR, NONE, Factors, begin_codes, confirm_codes, labels, parse_factors, write_factors
from modelkeep.access.quotas import granted_of
from modelkeep.access.refresh import REFRESH, Family, end_family, parse_family
from modelkeep.access.sessions import REVOCATION, SESSION, Issued, Proof, end_session, parse_issued
from modelkeep.access.totp import key_uri, text_of
from modelkeep.app.people import SECOND, PeopleVerbs, user_row
from modelkeep.app.results import FactorBegun, FactorEnrolled, FactorRow, SessionRow, SteppedUp, UserRow
from modelkeep.app.verbs import verb
from modelkeep.core.ports import Change, Record
from modelkeep.custody.keys import SECOND_FACTOR
from modelkeep.errors import Denied, Missing, Unauthenticated

ISSUER = "modelkeep"


class FactorVerbs(PeopleVerbs):
    """mfa enrol/confirm/show/require/reset, session list/revoke, step-up approve."""

    @verb("mfa.own")
    def mfa_enrol(self, *, account: str, code: str = "") -> FactorBegun:
        """A secret for one-time codes of one's own account; it counts once ``mfa_confirm`` was given a code of it.

        ``code``: of the codes that are in force, if there are any. Raises Denied (another's account), Unauthenticated.
        """
        here, owner = self.premises, self._own(account)
        if owner.codes:
            here.logins.prove_factor(owner, code, Proof(0))
        else:
            self._check_may_add(account)
        secret = self.change(lambda: self._begin(account))
        self.act("mfa.enrol", owner.subject)
        return FactorBegun(account, text_of(secret), key_uri(secret, account, ISSUER))

    @verb("mfa.own")
    def mfa_confirm(self, *, account: str, code: str) -> FactorEnrolled:
        """Put the codes in force whose secret ``mfa_enrol`` gave; every session ends, and logins need a code.

        Raises Denied (another's account), Unauthenticated, Invalid (nothing waits, or the code is not of now).
        """
        owner = self._own(account)
        if not owner.codes:  # a passkey may have come since mfa_enrol
            self._check_may_add(account)
        codes = self.change(lambda: self._confirm(account, code))
        self.act("mfa.confirm", owner.subject)
        self.premises.settle_lease()
        return FactorEnrolled(account, codes)

    @verb("mfa.own")
    def mfa_show(self, *, account: str) -> FactorRow:
        """The second factors of an account. Raises Missing."""
        owner, kept = self._account(account), self._factors(account)[0]
        required = bool(owner.mfa) or bool(set(owner.roles) & set(self.premises.settings.access.mfa_roles))
        return FactorRow(account, required, owner.codes, len(kept.recovery), labels(kept.passkeys))

    @verb("mfa.require")
    def mfa_require(self, *, account: str, required: bool = True) -> UserRow:
        """Have an account use a second factor, or leave it free to; its sessions end. Raises Missing."""
        changed = self.change(lambda: require_factor(self.premises.records.scan(ACCOUNT), account, required))
        self.act("mfa.require", changed.subject, required=str(required).lower())
        self.premises.settle_lease()
        return user_row(changed)

    @verb("mfa.reset")
    def mfa_reset(self, *, account: str) -> UserRow:
        """Drop every second factor of an account, end its sessions and lift a lockout. Raises Missing, Denied (one's own)."""
        if account == self.actor.account:
            raise Denied("nobody resets their own second factors: ask another administrator")
        changed = self.change(lambda: self._reset(account))
        self.act("mfa.reset", changed.subject)
        self.premises.settle_lease()
        return user_row(changed)

    @verb("session.list")
    def session_list(self, *, account: str = "") -> tuple[SessionRow, ...]:
        """Sessions that have not expired, of one account or, for who may, of all."""
        records, now = self.premises.records, self._now()
        ended = {record.key for record in records.scan(REVOCATION)}
        accounts = {found.name: found for found in map(parse_account, records.scan(ACCOUNT))}
        rows = []
        for record in records.scan(SESSION):
            issued = parse_issued(record)
            if issued.expires > now and account in ("", issued.account):
                rows.append(self._session_row(record.key, issued, _lives(record.key, issued, ended, accounts)))
        return tuple(sorted(rows, key=lambda row: (row.account, row.issued)))

    @verb("session.revoke")
    def session_revoke(self, *, account: str, session_id: str = "") -> tuple[str, ...]:
        """End one session of an account, or all of them, and the refresh tokens that they came with; ids of those ended.

        Nothing that they ask after this returns is answered. Raises Missing.
        """
        owner = self._account(account)
        ended = self.change(lambda: self._end(account, session_id))
        self.act("session.revoke", owner.subject, sessions=str(len(ended)))
        self.premises.settle_lease()
        return ended

    @verb("step-up.approve")
    def step_up_approve(self, *, account: str, code: str = "") -> SteppedUp:
        """Let an account go on that was asked for a second factor: its keys have none. ``code``: of whoever approves.

        Raises Unauthenticated (the code), Denied (whoever approves has no one-time codes), Missing, Conflict (disabled).
        """
        here = self.premises
        if not self.actor.account.endswith("@local"):  # who holds the folder and the passphrase has shown enough
            if is_external(self.actor.account):
                raise Denied("a second factor at another issuer cannot be asked for here: approve with an account of this keep")
            approver = self._account(self.actor.account)
            if not approver.codes:
                raise Denied("to approve takes a one-time code: enrol first with 'modelkeep mfa enrol'")
            here.logins.prove_factor(approver, code, Proof(0))
        changed = self.change(lambda: step_up(here.records.scan(ACCOUNT), account, self._now()))
        self.act("step-up.approve", changed.subject)
        here.settle_lease()
        return SteppedUp(account, changed.stepped_up * SECOND)

    # -- what they share --

    def _own(self, account: str) -> Account:
        if account != self.actor.account:
            raise Denied("a second factor is added by its owner alone: log in as that account")
        if not self.actor.credential.startswith("session:"):
            raise Denied("an API key adds no second factor to its account: log in")
        return self._account(account)

    def _check_may_add(self, account: str) -> None:
        if self._factors(account)[0].kinds and not self.actor.strong:
            raise Unauthenticated("show the second factor that this account has before adding another: step up first")

    def _begin(self, account: str) -> tuple[bytes, list[Change]]:
        here = self.premises
        kept, revision = self._factors(account)
        secret, after = begin_codes(kept, account, keys=here.ring_keys(SECOND_FACTOR), entropy=here.entropy)
        return secret, [write_factors(account, after, revision)]

    def _confirm(self, account: str, code: str) -> tuple[tuple[str, ...], list[Change]]:
        here = self.premises
        kept, revision = self._factors(account)
        keys = here.ring_keys(SECOND_FACTOR)
        codes, after = confirm_codes(kept, account, code, self._now(), keys=keys, entropy=here.entropy)
        _, changes = set_codes(here.records.scan(ACCOUNT), account, True)
        return codes, [write_factors(account, after, revision), *changes]

    def _reset(self, account: str) -> tuple[Account, list[Change]]:
        changed, changes = set_codes(self.premises.records.scan(ACCOUNT), account, False)
        revision = self._factors(account)[1]
        gone = [Change(FACTOR, account, None, revision)] if revision else []
        return changed, [*changes, *gone, Change(LOGIN, f"account/{account}", None)]

    def _factors(self, account: str) -> tuple[Factors, int]:
        try:
            record = self.record(FACTOR, account)
        except Missing:
            return NONE, 0
        return parse_factors(record), record.revision

    def _end(self, account: str, session_id: str) -> tuple[tuple[str, ...], list[Change]]:
        records, now = self.premises.records, self._now()
        issued = {record.key: parse_issued(record) for record in records.scan(SESSION)}
        mine = {key: one for key, one in issued.items() if one.account == account and session_id in ("", key)}
        if session_id and not mine:
            raise Missing(f"{account} has no session {session_id[:64]!r}")
        families = [(record, parse_family(record)) for record in records.scan(REFRESH)]
        wanted = {one.family for one in mine.values()}
        ending = [pair for pair in families if pair[1].account == account and (not session_id or pair[0].key in wanted)]
        changes = [end_session(key, one) for key, one in mine.items() if one.expires > now]
        changes += [change for record, family in ending if not family.ended for change in _end_family(record, family, now)]
        return tuple(sorted(key for key, one in mine.items() if one.expires > now)), _once(changes)

    def _session_row(self, id_: str, issued: Issued, lives: bool) -> SessionRow:
        return SessionRow(
            id_,
            issued.account,
            "active" if lives else "ended",
            issued.issued * SECOND,
            issued.expires * SECOND,
            granted_of(self.premises.records, f"session:{id_}"),
            issued.max_requests,
            issued.models,
            issued.operations,
            issued.amr,
        )

    def _now(self) -> int:
        return self.premises.clock.now_ns() // SECOND


def _end_family(record: Record, family: Family, now: int) -> list[Change]:
    return end_family(record.key, family, record.revision, now)


def _once(changes: list[Change]) -> list[Change]:
    """One change a record: a session may be ended by itself and with its family."""
    return list({(change.kind, change.key): change for change in changes}.values())


def _lives(id_: str, issued: Issued, ended: set[str], accounts: dict[str, Account]) -> bool:
    account = accounts.get(issued.account)
    return id_ not in ended and account is not None and not account.disabled and account.generation == issued.generation
