"""The scanner: clean only if everything was understood and allowed."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelkeep.custody.scan import RULES_VERSION, ScanVerdict, refusal, scan
from modelkeep.formats import safetensors

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from onnx_models import constant_shape, model, nested, sklearn_model


def rules(data: bytes, filename: str = "model.onnx") -> set[str]:
    verdict = scan(data, filename)
    assert verdict.clean == (not verdict.findings)
    assert (verdict.scanner, verdict.rules_version) == ("modelkeep", RULES_VERSION)
    for finding in verdict.findings:
        assert "\n" not in finding.message
        assert finding.message
    return {finding.rule for finding in verdict.findings}


def test_real_models_are_clean_and_tell_their_signature():
    verdict = scan(memoryview(sklearn_model()), "credit.onnx")
    assert isinstance(verdict, ScanVerdict)
    assert (verdict.clean, verdict.format) == (True, "onnx")
    assert verdict.signature is not None
    assert [spec.name for spec in verdict.signature.outputs] == ["label", "probabilities"]
    weights = safetensors.dump({"w": np.ones((3, 3), np.float32)})
    assert scan(weights, "w.safetensors") == ScanVerdict(True, "safetensors", ())


def external():
    tensor = TensorProto(data_type=1, dims=[2], name="t", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return model([], [tensor])


def with_function():
    m = model()
    m.functions.append(helper.make_function("d", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], []))
    return m


def with_training():
    m = model()
    m.training_info.add()
    return m


def with_sparse():
    m = model()
    m.graph.sparse_initializer.add()
    return m


def endless():
    """A Loop of the standard that never ends: found by the hostile review."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["cond_in"], ["cond_out"]), helper.make_node("Identity", ["v_in"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, None),
        ],
    )
    true = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    return model([true, helper.make_node("Loop", ["", "yes", "x"], ["z"], body=body)])


def of_ir(version):
    m = model()
    m.ir_version = version
    return m


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: model([helper.make_node("Evil", ["x"], ["z"], domain="com.evil")]), "custom-operator"),
        (lambda: model([helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")]), "custom-operator"),
        (lambda: model([helper.make_node("../../lib", ["x"], ["z"])]), "custom-operator"),
        (endless, "unbounded"),
        (external, "external-data"),
        (with_function, "local-function"),
        (with_training, "training-info"),
        (with_sparse, "sparse-tensor"),
        (lambda: of_ir(60), "ir-version"),
        (lambda: constant_shape([1 << 40], raw=True, as_node=False), "size"),
        (lambda: model([], [TensorProto(data_type=1, dims=[1 << 40], name="t", raw_data=b"1234")]), "size"),
        (lambda: nested(20), "too-large"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_rule_finds_its_model(make, rule):
    assert rule in rules(make().SerializeToString())


def test_zipmap_outputs_are_an_interface_finding():
    verdict = scan(sklearn_model(True), "m.onnx")
    assert {finding.rule for finding in verdict.findings} == {"interface"}
    assert "zipmap" in verdict.findings[0].message
    assert verdict.signature is None


def test_hidden_and_ambiguous_bytes_are_findings():
    assert rules(sklearn_model() + b"\xfa\x3f\x05hello") == {"unknown-field"}
    assert "ambiguous" in rules(sklearn_model() + b"\x08\x0a")
    assert rules(sklearn_model()[:-3]) == {"malformed"}
    assert rules(safetensors.dump({"a": np.ones(3)}) + b"x") == {"malformed"}


def test_pickles_archives_and_the_unknown_are_refused_with_the_way_out():
    cases = [
        (pickle.dumps({"a": 1}), "skl2onnx"),
        (b"\x78\x9c" + bytes(9), "skl2onnx"),
        (b"PK\x03\x04" + bytes(22) + b"\x10\x00\x00\x00archive/data.pkl", "torch.onnx.export"),
        (b"\x89HDF\r\n\x1a\n", "tf2onnx"),
        (b"hello", "ONNX"),
        (b"", "ONNX"),
    ]
    for data, way in cases:
        verdict = scan(data, "model.bin")
        found = refusal(verdict, "model.bin")
        assert found is not None
        assert found.rule == "format"
        assert way in found.message


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for protocol in (0, 2, 4):
        assert "pickle-global" in rules(pickle.dumps(Bomb(), protocol=protocol))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../model.onnx", "a/b.onnx", "a\\b.onnx", "", "..", ".", "a\x00b", "a\nb", "x" * 256])
def test_names_that_are_paths_are_findings(name):
    assert rules(sklearn_model(), name) == {"file-name"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_input_crashes_the_scanner(data):
    source = bytearray(
        data.draw(st.sampled_from([sklearn_model(), safetensors.dump({"a": np.ones(3)}), b"\x08\x0a\x3a\x02\x0a\x00"]))
    )
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(source) - 1))
        source[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not source:
            break
    rules(bytes(source), data.draw(st.text(max_size=5)))
