"""Recipient blocks and standalone files."""

import hashlib
import hmac
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.container import (
    Binding,
    BytesReader,
    KmsStanza,
    Passphrase,
    PassphraseStanza,
    XWingOpener,
    XWingRecipient,
    encode_recipients,
    pack_bytes,
    pack_file,
    parse_recipients,
    rewrap_tail,
    split_file,
    unlock,
    unpack_bytes,
    unpack_file,
)
from modelkeep.core.values import digest_of
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.errors import Denied, Invalid, Missing, NotTrusted

CHEAP = Argon2Params(memory_kib=64, passes=1, lanes=1)
BINDING = Binding(bytes(range(32)), digest_of(b"model"), "model")
DEK = bytes(range(32, 64))


def block_of(*recipients, dek=DEK, binding=BINDING) -> bytes:
    return encode_recipients([each.stanza(dek, binding.context()) for each in recipients], dek, binding)


def test_each_kind_of_recipient_opens_the_same_block(kms):
    identity = generate_identity()
    block = block_of(kms, XWingRecipient(recipient_of(identity)), Passphrase(b"correct horse", CHEAP))
    parsed = parse_recipients(block)
    assert (parsed.model_digest, parsed.purpose, len(parsed.stanzas)) == (BINDING.model_digest, "model", 3)
    for opener in (kms, XWingOpener(identity), Passphrase(b"correct horse")):
        assert unlock(block, BINDING.header_hash, [opener], purpose="model") == DEK


def test_an_opener_that_fails_does_not_hide_one_that_works(kms):
    block = block_of(kms, Passphrase(b"right", CHEAP))
    assert unlock(block, BINDING.header_hash, [Passphrase(b"wrong"), kms], purpose="model") == DEK


def test_who_has_no_key_is_told_so(kms, other_kms):
    block = block_of(kms, Passphrase(b"right", CHEAP))
    with pytest.raises(NotTrusted, match="wrong key or passphrase"):
        unlock(block, BINDING.header_hash, [Passphrase(b"wrong")], purpose="model")
    for openers in ([], [other_kms], [XWingOpener(generate_identity())]):
        with pytest.raises(NotTrusted, match="other recipients"):
            unlock(block, BINDING.header_hash, openers, purpose="model")


@pytest.mark.parametrize("error", [Denied, Missing])
def test_a_disabled_version_does_not_keep_the_others_from_opening(kms, error):
    class Refusing:
        def unwrap(self, stanza, context):
            raise error("version 1 is disabled")

    block = block_of(kms)
    assert unlock(block, BINDING.header_hash, [Refusing(), kms], purpose="model") == DEK
    for openers in ([Refusing()], [Refusing(), Passphrase(b"not among them")]):
        with pytest.raises(error, match="version 1"):
            unlock(block, BINDING.header_hash, openers, purpose="model")


def test_a_block_is_bound_to_its_body_and_its_purpose(kms):
    block = block_of(kms)
    with pytest.raises(NotTrusted):
        unlock(block, bytes(32), [kms], purpose="model")
    with pytest.raises(NotTrusted, match="is for 'model' and not for 'keys/x'"):
        unlock(block, BINDING.header_hash, [kms], purpose="keys/x")


def test_the_mac_covers_every_byte(kms):
    block = block_of(kms, XWingRecipient(recipient_of(generate_identity())))
    for position in range(len(block)):
        with pytest.raises(NotTrusted):
            unlock(
                block[:position] + bytes([block[position] ^ 4]) + block[position + 1 :],
                BINDING.header_hash,
                [kms],
                purpose="model",
            )
    for length in range(0, len(block), 7):
        with pytest.raises(NotTrusted):
            unlock(block[:length], BINDING.header_hash, [kms], purpose="model")


def test_a_stanza_cannot_be_dropped(kms, other_kms):
    block = block_of(kms, other_kms)
    parsed = parse_recipients(block)
    dropped = encode_recipients(parsed.stanzas[:1], DEK, BINDING)[:-32] + block[-32:]
    with pytest.raises(NotTrusted, match="authentication code"):
        unlock(dropped, BINDING.header_hash, [kms], purpose="model")


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_garbage_is_never_anything_but_not_trusted(garbage):
    for block in (garbage, b"KEEPRCPT" + garbage, b"KEEPRCPT\x01" + bytes(32) + garbage):
        with pytest.raises(NotTrusted):
            parse_recipients(block)


def passphrase_block(memory_kib: int, passes: int, lanes: int, times: int = 1) -> bytes:
    body = struct.pack(">IBB", memory_kib, passes, lanes) + bytes(32) + bytes(112)
    stanza = struct.pack(">BH", 3, len(body)) + body
    head = struct.pack(">8sB32sB", b"KEEPRCPT", 1, bytes(32), 1) + b"x" + bytes([times])
    return head + stanza * times + bytes(32)


def test_a_file_cannot_ask_for_endless_work():
    parse_recipients(passphrase_block(1 << 20, 16, 16))
    for numbers in ((1 << 21, 1, 1), (64, 17, 1), (64, 1, 17), (64, 0, 1), (0, 1, 1)):
        with pytest.raises(NotTrusted, match="out of bounds"):
            parse_recipients(passphrase_block(*numbers))
    with pytest.raises(NotTrusted):
        parse_recipients(passphrase_block(64, 1, 1, times=2))


