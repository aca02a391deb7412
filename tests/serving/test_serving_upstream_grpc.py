"""What is said to an upstream over gRPC and believed of it: messages by hand, every tensor both ways, then lies."""

import contextlib
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
from modelkeep.serving.protobuf import fields, write_bytes, write_text, write_varints
from modelkeep.serving.upstream_grpc import Grpc

SIGNATURE = ModelSignature(
    (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("label", "INT64", (-1,)), TensorSpec("p", "FP32", (-1, 2)))
)
GRPC = Grpc("m", "3", SIGNATURE)


def varints(*numbers):
    return write_varints(np.array(numbers, np.int64).view(np.uint64))


def tensor(name, datatype, shape, contents=b""):
    typed = write_bytes(5, contents) if contents else b""
    return write_text(1, name) + write_text(2, datatype) + write_bytes(3, varints(*shape)) + typed


LABEL = tensor("label", "INT64", [1], write_bytes(3, varints(-1)))
P = tensor("p", "FP32", [1, 2], write_bytes(6, struct.pack("<2f", 0.25, 0.75)))


def message(*outputs, request_id="7", raw=()):
    named = write_text(1, "m") + write_text(3, request_id)
    return named + b"".join(write_bytes(5, one) for one in outputs) + b"".join(write_bytes(6, one) for one in raw)


def read(body, status=0, **headers):
    return GRPC.answer(Reply(status, {name.replace("_", "-").encode(): value for name, value in headers.items()}, body), 1, "7")


def test_a_question_by_hand():
    question = GRPC.infer({"x": np.array([[1.5, -2.0]], np.float32)}, "7")
    assert question.path == "/inference.GRPCInferenceService/ModelInfer"
    assert question.body == (
        b"\n\x01m\x12\x013\x1a\x017"  # model_name, model_version, id
        b"*\x0d\n\x01x\x12\x04FP32\x1a\x02\x01\x02"  # inputs: name, datatype, shape
        b"2\x07\n\x05label2\x03\n\x01p"  # outputs
        b":\x08" + struct.pack("<2f", 1.5, -2.0)  # raw_input_contents
    )


def test_an_answer_typed_and_raw():
    for body in (
        message(LABEL, P),
        message(
            tensor("label", "INT64", [1, 1]),
            tensor("p", "FP32", [1, 2]),
            raw=(struct.pack("<q", -1), struct.pack("<2f", 0.25, 0.75)),
        ),
    ):
        found = read(body)
        assert found["label"].tolist() == [-1] and found["p"].tolist() == [[0.25, 0.75]]
        assert found["label"].dtype == np.int64 and found["p"].dtype == np.float32


