import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from modelkeep.crypto import xwing
from modelkeep.crypto.xwing import generate_identity, recipient_id, recipient_of, xwing_unwrap, xwing_wrap
from modelkeep.errors import Invalid, NotTrusted

KEY = bytes(range(32))


def test_a_wrapped_key_comes_back_for_its_identity_only():
    identity = generate_identity()
    wrapped = xwing_wrap(recipient_of(identity), KEY, b"info")
    assert len(wrapped) == xwing.WRAPPED_SIZE == 1168
    assert xwing_unwrap(identity, wrapped, b"info") == KEY
    for who, data, info in [
        (generate_identity(), wrapped, b"info"),
        (identity, wrapped, b"other"),
        (identity, wrapped[:-1], b"info"),
        (identity, wrapped[:100], b"info"),
        (identity, b"", b"info"),
    ]:
        with pytest.raises(NotTrusted):
            xwing_unwrap(who, data, info)


def test_flipped_bytes_are_refused():
    identity = generate_identity()
    wrapped = xwing_wrap(recipient_of(identity), KEY, b"")
    for position in range(0, len(wrapped), 13):
        with pytest.raises(NotTrusted):
            xwing_unwrap(identity, wrapped[:position] + bytes([wrapped[position] ^ 1]) + wrapped[position + 1 :], b"")


def test_the_seed_expands_as_the_draft_says():
    """draft-connolly-cfrg-xwing-kem, section 5.2: SHAKE-256(seed, 96) = ML-KEM d ‖ z ‖ X25519 key."""
    seed = bytes(range(32))
    public = xwing._parse_recipient(recipient_of(xwing._identity_text(seed)))
    x25519 = X25519PrivateKey.from_private_bytes(hashlib.shake_256(seed).digest(96)[64:]).public_key().public_bytes_raw()
    assert public[1184:] == x25519


def test_text_forms_survive_copying_and_catch_slips():
    identity = generate_identity()
    recipient = recipient_of(identity)
    assert len(identity) == 77
    assert recipient_of(f"  {identity.upper()[:40]}\n{identity[40:]} ") == recipient
    assert recipient_id(recipient + "\n") == recipient_id(recipient)
    middle = identity[40]
    for bad in (
        identity[:-1],
        identity[:40] + ("a" if middle != "a" else "b") + identity[41:],
        "",
        "x",
        recipient,
        identity + "aaaa",
    ):
        with pytest.raises(Invalid) as caught:
            recipient_of(bad)
        assert identity[25:60] not in str(caught.value)
        assert caught.value.__cause__ is None  # a cause would quote the secret
    for bad in (recipient[:-1], recipient[:100] + "!" + recipient[101:], "", identity, "modelkeep-recipient-" + "A" * 1627):
        with pytest.raises(Invalid):
            xwing_wrap(bad, KEY, b"")


def test_only_32_byte_keys_are_wrapped():
    with pytest.raises(Invalid):
        xwing_wrap(recipient_of(generate_identity()), b"short", b"")
