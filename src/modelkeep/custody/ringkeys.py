"""The keep's own sealed key ring as ``WrappingKeys``: one wrapping family, its versions and what may happen to them."""

from collections.abc import Callable
from dataclasses import dataclass

from modelkeep.core.keystates import version_named
from modelkeep.core.ports import Clock, KeyInfo, Wrapper
from modelkeep.custody import keys
from modelkeep.custody.keyring import Custodian, Keyring, Word
from modelkeep.errors import Conflict, Invalid, Missing, Sealed

DAY_NS = 86_400 * 10**9
MAX_GRACE_DAYS = 365


@dataclass(frozen=True)
class RingCustody:
    """Who may change the ring: ``word`` gives what opens it, ``adopt`` takes the ring as it is after a change."""

    custodian: Custodian
    word: Callable[[], Word]
    clock: Clock
    adopt: Callable[[Keyring], None]


class RingKeys:
    """``WrappingKeys`` over one family of the keep's own ring. ``ring``: the ring as it is now, asked for at every use.

    Without ``custody`` it wraps and unwraps, and every change raises Sealed: a gateway has no way to seal a compartment.
    """

    def __init__(self, family: str, ring: Callable[[], Keyring], custody: RingCustody | None = None) -> None:
        if family not in keys.TURNING:
            raise Invalid(f"{family[:40]!r} is not a family of wrapping keys")
        self._family, self._ring, self._custody = family, ring, custody

    @property
    def uri(self) -> str:
        """``file:<family>``: the beginning of its key ids."""
        return f"file:{self._family}"

    def create(self) -> Wrapper:
        """A first key, or a fresh one when the last was left behind in a move. Raises Conflict (there is a primary)."""
        if any(info.state == keys.PRIMARY for info in self.versions()):
            raise Conflict(f"the key ring has a primary {self._family} key already: rotate it")
        return self.rotate()

    def versions(self) -> tuple[KeyInfo, ...]:
        """Every version, oldest first. Raises Sealed."""
        found = (info for info in self._ring().inventory() if info.family == self._family)
        return tuple(KeyInfo(f"{self.uri}/{i.version}", i.version, i.state, i.created, i.due) for i in found)

    def wrapper(self, version: int | None = None) -> Wrapper:
        """One version; None = the primary. Raises Missing, Denied (there is no primary), Sealed."""
        return self._ring().wrapper(self._family, version)

    def opens(self, key_id: str) -> Wrapper | None:
        """The version that ``key_id`` names; None when it is another key's. Raises Missing (no such version)."""
        version = version_named(key_id, self.uri)
        return None if version is None else self.wrapper(version)

    def rotate(self) -> Wrapper:
        """A fresh primary; the former one can still decrypt. Raises Sealed, NotTrusted, Unavailable."""
        who = self._may_change()
        changed = who.custodian.rotate(who.word(), self._family, now_ns=who.clock.now_ns(), log_size=0)
        who.adopt(changed)
        return changed.wrapper(self._family)

    def disable(self, version: int) -> KeyInfo:
        """Raises Missing, Conflict (not decrypt-only), Sealed, Unavailable."""
        return self._let(version, keys.DISABLE)

    def enable(self, version: int) -> KeyInfo:
        """Raises Missing, Conflict (not disabled), Sealed, Unavailable."""
        return self._let(version, keys.ENABLE)

    def compromise(self, version: int) -> KeyInfo:
        """Mark a version as known to others; it opens what it wrapped until it is destroyed. Raises Missing, Conflict."""
        return self._let(version, keys.COMPROMISE)

    def destroy(self, version: int, *, grace_days: int) -> KeyInfo:
        """Destroy a disabled or compromised version after ``grace_days``, 0 = now; a pending one once it is due.

        Raises Missing, Conflict (its state, or not due yet), Invalid (more than a year), Sealed, Unavailable.
        """
        if not 0 <= grace_days <= MAX_GRACE_DAYS:
            raise Invalid(f"a grace period has 0 to {MAX_GRACE_DAYS} days, not {grace_days}")
        now, found = self._may_change().clock.now_ns(), self._info(version)
        if found.state == keys.PENDING_DESTRUCTION:
            if grace_days and now < found.due:
                raise Conflict(f"{found.key_id} is not due for destruction yet: {_days(found.due - now)} are left of its grace")
            return self._let(version, keys.DESTROY)
        if grace_days == 0:
            return self._let(version, keys.DESTROY)
        return self._let(version, keys.SCHEDULE, due=now + grace_days * DAY_NS)

    def cancel(self, version: int) -> KeyInfo:
        """Take a pending destruction back. Raises Missing, Conflict (none is pending), Sealed, Unavailable."""
        return self._let(version, keys.CANCEL)

    def _let(self, version: int, event: str, due: int = 0) -> KeyInfo:
        who = self._may_change()
        who.adopt(who.custodian.set_state(who.word(), self._family, version, event, log_size=0, due=due))
        return self._info(version)

    def _info(self, version: int) -> KeyInfo:
        for info in self.versions():
            if info.version == version:
                return info
        raise Missing(f"{self._family} has no key version {version}")

    def _may_change(self) -> RingCustody:
        if self._custody is None:
            raise Sealed("this process holds opened keys and nothing to seal the key ring with: change it where the keep is")
        return self._custody


def _days(nanoseconds: int) -> str:
    return f"{nanoseconds / DAY_NS:.1f} days"
