"""The gRPC messages, strictly; a real protobuf library with the messages of real clients says what the bytes mean."""

import struct

import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import run_peer
from test_serving_rest import elements

from modelkeep.core.values import ModelSignature, ReleaseRef, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.serving import grpc as ours
from modelkeep.serving.grpc import GRPC, decode_grpc_request, encode_flag, encode_model, encode_server, read_named, read_names
from modelkeep.serving.oip import dtype_of
from modelkeep.serving.protobuf import read_varints, write_bytes, write_text, write_varint, write_varints

REF = ReleaseRef("m", 3)
MESSAGES = (
    "InferParameter", "InferTensorContents", "ModelInferRequest", "ModelInferResponse", "ModelMetadataRequest",
    "ModelMetadataResponse", "ModelReadyRequest", "ModelReadyResponse", "ServerMetadataResponse", "ServerReadyResponse",
)  # fmt: skip
FIELDS = {
    "BOOL": "bool_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
}  # fmt: skip


@pytest.fixture(scope="module")
def descriptors():
    """The messages of Triton's and MLServer's clients, without what they need besides."""
    found = {}
    for name, serialized in run_peer("descriptors.py").items():
        file = descriptor_pb2.FileDescriptorProto.FromString(bytes.fromhex(serialized))
        kept = [message for message in file.message_type if message.name in MESSAGES]
        del file.message_type[:], file.service[:], file.dependency[:]
        file.message_type.extend(kept)
        found[name] = file
    return found


