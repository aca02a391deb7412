"""Every way of damaging or forging a sealed file ends in one clear NotTrusted line."""

import struct
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from forge import assemble, encrypt, flip, fresh_streams, parts, with_entry

from modelkeep.container import (
    Binding,
    BytesReader,
    FilesReader,
    check_body,
    encode_recipients,
    open_sealed,
    pack_bytes,
    seal,
    split_file,
    unlock,
    unpack_bytes,
)
from modelkeep.container.layout import BodyKeys, Kind, check_header, encode_header, parse_index
from modelkeep.core.values import Digest, digest_of
from modelkeep.errors import NotTrusted
from modelkeep.formats import safetensors

PURPOSE = "test"


def read_all(body: bytes, dek: bytes, root: bytes | None = None) -> bytes:
    return bytes(open_sealed(BytesReader(body), dek, root=root).read_source(threads=1))


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


def test_every_flipped_byte_of_a_small_file_is_refused(kms):
    file = pack_bytes(b"a small secret", [kms], purpose=PURPOSE)
    for position in range(len(file)):
        for mask in (0x01, 0x80, 0xFF):
            with pytest.raises(NotTrusted) as caught:
                unpack_bytes(flip(file, position, mask), [kms], purpose=PURPOSE)
            one_line(caught)


def test_every_flipped_byte_of_a_body_is_refused_with_the_key_and_without(sealed):
    source = safetensors.dump({"a": np.arange(20.0), "b": np.zeros(0)})
    body, model = sealed(source)
    digest = digest_of(body)
    check_body(BytesReader(body), digest)
    for position in range(len(body)):
        damaged = flip(body, position, 0x20)
        with pytest.raises(NotTrusted):
            read_all(damaged, model.dek)
        with pytest.raises(NotTrusted):
            check_body(BytesReader(damaged), digest)


def test_every_truncation_and_any_appendix_is_refused(sealed, kms):
    body, model = sealed(b"x" * 300)
    file = pack_bytes(b"x" * 300, [kms], purpose=PURPOSE)
    digest = digest_of(body)
    for length in range(len(body)):
        with pytest.raises(NotTrusted):
            read_all(body[:length], model.dek)
        with pytest.raises(NotTrusted, match=r"cut|truncated"):
            check_body(BytesReader(body[:length]), digest)
    for length in range(len(file)):
        with pytest.raises(NotTrusted):
            unpack_bytes(file[:length], [kms], purpose=PURPOSE)
    for extra in (b"\x00", b"x" * 24, body[-24:], body):
        with pytest.raises(NotTrusted, match="cut"):
            read_all(body + extra, model.dek)
        with pytest.raises(NotTrusted):
            unpack_bytes(file + extra, [kms], purpose=PURPOSE)


def test_cutting_out_a_stream_and_mending_the_footer_is_refused(sealed, tensors):
    body, model = sealed(tensors)
    header, streams, _ = parts(body, model.dek)
    tail = body[48 + sum(map(len, streams)) : -24]
    for kept in (streams[1:], streams[:-1], [*streams, streams[0]]):
        size = 48 + sum(map(len, kept)) + len(tail) + 24
        cut = header + b"".join(kept) + tail + struct.pack(">QQ8s", len(tail), size, b"KEEPEND\n")
        with pytest.raises(NotTrusted, match="do not fill it exactly"):
            read_all(cut, model.dek)


def test_streams_of_equal_length_cannot_be_swapped(sealed):
    body, model = sealed(safetensors.dump({"a": np.zeros(50), "b": np.ones(50)}))
    header, (first, second), _ = parts(body, model.dek)
    swapped = header + second + first + body[48 + len(first) + len(second) :]
    with pytest.raises(NotTrusted, match=r"tensor 'a' .* was altered"):
        read_all(swapped, model.dek)


