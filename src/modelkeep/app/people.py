"""Verbs about accounts and API keys. Each changes the records, then says so in the releases log under pseudonyms."""

from collections.abc import Mapping

from modelkeep.access.accounts import ACCOUNT, Account, add_account, parse_account, set_disabled, set_roles
from modelkeep.access.certificates import certificate_digest
from modelkeep.access.credentials import KEY, ApiKey, KeyTerms, NewKey, issue_key, parse_key_record, revoke_key, rotate_key
from modelkeep.access.externals import (
    EXTERNAL,
    NEWCOMER,
    NO_ISSUER,
    TURNED_AWAY,
    External,
    Newcomer,
    TurnedAway,
    admit,
    forget_turned_away,
    is_external,
    parse_external,
    parse_newcomer,
    set_blocked,
    turn_away,
)
from modelkeep.access.quotas import granted_of
from modelkeep.access.uses import KEY_USE, last_uses
from modelkeep.app.acting import Acts
from modelkeep.app.results import KeyIssued, KeyRow, UserAdded, UserRow
from modelkeep.app.verbs import verb
from modelkeep.core.ports import Change
from modelkeep.core.values import parse_role
from modelkeep.errors import Conflict, Invalid, Missing
from modelkeep.policy.engine import known_actions

SECOND = 1_000_000_000