LIES = {
    "another-id": (message(LABEL, P, request_id="8"), "another request"),
    "no-id": (message(LABEL, P, request_id=""), "another request"),
    "missing": (message(LABEL), "lacks the output 'p'"),
    "twice": (message(LABEL, P, LABEL), "'label' twice"),
    "dtype": (message(LABEL, tensor("p", "FP64", [1, 2], write_bytes(7, struct.pack("<2d", 0, 1)))), "signature has FP32"),
    "shape": (message(LABEL, tensor("p", "FP32", [2, 1], write_bytes(6, struct.pack("<2f", 0, 1)))), "in the shape"),
    "minus": (message(LABEL, tensor("p", "FP32", [-1, 2])), "in the shape"),
    "huge": (message(LABEL, tensor("p", "FP32", [1, 1 << 40])), "no tensor has"),
    "nan": (message(LABEL, tensor("p", "FP32", [1, 2], write_bytes(6, struct.pack("<2f", np.nan, 1)))), "not finite"),
    "too-few": (message(LABEL, tensor("p", "FP32", [1, 2], write_bytes(6, struct.pack("<f", 1)))), "1 values"),
    "cut-number": (message(LABEL, tensor("p", "FP32", [1, 2], write_bytes(6, b"abc"))), "not FP32"),
    "wrong-contents": (message(LABEL, tensor("p", "FP32", [1, 2], write_bytes(7, struct.pack("<d", 1)))), "not FP32"),
    "raw-count": (message(LABEL, P, raw=(b"",)), "belong to no tensor"),
    "raw-size": (message(LABEL, P, raw=(b"12345678", b"1")), "not FP32"),
    "no-protobuf": (b"\xff\xff", "not one of the protocol"),
    "unknown-field": (message(LABEL, P) + write_bytes(99, b""), "not one of the protocol"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_over_grpc_is_no_answer(name):
    body, why = LIES[name]
    with pytest.raises(Unavailable, match=why):
        read(body)


@pytest.mark.parametrize(
    ("status", "kind", "why"),
    [
        (3, Invalid, "does not take the input: bad x"), (11, Invalid, "does not take"),
        (16, Unavailable, "let this gateway in"),
        (7, Unavailable, "let this gateway in"), (14, Unavailable, "status 14: bad x"), (5, Unavailable, "status 5"),
        (999, Unavailable, "status 999"),
    ],
)  # fmt: skip
def test_a_status_is_one_of_our_errors_and_carries_little(status, kind, why):
    with pytest.raises(kind, match=why) as caught:
        read(b"", status, grpc_message=b"bad%20x%0d%0a" + b"y" * 9000)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 260


SIZES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=3)
NUMBERS = {"BOOL": 1, "INT8": 2, "INT16": 2, "INT32": 2, "INT64": 3, "UINT8": 4, "UINT16": 4, "UINT32": 4, "UINT64": 5}


def typed(array, datatype):
    if datatype == "BYTES":
        return b"".join(write_bytes(8, text.encode()) for text in array.ravel())
    if datatype in NUMBERS:
        wide = array.ravel().astype(np.uint64 if datatype.startswith("U") else np.int64).view(np.uint64)
        return write_bytes(NUMBERS[datatype], write_varints(wide))
    return write_bytes({"FP32": 6, "FP64": 7}[datatype], array.tobytes())


@pytest.mark.parametrize("datatype", sorted(DATATYPES - {"FP16"}))
@settings(max_examples=15)
@given(data=st.data())
def test_every_tensor_comes_back_raw_and_typed(datatype, data):
    dtype = dtype_of(datatype)
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    elements = st.text(max_size=5) if datatype == "BYTES" else arrays.from_dtype(dtype, **finite)
    sent = data.draw(arrays.arrays(dtype, SIZES, elements=elements))
    spec = TensorSpec("x", datatype, (-1, *sent.shape[1:]))
    dialect = Grpc("m", "", ModelSignature((spec,), (spec,)))
    asked = [value for number, _, value in fields(memoryview(dialect.infer({"x": sent}, "7").body)) if number == 7]
    head = tensor("x", datatype, sent.shape)
    for body in (message(head, raw=[bytes(asked[0])]), message(tensor("x", datatype, sent.shape, typed(sent, datatype)))):
        found = dialect.answer(Reply(0, {}, body), len(sent), "7")["x"]
        if datatype == "BYTES":
            assert [one.decode() for one in found.ravel()] == list(sent.ravel())
        else:
            assert found.dtype == sent.dtype and found.tobytes() == sent.tobytes()


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 2**31]), min_size=3, max_size=3), st.sampled_from([b"", b"\0" * 4]))
def test_no_shape_of_free_sizes_raises_anything_else(shape, raw):
    dialect = Grpc("m", "", ModelSignature(SIGNATURE.inputs, (TensorSpec("p", "FP32", (-1, -1, -1)),)))
    with contextlib.suppress(Unavailable):
        found = dialect.answer(Reply(0, {}, message(tensor("p", "FP32", shape), raw=[raw])), None, "7")["p"]
        assert list(found.shape) == shape and found.nbytes == len(raw)


@given(st.binary(max_size=200), st.integers(0, 20))
def test_no_message_raises_anything_else(body, status):
    reply = Reply(status, {}, body)
    for act in (lambda: GRPC.answer(reply, 1, "7"), lambda: GRPC.check_ready(reply), lambda: GRPC.described(reply, reply)):
        with contextlib.suppress(Invalid, Unavailable):
            act()


def test_metadata_and_readiness():
    ends = [write_bytes(number, tensor(name, "FP32", [-1, 2])) for number, name in ((4, "x"), (5, "p"))]
    said = write_text(1, "m") + write_text(3, "onnx") + b"".join(ends) + write_bytes(6, b"")
    server = Reply(0, {}, write_text(1, "triton") + write_text(3, "x"))
    found = GRPC.described(server, Reply(0, {}, said))
    assert found.platform == "onnx" and found.binary and found.signature.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
    with pytest.raises(Invalid, match="does not say"):
        GRPC.described(server, Reply(0, {}, write_text(1, "m")))
    with pytest.raises(Unavailable, match="status 5"):
        GRPC.described(server, Reply(5, {}, b""))
    GRPC.check_ready(Reply(0, {}, b"\x08\x01"))
    with pytest.raises(Unavailable, match="not ready"):
        GRPC.check_ready(Reply(0, {}, b""))