def test_streams_of_another_file_under_the_same_data_key_do_not_fit(sealed):
    dek = bytes(range(32))
    (one, _), (two, _) = sealed(b"a" * 500, dek), sealed(b"b" * 500, dek)
    length = len(parts(one, dek)[1][0])
    with pytest.raises(NotTrusted, match=r"shard 1 .* was altered"):
        read_all(one[:48] + two[48 : 48 + length] + one[48 + length :], dek)
    with pytest.raises(NotTrusted, match="index does not decrypt"):
        read_all(one[: 48 + length] + two[48 + length :], dek)


@pytest.mark.parametrize(
    "changes",
    [{"name": "evil"}, {"shape": (60, 100)}, {"dtype": "I32"}, {"offset": 8}, {"id": 9}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_holder_of_the_data_key_cannot_rename_reshape_or_move_a_tensor(sealed, tensors, changes):
    body, model = sealed(tensors)
    header, streams, index = parts(body, model.dek)
    with pytest.raises(NotTrusted, match="renamed, reshaped or moved"):
        open_sealed(BytesReader(assemble(header, streams, with_entry(index, 2, **changes), model.dek)), model.dek)


def test_nor_do_it_consistently_with_the_head_when_the_root_is_known(sealed, tensors):
    body, model = sealed(tensors)
    header, streams, index = parts(body, model.dek)
    head = index.head.replace(b"layer.bias", b"layer.evil")
    entries = tuple(msgspec.structs.replace(e, name=e.name.replace("layer.bias", "layer.evil")) for e in index.entries)
    forged = assemble(header, streams, replace(index, head=head, entries=entries).encode(), model.dek)
    assert open_sealed(BytesReader(forged), model.dek).read_tensor("layer.evil").shape == (60,)
    with pytest.raises(NotTrusted, match="not the one that was signed"):
        open_sealed(BytesReader(forged), model.dek, root=model.root)


def test_a_holder_of_the_data_key_cannot_change_weights_when_the_root_is_known(sealed):
    body, model = sealed(b"honest weights")
    _, _, index = parts(body, model.dek)
    header, streams = fresh_streams([b"poison weights"], model.dek)
    forged = assemble(header, streams, index.encode(), model.dek)
    opened = open_sealed(BytesReader(forged), model.dek, root=model.root)
    with pytest.raises(NotTrusted, match="does not have the BLAKE3 digest"):
        opened.read_source()
    with pytest.raises(NotTrusted, match="does not have the BLAKE3 digest"):
        list(opened.chunks())


def test_a_wrong_model_digest_is_found(sealed):
    body, model = sealed(b"abc")
    header, streams, index = parts(body, model.dek)
    lie = replace(index, model_digest=Digest("sha256:" + "0" * 64))
    opened = open_sealed(BytesReader(assemble(header, streams, lie.encode(), model.dek)), model.dek)
    assert bytes(opened.read_source()) == b"abc"
    with pytest.raises(NotTrusted, match="stated a wrong digest"):
        opened.check_model_digest()


def malformed_indexes(index):
    plain = index.encode()
    yield b""
    yield plain[:-1]
    yield plain + b"\x00"
    yield b"\x07" + plain[1:]
    yield plain[:41] + (1 << 63).to_bytes(8, "big") + plain[49:]
    yield plain[:49] + (1 << 62).to_bytes(8, "big") + plain[57:]
    yield plain[:33] + (1 << 50).to_bytes(8, "big") + plain[41:]
    yield replace(index, kind=Kind.SAFETENSORS).encode()
    yield replace(index, head=b"xx").encode()
    yield replace(index, entries=index.entries * 2).encode()
    yield replace(index, entries=()).encode()


def test_malformed_indexes_are_refused(sealed):
    body, model = sealed(b"x" * 100)
    header, streams, index = parts(body, model.dek)
    for plain in malformed_indexes(index):
        with pytest.raises(NotTrusted) as caught:
            open_sealed(BytesReader(assemble(header, streams, plain, model.dek)), model.dek)
        one_line(caught)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda body: b"", "empty"),
        (lambda body: body[:5], "cut off"),
        (lambda body: body[:60], "cut off"),
        (lambda body: body[:-10], "does not end with its footer"),
        (lambda body: body + b"x", "does not end with its footer"),
        (lambda body: body[:8] + b"\x02" + body[9:], "format version 2, and this modelkeep reads 1: upgrade"),
        (lambda body: body[:9] + b"\x03" + body[10:], "cipher suite 3"),
        (lambda body: body[:10] + b"\x01" + body[11:], "upgrade"),
        (lambda body: flip(body, 100), "was altered: its SHA-256"),
        (lambda body: b"hello world, this is no container at all" * 5, "not a modelkeep container"),
        (lambda body: safetensors.dump({}), "plain safetensors file, and not a sealed file"),
        (lambda body: b"\x08\x0a\x12\x08skl2onnx\x3a" + bytes(80), "plain ONNX model, and not a sealed file"),
        (lambda body: b"\x80\x04\x95" + bytes(80), "a pickle, and not a sealed file"),
        (lambda body: body[:-24] + struct.pack(">QQ8s", 1 << 40, len(body), b"KEEPEND\n"), "footer points outside"),
        (lambda body: body[:-24] + struct.pack(">QQ8s", 100, len(body) + 1, b"KEEPEND\n"), "should have"),
    ],
)
def test_one_clear_line_for_each_kind_of_damage_without_a_key(sealed, damage, line):
    body, model = sealed(b"x" * 1000)
    damaged = damage(body)
    with pytest.raises(NotTrusted, match=line) as caught:
        check_body(BytesReader(damaged), digest_of(body))
    one_line(caught)
    if "SHA-256" not in line:
        with pytest.raises(NotTrusted, match=line):
            open_sealed(BytesReader(damaged), model.dek)


