"""The ONNX reader against the onnx package, and against whoever wants to crash it."""

import contextlib
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import constant_shape, graph, model, nested, sklearn_model

from modelkeep.core.values import TensorSpec
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.onnx import Operator, looks_like_onnx, parse_onnx


def every_node(g):
    for node in g.node:
        yield node
        for attribute in node.attribute:
            for sub in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
                yield from every_node(sub)


@pytest.mark.parametrize("zipmap", [False, True])
def test_it_sees_what_the_onnx_package_sees(zipmap):
    data = sklearn_model(zipmap)
    theirs, ours = onnx.load_from_string(data), parse_onnx(data)
    domains = {"ai.onnx": ""}
    assert set(ours.operators) == {Operator(domains.get(n.domain, n.domain), n.op_type) for n in every_node(theirs.graph)}
    assert ours.ir_version == theirs.ir_version
    assert [i.name for i in ours.inputs] == [i.name for i in theirs.graph.input]
    assert not (ours.unknown or ours.doubled or ours.oversized or ours.external or ours.functions)
    if zipmap:
        with pytest.raises(Invalid, match="zipmap"):
            ours.signature()
    else:
        assert ours.signature().inputs == (TensorSpec("X", "FP32", (-1, 30)),)
        assert ours.signature().outputs == (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 2)))


def test_operators_of_subgraphs_are_seen():
    ops = {operator.op_type for operator in parse_onnx(nested(3).SerializeToString()).operators}
    assert ops == {"If", "Identity"}


def test_initializers_are_not_inputs():
    weights = numpy_helper.from_array(np.ones(3, np.float32), "w")
    m = model([helper.make_node("Neg", ["w"], ["v"])], [weights])
    m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    assert [i.name for i in parse_onnx(m.SerializeToString()).inputs] == ["x"]


ALL_TYPES = [*range(1, 8), *range(9, 17), TensorProto.INT4, TensorProto.UINT4]


@pytest.mark.parametrize("data_type", ALL_TYPES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0, 7), (70,)])
@pytest.mark.parametrize("raw", [False, True])
def test_honest_tensors_of_every_type_are_backed(data_type, shape, raw):
    count = int(np.prod(shape, dtype=int))
    if raw:
        tensor = TensorProto(data_type=data_type, dims=shape, name="t")
        tensor.raw_data = bytes(
            (count * helper.tensor_dtype_to_np_dtype(data_type).itemsize) if data_type not in (21, 22) else (count + 1) // 2
        )
    else:
        tensor = helper.make_tensor("t", data_type, shape, [1] * count)
    assert parse_onnx(model([], [tensor]).SerializeToString()).oversized == ()


@pytest.mark.parametrize("texts", [[], [b"one"], [b"", b"two", b"\xff"]])
def test_tensors_of_texts_are_backed_by_their_texts(texts):
    """A classifier of texts has its labels in one."""
    tensor = TensorProto(data_type=TensorProto.STRING, dims=[len(texts)], name="classes", string_data=texts)
    assert parse_onnx(model([], [tensor]).SerializeToString()).oversized == ()


def test_tensors_that_claim_more_than_they_bring_are_seen():
    for tensor in (
        TensorProto(data_type=8, dims=[3], name="t", string_data=[b"one", b"two"]),
        TensorProto(data_type=8, dims=[1 << 40], name="t"),
        TensorProto(data_type=8, dims=[1], name="t", raw_data=b"a"),
        TensorProto(data_type=8, dims=[1], name="t", string_data=[b"a"], int64_data=[1]),
        TensorProto(data_type=1, dims=[1 << 40], name="t", raw_data=bytes(8)),
        TensorProto(data_type=1, dims=[1 << 62, 1 << 62], name="t"),
        TensorProto(data_type=1, dims=[-1], name="t"),
        TensorProto(data_type=1, dims=[2], name="t", raw_data=bytes(8), float_data=[1.0, 2.0]),
        TensorProto(data_type=1, dims=[2], name="t", int64_data=[1, 2]),
        TensorProto(data_type=0, dims=[2], name="t", raw_data=bytes(8)),
        TensorProto(data_type=99, dims=[], name="t", raw_data=bytes(8)),
        TensorProto(data_type=1, dims=[1] * 65, name="t", float_data=[1.0]),
    ):
        assert len(parse_onnx(model([], [tensor]).SerializeToString()).oversized) == 1


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
def test_memory_bombs_are_seen(raw, as_node):
    assert parse_onnx(constant_shape([1 << 20, 1 << 20], raw=raw, as_node=as_node).SerializeToString()).oversized
    assert not parse_onnx(constant_shape([4, 4], raw=raw, as_node=as_node).SerializeToString()).oversized


