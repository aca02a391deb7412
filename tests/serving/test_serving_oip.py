"""The Open Inference Protocol, strictly."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from modelkeep.core.values import ModelSignature, ReleaseRef, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.serving.oip import Tensor, decode_request, dtype_of, encode_response, model_metadata, tensor_array


def body(data="[1,2]", datatype="FP32", shape="[2]", **more) -> bytes:
    extra = "".join(f',"{key}":{json.dumps(value)}' for key, value in more.items())
    return f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]{extra}}}'.encode()


def read(*args, **more) -> np.ndarray:
    request = decode_request(body(*args, **more))
    return tensor_array(request.inputs[0], request.inputs[0].datatype)


def test_the_protocols_own_example():
    """Source: Open Inference Protocol, REST, "Inference Request Examples"."""
    request = decode_request(
        b'{"id":"42","inputs":[{"name":"input0","shape":[2,2],"datatype":"UINT32","data":[1,2,3,4]},'
        b'{"name":"input1","shape":[3],"datatype":"BOOL","data":[true]}],"outputs":[{"name":"output0"}]}'
    )
    assert request.id == "42" and request.output_names() == ("output0",)
    assert tensor_array(request.inputs[0], "UINT32").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", "[1, 2.5, -3e2]", [1.0, 2.5, -300.0]),
        ("FP64", "[1e308]", [1e308]),
        ("FP16", "[0.5]", [0.5]),
        ("INT8", "[-128, 127]", [-128, 127]),
        ("UINT8", "[0,255]", [0, 255]),
        ("INT64", "[-9223372036854775808]", [-(2**63)]),
        ("UINT64", "[18446744073709551615]", [2**64 - 1]),
        ("BOOL", "[true,false]", [True, False]),
        ("BYTES", '["\\u00e4", ""]', ["ä".encode(), b""]),
        ("FP32", "[]", []),
        ("FP32", "[ 1 ]", [1.0]),
    ],
)
def test_values_by_datatype(datatype, data, expected):
    found = read(data, datatype)
    assert found.tolist() == expected and found.dtype == dtype_of(datatype)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT8", "[128]"), ("UINT8", "[-1]"), ("INT32", "[2147483648]"), ("UINT64", "[-1]"), ("INT64", "[9223372036854775808]"),
        ("INT64", "[1.5]"), ("FP32", "[true]"), ("FP32", '["1"]'), ("FP32", "[null]"), ("BOOL", "[1]"), ("BYTES", "[1]"),
        ("FP32", '{"0":1}'), ("FP32", "1"), ("FP32", "[1e999]"), ("FP32", "[[1],2]"), ("FP32", "[[[1,2]]]"), ("FP32", "[01]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_invalid(datatype, data):
    with pytest.raises(Invalid):
        read(data, datatype)


def test_nested_data_follows_the_shape():
    assert read("[[1,2,3],[4,5,6]]", shape="[2,3]").tolist() == [1, 2, 3, 4, 5, 6]
    for data in ("[[1,2],[3,4],[5,6]]", "[[1,2,3],[4,5]]", "[[1,2,3]]", "[[[1,2,3],[4,5,6]]]"):
        with pytest.raises(Invalid, match=r"shape|nested"):
            read(data, shape="[2,3]")


@pytest.mark.parametrize(
    "twice",
    [
        b'{"parameters":{},"parameters":{},"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"inputs":[{"name":"a","name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1],"data":[2]}]}',
        b'{"id":"a","id":"b","inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"id":"\\u003a","id":"b","inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"\\u0069d":"a","id":"b","inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"a":1,"a":2}}]}',
        b'{"outputs":[{"name":"a","name":"b"}],"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
    ],
)
def test_a_key_twice_is_refused(twice):
    with pytest.raises(Invalid, match="twice"):
        decode_request(twice)


@pytest.mark.parametrize(
    "fine",
    [
        b'{"id":"a:b","inputs":[{"name":"x:y","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"id":"\\"","inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"parameters":{"a":1},"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"b":"c:d"}}]}',
        b' { "inputs" : [ { "name" : "x" , "datatype" : "FP32" , "shape" : [ 1 ] , "data" : [ 1 ] } ] } ',
    ],
)
def test_colons_and_escapes_are_no_reason_to_refuse(fine):
    assert decode_request(fine).inputs[0].name.startswith("x")


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"{}", b"[]", b"null", b'{"inputs":{}}', b'{"inputs":[]}', b'{"inputs":[1]}', b"\xff\xfe", b'{"id":"\xff"}',
        b"{" * 99_999,
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1],"more":1}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[-1],"data":[1]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1,1,1,1,1,1,1,1],"data":[1]}]}',
        b'{"inputs":' + b'[{"a":' * 20_000 + b"}",
    ],
)  # fmt: skip
def test_malformed_bodies_are_invalid(bad):
    with pytest.raises(Invalid):
        decode_request(bad)


@settings(max_examples=150)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_invalid(data):
    try:
        decode_request(data)
    except Invalid as refusal:
        assert "\n" not in str(refusal)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "data", "shape", "inputs"]), inner),
    max_leaves=20,
)


@settings(max_examples=150)
@given(json_values)
def test_any_json_as_data_is_read_or_invalid(value):
    with_value = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + json.dumps(value).encode() + b"}]}"
    try:
        tensor_array(decode_request(with_value).inputs[0], "FP32")
    except Invalid:
        return


@settings(max_examples=100)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_floats_survive_the_way_in_and_out(values):
    found = read(json.dumps(values), shape=json.dumps([len(values)]))
    assert found.tolist() == values
    spec = TensorSpec("y", "FP32", (-1,))
    said = json.loads(encode_response(ReleaseRef("m", 1), msgspec.UNSET, [(spec, found)]))
    assert np.array(said["outputs"][0]["data"], np.float32).tolist() == values and "id" not in said


def test_metadata():
    spec = TensorSpec("x", "FP32", (-1, 2))
    said = json.loads(model_metadata("m", [1, 2], ModelSignature((spec,), (spec,))))
    assert said["versions"] == ["1", "2"] and said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


def test_what_is_too_long_for_its_shape_is_not_read():
    many = b",".join([b"1"] * 40_000)
    for data, shape in ((b"[" + many + b"]", [1, 2]), (b"[[" + many + b"]]", [1, 2]), (b"[not json," + many, [0])):
        with pytest.raises(Invalid, match="more values than its shape"):
            tensor_array(Tensor("x", "FP32", shape, Raw(data)), "FP32")
    assert tensor_array(Tensor("x", "FP32", [1, 40_000], Raw(b"[[" + many + b"]]")), "FP32").sum() == 40_000
    words = msgspec.json.encode([", " * 40_000])
    assert tensor_array(Tensor("x", "BYTES", [1], Raw(words)), "BYTES").size == 1