def test_another_whole_body_in_its_place_is_refused(sealed):
    (one, _), (two, _) = sealed(b"a"), sealed(b"b")
    with pytest.raises(NotTrusted, match="was signed"):
        check_body(BytesReader(two), digest_of(one))


def test_plaintext_where_a_sealed_file_is_expected_is_refused(kms, tensors):
    for plain in (tensors, b"not a container, just text that is long enough for one" * 4, b"", b"\x80\x02}q\x00." * 30):
        with pytest.raises(NotTrusted):
            unpack_bytes(plain, [kms], purpose=PURPOSE)


def test_a_key_of_a_wrong_size_is_refused(sealed):
    body, _ = sealed(b"a")
    with pytest.raises(NotTrusted, match="32 bytes"):
        open_sealed(BytesReader(body), b"short")


def test_two_keys_cannot_open_one_file_to_different_weights(kms, other_kms):
    """A block whose stanzas hold different data keys: the MAC and the streams each commit to one."""
    file = pack_bytes(b"the weights", [kms], purpose=PURPOSE)
    keep = split_file(BytesReader(file))
    binding = Binding(keep.header_hash, digest_of(b"the weights"), PURPOSE)
    mine, yours = bytes(range(32)), bytes(32)
    stanzas = [kms.stanza(mine, binding.context()), other_kms.stanza(yours, binding.context())]
    block = encode_recipients(stanzas, mine, binding)
    assert unlock(block, keep.header_hash, [kms], purpose=PURPOSE) == mine
    with pytest.raises(NotTrusted, match="authentication code"):
        unlock(block, keep.header_hash, [other_kms], purpose=PURPOSE)


