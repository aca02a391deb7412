"""Accounts of other issuers: who came, under which pseudonym, and whether he is blocked here.

A gateway that meets somebody for the first time says so (``NEWCOMER``); control, which alone may sign who there is, gives him a
random pseudonym (``EXTERNAL``). He is found by issuer and ``sub``, so that a new name at the issuer is no new account here; and
a name that one ``sub`` has is refused to every other (``NAME``), so that nobody is taken for his predecessor.
"""

from collections.abc import Sequence

import msgspec

from modelkeep.access.issuers import account_name
from modelkeep.core.ports import Change, Clock, Entropy, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unauthenticated

EXTERNAL = "external"
"""Record kind, signed; the key is ``access.issuers.subject_digest`` of issuer and ``sub``."""
NAME = "external-name"
"""Record kind; the key is the account's name, so that it is given once; the body names the key of the account."""
NEWCOMER = "newcomer"
"""Record kind; the key is that of the account to be. Whoever writes one gains no more than a pseudonym that nobody can use."""
TURNED_AWAY = "newcomer-refused"
"""Record kind: why control let a newcomer not in; the key is that of the account that he would have. Whoever writes one keeps
somebody out who has no account anyway."""
TURNED_AWAY_SECONDS = 60
"""How long he is told so; who comes after that is judged anew."""
NAME_TAKEN, TOO_MANY, NO_ISSUER = "name-taken", "too-many", "no-issuer"
REASONS = {
    NAME_TAKEN: "another account of your identity provider has your name here: ask an administrator to erase it, if it is gone",
    TOO_MANY: "no more accounts of your identity provider are let in here: ask an administrator to raise its max_accounts",
    NO_ISSUER: "no new accounts of your identity provider are let in here: ask an administrator to name it in the settings",
}
"""What a newcomer is told who gets no account, by reason."""

PENDING = 256
"""Newcomers that a process announces at once."""

CREDENTIAL = "token:"
"""What the id of a credential begins with that is a token of another issuer."""
_LINGER = 3_600  # seconds that its quota stays after it expired: by then no gateway has a lease that it could give back


class External(msgspec.Struct, frozen=True, kw_only=True):
    """One account of another issuer. ``name``: ``<name>@<alias>`` as of its first visit; ``subject``: pseudonym in public
    records; ``digest``: what it is found by; ``created``: Unix seconds of its first visit."""

    name: str
    subject: str
    digest: str
    created: int
    disabled: bool = False


class Newcomer(msgspec.Struct, frozen=True):
    """Somebody with a good token whom the records do not know yet."""

    name: str
    digest: str


