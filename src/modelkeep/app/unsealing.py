"""A process that has no keys yet, and what may give them to it: a passphrase, shares of several people, or a provider.

Whatever opens the key ring is recorded in the releases log before anything is served: an unsealing of which no record can be
written does not happen. Shares are held in memory only, and forgotten when the next one takes too long.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelkeep.adapters.keys.uri import open_keys
from modelkeep.adapters.localsocket import Peer
from modelkeep.app.keep import Keep
from modelkeep.app.premises import Premises, same_place
from modelkeep.app.settings import Settings
from modelkeep.app.unsealverbs import escrow_of
from modelkeep.crypto.shamir import Share, parse_share
from modelkeep.custody.keyring import Keyring, Unlocked
from modelkeep.custody.keys import FAMILIES, MODEL_KEK
from modelkeep.custody.unsealing import PROVIDER, SHARES, Escrow, check_share, open_with_provider, open_with_shares
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted, OverBudget

LONGEST_PAUSE = 60.0


class Unsealing:
    """What a sealed process hears. ``opened`` is set once; ``unlocked`` is then what opens the key ring."""

    def __init__(self, directory: Path, role: str, report: Callable[[str], None], *, by_hand: bool) -> None:
        """``role``: ``up``, ``control`` or ``serve``, for the record; ``by_hand``: the provider is not asked.

        Raises Missing (no keep), NotTrusted, Invalid, Unavailable.
        """
        self.here = Premises.open(directory, no_passphrase)
        self.automatic = bool(self.here.settings.unseal.provider) and not by_hand
        self.opened = threading.Event()
        self.unlocked: Unlocked | None = None
        self._directory, self._role, self._report = directory, role, report
        self._shares: dict[int, tuple[Share, Peer]] = {}
        self._last_share = self._not_before = 0.0
        self._failures = 0
        self._turn = threading.Lock()
        self._told = ""

    @property
    def settings(self) -> Settings:
        """This keep's settings."""
        return self.here.settings

    def hear(self, asked: dict[str, Any], peer: Peer) -> dict[str, Any]:
        """Answer one line of the local socket."""
        try:
            with self._turn:
                return self._hear(asked, peer)
        except OverBudget as refusal:
            return {"code": refusal.code, "message": str(refusal), "retry_after": refusal.retry_after}
        except ModelkeepError as refusal:
            return {"code": refusal.code, "message": str(refusal)}

    def _hear(self, asked: dict[str, Any], peer: Peer) -> dict[str, Any]:
        what, secret = asked.get("do"), asked.get("secret", "")
        self._forget_late()
        if what == "status":
            return self._state()
        if what == "seal":
            if self.opened.is_set():
                raise Conflict("this process is being unsealed at this moment: lock it again when it is")
            self._shares.clear()
            return {"sealed": True, "message": "it is sealed already"}
        if what not in ("passphrase", "share") or not isinstance(secret, str):
            raise Invalid("a sealed process hears status, passphrase, share and seal")
        if self.opened.is_set():
            raise Conflict("this process is being unsealed already")
        self._check_pace()
        try:
            if what == "passphrase":
                _, unlocked = Keyring.unlock(self.here.keys, [MODEL_KEK], _bytes_of(secret))
                self._open(unlocked, "passphrase", uid=str(peer.uid))
            else:
                self._share(secret, peer)
        except (NotTrusted, Invalid):  # wrong, forged or mistyped
            self._slow_down()
            raise
        self._failures = 0
        return self._state()

    def ask_provider(self) -> bool:
        """Let the provider of the settings unseal; whether it did. What goes wrong is reported, once for every reason."""
        try:
            with self._turn:
                self._provider()
        except ModelkeepError as cause:
            if str(cause) != self._told:
                self._told = str(cause)
                self._report(f"not unsealed by the provider: {cause}")
        return self.opened.is_set()

    def _provider(self) -> None:
        if self.opened.is_set():
            return
        uri = self.settings.unseal.provider
        escrow = escrow_of(self.here, PROVIDER)
        if escrow is None:
            raise Missing("unseal.provider is set, and nothing was prepared for it: run 'modelkeep unsealing provider URI'")
        if not same_place(uri, escrow.place):
            raise Invalid(f"unseal.provider and the key that was prepared differ: that is {escrow.place}")
        unlocked = open_with_provider(escrow, open_keys(uri))
        self._check_in_force(unlocked, "the provider's key", "unsealing provider")
        self._open(unlocked, "provider", key=escrow.key_id)

    def _share(self, text: str, peer: Peer) -> None:
        escrow = escrow_of(self.here, SHARES)
        if escrow is None:
            raise Missing("this keep has no shares: make them with 'modelkeep shares make'")
        self._forget_former(escrow)
        share = parse_share(text)
        check_share(escrow, share)
        if share.x in self._shares:
            raise Conflict(f"share {share.x} was given already: every share counts once")
        self._shares[share.x] = share, peer
        self._last_share = self.here.clock.monotonic()
        if len(self._shares) < escrow.threshold:
            self._report(f"unsealing: share {share.x} was given, {len(self._shares)} of {escrow.threshold}")
            return
        given = dict(self._shares)
        self._shares.clear()
        unlocked = open_with_shares(escrow, [share for share, _ in given.values()])
        self._check_in_force(unlocked, "these shares", "shares make")
        numbers = ",".join(str(x) for x in sorted(given))
        uids = ",".join(str(given[x][1].uid) for x in sorted(given))
        self._open(unlocked, "shares", set=escrow.set_id, shares=numbers, uids=uids)

    def _check_in_force(self, unlocked: Unlocked, what: str, advice: str) -> None:
        """Raises NotTrusted when the escrow that ``what`` opened is of a passphrase that the ring has no more."""
        try:
            Keyring.open(self.here.keys, [MODEL_KEK], unlocked)
        except NotTrusted as cause:
            raise NotTrusted(
                f"the passphrase was changed, and {what} with it not: unseal with the passphrase, then run 'modelkeep {advice}'"
            ) from cause

    def _open(self, unlocked: Unlocked, how: str, **detail: str) -> None:
        """Record it, and only then let the process go on."""
        keep = Keep(Premises.open(self._directory, no_passphrase, unlocked=unlocked))
        keep.premises.keyring(FAMILIES)
        index = keep.act("unsealed", self._role, how=how, **detail)
        self.unlocked = unlocked
        self.opened.set()
        self._report(f"unsealed by {how} ({', '.join(f'{k} {v}' for k, v in detail.items())}); log entry {index}")

    def _state(self) -> dict[str, Any]:
        escrow = escrow_of(self.here, SHARES)
        self._forget_former(escrow)
        return {
            "role": self._role,
            "sealed": not self.opened.is_set(),
            "shares": sorted(self._shares),
            "needed": escrow.threshold if escrow else 0,
        }

    def _forget_former(self, escrow: Escrow | None) -> None:
        """Forget what was given of a set that was made anew or dropped: it opens nothing, and its numbers come again."""
        current = escrow.set_id if escrow else ""
        former = [x for x, (share, _) in self._shares.items() if share.set_id.hex() != current]
        if former:
            self._shares.clear()
            self._report("unsealing: the shares given so far were forgotten, because other shares were made meanwhile")

    def _forget_late(self) -> None:
        late = self.here.clock.monotonic() - self._last_share > self.settings.unseal.share_seconds
        if self._shares and late:
            self._shares.clear()
            self._report("unsealing: the shares given so far were forgotten, because the next one took too long")

    def _check_pace(self) -> None:
        wait = self._not_before - self.here.clock.monotonic()
        if wait > 0:
            raise OverBudget(f"after a wrong passphrase or share wait {wait:.0f} s", wait)

    def _slow_down(self) -> None:
        self._failures += 1
        pause = min(LONGEST_PAUSE, 2.0 ** (self._failures - 1) / 2)
        self._not_before = self.here.clock.monotonic() + pause
        self._report("unsealing: what was given opens nothing")


def _bytes_of(secret: str) -> bytes:
    """The passphrase that was told as one character for each of its bytes. Raises Invalid."""
    try:
        return secret.encode("latin-1")
    except UnicodeEncodeError:  # `from None`: the cause would quote the secret
        raise Invalid("a passphrase is told as one character of Latin-1 for each of its bytes") from None


def no_passphrase() -> bytes:
    """For a process that was unsealed otherwise. Raises Missing."""
    raise Missing("this process was unsealed without a passphrase, and this needs one: do it where you can type it")