def test_two_tensors_cannot_be_swapped_in_the_index_when_the_root_is_known(sealed):
    """A holder of the data key lets each of two tensors of one shape have the other's weights, in two ways."""
    zeros, ones = np.zeros(50), np.ones(50)
    body, model = sealed(safetensors.dump({"a": zeros, "b": ones}))
    header, _, index = parts(body, model.dek)
    a, b = index.entries
    fresh, streams = fresh_streams([ones.tobytes(), zeros.tobytes()], model.dek)
    changed = (msgspec.structs.replace(a, digest=b.digest), msgspec.structs.replace(b, digest=a.digest))
    by_weights = assemble(fresh, streams, replace(index, entries=changed).encode(), model.dek)
    head = index.head.replace(b'"a"', b'"?"').replace(b'"b"', b'"a"').replace(b'"?"', b'"b"')
    renamed = (msgspec.structs.replace(a, name="b"), msgspec.structs.replace(b, name="a"))
    by_names = assemble(header, parts(body, model.dek)[1], replace(index, head=head, entries=renamed).encode(), model.dek)
    for forged in (by_weights, by_names):
        swapped = open_sealed(BytesReader(forged), model.dek).read_tensor("a")
        assert np.frombuffer(swapped.data).tolist() == ones.tolist()
        with pytest.raises(NotTrusted, match="not the one that was signed"):
            open_sealed(BytesReader(forged), model.dek, root=model.root)
    one_sided = assemble(header, streams, replace(index, entries=renamed).encode(), model.dek)
    with pytest.raises(NotTrusted, match="renamed, reshaped or moved"):
        open_sealed(BytesReader(one_sided), model.dek)


@pytest.mark.parametrize("suite", [0, 1, 3, 255])
def test_a_body_is_not_read_as_of_another_suite(sealed, suite):
    """The suite is part of what every key is derived from: there is no downgrade, not even for a holder of the data key."""
    body, model = sealed(b"x" * 500)
    with pytest.raises(NotTrusted, match="index does not decrypt" if suite == 1 else "upgrade modelkeep"):
        read_all(body[:9] + bytes([suite]) + body[10:], model.dek)


def test_digests_of_one_suite_do_not_hold_in_another(sealed):
    body, model = sealed(b"x" * 500)
    _, _, index = parts(body, model.dek)
    header = encode_header(bytes(32), 1)
    stream = encrypt(b"x" * 500, *BodyKeys(model.dek, check_header(header).hash).stream(1))
    downgraded = assemble(header, [stream], index.encode(), model.dek)
    with pytest.raises(NotTrusted, match="does not have the SHA-256"):
        read_all(downgraded, model.dek, model.root)


def test_no_splice_of_two_bodies_opens_under_either_key(sealed):
    """Key commitment: salt, commitment and chunks of one message stand or fall together."""
    mine, yours = bytes(range(32)), bytes(32)
    (one, _), (two, _) = sealed(b"a" * 500, mine), sealed(b"b" * 500, yours)
    stream, index = 48, 48 + 56 + 500 + 16
    cuts = [48, stream + 24, stream + 56, index, index + 24, index + 56]
    for cut in cuts:
        for spliced in (one[:cut] + two[cut:], two[:cut] + one[cut:]):
            for dek in (mine, yours):
                with pytest.raises(NotTrusted):
                    read_all(spliced, dek)
    for begin, end in pairwise(cuts):
        for dek in (mine, yours):
            with pytest.raises(NotTrusted):
                read_all(one[:begin] + two[begin:end] + one[end:], dek)


@pytest.mark.parametrize("kind", ["bytes", "safetensors", "files"])
def test_every_byte_of_an_index_is_refused_or_changes_the_root(kind, tensors):
    """Also for a holder of the data key, who can encrypt any index: no byte of it is without a check."""
    files = FilesReader([("m.onnx", BytesReader(b"graph")), ("w.bin", BytesReader(b"weights"))])
    source = {"bytes": BytesReader(b"x" * 99), "safetensors": BytesReader(tensors), "files": files}[kind]
    body, model = sealed_of(source)
    plain = parts(body, model.dek)[2].encode()
    index, prove = parse_index(plain)
    assert (prove(), index.root()) == (model.root, model.root)
    for position in range(len(plain)):
        for mask in (0x01, 0x20, 0x80):
            try:
                _, prove = parse_index(flip(plain, position, mask))
            except NotTrusted:
                continue
            assert prove() != model.root
    for length in range(len(plain)):
        with pytest.raises(NotTrusted):
            parse_index(plain[:length])


def sealed_of(source):
    sealing = seal(source)
    body = b"".join(bytes(chunk) for chunk in sealing.chunks())
    return body, sealing.model