class TurnedAway(Denied):
    """A newcomer gets no account. ``reason``: one of ``REASONS``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Refusal(msgspec.Struct, frozen=True):
    reason: str
    until: int


def turn_away(digest: str, reason: str, now: int) -> Change:
    """Say why a newcomer gets no account; it counts for ``TURNED_AWAY_SECONDS`` from Unix second ``now``."""
    return Change(TURNED_AWAY, digest, to_json(_Refusal(reason, now + TURNED_AWAY_SECONDS)))


def reason_of(record: Record) -> str:
    """Why a newcomer got no account: one of ``REASONS``, "" when the record says none (it is not signed)."""
    found = _refusal(record)
    return found.reason if found.reason in REASONS else ""


def forget_turned_away(records: Sequence[Record], now: int) -> list[Change]:
    """Changes that drop what no longer counts: those who come again are newcomers again."""
    old = [record for record in records if not now < _refusal(record).until <= now + TURNED_AWAY_SECONDS]
    return [Change(TURNED_AWAY, record.key, None) for record in old]


def _refusal(record: Record) -> _Refusal:
    try:
        return parse_record(record, _Refusal, "a refused newcomer")
    except NotTrusted:
        return _Refusal("", 0)


def parse_external(record: Record) -> External:
    """Decode an account record. Raises NotTrusted (damaged)."""
    found = parse_record(record, External, f"external account {record.key!r}")
    if found.digest != record.key:
        raise NotTrusted(f"the record of external account {record.key!r} is of another: restore it from a backup")
    return found


def announce(newcomer: Newcomer) -> Change:
    """Say that somebody came. The commit raises Conflict when that was said already."""
    return Change(NEWCOMER, newcomer.digest, to_json(newcomer), 0)


def parse_newcomer(record: Record) -> Newcomer:
    """Decode an announcement. Raises Invalid (it is none; anybody can have written it)."""
    try:
        found = parse_record(record, Newcomer, "a newcomer")
    except NotTrusted as cause:
        raise Invalid("this announces no newcomer") from cause
    if found.digest != record.key or len(found.digest) != 64:
        raise Invalid("this announces another newcomer")
    name, _, alias = found.name.rpartition("@")
    try:
        account_name(name, alias)
    except Unauthenticated as cause:
        raise Invalid("this announces nobody who could have a name here") from cause
    return found


def admit(
    externals: Sequence[Record], newcomer: Newcomer, most: int, *, entropy: Entropy, clock: Clock
) -> tuple[External, list[Change]]:
    """An account for ``newcomer``. ``most``: how many his issuer may have here.

    Raises Conflict (he has one; so, too, the commit), TurnedAway (his name is another's, or there are too many).
    """
    known = [parse_external(record) for record in externals]
    if any(found.digest == newcomer.digest for found in known):
        raise Conflict("this external account is there already")
    if any(found.name == newcomer.name for found in known):
        why = f"{newcomer.name} is the name of another account of that issuer: erase that one first, if it is gone"
        raise TurnedAway(NAME_TAKEN, why)
    alias = newcomer.name.rpartition("@")[2]
    if sum(found.name.rpartition("@")[2] == alias for found in known) >= most:
        why = f"{most} accounts of {alias} have come, and no more are let in: raise max_accounts of that issuer"
        raise TurnedAway(TOO_MANY, why)
    account = External(
        name=newcomer.name,
        subject="sub_" + entropy.token(8).hex(),
        digest=newcomer.digest,
        created=clock.now_ns() // 1_000_000_000,
    )
    return account, [
        Change(EXTERNAL, account.digest, to_json(account), 0),
        Change(NAME, account.name, to_json(account.digest), 0),
        Change(NEWCOMER, account.digest, None),
    ]


def set_blocked(externals: Sequence[Record], name: str, blocked: bool) -> tuple[External, list[Change]]:
    """Block or unblock ``name``; no token of it is taken while it is blocked. Raises Missing."""
    record, account = _find(externals, name)
    changed = msgspec.structs.replace(account, disabled=blocked)
    return changed, [Change(EXTERNAL, record.key, to_json(changed), record.revision)]


def forget_external(externals: Sequence[Record], name: str) -> tuple[External, list[Change]]:
    """Delete what maps the pseudonym to a person; who comes again is a newcomer. Raises Missing."""
    record, account = _find(externals, name)
    return account, [Change(EXTERNAL, record.key, None, record.revision), Change(NAME, account.name, None)]


def quota_id(credential: str, expires: int) -> str:
    """What the requests with one token are counted under; it says by when the count can go."""
    return f"{credential}:{expires}"


def forget_spent_tokens(quotas: Sequence[Record], now: int) -> list[Change]:
    """Changes that drop what tokens used which have expired."""
    ends = [(record, record.key.rpartition(":")[2]) for record in quotas if record.key.startswith(CREDENTIAL)]
    return [Change(r.kind, r.key, None, r.revision) for r, end in ends if end.isdecimal() and int(end) + _LINGER <= now]


def external_of(externals: Sequence[Record], subject: str) -> External | None:
    """The account behind a pseudonym, if there is one. Raises NotTrusted (a record is damaged)."""
    return next((found for found in map(parse_external, externals) if found.subject == subject), None)


def find_external(externals: Sequence[Record], name: str) -> External:
    """The account called ``name``. Raises Missing."""
    return _find(externals, name)[1]


def is_external(name: str) -> bool:
    """Whether a name is that of another issuer's account: own accounts have no @, and nobody's issuer is called local."""
    return "@" in name and not name.endswith("@local")


def _find(externals: Sequence[Record], name: str) -> tuple[Record, External]:
    for record in externals:
        account = parse_external(record)
        if account.name == name:
            return record, account
    raise Missing(f"nobody came as {name[:64]!r} yet: 'modelkeep user list' has those who did")
