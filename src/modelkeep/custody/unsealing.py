"""What opens the key ring without its passphrase: k of n people with shares, or a key in an HSM or a KMS.

An escrow is a small file that holds what the passphrase was stretched to (``Unlocked``), sealed for an X-Wing recipient of its
own. The private seed of that recipient exists only as shares, or only wrapped by the provider. So the compartments have no more
recipients than before, a change of keys leaves escrows valid, and a change of passphrase renews them with public keys alone.

A code made with the stretched passphrase stands over everything else in the file: whoever can write the folder and has not
opened the ring can make none that is renewed, and one that was altered opens nothing.
"""

import hmac
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from modelkeep.container.file import pack_bytes, unpack_bytes
from modelkeep.container.recipients import XWingOpener, XWingRecipient
from modelkeep.core.ports import Entropy, WrappingKeys
from modelkeep.core.values import to_json
from modelkeep.crypto.shamir import SECRET_SIZE, Share, combine, split
from modelkeep.crypto.xwing import identity_of, recipient_id, recipient_of
from modelkeep.custody.keyring import Unlocked
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted

SHARES: Final = "shares"
PROVIDER: Final = "provider"
KINDS = (SHARES, PROVIDER)
_FORMAT = 1


class Escrow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to open the key ring of the keep ``origin``; none of it is proven before it was opened.

    ``made``: Unix nanoseconds; ``recipient``: X-Wing, text. Shares: the set's id (hex), how many there are and are needed.
    Provider: ``place`` (URI without secrets), ``key_id`` and ``wrapped`` (the seed). ``sealed``: a ``.keep`` file;
    ``code``: as above.
    """

    format: int = _FORMAT
    kind: Literal["shares", "provider"]
    origin: str
    made: int
    recipient: str
    set_id: str = ""
    threshold: int = 0
    shares: int = 0
    place: str = ""
    key_id: str = ""
    wrapped: bytes = b""
    sealed: bytes = b""
    code: bytes = b""

    def encode(self) -> bytes:
        """The file."""
        return to_json(self)


def parse_escrow(data: bytes, kind: str, origin: str) -> Escrow:
    """An escrow of ``kind`` for the keep ``origin``. Raises NotTrusted (malformed, of another kind or keep, of the future)."""
    try:
        found = msgspec.json.decode(data, type=Escrow)
    except msgspec.DecodeError as cause:
        raise NotTrusted(f"the escrow unseal/{kind}.json is malformed: {cause}") from cause
    if found.format != _FORMAT:
        raise NotTrusted(f"the escrow unseal/{kind}.json has format {found.format}: this modelkeep knows format {_FORMAT}")
    if (found.kind, found.origin) != (kind, origin):
        raise NotTrusted(f"unseal/{kind}.json is of another kind or another keep: it was put there")
    return found


def for_shares(
    unlocked: Unlocked, origin: str, *, threshold: int, count: int, entropy: Entropy, now_ns: int
) -> tuple[Escrow, list[Share]]:
    """An escrow that ``threshold`` of ``count`` shares open, and the shares, which exist nowhere else. Raises Invalid."""
    seed = entropy.token(SECRET_SIZE)
    shares = split(seed, threshold, count)
    card = Escrow(
        kind=SHARES,
        origin=origin,
        made=now_ns,
        recipient=recipient_of(identity_of(seed)),
        set_id=shares[0].set_id.hex(),
        threshold=threshold,
        shares=count,
    )
    return _seal(card, unlocked), shares


def for_provider(unlocked: Unlocked, origin: str, keys: WrappingKeys, *, entropy: Entropy, now_ns: int) -> Escrow:
    """An escrow that the provider of ``keys`` opens; it has to open what it wraps before it is trusted with it.

    Raises NotTrusted, Denied, Missing (there is no such key), Unavailable.
    """
    seed = entropy.token(SECRET_SIZE)
    recipient = recipient_of(identity_of(seed))
    wrapper, context = keys.wrapper(), _context(origin, recipient)
    wrapped = wrapper.wrap(seed, context)
    if not hmac.compare_digest(wrapper.unwrap(wrapped, context), seed):
        raise NotTrusted("the provider does not open what it wraps: it is trusted with nothing")
    card = Escrow(
        kind=PROVIDER,
        origin=origin,
        made=now_ns,
        recipient=recipient,
        place=keys.uri,
        key_id=wrapper.key_id,
        wrapped=wrapped,
    )
    return _seal(card, unlocked)


def check_share(escrow: Escrow, share: Share) -> None:
    """Raises Conflict when ``share`` is not of this escrow's set."""
    if (share.set_id.hex(), share.threshold) != (escrow.set_id, escrow.threshold) or share.x > escrow.shares:
        raise Conflict(
            "this share is of another set: of another keep, or made before 'modelkeep shares make' was last run here"
        )