class PeopleVerbs(Acts):
    """user add/role/disable/list, key issue/rotate/revoke/list."""

    @verb("user.add")
    def user_add(self, *, name: str, roles: tuple[str, ...]) -> UserAdded:
        """Add an account with a one-time password. Raises Conflict (the name is taken), Invalid (also: a role of no rule)."""
        here = self.premises
        self._check_roles(roles)
        made = self.change(lambda: add_account(name, roles, passwords=here.passwords, entropy=here.entropy, clock=here.clock))
        self.act("user.add", made.account.subject, roles=",".join(made.account.roles))
        self.commit_marks([made.account.subject])
        return UserAdded(name, tuple(map(str, made.account.roles)), made.password)

    @verb("user.role")
    def user_role(self, *, name: str, roles: tuple[str, ...]) -> UserRow:
        """Set the roles of an account; its sessions end. Raises Missing, Conflict (the last admin), Invalid."""
        self._check_roles(roles)
        if is_external(name):
            raise Invalid(f"the roles of {name} come with its tokens: change them at its issuer, or the mapping in [[issuers]]")
        changed = self.change(lambda: set_roles(self.premises.records.scan(ACCOUNT), name, roles))
        self.act("user.role", changed.subject, roles=",".join(changed.roles))
        self.premises.settle_lease()
        return user_row(changed)

    @verb("user.disable")
    def user_disable(self, *, name: str) -> UserRow:
        """Disable an account; nothing that it asks after this returns is answered. Raises Missing, Conflict."""
        changed = self._able(name, False)
        self.act("user.disable", changed.subject)
        self.premises.settle_lease()
        return user_row(changed)

    @verb("user.enable")
    def user_enable(self, *, name: str) -> UserRow:
        """Enable a disabled account again. Raises Missing."""
        changed = self._able(name, True)
        self.act("user.enable", changed.subject)
        return user_row(changed)

    @verb("user.list")
    def user_list(self) -> tuple[UserRow, ...]:
        """Every account, by name: own ones, and those of other issuers that ever came, whose roles come with their tokens."""
        scan = self.premises.records.scan
        own = [user_row(parse_account(record)) for record in scan(ACCOUNT)]
        return (*own, *sorted((user_row(parse_external(record)) for record in scan(EXTERNAL)), key=lambda row: row.name))

    @verb("key.issue")
    def key_issue(
        self,
        *,
        account: str,
        quota: int | None = None,
        days: int | None = None,
        models: tuple[str, ...] = (),
        actions: tuple[str, ...] = (),
        certificate: str = "",
    ) -> KeyIssued:
        """Issue an API key. ``certificate``: the client's, PEM or ``sha256:<hex>``, to bind it to.

        Raises Missing (no such account), Conflict (it is disabled), Invalid.
        """
        owner = self._account(account)
        if owner.disabled:
            raise Conflict(f"{account} is disabled: enable it before issuing a key")
        check_actions(actions)
        limits = self.premises.settings.limits
        terms = KeyTerms(
            models=models,
            quota=quota or limits.key_requests,
            lifetime=(days or limits.key_days) * 86_400,
            actions=actions,
            certificate=certificate_digest(certificate) if certificate else "",
        )
        made = self.change(lambda: issue_key(account, terms, entropy=self.premises.entropy, clock=self.premises.clock))
        self.act("key.issue", owner.subject, key=made.key.id)
        return _issued(made)

    @verb("key.rotate")
    def key_rotate(self, *, key_id: str, overlap: int = 3600) -> KeyIssued:
        """Replace a key; the old one works for ``overlap`` seconds more. Raises Missing, Invalid."""
        old = self._key(key_id, "key.rotate")
        made = self.change(
            lambda: rotate_key(
                self.record(KEY, key_id), overlap=overlap, entropy=self.premises.entropy, clock=self.premises.clock
            )
        )
        self.act("key.rotate", self._account(old.account).subject, key=key_id, successor=made.key.id)
        return _issued(made)

    @verb("key.revoke")
    def key_revoke(self, *, key_id: str) -> KeyRow:
        """Revoke a key; nothing that it asks after this returns is answered. Raises Missing."""
        self._key(key_id, "key.revoke")
        changed = self.change(lambda: revoke_key(self.record(KEY, key_id)))
        self.act("key.revoke", self._account(changed.account).subject, key=key_id)
        self.premises.settle_lease()
        return self._row(changed, last_uses(self.premises.records.scan(KEY_USE, key_id)))

    @verb("key.list")
    def key_list(self) -> tuple[KeyRow, ...]:
        """Every API key, without its secret."""
        used = last_uses(self.premises.records.scan(KEY_USE))
        return tuple(self._row(parse_key_record(record), used) for record in self.premises.records.scan(KEY))

    def admit_newcomers(self) -> tuple[str, ...]:
        """Give everybody whom a gateway announced a pseudonym, and commit to his marks first; why some got none, in words.

        He is told so, too, for a while, and then judged anew.
        """
        records, refused, now = self.premises.records, [], self.premises.clock.now_ns() // SECOND
        if stale := forget_turned_away(records.scan(TURNED_AWAY), now):
            records.commit(stale)
        for record in records.scan(NEWCOMER):
            done = [Change(NEWCOMER, record.key, None)]
            try:
                self._admit(parse_newcomer(record))
            except Conflict:
                pass  # he has one
            except TurnedAway as cause:
                refused.append(str(cause))
                done.append(turn_away(record.key, cause.reason, now))
            except Invalid as cause:
                refused.append(str(cause))
            records.commit(done)
        return tuple(refused)

    def _admit(self, newcomer: Newcomer) -> None:
        here, alias = self.premises, newcomer.name.rpartition("@")[2]
        bounds = {one.alias: one.max_accounts for one in here.settings.issuers}
        if alias not in bounds:
            raise TurnedAway(NO_ISSUER, f"no issuer in the settings is called {alias[:40]!r}")
        account, changes = admit(here.records.scan(EXTERNAL), newcomer, bounds[alias], entropy=here.entropy, clock=here.clock)
        self.act("user.add", account.subject, issuer=alias)
        self.commit_marks([account.subject])
        here.records.commit(changes)

    def _able(self, name: str, enabled: bool) -> Account | External:
        scan = self.premises.records.scan
        if is_external(name):
            return self.change(lambda: set_blocked(scan(EXTERNAL), name, not enabled))
        return self.change(lambda: set_disabled(scan(ACCOUNT), name, not enabled))

    def _check_roles(self, roles: tuple[str, ...]) -> None:
        """Raise Invalid for a role that no rule of the access policy speaks of: it would be a mistyped one."""
        known = self.premises.access.roles
        for role in roles:
            if parse_role(role) not in known:
                raise Invalid(
                    f"no rule of the access policy speaks of the role {role!r}: use {', '.join(known)}, or add a rule"
                )

    def _account(self, name: str) -> Account:
        try:
            return parse_account(self.record(ACCOUNT, name))
        except Missing:
            raise Missing(f"there is no account {name[:64]!r}") from None

    def _key(self, key_id: str, action: str) -> ApiKey:
        try:
            found = parse_key_record(self.record(KEY, key_id))
        except Missing:
            raise Missing(f"there is no API key {key_id[:64]!r}") from None
        # A key's id says nothing about whose it is, so that is looked at here.
        self.authorize(action, {"account": found.account})
        return found

    def _row(self, key: ApiKey, last: Mapping[str, int]) -> KeyRow:
        now = self.premises.clock.now_ns()
        state = (
            "revoked"
            if key.revoked
            else "expired"
            if now >= key.expires * SECOND
            else "replaced"
            if key.replaced_by
            else "active"
        )
        used = granted_of(self.premises.records, key.quota_id)
        return KeyRow(
            key.id,
            key.account,
            state,
            key.expires * SECOND,
            key.quota or 0,
            used,
            key.models,
            key.actions,
            last.get(key.id, 0) * SECOND,
        )


def check_actions(actions: tuple[str, ...]) -> None:
    """Raise Invalid for an action that no policy can speak about: it would be a mistyped one."""
    known = known_actions()
    for action in actions:
        if action not in known:
            raise Invalid(f"{action[:40]!r} is not an action: possible are {', '.join(known)}")


def user_row(account: Account | External) -> UserRow:
    """An account in a list."""
    roles = account.roles if isinstance(account, Account) else ()
    mfa = ("codes" if account.codes else account.mfa) if isinstance(account, Account) else ""
    return UserRow(account.name, tuple(map(str, roles)), account.disabled, account.subject, account.created * SECOND, mfa)


def _issued(made: NewKey) -> KeyIssued:
    return KeyIssued(made.key.id, made.key.account, made.text, made.key.expires * SECOND, made.key.quota or 0)
