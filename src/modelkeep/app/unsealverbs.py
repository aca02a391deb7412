"""Verbs about what opens the key ring without its passphrase: shares for people, and the key of a provider."""

from msgspec import Struct

from modelkeep.adapters.keys.escrows import FolderEscrows
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.app.acting import Acts
from modelkeep.app.premises import Premises, same_place
from modelkeep.core.hidden import holds_secrets
from modelkeep.crypto.shamir import share_text
from modelkeep.crypto.xwing import recipient_id
from modelkeep.custody.keyring import Keyring, Unlocked
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.custody.unsealing import KINDS, PROVIDER, SHARES, Escrow, for_provider, for_shares, parse_escrow, renew
from modelkeep.errors import Invalid, Missing, NotTrusted


@holds_secrets("threshold", "set_id", "log_index")
class SharesMade(Struct, frozen=True):
    """Shares of a new set. ``shares`` are shown once and stored nowhere; ``set_id``: what all of them begin with, hex."""

    set_id: str
    threshold: int
    shares: tuple[str, ...]
    log_index: int


class EscrowRow(Struct, frozen=True):
    """One way to open the key ring besides its passphrase. ``made``: Unix nanoseconds; ``what``: in words."""

    kind: str
    made: int
    what: str


def escrows_of(here: Premises) -> FolderEscrows:
    """The escrows of a keep."""
    return FolderEscrows(here.directory / "unseal")


def escrow_of(here: Premises, kind: str) -> Escrow | None:
    """One escrow, None when there is none. Raises NotTrusted, Unavailable."""
    with here.keys.lock():  # a change of passphrase that was cut off is finished or undone first
        data = escrows_of(here).read(kind)
    return None if data is None else parse_escrow(data, kind, here.trust.origin)


class UnsealVerbs(Acts):
    """All of them need the folder and the passphrase: whoever makes a way in could make one of his own."""

    def shares_make(self, *, threshold: int, shares: int) -> SharesMade:
        """Shares of which ``threshold`` together unseal this keep; shares made before open nothing any more. Raises Invalid."""
        self.authorize("keys.passwd", {})
        here = self.premises
        escrow, made = for_shares(
            here.unlocked,
            here.trust.origin,
            threshold=threshold,
            count=shares,
            entropy=here.entropy,
            now_ns=here.clock.now_ns(),
        )
        index = self._put(escrow, threshold=str(threshold), shares=str(shares), set=escrow.set_id)
        return SharesMade(escrow.set_id, threshold, tuple(map(share_text, made)), index)

    def unsealing_provider(self, uri: str) -> EscrowRow:
        """Let the key at ``uri`` (an HSM, a KMS) unseal this keep where ``unseal.provider`` names it.

        Raises Invalid (model keys are made there), Missing (no such key), NotTrusted, Denied, Unavailable.
        """
        self.authorize("keys.passwd", {})
        here = self.premises
        if any(same_place(uri, place) for place in here.keyring([MODEL_KEK]).places(MODEL_KEK)):
            raise Invalid("model keys are made with that key, and rotation ends it some day: unseal with a key of its own")
        keys = open_keys(uri, passphrase=here.passphrase)
        escrow = for_provider(here.unlocked, here.trust.origin, keys, entropy=here.entropy, now_ns=here.clock.now_ns())
        self._put(escrow, place=escrow.place, key=escrow.key_id)
        return _row(escrow)

    def unsealing_list(self) -> tuple[EscrowRow, ...]:
        """What opens the key ring besides its passphrase and the offline recovery identity. Asks for no passphrase."""
        found = (escrow_of(self.premises, kind) for kind in KINDS)
        return tuple(_row(escrow) for escrow in found if escrow is not None)

    def unsealing_drop(self, kind: str) -> int:
        """Take one way in away; the log entry that says so. Raises Missing (there is none), Unavailable."""
        self.authorize("keys.passwd", {})
        if not escrows_of(self.premises).remove(kind):
            raise Missing(f"there is nothing of kind {kind} that opens the key ring")
        return self.act("unsealing.drop", kind)

    def _put(self, escrow: Escrow, **detail: str) -> int:
        """Logged first: an escrow of which the log does not know is never there.

        Raises NotTrusted when the passphrase was changed meanwhile: it would open nothing.
        """
        here, mark = self.premises, recipient_id(escrow.recipient).hex()
        index = self.act("unsealing.make", escrow.kind, recipient=mark, **detail)
        escrows_of(here).write(escrow.kind, escrow.encode())
        Keyring.open(here.keys, [MODEL_KEK], here.unlocked)
        return index


def renewed_escrows(here: Premises, before: Unlocked, after: Unlocked) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The escrows for a changed passphrase, by kind; and those that it cannot renew, in words. Hold the lock of the keys.

    Raises NotTrusted (one is open to others), Unavailable.
    """
    renewed, late = {}, []
    for kind in KINDS:
        if data := escrows_of(here).read(kind):
            try:
                renewed[kind] = renew(parse_escrow(data, kind, here.trust.origin), before, after).encode()
            except NotTrusted as cause:
                late.append(f"{kind}: {cause}")
    return renewed, tuple(late)


def drop_escrows(here: FolderEscrows) -> tuple[str, ...]:
    """Remove all escrows, which a ring with a new passphrase does not open with; their kinds. Raises Unavailable."""
    return tuple(kind for kind in KINDS if here.remove(kind))


def _row(escrow: Escrow) -> EscrowRow:
    if escrow.kind == SHARES:
        return EscrowRow(SHARES, escrow.made, f"any {escrow.threshold} of {escrow.shares} shares of set {escrow.set_id}")
    assert escrow.kind == PROVIDER
    return EscrowRow(PROVIDER, escrow.made, f"the key {escrow.key_id}")
