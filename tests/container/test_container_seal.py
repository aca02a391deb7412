"""Seal and open: the same bytes again, for every size and shape of source."""

import hashlib
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as reference_load

from modelkeep.container import BytesReader, Kind, layout, open_sealed, pack_bytes, seal, suite_of
from modelkeep.container.layout import plan, sealed_length
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.formats import safetensors

relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@relaxed
@given(data=st.binary(max_size=70_000))
def test_any_bytes_come_back(sealed, data):
    body, model = sealed(data)
    opened = open_sealed(BytesReader(body), model.dek, root=model.root)
    assert bytes(opened.read_source()) == data
    assert b"".join(bytes(chunk) for chunk in opened.chunks()) == data
    assert model.model_digest == "sha256:" + hashlib.sha256(data).hexdigest() == opened.model_digest
    assert (model.size, model.header_hash, model.root) == (len(body), opened.header_hash, opened.root())
    opened.check_model_digest()


@relaxed
@given(shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=12), seed=st.integers(0, 99))
def test_any_safetensors_file_comes_back_whole_and_by_tensor(sealed, shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = {f"t{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    source = safetensors.dump(arrays)
    body, model = sealed(source)
    opened = open_sealed(BytesReader(body), model.dek, root=model.root)
    assert opened.kind is Kind.SAFETENSORS
    assert bytes(opened.read_source()) == source
    for name, array in arrays.items():
        tensor = opened.read_tensor(name)
        assert np.array_equal(safetensors.as_array(tensor.dtype, tensor.shape, tensor.data), array)


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 2 << 20, (2 << 20) + 1, 9 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_sizes_around_chunks_pieces_and_rings(sealed, size, threads):
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    body, model = sealed(source)
    assert len(body) == 48 + (sealed_length(size) if size else 0) + sealed_length(57 + (62 if size else 0)) + 24
    assert bytes(open_sealed(BytesReader(body), model.dek).read_source(threads=threads)) == source


def test_streams_split_at_64_mib(sealed):
    """One dominant tensor must not become one serial stream."""
    arrays = {"big": np.arange(17 << 20, dtype=np.float32), "small": np.ones(3, np.float32)}
    source = safetensors.dump(arrays)
    body, model = sealed(source)
    opened = open_sealed(BytesReader(body), model.dek, root=model.root)
    assert [entry.length for entry in opened.entries] == [64 << 20, 4 << 20, 12]
    assert np.array_equal(np.frombuffer(opened.read_tensor("big").data, np.float32), arrays["big"])
    whole = opened.read_source()
    assert hashlib.sha256(whole).digest() == hashlib.sha256(source).digest()
    del whole
    assert max(len(chunk) for chunk in opened.chunks()) == 64 << 20


def test_many_small_tensors_share_batches(sealed, monkeypatch):
    monkeypatch.setattr(layout, "STREAM_LIMIT", 1000)
    monkeypatch.setattr(sys.modules["modelkeep.container.seal"], "_MAX_SLICES", 3)
    monkeypatch.setattr(sys.modules["modelkeep.container.open"], "_GROUP", 5000)
    arrays = {f"t{i:03}": np.full(i * 7 % 900, i, np.int32) for i in range(200)}
    source = safetensors.dump(arrays)
    body, model = sealed(source)
    opened = open_sealed(BytesReader(body), model.dek, root=model.root)
    assert len(opened.entries) > 200
    assert bytes(opened.read_source(threads=3)) == source
    assert {k: v.tolist() for k, v in reference_load(bytes(opened.read_source())).items()} == {
        k: v.tolist() for k, v in arrays.items()
    }


def test_a_source_that_only_looks_like_safetensors_is_sharded(sealed):
    source = (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}' + bytes(50)
    body, model = sealed(source)
    assert model.kind is Kind.BYTES
    assert bytes(open_sealed(BytesReader(body), model.dek).read_source()) == source


def test_sealing_takes_little_memory():
    source = bytes(80 << 20)
    tracemalloc.start()
    for _ in (sealing := seal(BytesReader(source))).chunks():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sealing.model.size > len(source)
    assert peak < 30 << 20


def test_two_sealings_share_nothing(sealed):
    (first, one), (_, two) = sealed(b"x" * 100), sealed(b"x" * 100)
    assert one.dek != two.dek
    assert one.header_hash != two.header_hash
    assert one.root == two.root
    with pytest.raises(NotTrusted):
        open_sealed(BytesReader(first), two.dek)


def test_a_data_key_that_is_given_is_used(sealed):
    body, model = sealed(b"abc", dek=bytes(range(32)))
    assert model.dek == bytes(range(32))
    assert "dek" not in repr(model)
    assert bytes(open_sealed(BytesReader(body), bytes(range(32))).read_source()) == b"abc"
    with pytest.raises(Invalid):
        seal(BytesReader(b""), dek=b"short")


def test_the_outcome_is_not_there_before_the_end():
    sealing = seal(BytesReader(b"abc"))
    with pytest.raises(Invalid, match="not finished"):
        _ = sealing.model
    chunks = sealing.chunks()
    next(chunks)
    chunks.close()
    with pytest.raises(Invalid, match="not finished"):
        _ = sealing.model


def test_a_source_that_shrinks_while_it_is_sealed_is_refused():
    class Shrinking(BytesReader):
        @property
        def size(self) -> int:
            return super().size + 1

    with pytest.raises(NotTrusted, match="truncated"):
        list(seal(Shrinking(b"x" * 100)).chunks())


def test_unknown_tensors_are_missing(sealed, tensors):
    body, model = sealed(tensors)
    with pytest.raises(Missing):
        open_sealed(BytesReader(body), model.dek).read_tensor("nope")
    body, model = sealed(b"plain bytes")
    with pytest.raises(Missing):
        open_sealed(BytesReader(body), model.dek).read_tensor("")


def test_a_head_on_plain_shards_is_invalid():
    with pytest.raises(Invalid):
        list(plan(Kind.BYTES, b"x", 10))


def test_the_suite_is_known_without_a_key_and_the_new_one_is_written(sealed, kms, tensors):
    body, model = sealed(tensors)
    assert suite_of(BytesReader(body)) == 2 == open_sealed(BytesReader(body), model.dek).suite
    assert suite_of(BytesReader(pack_bytes(b"x", [kms], purpose="file"))) == 2
    for data, line in (
        (b"", "empty"),
        (body[:5], "cut off"),
        (body[:60], "cut off"),
        (tensors, "plain safetensors"),
        (body[:9] + b"\x09" + body[10:], "cipher suite 9"),
    ):
        with pytest.raises(NotTrusted, match=line):
            suite_of(BytesReader(data))


def test_stream_digests_are_blake3_and_what_is_signed_is_sha_256(sealed):
    """Known answers: the empty and a short text, from the BLAKE3 and SHA-256 test vectors' own definitions."""
    body, model = sealed(b"abc")
    (entry,) = open_sealed(BytesReader(body), model.dek).entries
    assert entry.digest.hex() == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert model.model_digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_root_is_proven_only_when_it_is_asked_for_and_is_the_same(sealed, tensors):
    body, model = sealed(tensors)
    opened = open_sealed(BytesReader(body), model.dek)
    assert opened.root() == model.root == opened._index.root()
