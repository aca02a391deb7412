"""The binary tensor extension, strictly: a JSON head, then raw tensors and nothing else."""

import json
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.values import ReleaseRef, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.serving.oip import dtype_of
from modelkeep.serving.rest import JSON, RestForm

REF = ReleaseRef("m", 3)


def tensor(name="x", datatype="FP32", shape=(2,), **more) -> dict:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def raw(name="x", datatype="FP32", shape=(2,), *, size: int) -> dict:
    return tensor(name, datatype, shape, parameters={"binary_data_size": size})


def body(*inputs, tail=b"", **more) -> tuple[RestForm, bytes]:
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    return RestForm(str(len(head)).encode()), head + tail


def read(form: RestForm, data: bytes) -> dict[str, list]:
    inputs = form.read(data).inputs
    for one in inputs:
        dtype_of(one.datatype)  # the model's own otherwise, so that it is known
    return {one.name: one.values(one.datatype).tolist() for one in inputs}


def test_the_extensions_own_example():
    """Source: Triton, "Binary Tensor Data Extension", Examples: 16 and 3 bytes, answered with 24."""
    head = (
        b'{ "model_name" : "mymodel", "inputs" : [ { "name" : "input0", "shape" : [ 2, 2 ], "datatype" : "UINT32", '
        b'"parameters" : { "binary_data_size" : 16 } }, { "name" : "input1", "shape" : [ 3 ], "datatype" : "BOOL", '
        b'"parameters" : { "binary_data_size" : 3 } } ], "outputs" : [ { "name" : "output0", "parameters" : '
        b'{ "binary_data" : true } } ] }'
    )
    form = RestForm(str(len(head)).encode())
    request = form.read(head + bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1]))
    request.check_model("mymodel")
    with pytest.raises(Invalid, match="names the model 'mymodel'"):
        request.check_model("other")
    assert [one.values(one.datatype).tolist() for one in request.inputs] == [[1, 2, 3, 1 << 24], [True, False, True]]
    answer = np.arange(6, dtype=np.float32).reshape(3, 2)
    reply = form.write(REF, request, [(TensorSpec("output0", "FP32", (-1, 2)), answer)])
    said, tail = json.loads(reply.body[: reply.json_size]), reply.body[reply.json_size :]
    wanted = {"name": "output0", "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": 24}}
    assert said == {"model_name": "m", "model_version": "3", "outputs": [wanted]} and tail == answer.tobytes()


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", struct.pack("<2f", 1.5, -2), [1.5, -2.0]),
        ("FP64", struct.pack("<2d", 1e308, 5e-324), [1e308, 5e-324]),
        ("FP16", struct.pack("<2e", 65504, 0.5), [65504.0, 0.5]),
        ("INT8", b"\x80\x7f", [-128, 127]),
        ("UINT8", b"\x00\xff", [0, 255]),
        ("INT16", struct.pack("<2h", -(2**15), 1), [-(2**15), 1]),
        ("UINT16", struct.pack("<2H", 2**16 - 1, 1), [2**16 - 1, 1]),
        ("INT32", struct.pack("<2i", -(2**31), 1), [-(2**31), 1]),
        ("UINT32", struct.pack("<2I", 2**32 - 1, 1), [2**32 - 1, 1]),
        ("INT64", struct.pack("<2q", -(2**63), 1), [-(2**63), 1]),
        ("UINT64", struct.pack("<2Q", 2**64 - 1, 1), [2**64 - 1, 1]),
        ("BOOL", b"\x00\x01", [False, True]),
        ("BYTES", b"\x03\x00\x00\x00\xc3\xa4!\x00\x00\x00\x00", ["ä!".encode(), b""]),
    ],
)
def test_values_by_datatype(datatype, data, expected):
    request = RestForm.read(*body(raw(datatype=datatype, size=len(data)), tail=data))
    found = request.inputs[0].values(datatype)
    assert found.tolist() == expected and found.dtype == dtype_of(datatype) and found.flags.aligned


