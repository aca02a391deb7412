"""Strict reading, checked against the reference implementation where the two must agree."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load as reference_load
from safetensors.numpy import save as reference_save

from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats import safetensors

DTYPES = ["bool", "u1", "i1", "<i2", "<u2", "<f2", "<i4", "<u4", "<f4", "<i8", "<u8", "<f8", "<c8"]
ARRAYS = st.dictionaries(
    st.text(max_size=12).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
    max_size=6,
)


def file_of(header: object, data: bytes = b"", pad: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@settings(max_examples=150, deadline=None)
@given(ARRAYS)
def test_what_we_write_the_reference_reads_and_the_other_way_round(arrays):
    ours, theirs = safetensors.dump(arrays, {"k": "v"}), reference_save(arrays)
    for loaded in (reference_load(ours), safetensors.load(ours), safetensors.load(theirs)):
        assert set(loaded) == set(arrays)
        for name, array in arrays.items():
            assert loaded[name].dtype == array.dtype
            assert loaded[name].shape == array.shape
            assert loaded[name].tobytes() == array.tobytes()


def test_writing_is_canonical():
    a, b = np.arange(3), np.ones((2, 2), np.float32)
    assert safetensors.dump({"b": b, "a": a}) == safetensors.dump({"a": a, "b": b.T.copy().T})
    assert safetensors.dump({"big": np.arange(3, dtype=">i4")}) == safetensors.dump({"big": np.arange(3, dtype="<i4")})


GOOD = {
    "empty": file_of({}),
    "padded": file_of({}, pad=13),
    "metadata": file_of({"__metadata__": {"a": "b"}, "x": tensor()}, bytes(8)),
    "two": file_of({"y": tensor(offsets=(8, 16)), "x": tensor()}, bytes(16)),
    "no elements": file_of({"x": tensor(shape=(0, 5), offsets=(0, 0)), "y": tensor()}, bytes(8)),
    "bfloat": file_of({"x": tensor("BF16", (4,))}, bytes(8)),
    "half bytes": file_of({"x": tensor("F4", (16,))}, bytes(8)),
}
BAD = {
    "nothing": b"",
    "short": b"\x01\x00",
    "length beyond the file": (100).to_bytes(8, "little") + b"{}",
    "not an object": file_of(b"[]"),
    "no JSON": file_of(b'{"a":'),
    "not UTF-8": file_of(b'{"\xff":1}'),
    "gap": file_of({"x": tensor(offsets=(8, 16))}, bytes(16)),
    "overlap": file_of({"x": tensor(), "y": tensor(offsets=(4, 12))}, bytes(12)),
    "same place twice": file_of({"x": tensor(), "y": tensor()}, bytes(8)),
    "trailing bytes": file_of({"x": tensor()}, bytes(9)),
    "cut data": file_of({"x": tensor()}, bytes(7)),
    "size and shape disagree": file_of({"x": tensor(shape=(3,))}, bytes(8)),
    "backwards": file_of({"x": tensor(offsets=(8, 0))}, bytes(8)),
    "unknown dtype": file_of({"x": tensor("F99")}, bytes(8)),
    "odd half byte": file_of({"x": tensor("F4", (15,))}, bytes(8)),
    "missing field": file_of({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "negative": file_of({"x": tensor(shape=(-2,))}, bytes(8)),
    "overflow": file_of({"x": tensor(shape=(1 << 40, 1 << 40))}, bytes(8)),
    "fraction": file_of(b'{"x":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', bytes(8)),
    "truth for a number": file_of(b'{"x":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', bytes(1)),
    "metadata not strings": file_of({"__metadata__": {"a": 1}}),
    "NaN": file_of(b'{"x":NaN}'),
    "lone surrogate": file_of(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    "deep": file_of(b'{"a":' + b"[" * 200_000),
    "long number": file_of(b'{"x":' + b"9" * 10_000 + b"}"),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_well_formed(data):
    length = safetensors.head_length(data[:8], len(data))
    assert isinstance(safetensors.parse_head(data[:length], len(data)), list)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_malformed(data):
    with pytest.raises(Invalid):
        safetensors.load(data)
    with pytest.raises(SafetensorError):
        reference_load(data)


STRICTER = {
    "a key twice": file_of(
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)
    ),
    "space first": file_of(b" {}"),
    "extra field": file_of({"x": tensor() | {"path": "/etc"}}, bytes(8)),
}


X = b'"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
ODD = {
    "the same key twice in metadata": file_of(b'{"__metadata__":{"a":"b","a":"b"},' + X + b"}", bytes(1)),
    "metadata twice": file_of(b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"b"},' + X + b"}", bytes(1)),
    "metadata twice, apart": file_of(b'{"__metadata__":{"a":"b"},' + X + b',"__metadata__":{"a":"b"}}', bytes(1)),
    "a comma after metadata": file_of(b'{"__metadata__":{"a":"b"},}'),
    "a comma in metadata": file_of(b'{"__metadata__":{"a":"b",}}'),
    "a comma at the end": file_of(b"{" + X + b",}", bytes(1)),
    "no comma after metadata": file_of(b'{"__metadata__":{"a":"b"}' + X + b"}", bytes(1)),
    "two objects": file_of(b"{" + X + b"}{}", bytes(1)),
    "a field twice": file_of(b'{"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    "a tensor called metadata": file_of(b'{"__metadata__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    "a tensor called metadata, later": file_of(b"{" + X + b',"__metadata__":' + X[4:] + b"}", bytes(1)),
    "a bad byte in metadata": file_of(b'{"__metadata__":{"a":"\xff"},' + X + b"}", bytes(1)),
    "a control character": file_of(b'{"x\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_compact_headers_are_read_as_strictly_as_others(data):
    with pytest.raises(Invalid):
        safetensors.load(data)


@settings(max_examples=100, deadline=None)
@given(ARRAYS, st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3))
def test_the_spelling_of_a_header_makes_no_difference(arrays, metadata):
    """Compact UTF-8, escaped, and spaced out: one is read the short way, and all give the same tensors."""
    compact = safetensors.dump(arrays, metadata)
    length = safetensors.head_length(compact[:8], len(compact))
    table, data = json.loads(compact[8:length]), compact[length:]
    found = [safetensors.parse_head(compact[:length], len(compact))]
    for spelled in (json.dumps(table).encode(), json.dumps(table, indent=1, ensure_ascii=False).encode() + b"\n"):
        file = file_of(spelled, data)
        found.append(safetensors.parse_head(file[: -len(data) or None], len(file)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("data", STRICTER.values(), ids=STRICTER)
def test_stricter_than_the_reference(data):
    with pytest.raises(Invalid):
        safetensors.load(data)


def test_a_header_of_a_gigabyte_is_too_large():
    with pytest.raises(TooLarge):
        safetensors.head_length((1 << 30).to_bytes(8, "little"), 1 << 40)


def test_what_numpy_or_the_format_lacks_is_invalid():
    with pytest.raises(Invalid, match="numpy has no dtype"):
        safetensors.load(GOOD["bfloat"])
    for array in (np.array(["text"]), np.array([object()]), np.zeros(1, np.longdouble)):
        with pytest.raises(Invalid, match="cannot hold"):
            safetensors.dump({"x": array})
    with pytest.raises(Invalid):
        safetensors.dump({"__metadata__": np.zeros(1)})
    with pytest.raises(Invalid, match="are not a F32 tensor"):
        safetensors.as_array("F32", (3,), bytes(8))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_agree_with_the_reference_or_are_stricter(data):
    """Whatever we accept, the reference accepts too, and reads the same."""
    source = bytearray(safetensors.dump({"ab": np.arange(4, dtype=np.float32), "c": np.zeros((1, 2), np.int8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours = safetensors.load(source)
    except Invalid:
        return
    theirs = reference_load(bytes(source))
    assert {k: (v.shape, v.tobytes()) for k, v in ours.items()} == {k: (v.shape, v.tobytes()) for k, v in theirs.items()}