@pytest.fixture(scope="module")
def pb(descriptors):
    """Message classes of Triton's client, by name."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptors["tritonclient"])
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in MESSAGES}


@pytest.mark.parametrize("client", ["tritonclient", "mlserver"])
@pytest.mark.parametrize(
    ("message", "table"),
    [
        ("ModelInferRequest", ours._REQUEST),
        ("ModelInferRequest.InferInputTensor", ours._INPUT),
        ("ModelInferRequest.InferRequestedOutputTensor", ours._OUTPUT),
        ("ModelReadyRequest", ours._NAMED),
        ("ModelMetadataRequest", ours._NAMED),
        ("InferParameter", ours._PARAMETER),
        ("InferTensorContents", {number: name for number, name, _ in ours._CONTENTS.values()}),
    ],
)
def test_the_tables_have_the_clients_numbers(descriptors, client, message, table):
    outer, _, inner = message.partition(".")
    found = next(one for one in descriptors[client].message_type if one.name == outer)
    if inner:
        found = next(one for one in found.nested_type if one.name == inner)
    theirs = {field.number: field.name for field in found.field}
    mine = {number: getattr(row, "name", row) for number, row in table.items()}
    assert theirs.items() <= mine.items() and (client == "mlserver" or theirs == mine)


def request_of(pb, inputs: dict, *, raw: bool, **more):
    """A ``ModelInferRequest`` for {name: (datatype, values)}, as the protobuf library writes it."""
    asked = pb["ModelInferRequest"](model_name="m", **more)
    for name, (datatype, values) in inputs.items():
        one = asked.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        if not raw:
            getattr(one.contents, FIELDS[datatype]).extend([v.encode() if isinstance(v, str) else v for v in values])
        elif datatype == "BYTES":
            asked.raw_input_contents.append(b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values))
        else:
            asked.raw_input_contents.append(np.array(values, dtype_of(datatype).newbyteorder("<")).tobytes())
    return asked


def values_of(data: bytes) -> dict:
    request = decode_grpc_request(data)
    return {one.name: (one.datatype, one.values(one.datatype).tolist()) for one in request.inputs}


@settings(max_examples=150)
@given(st.data())
def test_what_a_protobuf_library_writes_is_read(pb, data):
    raw = data.draw(st.booleans())
    inputs = {}
    for number in range(data.draw(st.integers(1, 4))):
        datatype = data.draw(st.sampled_from(sorted(elements if raw else FIELDS)))
        inputs[f"x{number}"] = datatype, data.draw(st.lists(elements[datatype], max_size=40))
    found = values_of(request_of(pb, inputs, raw=raw).SerializeToString())
    for name, (datatype, values) in inputs.items():
        expected = [v.encode() if isinstance(v, str) else v for v in values]
        assert found[name] == (datatype, expected)


@settings(max_examples=150)
@given(st.data())
def test_a_protobuf_library_reads_what_is_written(pb, data):
    raw = data.draw(st.booleans())
    outputs = []
    for number in range(data.draw(st.integers(1, 4))):
        datatype = data.draw(st.sampled_from(sorted(elements if raw else FIELDS)))
        values = data.draw(st.lists(elements[datatype], max_size=40))
        outputs.append((TensorSpec(f"y{number}", datatype, (-1,)), np.array(values or [], dtype_of(datatype))))
    asked = decode_grpc_request(request_of(pb, {"x": ("FP32", [1.0])}, raw=raw, id="q").SerializeToString())
    reply = GRPC.write(REF, asked, outputs)
    said = pb["ModelInferResponse"].FromString(reply.body)
    assert (said.model_name, said.model_version, said.id, reply.json_size) == ("m", "3", "q", 0)
    assert len(said.raw_output_contents) == (len(outputs) if raw else 0)
    for at, (spec, array) in enumerate(outputs):
        one = said.outputs[at]
        assert (one.name, one.datatype, list(one.shape)) == (spec.name, spec.datatype, [len(array)])
        if not raw:
            found = list(getattr(one.contents, FIELDS[spec.datatype]))
        elif spec.datatype == "BYTES":
            found = ours.RawTensor("y", "BYTES", [len(array)], said.raw_output_contents[at]).values("BYTES").tolist()
        else:
            found = np.frombuffer(said.raw_output_contents[at], dtype_of(spec.datatype).newbyteorder("<")).tolist()
        assert found == [v.encode() if isinstance(v, str) else v for v in array.tolist()]


def test_an_output_without_a_typed_form_makes_the_answer_raw(pb):
    asked = decode_grpc_request(request_of(pb, {"x": ("FP32", [1.0])}, raw=False).SerializeToString())
    outputs = [(TensorSpec("h", "FP16", (1,)), np.array([0.5])), (TensorSpec("n", "INT8", (1,)), np.array([-1], np.int8))]
    said = pb["ModelInferResponse"].FromString(GRPC.write(REF, asked, outputs).body)
    assert list(said.raw_output_contents) == [struct.pack("<e", 0.5), b"\xff"]
    assert not any(one.HasField("contents") for one in said.outputs)


def test_parameters_and_names(pb):
    asked = request_of(pb, {"x": ("FP32", [1.0])}, raw=True, id="a", model_version="champion")
    asked.parameters["priority"].uint64_param = 2**64 - 1
    asked.parameters["timeout"].int64_param = -5
    asked.parameters["x"].double_param = 0.5
    asked.parameters["content_type"].string_param = "pd"
    asked.parameters["flag"].bool_param = False
    asked.inputs[0].parameters["content_type"].string_param = "np"
    asked.outputs.add(name="y").parameters["content_type"].string_param = "np"
    data = asked.SerializeToString()
    request = decode_grpc_request(data)
    assert request.parameters == {
        "priority": 2**64 - 1, "timeout": -5, "x": 0.5, "content_type": "pd", "flag": False,
    }  # fmt: skip
    assert request.output_names() == ("y",) and request.id == "a" and read_names(data) == ("m", "champion")
    assert read_named(pb["ModelReadyRequest"](name="m", version="2").SerializeToString()) == ("m", "2")


def test_metadata(pb):
    specs = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("n", "INT64", ()))
    said = pb["ModelMetadataResponse"].FromString(
        encode_model("m", [1, 20], ModelSignature(specs, specs[:1]), "onnx_onnxruntime")
    )
    assert (said.name, list(said.versions), said.platform) == ("m", ["1", "20"], "onnx_onnxruntime")
    assert [(t.name, t.datatype, tuple(t.shape)) for t in said.inputs] == [("x", "FP32", (-1, 2)), ("n", "INT64", ())]
    assert len(said.outputs) == 1
    server = pb["ServerMetadataResponse"].FromString(encode_server("1.2"))
    assert (server.name, server.version, list(server.extensions)) == ("modelkeep", "1.2", ["binary_tensor_data"])
    assert [pb["ServerReadyResponse"].FromString(encode_flag(flag)).ready for flag in (True, False)] == [True, False]


def tensor(**more) -> bytes:
    parts = {"name": write_text(1, "x"), "datatype": write_text(2, "INT32"), "shape": write_bytes(3, b"\x01")}
    return b"".join({**parts, **more}.values())


def asking(one: bytes = b"", *more: bytes) -> bytes:
    return write_text(1, "m") + write_bytes(5, one or tensor()) + b"".join(more)


FOUR = write_bytes(7, b"\x01\x00\x00\x00")
TOP_3 = write_bytes(1, b"classification") + b"\x12\x02\x10\x03"
PARAMETER = write_bytes(1, b"k") + write_bytes(2, b"\x08\x01")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no inputs"),
        (write_text(1, "m"), "no inputs"),
        (asking() + b"\x80", "cut off"),
        (asking() + b"\x0b", "wire type 3"),
        (asking() + b"\x40\x01", "field 8"),
        (asking() + write_text(1, "m"), "more than 1 of model_name"),
        (asking() + b"\x08\x01", "model_name is not written"),
        (asking() + write_bytes(3, b"\xff"), "id is not UTF-8"),
        (asking() + write_text(3, "a" * 257), "longer than 256"),
        (asking() + b"\x2a\x7f", "cut off or has no number"),
        (asking() + b"\x02\x00", "has no number"),
        (asking() + b"\x80" * 10 + b"\x01", "too long"),
        (asking(b"\x40\x01"), "an input has a field 8"),
        (asking(tensor(name=b"")), "no name"),
        (asking(tensor(datatype=write_text(2, "FLOAT32XX"))), "longer than 8"),
        (asking(tensor(shape=write_bytes(3, b"\x01" * 9))), "a shape that no tensor has"),
        (asking(tensor(shape=write_bytes(3, b"\xff" * 9 + b"\x01"))), "a shape that no tensor has"),
        (asking(tensor(shape=b"\x18\x01")), "shape is not written"),
        (asking(tensor(twice=write_text(1, "x"))), "more than 1 of name"),
        (asking(tensor(), FOUR, FOUR), "2 tensors for 1 inputs"),
        (asking(tensor(contents=write_bytes(5, b"\x10\x01")), FOUR), "beside raw_input_contents"),
        (asking(tensor(), write_bytes(7, b"\x01\x00\x00")), "needs 4"),
        (asking(tensor()), "has 0 values"),
        (asking(tensor(contents=write_bytes(5, b"\x10\x01\x10\x02"))), "more values"),
        (asking(tensor(contents=write_bytes(5, b"\x18\x01"))), "belong into int_contents"),
        (asking(tensor(contents=write_bytes(5, b"\x10\x01\x18\x01"))), "belong into int_contents"),
        (asking(tensor(contents=write_bytes(5, write_bytes(2, b"\xff" * 10)))), "too long"),
        (asking(tensor(contents=write_bytes(5, write_bytes(2, b"\xff" * 9 + b"\x02")))), "too long"),
        (asking(tensor(contents=write_bytes(5, write_bytes(2, b"\x80")))), "cut off"),
        (asking(tensor(contents=write_bytes(5, write_bytes(2, write_varint(2**31))))), "does not fit INT32"),
        (asking(tensor(contents=write_bytes(5, write_bytes(2, write_varint(2**64 - 2**31 - 1))))), "does not fit INT32"),
        (asking(tensor(), FOUR, write_bytes(4, PARAMETER), write_bytes(4, PARAMETER)), "given twice"),
        (asking(tensor(), FOUR, write_bytes(4, write_bytes(1, b"k"))), "has 0 values"),
        (asking(tensor(), FOUR, write_bytes(4, write_bytes(2, b"\x08\x01\x10\x01"))), "has 2 values"),
        (asking(tensor(), FOUR, *[write_bytes(4, PARAMETER)] * 65), "more than 64 of parameters"),
        (asking(tensor(p=write_bytes(4, write_bytes(1, b"shared_memory_region") + write_bytes(2, b"\x1a\x00")))), "shared mem"),
        (asking(tensor(), FOUR, write_bytes(6, b"")), "an output has no name"),
        (asking(tensor(), FOUR, write_bytes(6, write_text(1, "y") + write_bytes(2, TOP_3))), "classification"),
        (asking(tensor(), FOUR, *[write_bytes(6, write_text(1, "y"))] * 65), "more than 64 of outputs"),
        (write_bytes(5, tensor()) * 65, "more than 64 of inputs"),
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_invalid(data, words):
    with pytest.raises(Invalid, match=words):
        for one in decode_grpc_request(data).inputs:
            found = one.values("INT32")
            if len(found) != 1:
                raise Invalid(f"has {len(found)} values")


@pytest.mark.parametrize(
    ("datatype", "contents", "words"),
    [
        ("BOOL", write_bytes(1, b"\x02"), "does not fit BOOL"),
        ("INT8", write_bytes(2, write_varint(128)), "does not fit INT8"),
        ("UINT8", write_bytes(4, write_varint(256)), "does not fit UINT8"),
        ("FP32", write_bytes(6, b"\x00\x00\x00"), "cut off"),
        ("FP64", write_bytes(7, b"\x00" * 12), "cut off"),
        ("FP16", write_bytes(6, b"\x00" * 4), "send it raw"),
        ("BYTES", write_bytes(8, b"a") * 2, "more values"),
    ],
)
def test_contents_that_do_not_fit_are_invalid(datatype, contents, words):
    with pytest.raises(Invalid, match=words):
        decode_grpc_request(asking(tensor(c=write_bytes(5, contents)))).inputs[0].values(datatype)


def test_numbers_may_come_one_by_one():
    """Packed is how everybody writes; a reader must take the other way, too (Encoding, "Packed Repeated Fields")."""
    sent = asking(tensor(shape=write_bytes(3, b"\x03"), c=write_bytes(5, b"\x10\x01\x12\x02\x02\x03")))
    assert decode_grpc_request(sent).inputs[0].values("INT32").tolist() == [1, 2, 3]
    singles = b"".join(b"\x35" + struct.pack("<f", value) for value in (0.5, 1.5))
    sent = asking(tensor(shape=write_bytes(3, b"\x02"), c=write_bytes(5, singles)))
    assert decode_grpc_request(sent).inputs[0].values("FP32").tolist() == [0.5, 1.5]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=30))
def test_arrays_of_varints(values):
    packed = write_varints(np.array(values, np.uint64))
    assert packed == b"".join(write_varint(value) for value in values)
    assert read_varints(memoryview(packed)).tolist() == values


@settings(max_examples=300)
@given(st.binary(max_size=100) | st.tuples(st.binary(max_size=40), st.binary(max_size=30)).map(lambda t: asking(t[0], t[1])))
def test_any_bytes_are_read_or_invalid(data):
    for datatype in ("INT32", "FP64", "BYTES"):
        try:
            read_names(data)
            for one in decode_grpc_request(data).inputs:
                one.values(datatype)
        except Invalid as refusal:
            assert "\n" not in str(refusal)


def test_an_empty_id_is_none():
    assert decode_grpc_request(asking(tensor(), FOUR)).id is msgspec.UNSET
