"""Accounts: pure functions from what the records say to what they shall say next.

Each command takes the account records as they are (``Records.scan(ACCOUNT)``) and returns its result with the changes to
commit; every change names the revision it was computed from, so that two commands at once cannot both win (Conflict: read
again and repeat).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from modelkeep.access.passwords import Passwords, check_new, one_time_password
from modelkeep.core.ports import Change, Clock, Entropy, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import Principal, Role, parse_name, parse_role, to_json
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted

ACCOUNT = "account"
"""Record kind; the key is the account's name."""

LOGIN = "login"
"""Record kind: attempts to log in; the key is ``account/<name>``."""

REQUIRED = "required"
"""``Account.mfa`` of an account that must use a second factor."""

OPERATOR = Principal("operator@local", "operator@local", (Role.ADMIN,), "local")
"""Who acts with the folder and the passphrase. The @ keeps the name out of reach of every account."""


_FAR = 1_000_000  # generations: further than any account has come since a backup


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One account.

    ``subject``: pseudonym in public records. ``password``: Argon2id PHC string. ``one_time``: the password must be replaced at
    the next login. ``generation``: rises with every change of password, role or state; sessions of an older one are void.
    ``created``: Unix seconds. ``mfa``: "required" when a session without a second factor may do nothing but add one. ``codes``:
    one-time codes are enrolled, so a login needs one. ``stepped_up``: Unix second at which a second factor last let the whole
    account go on (access/stepup), 0 = never.
    """

    name: str
    subject: str
    roles: tuple[str, ...]
    password: str
    one_time: bool
    created: int
    disabled: bool = False
    generation: int = 1
    mfa: str = ""
    codes: bool = False
    stepped_up: int = 0

    def __repr__(self) -> str:
        return f"Account({self.name}, {self.subject}, {list(self.roles)}, disabled={self.disabled})"


class NewPassword(NamedTuple):
    """An account and the one-time password to hand to its owner; it is kept nowhere."""

    account: Account
    password: str

    def __repr__(self) -> str:
        return f"NewPassword({self.account.name})"


def parse_account(record: Record) -> Account:
    """Decode an account record. Raises NotTrusted (damaged)."""
    account = parse_record(record, Account, f"account {record.key!r}")
    if account.name != record.key:
        raise NotTrusted(f"the record of account {record.key!r} is about {account.name!r}: restore it from a backup")
    return account


def add_account(
    name: str, roles: Sequence[str], *, passwords: Passwords, entropy: Entropy, clock: Clock
) -> tuple[NewPassword, list[Change]]:
    """A new account with a one-time password. Raises Invalid. (The commit raises Conflict if the name is taken.)"""
    parse_name(name, "account name")
    password = one_time_password(entropy)
    account = Account(
        name=name,
        subject="sub_" + entropy.token(8).hex(),
        roles=_roles(roles),
        password=passwords.hash(password, entropy),
        one_time=True,
        created=clock.now_ns() // 1_000_000_000,
    )
    return NewPassword(account, password), [Change(ACCOUNT, name, to_json(account), 0)]


def set_roles(accounts: Sequence[Record], name: str, roles: Sequence[str]) -> tuple[Account, list[Change]]:
    """Give ``name`` exactly these roles. Raises Missing, Invalid, Conflict (the last enabled admin)."""
    record, account = _find(accounts, name)
    changed = msgspec.structs.replace(account, roles=_roles(roles), generation=account.generation + 1)
    return _replace(accounts, record, account, changed)


def set_disabled(accounts: Sequence[Record], name: str, disabled: bool) -> tuple[Account, list[Change]]:
    """Disable or enable ``name``; its sessions end, its keys stop working while it is disabled. Raises Missing, Conflict."""
    record, account = _find(accounts, name)
    changed = msgspec.structs.replace(account, disabled=disabled, generation=account.generation + 1)
    return _replace(accounts, record, account, changed)


def reset_password(
    accounts: Sequence[Record], name: str, *, passwords: Passwords, entropy: Entropy
) -> tuple[NewPassword, list[Change]]:
    """Give ``name`` a new one-time password, end its sessions and lift a lockout. Raises Missing."""
    record, account = _find(accounts, name)
    password = one_time_password(entropy)
    changed = _with_password(account, passwords.hash(password, entropy), one_time=True)
    return NewPassword(changed, password), [_change(record, changed), Change(LOGIN, f"account/{name}", None)]


def require_factor(accounts: Sequence[Record], name: str, required: bool) -> tuple[Account, list[Change]]:
    """Have ``name`` use a second factor, or leave it free to; its sessions end. Raises Missing."""
    record, account = _find(accounts, name)
    changed = msgspec.structs.replace(account, mfa=REQUIRED if required else "", generation=account.generation + 1)
    return changed, [_change(record, changed)]


def set_codes(accounts: Sequence[Record], name: str, enrolled: bool) -> tuple[Account, list[Change]]:
    """Say whether a login of ``name`` needs a one-time code; its sessions end. Raises Missing."""
    record, account = _find(accounts, name)
    changed = msgspec.structs.replace(account, codes=enrolled, generation=account.generation + 1)
    return changed, [_change(record, changed)]


def step_up(accounts: Sequence[Record], name: str, now: int) -> tuple[Account, list[Change]]:
    """A second factor was shown for the whole of ``name`` at Unix second ``now``. Raises Missing, Conflict (it is disabled)."""
    record, account = _find(accounts, name)
    if account.disabled:
        raise Conflict(f"{name} is disabled: enable it first")
    changed = msgspec.structs.replace(account, stepped_up=max(now, account.stepped_up))
    return changed, [_change(record, changed)]


def end_logins(accounts: Sequence[Record], passing: Sequence[Record]) -> list[Change]:
    """Changes that end every session and drop ``passing``, the records of logins.

    Accounts as they were once have forgotten which sessions ended since, and how far their generations had come.
    """
    ended = [(record, parse_account(record)) for record in accounts]
    return [
        *(_change(record, msgspec.structs.replace(found, generation=found.generation + _FAR)) for record, found in ended),
        *(Change(record.kind, record.key, None, record.revision) for record in passing),
    ]


def set_password(record: Record, new: str, old: str, *, passwords: Passwords, entropy: Entropy) -> tuple[Account, list[Change]]:
    """Replace the password, already proven to be ``old``, by one that the owner chose. Raises Invalid."""
    account = parse_account(record)
    check_new(new, account.name)
    if new == old:
        raise Invalid("the new password is the old one: choose another")
    changed = _with_password(account, passwords.hash(new, entropy), one_time=False)
    return changed, [_change(record, changed)]


def _with_password(account: Account, stored: str, *, one_time: bool) -> Account:
    return msgspec.structs.replace(account, password=stored, one_time=one_time, generation=account.generation + 1)


def _roles(roles: Sequence[str]) -> tuple[str, ...]:
    if not roles:
        raise Invalid(f"an account needs a role, such as {', '.join(Role)}")
    return tuple(sorted({parse_role(role) for role in roles}))


def _find(accounts: Sequence[Record], name: str) -> tuple[Record, Account]:
    for record in accounts:
        if record.key == name:
            return record, parse_account(record)
    raise Missing(f"there is no account {name[:64]!r}")


def _change(record: Record, account: Account) -> Change:
    return Change(ACCOUNT, account.name, to_json(account), record.revision)


def _is_admin(account: Account) -> bool:
    return Role.ADMIN in account.roles and not account.disabled


def _replace(accounts: Sequence[Record], record: Record, before: Account, after: Account) -> tuple[Account, list[Change]]:
    changes = [_change(record, after)]
    if _is_admin(before) and not _is_admin(after):
        others = [other for other in accounts if other.key != record.key and _is_admin(parse_account(other))]
        if not others:
            raise Conflict(f"{before.name} is the last enabled admin: make another one first")
        # Two admins who demote each other at once would both succeed: writing the one who stays makes the second commit fail.
        changes.append(Change(ACCOUNT, others[0].key, others[0].body, others[0].revision))
    return after, changes
