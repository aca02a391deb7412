"""Forgetting an account: nothing here maps its pseudonym to a person any more, and nothing of it lets anybody in.

What stays is a record that names the pseudonym alone, so that a process that missed the deletion drops the account, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

from modelkeep.access.accounts import ACCOUNT, LOGIN, Account, parse_account, set_disabled
from modelkeep.access.certificates import parse_certificate, remove_certificate
from modelkeep.access.credentials import KEY, parse_key_record
from modelkeep.access.factors import FACTOR
from modelkeep.access.refresh import REFRESH, parse_family
from modelkeep.access.sessions import REVOCATION, SESSION, parse_issued, parse_revocation
from modelkeep.access.uses import KEY_USE
from modelkeep.core.ports import Change, Record

FORGOTTEN = "forgotten"
"""Record kind; the key is a pseudonym, the body says nothing."""


class Credentials(NamedTuple):
    """Every record of an API key, an ended session, a certificate, an issued session, and of refresh tokens."""

    keys: Sequence[Record] = ()
    revocations: Sequence[Record] = ()
    certificates: Sequence[Record] = ()
    sessions: Sequence[Record] = ()
    families: Sequence[Record] = ()


def forget_account(accounts: Sequence[Record], credentials: Credentials, name: str) -> tuple[Account, list[Change]]:
    """Delete an account with its API keys, its certificates and what is known of its logins.

    Raises Missing, Conflict (the last enabled admin), NotTrusted (a record is damaged).
    """
    account, changes = set_disabled(accounts, name, True)  # whose changes make sure that an admin stays
    others = [change for change in changes if change.key != name]
    revision = next(record.revision for record in accounts if record.key == name)
    mine = [r for r in credentials.keys if parse_key_record(r).account == name]
    keys = [change for r in mine for change in (Change(KEY, r.key, None, r.revision), Change(KEY_USE, r.key, None))]
    ended = [Change(REVOCATION, r.key, None) for r in credentials.revocations if parse_revocation(r).account == name]
    mine = [r for r in credentials.certificates if parse_certificate(r).account == name]
    shown = [change for r in mine for change in remove_certificate(r)[1]]
    ended += [Change(SESSION, r.key, None) for r in credentials.sessions if parse_issued(r).account == name]
    ended += [Change(REFRESH, r.key, None) for r in credentials.families if parse_family(r).account == name]
    return account, [
        Change(ACCOUNT, name, None, revision),
        Change(LOGIN, f"account/{name}", None),
        Change(FACTOR, name, None),
        Change(FORGOTTEN, account.subject, b"{}"),
        *others,
        *keys,
        *ended,
        *shown,
    ]


def account_of(accounts: Sequence[Record], subject: str) -> Account | None:
    """The account behind a pseudonym, if there is one. Raises NotTrusted (a record is damaged)."""
    return next((found for found in map(parse_account, accounts) if found.subject == subject), None)
