import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.wrap import OVERHEAD, WRAPPED_SIZE, Sealer, open_bytes, seal_bytes, unwrap_key, wrap_key
from modelkeep.errors import Invalid, NotTrusted

KEK, OTHER, DEK = bytes(range(32)), bytes(32), bytes(range(100, 132))


def test_the_bytes_are_as_specified():
    """Derive and decrypt with nothing but HMAC and AES-GCM."""
    wrapped = wrap_key(KEK, DEK, b"context")
    assert len(wrapped) == WRAPPED_SIZE == 112
    prk = hmac.digest(wrapped[:32], KEK, "sha512")
    derived = hmac.new(prk, b"modelkeep/wrap/1" + b"context" + b"\x01", hashlib.sha512).digest()
    assert derived[32:] == wrapped[32:64]
    assert AESGCM(derived[:32]).decrypt(bytes(12), wrapped[64:], b"context") == DEK


@settings(max_examples=50)
@given(st.binary(max_size=300), st.binary(max_size=50))
def test_what_is_sealed_opens(plaintext, aad):
    sealed = seal_bytes(KEK, plaintext, aad)
    assert len(sealed) == len(plaintext) + OVERHEAD
    assert open_bytes(KEK, sealed, aad) == plaintext


def test_every_flipped_byte_is_refused():
    wrapped, sealed = wrap_key(KEK, DEK, b"c"), seal_bytes(KEK, b"secret", b"c")
    for position in range(len(wrapped)):
        with pytest.raises(NotTrusted):
            unwrap_key(KEK, _flip(wrapped, position), b"c")
    for position in range(len(sealed)):
        with pytest.raises(NotTrusted):
            open_bytes(KEK, _flip(sealed, position), b"c")


def test_other_keys_contexts_lengths_and_purposes_are_refused():
    wrapped = wrap_key(KEK, DEK, b"c")
    for kek, data, context in [
        (OTHER, wrapped, b"c"),
        (KEK, wrapped, b"d"),
        (KEK, wrapped[:-1], b"c"),
        (KEK, wrapped + b"x", b"c"),
    ]:
        with pytest.raises(NotTrusted):
            unwrap_key(kek, data, context)
    with pytest.raises(NotTrusted, match="another purpose"):
        open_bytes(KEK, wrapped, b"c")
    with pytest.raises(NotTrusted):
        open_bytes(KEK, b"", b"c")


def test_two_wraps_of_one_key_differ():
    assert wrap_key(KEK, DEK, b"c") != wrap_key(KEK, DEK, b"c")


def test_keys_of_a_wrong_size_are_invalid():
    for call in (
        lambda: wrap_key(KEK, b"short", b""),
        lambda: wrap_key(b"short", DEK, b""),
        lambda: seal_bytes(b"", b"x", b""),
    ):
        with pytest.raises(Invalid):
            call()


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def test_a_sealer_s_bytes_are_as_specified():
    sealer = Sealer(KEK, b"context")
    first, second = sealer.seal(b"one"), sealer.seal(b"two")
    assert first[:64] == second[:64] and (first[64:76], second[64:76]) == (bytes(12), bytes(11) + b"\x01")
    prk = hmac.digest(first[:32], KEK, "sha512")
    derived = hmac.new(prk, b"modelkeep/bytes/2" + b"context" + b"\x01", hashlib.sha512).digest()
    assert derived[32:] == first[32:64]
    assert AESGCM(derived[:32]).decrypt(second[64:76], second[76:], b"context") == b"two"


def test_what_a_sealer_sealed_opens_and_every_flipped_byte_is_refused():
    sealer = Sealer(KEK, b"c")
    for plaintext in (b"", b"x" * 300):
        sealed = sealer.seal(plaintext)
        assert open_bytes(KEK, sealed, b"c") == plaintext
        for position in range(len(sealed)):
            with pytest.raises(NotTrusted):
                open_bytes(KEK, _flip(sealed, position), b"c")
        for key, aad in ((OTHER, b"c"), (KEK, b"d")):
            with pytest.raises(NotTrusted):
                open_bytes(key, sealed, aad)


def test_a_sealer_takes_another_key_before_its_nonces_run_out():
    sealer = Sealer(KEK, b"c", messages=3)
    sealed = [sealer.seal(b"x") for _ in range(8)]
    assert [open_bytes(KEK, one, b"c") for one in sealed] == [b"x"] * 8
    assert len({one[:32] for one in sealed}) == 3 and len({(one[:32], one[64:76]) for one in sealed}) == 8
