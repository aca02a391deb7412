"""Challenges that a passkey signs: made here, kept in the records, good once and for two minutes.

Each is bound to the session that asked for it and to what it was asked for. Taking one deletes it with compare-and-set, so of
two processes that are shown one answer, one takes it.
"""

import hmac
from collections.abc import Sequence

import msgspec

from modelkeep.core.ports import Change, Entropy, Record, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict, Missing, Unauthenticated

CHALLENGE = "challenge"
"""Record kind; the key is the challenge's id."""

REGISTER, STEP_UP, APPROVE = "register", "step-up", "approve"
PURPOSES = (REGISTER, STEP_UP, APPROVE)
SECONDS = 120
"""How long a challenge is good, and how long a browser waits for its user."""
SIZE = 32
"""Bytes (WebAuthn, section 13.4.3: 16 at least)."""

_GONE = "this challenge is not good (any more): begin again"


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """``credential``: id of the session that asked; ``expires``: Unix seconds."""

    value: bytes
    purpose: str
    credential: str
    expires: int


def make_challenge(purpose: str, credential: str, expires: int, entropy: Entropy) -> tuple[str, Challenge, Change]:
    """An id, a fresh challenge, and the change that keeps it."""
    id_ = entropy.token(16).hex()
    made = Challenge(value=entropy.token(SIZE), purpose=purpose, credential=credential, expires=expires)
    return id_, made, Change(CHALLENGE, id_, to_json(made), 0)


def take_challenge(records: Records, id_: str, purpose: str, credential: str, now: int) -> bytes:
    """Use a challenge up and return it. Raises Unauthenticated (unknown, used, too old, or somebody else's), Unavailable."""
    try:
        record = records.get(CHALLENGE, id_)
        records.commit([Change(CHALLENGE, id_, None, record.revision)])
    except (Missing, Conflict):
        raise Unauthenticated(_GONE) from None
    found = parse_challenge(record)
    same = hmac.compare_digest(found.credential.encode(), credential.encode())
    if found.purpose != purpose or not same or now >= found.expires:
        raise Unauthenticated(_GONE)
    return found.value


def parse_challenge(record: Record) -> Challenge:
    """Decode a challenge's record. Raises NotTrusted (damaged)."""
    return parse_record(record, Challenge, f"challenge {record.key!r}", "begin again")


def forget_challenges(found: Sequence[Record], now: int) -> list[Change]:
    """Changes that drop challenges nobody answered in time."""
    return [Change(CHALLENGE, each.key, None, each.revision) for each in found if parse_challenge(each).expires <= now]
