"""Every datatype through every form and a real runtime: what goes in comes out, the same in all of them."""

import json
import struct

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from same_models import identity
from test_serving_grpc import FIELDS, descriptors, pb, request_of  # noqa: F401  # fixtures
from test_serving_rest import JSON, RestForm, body, elements, raw, tensor

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.core.values import ModelSignature, ReleaseRef, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.serving.grpc import GRPC
from modelkeep.serving.oip import dtype_of
from modelkeep.serving.runtime import round_floats
from modelkeep.serving.validate import InputPlan

REF = ReleaseRef("same", 1)


class Same:
    """The identity of one datatype, asked as the gateway asks a model."""

    def __init__(self, datatype: str) -> None:
        self.runtime = OnnxRuntime(identity([datatype]))
        self.plan = InputPlan(ModelSignature((TensorSpec(f"x_{datatype}", datatype, (-1, 2)),), ()))
        self.spec = TensorSpec(f"y_{datatype}", datatype, (-1, 2))

    def ask(self, form, data: bytes):
        request = form.read(data)
        with np.errstate(over="ignore"):  # as the gateway does
            found = self.runtime.run(self.plan.check(request).feeds)
        return form.write(REF, request, [(self.spec, round_floats(found[self.spec.name]))])


@pytest.fixture(scope="module")
def same() -> dict[str, Same]:
    return {datatype: Same(datatype) for datatype in elements}


def texts(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return found


def bare(data: bytes, datatype: str) -> list:
    return texts(data) if datatype == "BYTES" else np.frombuffer(data, dtype_of(datatype).newbyteorder("<")).tolist()


def packed(values: list, datatype: str) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)
    return np.array(values, dtype_of(datatype).newbyteorder("<")).tobytes()


def grpc_answer(said, datatype: str) -> list:
    if said.raw_output_contents:
        return bare(said.raw_output_contents[0], datatype)
    found = list(getattr(said.outputs[0].contents, FIELDS[datatype]))
    return [v.decode() for v in found] if datatype == "BYTES" else found


@pytest.mark.parametrize("datatype", sorted(elements))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_form_gives_the_same_answer(same, pb, datatype, data):  # noqa: F811
    rows = data.draw(st.integers(1, 4))
    values = data.draw(st.lists(elements[datatype], min_size=2 * rows, max_size=2 * rows))
    name, model, size = f"x_{datatype}", same[datatype], [rows, 2]
    answers = {}
    for way in ("flat", "nested"):
        given_as = values if way == "flat" else [values[at : at + 2] for at in range(0, len(values), 2)]
        sent = json.dumps({"inputs": [tensor(name, datatype, size, data=given_as)]}).encode()
        (output,) = json.loads(model.ask(JSON, sent).body)["outputs"]
        answers[way] = output["data"]
        assert output["shape"] == size and output["datatype"] == datatype
    tail = packed(values, datatype)
    reply = model.ask(*body(raw(name, datatype, size, size=len(tail)), tail=tail, parameters={"binary_data_output": True}))
    answers["binary"] = bare(reply.body[reply.json_size :], datatype)
    for typed in (False, True) if datatype in FIELDS else (False,):
        asked = request_of(pb, {name: (datatype, values)}, raw=not typed)
        asked.inputs[0].shape[:] = size
        said = pb["ModelInferResponse"].FromString(model.ask(GRPC, asked.SerializeToString()).body)
        answers["typed" if typed else "raw"] = grpc_answer(said, datatype)
    if datatype.startswith("FP"):  # six digits of it, as the model's own datatype
        answers = {way: np.array(found, dtype_of(datatype)).tolist() for way, found in answers.items()}
        expected = np.array(round_floats(np.array(values, dtype_of(datatype))), dtype_of(datatype)).tolist()
    else:
        expected = values
    assert all(found == expected for found in answers.values()), answers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_json_cannot_say_is_refused_in_every_form(same, pb, datatype, value):  # noqa: F811
    name, values = f"x_{datatype}", [1.0, value]
    tail = packed(values, datatype)
    with pytest.raises(Invalid, match="does not fit"):
        same[datatype].ask(*body(raw(name, datatype, [1, 2], size=len(tail)), tail=tail))
    for typed in (False, True) if datatype in FIELDS else (False,):
        asked = request_of(pb, {name: (datatype, values)}, raw=not typed)
        asked.inputs[0].shape[:] = [1, 2]
        with pytest.raises(Invalid, match="does not fit"):
            same[datatype].ask(GRPC, asked.SerializeToString())


def test_a_text_that_is_not_utf_8_is_refused(same, pb):  # noqa: F811
    tail = b"\x01\x00\x00\x00\xff\x00\x00\x00\x00"
    with pytest.raises(Invalid, match="not UTF-8"):
        same["BYTES"].ask(*body(raw("x_BYTES", "BYTES", [1, 2], size=9), tail=tail))
    asked = pb["ModelInferRequest"](model_name="same")
    asked.inputs.add(name="x_BYTES", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"\xff", b""])
    with pytest.raises(Invalid, match="not UTF-8"):
        same["BYTES"].ask(GRPC, asked.SerializeToString())


def test_raw_data_at_an_odd_place_reaches_the_model_whole(same):
    """The raw tensor of a request of two begins where the other ends, which need not be a place for its numbers."""
    for pad in range(1, 9):
        head = json.dumps({"inputs": [raw("x_FP64", "FP64", [500, 2], size=8000)], "id": "a" * pad}).encode()
        values = np.arange(1000.0)
        reply = same["FP64"].ask(RestForm(str(len(head)).encode()), head + values.tobytes())
        assert json.loads(reply.body)["outputs"][0]["data"] == values.tolist()


def test_the_models_are_whole():
    onnx.checker.check_model(onnx.load_from_string(identity(sorted(elements))), full_check=True)


@pytest.mark.parametrize("value", [5e-324, 3.3e-305, 1e-300, 1.7976931348623157e308, -1.7976931348623157e308, 0.0])
def test_no_number_leaves_as_something_else(value):
    """JSON has no word for what a rounding that overflows would make of the smallest and the largest numbers."""
    rounded = float(round_floats(np.array([value]))[0])
    assert np.isfinite(rounded) and abs(rounded - value) <= max(abs(value) * 5e-6, 1e-300)
