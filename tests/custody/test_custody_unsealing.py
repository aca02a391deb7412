"""Escrows: who opens them, and every way in which one that was meddled with opens nothing."""

import itertools

import msgspec
import pytest

from modelkeep.adapters.clock import SystemEntropy
from modelkeep.core.ports import KeyInfo
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.shamir import Share, split
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.custody.keyring import Unlocked
from modelkeep.custody.unsealing import (
    Escrow,
    for_provider,
    for_shares,
    open_with_provider,
    open_with_shares,
    parse_escrow,
    renew,
)
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted

ORIGIN = "keep.example/1"


def unlocked(byte=7):
    return Unlocked(Argon2Params(), bytes([byte]) * 32, bytes([byte + 1]) * 32)


def shared(threshold=2, count=3):
    return for_shares(unlocked(), ORIGIN, threshold=threshold, count=count, entropy=SystemEntropy(), now_ns=5)


class OneKey:
    """A provider with one key, in memory."""

    def __init__(self, key=b"k" * 32, uri="vault:transit/unseal"):
        self.key, self.uri, self.key_id = key, uri, f"{uri}/1"

    def wrapper(self, version=None):
        return self

    def versions(self):
        return (KeyInfo(self.key_id, 1, "primary", 0, 0),)

    def opens(self, key_id):
        return self if key_id == self.key_id else None

    def wrap(self, key, context):
        return wrap_key(self.key, key, context)

    def unwrap(self, wrapped, context):
        return unwrap_key(self.key, wrapped, context)


def test_any_two_of_three_open_it_and_one_alone_does_not():
    escrow, shares = shared()
    found = parse_escrow(escrow.encode(), "shares", ORIGIN)
    for chosen in itertools.permutations(shares, 2):
        assert open_with_shares(found, chosen).hand_over() == unlocked().hand_over()
    with pytest.raises(Invalid, match="2 shares are needed"):
        open_with_shares(found, shares[:1])
    with pytest.raises(Conflict, match="twice"):
        open_with_shares(found, [shares[0], shares[0]])


def test_shares_of_another_set_and_forged_ones_open_nothing():
    escrow, shares = shared()
    with pytest.raises(Conflict, match="another set"):
        open_with_shares(escrow, split(bytes(32), 2, 3)[:2])
    forged = Share(shares[1].set_id, 2, 2, bytes([shares[1].y[0] ^ 1]) + shares[1].y[1:])
    with pytest.raises(NotTrusted, match="forged"):
        open_with_shares(escrow, [shares[0], forged])
    with pytest.raises(Conflict, match="another set"):
        open_with_shares(escrow, [shares[0], Share(shares[1].set_id, 2, 9, shares[1].y)])


@pytest.mark.parametrize("field", ["made", "recipient", "shares", "sealed", "code", "origin"])
def test_whatever_is_changed_in_the_file_is_noticed(field):
    escrow, shares = shared()
    other, _ = shared()
    value = {"made": 6, "shares": 4, "origin": "keep.example/2", "code": bytes(32)}.get(field, getattr(other, field))
    with pytest.raises(NotTrusted):
        open_with_shares(msgspec.structs.replace(escrow, **{field: value}), shares[:2])


def test_a_file_of_another_kind_keep_or_version_is_refused():
    escrow, _ = shared()
    for data, kind, origin in [
        (escrow.encode(), "provider", ORIGIN),
        (escrow.encode(), "shares", "keep.example/2"),
        (b"{}", "shares", ORIGIN),
        (b"\xff", "shares", ORIGIN),
        (msgspec.structs.replace(escrow, format=2).encode(), "shares", ORIGIN),
    ]:
        with pytest.raises(NotTrusted, match="unseal/"):
            parse_escrow(data, kind, origin)


def test_a_providers_key_opens_it_and_no_other_key_does():
    keys = OneKey()
    escrow = for_provider(unlocked(), ORIGIN, keys, entropy=SystemEntropy(), now_ns=5)
    assert open_with_provider(escrow, keys).hand_over() == unlocked().hand_over()
    with pytest.raises(NotTrusted):
        open_with_provider(escrow, OneKey(b"x" * 32))
    with pytest.raises(Missing, match="another key"):
        open_with_provider(escrow, OneKey(uri="vault:transit/other"))
    swapped = for_provider(unlocked(), "keep.example/2", keys, entropy=SystemEntropy(), now_ns=5)
    with pytest.raises(NotTrusted):  # a seed that was wrapped for another keep
        open_with_provider(msgspec.structs.replace(escrow, wrapped=swapped.wrapped), keys)


class Liar(OneKey):
    def unwrap(self, wrapped, context):
        return bytes(32)


def test_a_provider_that_does_not_open_what_it_wraps_is_trusted_with_nothing():
    with pytest.raises(NotTrusted, match="does not open"):
        for_provider(unlocked(), ORIGIN, Liar(), entropy=SystemEntropy(), now_ns=5)


def test_a_new_passphrase_renews_it_for_the_same_people_unless_it_is_not_ours():
    escrow, shares = shared()
    renewed = renew(escrow, unlocked(), unlocked(40))
    assert open_with_shares(renewed, shares[1:]).hand_over() == unlocked(40).hand_over()
    assert renewed.recipient == escrow.recipient and renewed.set_id == escrow.set_id
    foreign, _ = for_shares(unlocked(90), ORIGIN, threshold=2, count=2, entropy=SystemEntropy(), now_ns=5)
    with pytest.raises(NotTrusted, match="not made by"):
        renew(foreign, unlocked(), unlocked(40))


def test_nothing_of_the_secret_is_shown_or_stands_in_the_file():
    escrow, shares = shared()
    assert isinstance(escrow, Escrow) and b"\x08" * 9 not in escrow.encode()
    assert all(share.y.hex() not in repr(share) for share in shares)