def open_with_shares(escrow: Escrow, shares: Sequence[Share]) -> Unlocked:
    """What opens the key ring. Raises Conflict (another set, or one twice), Invalid (too few), NotTrusted (a forged share)."""
    for share in shares:
        check_share(escrow, share)
    return _open(escrow, combine(shares), "one of these shares is forged, or the escrow was altered")


def open_with_provider(escrow: Escrow, keys: WrappingKeys) -> Unlocked:
    """The same with the provider's key. Raises NotTrusted, Denied (it refuses, or disabled the key), Missing, Unavailable."""
    wrapper = keys.opens(escrow.key_id)
    if wrapper is None:
        raise Missing(f"the escrow is wrapped under {escrow.key_id}, and {keys.uri} is another key: mend unseal.provider")
    seed = wrapper.unwrap(escrow.wrapped, _context(escrow.origin, escrow.recipient))
    return _open(escrow, seed, "the escrow was altered since the provider's key wrapped its seed")


def renew(escrow: Escrow, before: Unlocked, after: Unlocked) -> Escrow:
    """The same escrow for a changed passphrase; shares and provider stay. Raises NotTrusted (not made with ``before``)."""
    _check(escrow, before)
    return _seal(escrow, after)


def _seal(card: Escrow, unlocked: Unlocked) -> Escrow:
    purpose = _purpose(card)
    sealed = pack_bytes(unlocked.hand_over(), [XWingRecipient(card.recipient)], purpose=purpose)
    return msgspec.structs.replace(card, sealed=sealed, code=unlocked.tag(_coded(card)))


def _open(escrow: Escrow, seed: bytes, wrong: str) -> Unlocked:
    try:
        identity = identity_of(seed)
        if recipient_of(identity) != escrow.recipient:
            raise NotTrusted(wrong)
        unlocked = Unlocked.receive(unpack_bytes(escrow.sealed, [XWingOpener(identity)], purpose=_purpose(escrow)))
        _check(escrow, unlocked)
    except (NotTrusted, Denied, Missing, Invalid) as cause:
        raise NotTrusted(wrong) from cause
    return unlocked


def _check(escrow: Escrow, unlocked: Unlocked) -> None:
    if not hmac.compare_digest(escrow.code, unlocked.tag(_coded(escrow))):
        raise NotTrusted(
            f"unseal/{escrow.kind}.json was not made by whoever opened this key ring with its passphrase of now: remove it "
            f"('modelkeep unsealing drop {escrow.kind}') and make another"
        )


def _coded(escrow: Escrow) -> bytes:
    """What the code stands over: everything but itself and the sealed file, which only its own recipient can tell apart."""
    return b"modelkeep/escrow/1" + msgspec.structs.replace(escrow, sealed=b"", code=b"").encode()


def _purpose(escrow: Escrow) -> str:
    return f"unseal/{escrow.kind}/{escrow.origin}"[:255]


def _context(origin: str, recipient: str) -> bytes:
    return b"modelkeep/escrow-seed/1" + recipient_id(recipient) + origin.encode()