def test_limits_on_recipients(kms):
    stanza = kms.stanza(DEK, BINDING.context())
    for stanzas in ([], [stanza] * 65, [Passphrase(b"a", CHEAP).stanza(DEK, b""), Passphrase(b"b", CHEAP).stanza(DEK, b"")]):
        with pytest.raises(Invalid):
            encode_recipients(stanzas, DEK, BINDING)
    for purpose in ("", "x" * 256):
        with pytest.raises(Invalid):
            encode_recipients([stanza], DEK, Binding(BINDING.header_hash, BINDING.model_digest, purpose))
    assert len(parse_recipients(encode_recipients([stanza] * 64, DEK, BINDING)).stanzas) == 64


@pytest.mark.parametrize("sign", ["\n", "\r", "\t", "\x1b", "\0", "\x7f"])
def test_what_is_shown_without_a_key_has_no_control_character(sign):
    """A line end in a key's id or in the purpose would forge lines of what ``inspect`` says."""
    good = encode_recipients(
        [KmsStanza("vault:transit/k~1", b"x")], DEK, Binding(BINDING.header_hash, BINDING.model_digest, "fi~le")
    )
    assert parse_recipients(good).purpose == "fi~le"
    for name in (b"k~1", b"fi~le"):
        with pytest.raises(NotTrusted, match="control character"):
            parse_recipients(good.replace(name, name.replace(b"~", sign.encode())))
    with pytest.raises(Invalid):
        encode_recipients([KmsStanza(f"vault:transit/k{sign}1", b"x")], DEK, BINDING)
    with pytest.raises(Invalid):
        encode_recipients([KmsStanza("k", b"x")], DEK, Binding(BINDING.header_hash, BINDING.model_digest, f"fi{sign}le"))


def test_the_mac_is_as_specified(kms):
    block = block_of(kms)
    prk = hmac.digest(BINDING.header_hash, DEK, "sha512")
    key = hmac.digest(prk, b"modelkeep/keep/1/recipients\x01", "sha512")
    assert hmac.digest(key, block[:-32], "sha512")[:32] == block[-32:]


def test_a_standalone_file_round_trips(kms):
    for data in (b"", b"secret", bytes(40_000)):
        file = pack_bytes(data, [kms, Passphrase(b"p", CHEAP)], purpose="keys/model-kek")
        assert b"".join(bytes(c) for c in pack_file(BytesReader(data), [kms], purpose="x"))[:8] == file[:8]
        assert unpack_bytes(file, [kms], purpose="keys/model-kek") == data
        assert unpack_bytes(file, [Passphrase(b"p")], purpose="keys/model-kek") == data
        with pytest.raises(NotTrusted):
            unpack_bytes(file, [Passphrase(b"q")], purpose="keys/model-kek")
        with pytest.raises(NotTrusted):
            unpack_bytes(file, [kms], purpose="keys/token-signing")


def test_the_signed_root_is_checked(kms):
    file = pack_bytes(b"data", [kms], purpose="x")
    root = unpack_file(BytesReader(file), [kms], purpose="x").root()
    assert unpack_file(BytesReader(file), [kms], purpose="x", root=root).root() == root
    with pytest.raises(NotTrusted):
        unpack_file(BytesReader(file), [kms], purpose="x", root=hashlib.sha256().digest())


def test_rewrapping_changes_recipients_and_not_a_byte_of_the_body(kms, other_kms):
    identity = generate_identity()
    file = pack_bytes(b"data", [Passphrase(b"old", CHEAP), XWingRecipient(recipient_of(identity))], purpose="x")
    parts = split_file(BytesReader(file))
    kept = [s for s in parse_recipients(parts.block).stanzas if not isinstance(s, PassphraseStanza)]
    body = file[: parts.body.size]
    tail = rewrap_tail(BytesReader(file), [Passphrase(b"old")], [Passphrase(b"new", CHEAP), kms], purpose="x", keep=kept)
    for opener in (Passphrase(b"new"), XWingOpener(identity), kms):
        assert unpack_bytes(body + tail, [opener], purpose="x") == b"data"
    for opener in (Passphrase(b"old"), other_kms):
        with pytest.raises(NotTrusted):
            unpack_bytes(body + tail, [opener], purpose="x")


def test_a_block_of_another_file_is_refused(kms):
    one, two = pack_bytes(b"one", [kms], purpose="x"), pack_bytes(b"two", [kms], purpose="x")
    size = split_file(BytesReader(one)).body.size
    with pytest.raises(NotTrusted):
        unpack_bytes(one[:size] + two[size:], [kms], purpose="x")


def test_a_block_that_names_another_source_is_refused(kms):
    """Only a holder of the data key can make one."""
    file = pack_bytes(b"one", [kms], purpose="x")
    parts = split_file(BytesReader(file))
    dek = unlock(parts.block, parts.header_hash, [kms], purpose="x")
    block = block_of(kms, dek=dek, binding=Binding(parts.header_hash, digest_of(b"two"), "x"))
    tail = block + struct.pack(">QI8s", parts.body.size, len(block), b"KEEPFIL\n")
    with pytest.raises(NotTrusted, match="names another source"):
        unpack_bytes(file[: parts.body.size] + tail, [kms], purpose="x")


def test_secrets_stay_out_of_reprs():
    identity = generate_identity()
    assert b"hunter2".decode() not in repr(Passphrase(b"hunter2"))
    assert identity not in repr(XWingOpener(identity))