@pytest.mark.parametrize(
    ("inputs", "tail", "words"),
    [
        ([raw(size=8)], b"1234567", "7 bytes left"),
        ([raw(size=8)], b"123456789", "1 bytes after the JSON belong to no input"),
        ([raw(size=4)], b"1234", "needs 8"),
        ([raw(size=12)], b"123456789012", "needs 8"),
        ([raw(size=-8)], b"12345678", "not a number of bytes"),
        ([raw(size=True)], b"1", "not a number of bytes"),
        ([raw(size=8.0)], b"12345678", "not a number of bytes"),
        ([raw(size="8")], b"12345678", "not a number of bytes"),
        ([tensor(data=[1, 2], parameters={"binary_data_size": 8})], b"12345678", "either data or"),
        ([tensor()], b"12345678", "either data or"),
        ([tensor(data=[1, 2])], b"12345678", "8 bytes after the JSON"),
        ([raw(size=8), raw("y", size=8)], b"12345678", "'y' has 0 bytes left"),
        ([raw(datatype="BOOL", size=2)], b"\x01\x02", "neither 0 nor 1"),
        ([raw(datatype="BYTES", size=7)], b"\x00\x00\x00\x00\x00\x00\x00", "length of text 1 is cut off"),
        ([raw(datatype="BYTES", size=8)], b"\x00\x00\x00\x00\x01\x00\x00\x00", "text 1 is longer"),
        ([raw(datatype="BYTES", size=4)], b"\x00\x00\x00\x00", "not 2 texts"),
        ([raw(datatype="BYTES", size=12)], b"\x00\x00\x00\x00" * 3, "not 2 texts"),
        ([raw(datatype="BYTES", size=8)], b"\xff\xff\xff\xff\x00\x00\x00\x00", "text 0 is longer"),
        ([tensor(parameters={"shared_memory_region": "a"})], b"", "shared memory"),
        ([raw(datatype="FP32", size=8, shape=(2**31,) * 8)], b"12345678", "needs"),
    ],
)
def test_sizes_that_do_not_add_up_are_invalid(inputs, tail, words):
    with pytest.raises(Invalid, match=words):
        read(*body(*inputs, tail=tail))


@pytest.mark.parametrize(
    "size", [b"", b"0", b"-1", b"+1", b"0x10", b"1e2", b"01", b" 2", b"2_0", b"99999", b"9" * 5000, "٣".encode()]
)
def test_a_header_that_is_no_size_is_invalid(size):
    _, data = body(raw(size=8), tail=b"12345678")
    with pytest.raises(Invalid, match="is not the size of the JSON"):
        RestForm(size).read(data)


def test_a_header_that_cuts_the_json_is_invalid():
    form, data = body(raw(size=8), tail=b"12345678")
    for off in (-1, 1):
        with pytest.raises(Invalid, match=r"not JSON|bytes left"):
            RestForm(str(int(form.json_size) + off).encode()).read(data)


@pytest.mark.parametrize(
    "twice",
    [
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4,"binary_data_size":8}}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"shape":[2],"parameters":{"binary_data_size":4}}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{},"parameters":{"binary_data_size":4}}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary\\u005fdata_size":8,"binary_data_size":4}}]}',
        b'{"model_name":"a","model_name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[1],'
        b'"parameters":{"binary_data_size":4}}]}',
    ],
)
def test_a_key_twice_is_refused(twice):
    with pytest.raises(Invalid, match="twice"):
        RestForm(str(len(twice)).encode()).read(twice + b"1234")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "neither true nor false"),
        ({"parameters": {"binary_data_output": "yes"}}, "neither true nor false"),
        ({"inputs": [raw(size=8)]}, "Object missing required field `data`"),
        ({"inputs": [tensor(data=[1, 2], parameters={"binary_data_size": 8})]}, "needs the header"),
        ({"inputs": [{**tensor(data=[1, 2]), "par\\u0061meters": {"binary_data_size": 8}}]}, "unknown field"),
    ],
)
def test_what_is_not_offered_is_said(more, words):
    with pytest.raises(Invalid, match=words):
        JSON.read(json.dumps({"inputs": [tensor(data=[1, 2])], **more}).encode())


def test_a_parameter_behind_an_escape_is_seen():
    escaped = json.dumps({"inputs": [tensor(data=[1, 2], parameters={"binary_data_size": 8})]}).replace("param", "p\\u0061ram")
    with pytest.raises(Invalid, match="needs the header"):
        JSON.read(escaped.encode())


def test_parameters_that_are_nobodys_change_nothing():
    """What stock clients send: mlserver's content types, tritonclient's sequence, priority and timeout."""
    asked = {
        "id": "a",
        "inputs": [tensor(data=[1, 2], parameters={"content_type": "np"})],
        "parameters": {"content_type": "pd", "sequence_id": 0, "priority": 3, "timeout": 1000, "x": 0.5},
        "outputs": [{"name": "y", "parameters": {"content_type": "np"}}],
    }
    request = JSON.read(json.dumps(asked).encode())
    assert request.inputs[0].values("FP32").tolist() == [1, 2] and request.output_names() == ("y",)
    assert JSON.write(REF, request, [(TensorSpec("y", "INT64", (-1,)), np.array([7]))]).json_size == -1


