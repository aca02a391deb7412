"""Refresh tokens: opaque, used once, and a family of them ends when one is shown twice.

Sources: RFC 6749, sections 6 and 10.4; RFC 9700, section 4.14.2 (rotation). A token is ``mkr_<family>_<secret>``; of a family
the records keep the SHA-256 of the token in force and a short hash of every one before it. Rotation replaces the record with
compare-and-set, so of two processes that are shown one token at once, one answers. There is no grace: whoever shows a token a
second time, at once or later, ends the family and its sessions, because one of the two who had it stole it. A client that
refreshes from several threads does so under a lock.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from modelkeep.access.accounts import Account
from modelkeep.access.sessions import REVOCATION, Proof, Revocation, Session
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Change, Entropy, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Unauthenticated

REFRESH = "refresh"
"""Record kind: a family of refresh tokens; the key is its id."""

MOST_ROTATIONS = 1_000
"""A family ends after so many; so the list of used ones is never cut and reuse is always known."""

REUSED = "this refresh token was used before: every session it led to was ended, log in again"
_REFUSED = "the refresh token is not valid: log in again"
_SHAPE = re.compile(r"mkr_([0-9a-f]{24})_[0-9a-f]{64}\Z")


class Scope(msgspec.Struct, frozen=True):
    """What every session of a family may do; empty = all. ``max_requests``: of each session."""

    max_requests: int
    models: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()


class Lifetimes(msgspec.Struct, frozen=True):
    """How long a family lives, seconds: ``whole`` from the login on, ``idle`` from its last use on."""

    whole: int
    idle: int


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One login's refresh tokens.

    ``generation``: of the account at the login: another one ends the family. ``current``: SHA-256 of the token in force, hex;
    ``used``: the first 12 digits of that of each one before. ``sessions``: (jti, expiry) of its sessions that may live.
    Times are Unix seconds.
    """

    account: str
    generation: int
    current: str
    created: int
    used_at: int
    expires: int
    idle: int
    scope: Scope
    proof: Proof
    used: tuple[str, ...] = ()
    sessions: tuple[tuple[str, int], ...] = ()
    ended: bool = False

    def __repr__(self) -> str:
        return f"Family(of {self.account}, used {len(self.used)} times, ended={self.ended})"


@never_pickled
class NewToken(NamedTuple):
    """A refresh token to hand out: ``text`` is shown once and kept nowhere. ``id``: of its family."""

    text: str
    id: str
    family: Family

    def __repr__(self) -> str:
        return f"NewToken({self.id})"


def parse_family(record: Record) -> Family:
    """Decode a family's record. Raises NotTrusted (damaged)."""
    return parse_record(record, Family, f"refresh tokens {record.key!r}", "delete it, its owner logs in again")


def family_of(text: str) -> str:
    """The id of the family a token says it is of. Raises Unauthenticated (no refresh token)."""
    found = _SHAPE.match(text)
    if found is None:
        raise Unauthenticated(_REFUSED)
    return found[1]


def begin_family(account: Account, scope: Scope, proof: Proof, lives: Lifetimes, now: int, entropy: Entropy) -> NewToken:
    """The first token of a login. Write its family with ``write_family(…, 0)`` once its session is known."""
    id_ = entropy.token(12).hex()
    text = _fresh(id_, entropy)
    family = Family(
        account=account.name,
        generation=account.generation,
        current=_digest(text),
        created=now,
        used_at=now,
        expires=now + lives.whole,
        idle=lives.idle,
        scope=scope,
        proof=proof,
    )
    return NewToken(text, id_, family)


def rotate_family(id_: str, family: Family, entropy: Entropy, now: int) -> NewToken:
    """The next token, the one in force being used. Call ``check_current`` first."""
    text = _fresh(id_, entropy)
    used = (*family.used, _short(family.current))
    return NewToken(text, id_, msgspec.structs.replace(family, current=_digest(text), used=used, used_at=now))


def was_used(text: str, family: Family) -> bool:
    """Whether a token was one of ``family`` and is not the one in force any more."""
    return any(hmac.compare_digest(each, _short(_digest(text))) for each in family.used)


def check_current(text: str, family: Family, account: Account | None, now: int) -> Account:
    """Check that a token is in force, and return its account, ``account``. Raises Unauthenticated, one message for all."""
    good = hmac.compare_digest(_digest(text), family.current)
    alive = not family.ended and now < min(family.expires, family.used_at + family.idle) and len(family.used) < MOST_ROTATIONS
    if not good or not alive or account is None or account.disabled or account.generation != family.generation:
        raise Unauthenticated(_REFUSED)
    if family.created < account.created:  # of somebody who had this name before, and was forgotten
        raise Unauthenticated(_REFUSED)
    return account


def with_session(family: Family, session: Session, now: int) -> Family:
    """The family with one more session, and without those that have expired."""
    living = tuple(each for each in family.sessions if each[1] > now)
    return msgspec.structs.replace(family, sessions=(*living, (session.jti, session.exp)))


def write_family(id_: str, family: Family, revision: int) -> Change:
    """The change that keeps ``family``, if its record still has ``revision`` (0 = there is none)."""
    return Change(REFRESH, id_, to_json(family), revision)


def end_family(id_: str, family: Family, revision: int, now: int) -> list[Change]:
    """The changes that end a family and its sessions; idempotent."""
    ended = msgspec.structs.replace(family, ended=True)
    living = [each for each in family.sessions if each[1] > now]
    revoked = [Change(REVOCATION, jti, to_json(Revocation(family.account, expires))) for jti, expires in living]
    return [write_family(id_, ended, revision), *revoked]


def forget_families(families: Sequence[Record], now: int) -> list[Change]:
    """Changes that drop families whose absolute lifetime is over: no token of theirs could be of use."""
    return [Change(REFRESH, record.key, None, record.revision) for record in families if parse_family(record).expires <= now]


def _fresh(id_: str, entropy: Entropy) -> str:
    return f"mkr_{id_}_{entropy.token(32).hex()}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(digest: str) -> str:
    return digest[:12]