def test_external_data_functions_sparse_and_training_are_seen():
    tensor = TensorProto(data_type=1, dims=[2], name="t", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    m = model([], [tensor])
    m.functions.append(
        helper.make_function("my.domain", "F", ["a"], ["b"], [helper.make_node("Evil", ["a"], ["b"], domain="d")], [])
    )
    m.graph.sparse_initializer.add()
    m.training_info.add()
    found = parse_onnx(m.SerializeToString())
    assert found.external == ("../../etc/passwd",)
    assert found.functions == ("my.domain:F",)
    assert found.sparse
    assert found.training
    assert Operator("d", "Evil") in found.operators
    hidden = TensorProto(data_type=1, dims=[2], name="t", raw_data=bytes(8))
    hidden.external_data.add(key="location", value="x")
    assert parse_onnx(model([], [hidden]).SerializeToString()).external == ("x",)


def test_an_external_tensor_in_a_nested_attribute_is_seen():
    tensor = TensorProto(data_type=1, dims=[2], name="t", data_location=TensorProto.EXTERNAL)
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    assert parse_onnx(
        model([helper.make_node("If", ["q"], ["z"], then_branch=graph([node]), else_branch=graph())]).SerializeToString()
    ).external


def test_unknown_fields_trailing_bytes_and_doubled_fields_are_seen():
    data = sklearn_model()
    assert parse_onnx(data + b"\xfa\x3f\x05hello").unknown == ("ModelProto field 1023",)
    assert parse_onnx(data + b"\x08\x0a").doubled == ("ModelProto.ir_version",)
    assert parse_onnx(data + b"\x3a\x00").doubled == ("ModelProto.graph",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        b"\x08\x0a",
        b"hello, this is no model",
        b"\xff" * 40,
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x0b\x0c",
    ],
)
def test_what_is_no_model_is_invalid(data):
    with pytest.raises(Invalid):
        parse_onnx(data)


def test_depth_is_bounded():
    parse_onnx(nested(10).SerializeToString())
    with pytest.raises(TooLarge, match="deeper"):
        parse_onnx(nested(20).SerializeToString())


def message(number: int, payload: bytes) -> bytes:
    length, out = len(payload), b""
    while length >= 0x80:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + out + bytes([length]) + payload


def test_large_unpacked_arrays_go_by_fast_in_little_memory():
    """Tree ensembles hold millions of unpacked numbers; 24 MB of them must take neither seconds nor memory."""
    attribute = b"\x3d\x00\x00\x80\x3f" * 2_400_000 + b"\x40\xac\x02" * 4_000_000
    data = b"\x08\x0a" + message(7, message(1, message(5, attribute)))
    tracemalloc.start()
    start = time.process_time()
    parse_onnx(data)
    elapsed = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elapsed < 5
    assert peak < 4 << 20


@pytest.mark.parametrize("flood", [b"\x0a\x00" * 400_000, b"\x50\x00" * 2_100_000], ids=["inputs", "unknown fields"])
def test_floods_of_fields_are_cut_off(flood):
    with pytest.raises(TooLarge):
        parse_onnx(b"\x08\x0a" + message(7, message(1, flood)))


def test_floods_of_payloads_go_by():
    strings = b"\x4a\x0aBRANCH_LEQ" * 300_000 + b"\x4a\x00" * 300_000
    parse_onnx(b"\x08\x0a" + message(7, message(1, message(5, strings))))
    with pytest.raises(Invalid):
        parse_onnx(b"\x08\x0a" + message(7, message(1, message(5, strings + b"\x4a\x05"))))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_models_never_crash_it(data):
    source = bytearray(sklearn_model())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(source) - 1))
        action = data.draw(st.sampled_from(["set", "cut", "insert", "copy"]))
        if action == "set":
            source[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del source[at : at + data.draw(st.integers(1, 9))]
        elif action == "insert":
            source[at:at] = data.draw(st.binary(max_size=9))
        else:
            source[at:at] = source[at : at + 40]
        if not source:
            return
    with contextlib.suppress(Invalid):
        parse_onnx(source)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_crashes_it(garbage):
    looks_like_onnx(garbage)
    for data in (
        garbage,
        b"\x08\x0a" + garbage,
        b"\x08\x0a" + message(7, garbage),
        b"\x08\x0a" + message(7, message(5, garbage)),
    ):
        with contextlib.suppress(Invalid):
            parse_onnx(data)