YES, NO, UNSAID = True, False, None


@pytest.mark.parametrize(
    ("usual", "of_a", "of_b", "binary"),
    [
        (UNSAID, UNSAID, UNSAID, ""), (YES, UNSAID, UNSAID, "ab"), (NO, UNSAID, UNSAID, ""), (UNSAID, YES, UNSAID, "a"),
        (YES, UNSAID, NO, "a"), (NO, YES, YES, "ab"), (YES, NO, NO, ""), (UNSAID, NO, YES, "b"),
    ],
)  # fmt: skip
def test_an_output_is_binary_where_the_request_says_so(usual, of_a, of_b, binary):
    more = {} if usual is None else {"parameters": {"binary_data_output": usual}}
    said = {"a": of_a, "b": of_b}
    outputs = [{"name": n, **({} if v is None else {"parameters": {"binary_data": v}})} for n, v in said.items()]
    request = JSON.read(json.dumps({"inputs": [tensor(data=[1, 2])], "outputs": outputs, **more}).encode())
    arrays = {"a": np.array([1.5]), "b": np.array([2], np.int64)}
    specs = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1,))]
    reply = JSON.write(REF, request, [(spec, arrays[spec.name]) for spec in specs])
    head = json.loads(reply.body if reply.json_size < 0 else reply.body[: reply.json_size])
    tails = {"a": struct.pack("<f", 1.5), "b": struct.pack("<q", 2)}
    assert [one["name"] for one in head["outputs"]] == ["a", "b"]
    assert [one["name"] for one in head["outputs"] if "parameters" in one] == list(binary)
    assert all(("data" in one) != ("parameters" in one) for one in head["outputs"])
    assert (b"" if reply.json_size < 0 else reply.body[reply.json_size :]) == b"".join(tails[name] for name in binary)


def test_only_most_of_a_body_is_kept_as_a_view():
    """A row waits a while for its evidence: padding around it must not wait with it."""
    form, data = body(raw(size=8), tail=b"12345678")
    assert isinstance(form.read(data).inputs[0].raw, bytes)
    form, data = body(raw(shape=(1000,), size=4000), tail=b"1234" * 1000)
    values = form.read(data).inputs[0]
    assert isinstance(values.raw, memoryview) and values.raw.obj is data


elements = {
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "BOOL": st.booleans(),
    "BYTES": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    **{f"INT{n}": st.integers(-(2 ** (n - 1)), 2 ** (n - 1) - 1) for n in (8, 16, 32, 64)},
    **{f"UINT{n}": st.integers(0, 2**n - 1) for n in (8, 16, 32, 64)},
}


@settings(max_examples=120)
@given(st.data())
def test_data_means_the_same_in_both_forms(data):
    """Several inputs, some of them raw, are what they are when all of them are JSON."""
    mixed, plain, tail = [], [], b""
    for number in range(data.draw(st.integers(1, 4))):
        datatype = data.draw(st.sampled_from(sorted(elements)))
        values = data.draw(st.lists(elements[datatype], max_size=6))
        plain.append(tensor(str(number), datatype, (len(values),), data=values))
        if data.draw(st.booleans()):
            if datatype == "BYTES":
                part = b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)
            else:
                part = np.array(values, dtype_of(datatype).newbyteorder("<")).tobytes()
            mixed.append(raw(str(number), datatype, (len(values),), size=len(part)))
            tail += part
        else:
            mixed.append(plain[-1])
    assert read(*body(*mixed, tail=tail)) == read(JSON, json.dumps({"inputs": plain}).encode())


@settings(max_examples=150)
@given(st.binary(max_size=120), st.integers(0, 130))
def test_any_bytes_are_read_or_invalid(data, size):
    try:
        read(RestForm(str(size).encode()), data)
    except Invalid as refusal:
        assert "\n" not in str(refusal)


@settings(max_examples=150)
@given(st.data())
def test_any_change_of_a_byte_is_read_or_invalid(data):
    form, sent = body(raw(datatype="BYTES", size=13), tensor("y", data=[1, 2]), tail=b"\x01\x00\x00\x00a\x04\x00\x00\x00abcd")
    changed = bytearray(sent)
    changed[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(form, bytes(changed))
    except Invalid as refusal:
        assert "\n" not in str(refusal)


def test_an_unset_id_stays_unset():
    request = RestForm.read(*body(raw(size=8), tail=b"12345678"))
    assert request.id is msgspec.UNSET
