"""API keys: ``mk_<8 id>_<43 secret><6 checksum>``, in base 62.

The prefix is for secret scanners; the checksum (CRC-32, as in GitHub's token format of 2021) lets junk be refused without a
look-up and has nothing to do with secrecy. The secret is 256 random bits, so a plain SHA-256 of the key is enough to keep.
"""

import hashlib
import hmac
import re
import zlib
from typing import NamedTuple

import msgspec

from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Change, Clock, Entropy, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import parse_name, to_json
from modelkeep.errors import Invalid, NotTrusted, Unauthenticated

KEY = "key"
"""Record kind; the key is the API key's id."""

DEFAULT_QUOTA = 1_000
"""Requests an API key or a session may make in all, unless told otherwise."""

DEFAULT_LIFETIME = 90 * 86_400
"""Seconds an API key lives, unless told otherwise."""

LONGEST_LIFETIME = 3_650 * 86_400
"""Seconds that an API key may live at most."""

LARGEST_QUOTA = 2**53 - 1
"""What every reader of JSON can still count."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(r"mk_([0-9A-Za-z]{8})_[0-9A-Za-z]{49}\Z")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an API key.

    ``digest``: SHA-256 of the whole key, hex. ``models``: names it is scoped to, ``actions``: likewise, empty = all.
    ``quota``: requests in all, None = no quota. ``quota_id``: what they are counted under; a rotated key goes on counting
    under the first one's. ``created``, ``expires``: Unix seconds; at ``expires`` it is no longer valid. ``replaced_by``: id
    of the key that rotation made.
    ``certificate``: SHA-256 of the client certificate without which it opens nothing, hex; "" = it is bound to none.
    """

    id: str
    account: str
    digest: str
    created: int
    expires: int
    quota: int | None
    quota_id: str
    models: tuple[str, ...] = ()
    revoked: bool = False
    replaced_by: str = ""
    actions: tuple[str, ...] = ()
    certificate: str = ""


@never_pickled
class NewKey(NamedTuple):
    """An API key to hand to its owner: ``text`` is shown once and kept nowhere."""

    text: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"NewKey({self.key.id})"


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key may do and for how long. ``lifetime``: seconds. ``quota``: requests in all, None = no quota;
    ``certificate``: as of ``ApiKey``."""

    models: tuple[str, ...] = ()
    quota: int | None = DEFAULT_QUOTA
    actions: tuple[str, ...] = ()
    lifetime: int = DEFAULT_LIFETIME
    certificate: str = ""


def parse_key_record(record: Record) -> ApiKey:
    """Decode a key record. Raises NotTrusted (damaged)."""
    key = parse_record(record, ApiKey, f"API key {record.key!r}")
    if key.id != record.key:
        raise NotTrusted(f"the record of API key {record.key!r} is about {key.id!r}: restore it from a backup")
    return key


def issue_key(account: str, terms: KeyTerms, *, entropy: Entropy, clock: Clock) -> tuple[NewKey, list[Change]]:
    """A new API key for ``account``. Raises Invalid. (The commit raises Conflict if the id is taken: repeat.)"""
    if not 1 <= terms.lifetime <= LONGEST_LIFETIME or (terms.quota is not None and not 1 <= terms.quota <= LARGEST_QUOTA):
        raise Invalid("an API key lives from one second to ten years, and its quota is one request or more, below 2^53")
    for name in terms.models:
        parse_name(name, "model name")
    now = clock.now_ns() // 1_000_000_000
    text, key_id = _fresh(entropy)
    key = ApiKey(
        id=key_id,
        account=account,
        digest=_digest(text),
        created=now,
        expires=now + terms.lifetime,
        quota=terms.quota,
        quota_id=f"key:{key_id}",
        models=tuple(sorted(set(terms.models))),
        actions=tuple(sorted(set(terms.actions))),
        certificate=terms.certificate,
    )
    return NewKey(text, key), [Change(KEY, key_id, to_json(key), 0)]


def rotate_key(record: Record, *, overlap: int, entropy: Entropy, clock: Clock) -> tuple[NewKey, list[Change]]:
    """Replace a key: the new one lives as long as the old one was made for; the old one works ``overlap`` seconds more.

    Scope and quota stay, and both count under one quota. Raises Invalid (already revoked, expired or replaced).
    """
    old = parse_key_record(record)
    now = clock.now_ns() // 1_000_000_000
    if old.revoked or old.replaced_by or now >= old.expires:
        raise Invalid(f"API key {old.id} is revoked, expired or replaced: issue a new one")
    if overlap < 0:
        raise Invalid("the overlap of a rotation is a number of seconds, 0 or more")
    text, key_id = _fresh(entropy)
    lifetime = old.expires - old.created
    new = msgspec.structs.replace(old, id=key_id, digest=_digest(text), created=now, expires=now + lifetime)
    ending = msgspec.structs.replace(old, expires=min(old.expires, now + overlap), replaced_by=key_id)
    return NewKey(text, new), [Change(KEY, key_id, to_json(new), 0), Change(KEY, old.id, to_json(ending), record.revision)]


def revoke_key(record: Record) -> tuple[ApiKey, list[Change]]:
    """End a key for good; idempotent."""
    key = msgspec.structs.replace(parse_key_record(record), revoked=True)
    return key, [Change(KEY, key.id, to_json(key), record.revision)]


def set_quota(record: Record, quota: int | None) -> tuple[ApiKey, list[Change]]:
    """Change how many requests a key may make in all. Raises Invalid."""
    if quota is not None and not 1 <= quota <= LARGEST_QUOTA:
        raise Invalid("a quota is one request or more, below 2^53")
    key = msgspec.structs.replace(parse_key_record(record), quota=quota)
    return key, [Change(KEY, key.id, to_json(key), record.revision)]


def key_id_of(text: str) -> str:
    """The id within an API key whose shape and checksum hold. Raises Unauthenticated; no look-up is needed to refuse junk."""
    found = _SHAPE.match(text)
    if not found or not hmac.compare_digest(text[-6:], _checksum(text[:-6])):
        raise Unauthenticated("this is not an API key: check that it was copied whole")
    return found[1]


def check_secret(text: str, key: ApiKey) -> None:
    """Check that ``text`` is the key that was issued. Raises Unauthenticated."""
    if not hmac.compare_digest(_digest(text), key.digest):
        raise Unauthenticated("this API key is unknown")


def _fresh(entropy: Entropy) -> tuple[str, str]:
    key_id = _base62(int.from_bytes(entropy.token(16)) % 62**8, 8)
    body = f"mk_{key_id}_{_base62(int.from_bytes(entropy.token(32)), 43)}"
    return body + _checksum(body), key_id


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), 6)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
