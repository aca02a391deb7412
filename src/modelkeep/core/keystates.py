"""States of a wrapping key's version, as one table: every arrow that is not here is refused.

Providers that keep states themselves (a ring file, a keep's own compartments) walk it; the others map theirs to these names.
"""

import re

from modelkeep.core.ports import KeyInfo
from modelkeep.errors import Conflict, Invalid

PENDING, PRIMARY, DISABLED, DESTROYED, COMPROMISED = "pending", "primary", "disabled", "destroyed", "compromised"
DECRYPT_ONLY, PENDING_DESTRUCTION = "decrypt-only", "pending-destruction"
ENTER, SUPERSEDE, DISABLE, ENABLE, DESTROY, COMPROMISE = "enter", "supersede", "disable", "enable", "destroy", "compromise"
SCHEDULE, CANCEL = "schedule", "cancel"

WRAPPING_STATES: dict[tuple[str, str], str] = {
    (PENDING, ENTER): PRIMARY,
    (PRIMARY, SUPERSEDE): DECRYPT_ONLY,
    (DECRYPT_ONLY, DISABLE): DISABLED,
    (DISABLED, ENABLE): DECRYPT_ONLY,
    (DISABLED, DESTROY): DESTROYED,
    (DISABLED, SCHEDULE): PENDING_DESTRUCTION,
    **{(state, COMPROMISE): COMPROMISED for state in (PENDING, PRIMARY, DECRYPT_ONLY, DISABLED)},
    (COMPROMISED, DESTROY): DESTROYED,
    (COMPROMISED, SCHEDULE): PENDING_DESTRUCTION,
    (PENDING_DESTRUCTION, COMPROMISE): PENDING_DESTRUCTION,  # opens nothing already; only what cancelling leads to changes
    (PENDING_DESTRUCTION, CANCEL): DISABLED,
    (PENDING_DESTRUCTION, DESTROY): DESTROYED,
}
MAY_UNWRAP = (PRIMARY, DECRYPT_ONLY, COMPROMISED)
"""A compromised wrapping key still opens what it wrapped, or rotating away from it would lose the models."""

_VERSION = re.compile(r"/([1-9][0-9]{0,8})\Z")

DAY_NS = 86_400 * 10**9
MAX_GRACE_DAYS = 3650


def next_wrapping_state(key_id: str, state: str, event: str) -> str:
    """Where ``event`` takes the wrapping key ``key_id`` in ``state``. Raises Conflict when the table has no such arrow."""
    try:
        return WRAPPING_STATES[state, event]
    except KeyError:
        raise Conflict(f"{key_id} is {state}: it cannot {event}") from None


def version_named(key_id: str, name: str) -> int | None:
    """The version in a key id of the form ``<name>/<version>``; None when it is another key's, or no key id."""
    found = _VERSION.search(key_id)
    return int(found[1]) if found and key_id[: found.start()] == name else None


def destruction(info: KeyInfo, now_ns: int, grace_days: int) -> tuple[str, int]:
    """What ``WrappingKeys.destroy`` does next to the version of ``info``: DESTROY, or SCHEDULE and when it is due (Unix ns).

    A pending destruction is carried out when it is due, or at once when no grace is asked for.
    Raises Conflict (not due yet, or its state), Invalid (``grace_days`` out of bounds).
    """
    if not 0 <= grace_days <= MAX_GRACE_DAYS:
        raise Invalid(f"a key is destroyed after 0 to {MAX_GRACE_DAYS} days, not {grace_days}")
    if info.state == PENDING_DESTRUCTION:
        if grace_days and now_ns < info.due:
            days = -((now_ns - info.due) // DAY_NS)
            raise Conflict(f"{info.key_id} is to be destroyed in {days} days at most: wait, or cancel it")
        return DESTROY, 0
    event = SCHEDULE if grace_days else DESTROY
    next_wrapping_state(info.key_id, info.state, event)
    return event, now_ns + grace_days * DAY_NS if grace_days else 0
