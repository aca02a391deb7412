"""What is said to an upstream and believed of it: bytes by hand, then every tensor both ways, then lies."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelkeep.core.ports import Reply
from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, Unavailable
from modelkeep.serving.oip import DATATYPES, dtype_of
from modelkeep.serving.upstream import HEADER_LENGTH, ask, describe, speaks_binary, understand

X = np.array([[1.5, -2.0]], np.float32)
SIGNATURE = ModelSignature(
    (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("label", "INT64", (-1,)), TensorSpec("p", "FP32", (-1, 2)))
)
GOOD = {
    "model_name": "m",
    "id": "7",
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": [1], "data": [1]},
        {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]},
    ],
}


def reply(body, status=200, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {name.replace("_", "-").encode(): value for name, value in headers.items()}, data)


def changed(**more):
    return {**GOOD, **more}


def output(at=1, **more):
    outputs = [dict(one) for one in GOOD["outputs"]]
    outputs[at].update(more)
    return changed(outputs=outputs)


def read(answer):
    return understand(answer, SIGNATURE, 1, "7")


def test_a_question_in_json():
    question = ask({"x": X}, SIGNATURE, "7", binary=False)
    assert dict(question.headers) == {b"content-type": b"application/json"}
    assert json.loads(question.body) == {
        "id": "7",
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2.0]}],
        "outputs": [{"name": "label"}, {"name": "p"}],
    }


def test_a_question_in_binary():
    question = ask({"x": X}, SIGNATURE, "7", binary=True)
    length = int(dict(question.headers)[HEADER_LENGTH])
    said = json.loads(question.body[:length])
    assert said["inputs"] == [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]
    assert all(one["parameters"] == {"binary_data": True} for one in said["outputs"])
    assert question.body[length:] == struct.pack("<2f", 1.5, -2.0)


def test_an_answer_in_json():
    found = read(reply(GOOD))
    assert found["label"].tolist() == [1] and found["label"].dtype == np.int64
    assert found["p"].tolist() == [[0.25, 0.75]] and found["p"].dtype == np.float32


def test_an_answer_in_binary_beside_json():
    said = output(0, data=None)
    del said["outputs"][0]["data"]
    said["outputs"][0]["parameters"] = {"binary_data_size": 8}
    head = json.dumps(said).encode()
    found = read(reply(head + struct.pack("<q", 1), inference_header_content_length=b"%d" % len(head)))
    assert found["label"].tolist() == [1] and found["p"].tolist() == [[0.25, 0.75]]


def test_a_column_of_one_is_what_mlserver_makes_of_one_dimension():
    assert read(reply(output(0, shape=[1, 1])))["label"].shape == (1,)


def test_what_nobody_asked_for_is_left_out():
    assert set(read(reply(changed(outputs=[*GOOD["outputs"], {"name": "z", "datatype": "?", "shape": [], "data": 3}])))) == {
        "label",
        "p",
    }


LIES = {
    "another-id": (changed(id="8"), "another request"),
    "no-id": ({key: GOOD[key] for key in ("model_name", "outputs")}, "another request"),
    "missing-output": (changed(outputs=GOOD["outputs"][:1]), "lacks the output 'p'"),
    "twice": (changed(outputs=[*GOOD["outputs"], GOOD["outputs"][0]]), "'label' twice"),
    "dtype": (output(datatype="FP64"), "its signature has FP32"),
    "more-rows": (output(shape=[2, 2], data=[0.25, 0.75] * 2), r"shape \[2, 2\], not \[1, 2\]"),
    "more-classes": (output(shape=[1, 3], data=[0.2, 0.3, 0.5]), "in the shape"),
    "more-dimensions": (output(shape=[1, 2, 1]), "in the shape"),
    "too-few-values": (output(data=[0.25]), "1 values"),
    "too-many-values": (output(data=[0.25, 0.75, 0.0]), "3 values"),
    "null": (output(data=[0.25, None]), "not FP32"),
    "text": (output(data=["a", "b"]), "not FP32"),
    "infinite": (reply(json.dumps(output(data=[0.25, 7.5])).replace("7.5", "1e39").encode()), "not FP32"),
    "nan": (reply(json.dumps(output(data=[0.25, 7.5])).replace("7.5", "NaN").encode()), "not one of the protocol"),
    "integer-range": (output(0, data=[2**63]), "not INT64"),
    "no-data": (changed(outputs=[{"name": "label", "datatype": "INT64", "shape": [1]}, GOOD["outputs"][1]]), "without data"),
    "huge-shape": (output(shape=[1, 2**32]), "not one of the protocol"),
    "deep": (reply(b'{"outputs":' + b"[" * 5000 + b"]" * 5000 + b"}"), "not one of the protocol"),
    "no-json": (reply(b"\xff\xfe<html>"), "not one of the protocol"),
    "empty": (reply(b""), "not one of the protocol"),
    "long-json-part": (reply(b"{}", inference_header_content_length=b"3"), "no possible length"),
    "negative-json-part": (reply(b"{}", inference_header_content_length=b"-1"), "no possible length"),
    "bytes-left": (
        reply(json.dumps(GOOD).encode() + b"xx", inference_header_content_length=b"%d" % len(json.dumps(GOOD))),
        "belong to no tensor",
    ),
    "redirect": (reply(b"", 302, location=b"http://169.254.169.254/"), "none is followed"),
    "not-let-in": (reply(b"", 401), "does not let this gateway in"),
    "gone": (reply({"error": "Model m not found"}, 404), "status 404: Model m not found"),
    "broken": (reply({"error": "boom"}, 500), "status 500: boom"),
    "created": (reply(GOOD, 201), "status 201"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_no_answer(name):
    body, why = LIES[name]
    with pytest.raises(Unavailable, match=why):
        read(body if isinstance(body, Reply) else reply(body))


@pytest.mark.parametrize("raw", [struct.pack("<f", 1.0), struct.pack("<3f", 1, 2, 3), struct.pack("<2f", 1, np.nan)])
def test_a_lie_in_binary_is_no_answer(raw):
    said = output(1)
    del said["outputs"][1]["data"]
    said["outputs"][1]["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(said).encode()
    with pytest.raises(Unavailable):
        read(reply(head + raw, inference_header_content_length=b"%d" % len(head)))


def test_a_refused_input_is_the_clients_to_mend_and_carries_little_of_what_was_said():
    with pytest.raises(Invalid) as caught:
        read(reply({"error": "bad\r\nset-cookie: a=b \x1b[31m" + "x" * 5000}, 400, set_cookie=b"secret"))
    said = str(caught.value)
    assert said.startswith("the model behind this gateway does not take the input: bad set-cookie")
    assert said.isprintable() and len(said) < 260 and "secret" not in said


SIZES = arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=3)


def values(datatype):
    dtype = dtype_of(datatype)
    if datatype == "BYTES":
        return arrays.arrays(np.object_, SIZES, elements=st.text(max_size=5))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return arrays.arrays(dtype, SIZES, elements=arrays.from_dtype(dtype, **finite))


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@settings(max_examples=20)
@given(data=st.data())
def test_every_tensor_comes_back_as_it_went(datatype, binary, data):
    """A mirror that answers with its input, in the form that it was asked in."""
    sent = data.draw(values(datatype))
    spec = TensorSpec("x", datatype, (-1, *sent.shape[1:]))
    signature = ModelSignature((spec,), (spec,))
    question = ask({"x": sent}, signature, "7", binary=binary)
    headers = dict(question.headers)
    length = int(headers.get(HEADER_LENGTH, len(question.body)))
    said = json.loads(question.body[:length])
    head = json.dumps({"model_name": "m", "id": said["id"], "outputs": said["inputs"]}).encode()
    more = {HEADER_LENGTH: b"%d" % len(head)} if binary else {}
    found = understand(Reply(200, more, head + question.body[length:]), signature, len(sent), "7")["x"]
    if datatype == "BYTES":
        assert [one.decode() for one in found.ravel()] == list(sent.ravel())
    else:
        assert found.dtype == sent.dtype and found.tobytes() == sent.tobytes()
    assert found.shape == sent.shape


@given(st.binary(max_size=300), st.integers(100, 599), st.none() | st.binary(max_size=6))
def test_no_bytes_raise_anything_else(body, status, length):
    headers = {} if length is None else {HEADER_LENGTH: length}
    with contextlib.suppress(Invalid, Unavailable):
        read(Reply(status, headers, body))


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 2**31, 2**31 - 1]), min_size=3, max_size=3), st.booleans())
def test_no_shape_of_free_sizes_raises_anything_else(shape, binary):
    free = TensorSpec("p", "FP32", (-1, -1, -1))
    head = {
        "name": "p",
        "datatype": "FP32",
        "shape": shape,
        **({"parameters": {"binary_data_size": 0}} if binary else {"data": []}),
    }
    text = json.dumps({"id": "7", "outputs": [head]}).encode()
    with contextlib.suppress(Unavailable):
        found = understand(Reply(200, {}, text), ModelSignature(SIGNATURE.inputs, (free,)), None, "7")["p"]
        assert list(found.shape) == shape and found.size == 0


def test_metadata():
    said = {
        "name": "m",
        "platform": "onnx\n",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 2], "parameters": {}}],
    }
    found = describe(reply(said))
    assert found.platform == "onnx" and found.signature.outputs == (TensorSpec("p", "FP32", (-1, 2)),)
    with pytest.raises(Invalid, match="does not say what the model takes"):
        describe(reply({**said, "inputs": []}))
    with pytest.raises(Invalid, match="cannot be served"):
        describe(reply({**said, "inputs": [{"name": "x", "datatype": "FP8", "shape": [1]}]}))
    with pytest.raises(Unavailable, match="status 404"):
        describe(reply({"error": "no"}, 404))
    assert speaks_binary(reply({"name": "triton", "extensions": ["classification", "binary_tensor_data"]}))
    assert not speaks_binary(reply({"name": "mlserver"}))
    with pytest.raises(Unavailable, match="does not speak"):
        speaks_binary(reply(b"<html>"))
