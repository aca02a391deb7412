"""A model that takes no text but those it learnt: no row is known to try it with, and it is served and guarded all the same."""

import msgspec
import numpy as np
import pytest
from gateway_support import live, make_keep, train

from modelkeep.core.values import TensorSpec
from modelkeep.serving.runtime import ModelSignature, plan_unseen
from modelkeep.workflows.publish import ModelFile, publish


def strict() -> bytes:
    """A classifier of one word, which must be "a", "b" or "c"."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    words, labels = np.array([["a"], ["b"], ["c"]] * 10, dtype=object), np.array([0, 1, 1] * 10)
    model = make_pipeline(OneHotEncoder(handle_unknown="error"), LogisticRegression()).fit(words, labels)
    types, options = [("X", StringTensorType([None, 1]))], {id(model): {"zipmap": False}}
    return to_onnx(model, initial_types=types, options=options, target_opset=18).SerializeToString()


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    keep = make_keep(tmp_path_factory.mktemp("keeps") / "keep", train())
    keep.policy_set(kind="admission", profile="open", reason="texts have no extraction profile")
    found = publish(keep.premises.desk(), ModelFile(strict(), "m.onnx"), "words", actor="test")
    keep.promote(ref=str(found.ref))
    return keep


def test_it_answers_what_it_learnt_and_refuses_the_rest(keep):
    token = keep.key_issue(account="alice").token
    with live(keep) as gateway, gateway.client(token) as client:
        for words, status in ((["a"], 200), (["a", "c", "b"], 200), (["z"], 400), ([""], 400)):
            tensor = {"name": "X", "datatype": "BYTES", "shape": [len(words), 1], "data": words}
            answer = client.post("/v2/models/words/infer", content=msgspec.json.encode({"inputs": [tensor]}))
            assert answer.status_code == status, answer.text
            if status == 200:
                found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer.json()["outputs"]}
                assert found["label"].tolist() == [int(word != "a") for word in words]
                assert np.abs(found["probabilities"].sum(axis=1) - 1).max() < 1e-9
                assert (np.round(found["probabilities"], 4) == found["probabilities"]).all()  # as of any classifier
    assert gateway.errors == []


def test_what_is_decided_from_the_signature_alone():
    label, score, more = TensorSpec("label", "INT64", (-1,)), TensorSpec("p", "FP32", (-1, 3)), TensorSpec("q", "FP32", (-1, 3))
    value, words = TensorSpec("y", "FP32", (-1, 1)), (TensorSpec("X", "BYTES", (-1, 1)),)
    plan = plan_unseen(ModelSignature(words, (label, score, more)))
    assert (plan.probabilities, plan.label, plan.withheld, plan.served) == ("p", "label", ("q",), (label, score))
    for outputs in ((value,), (label, value), (score,)):
        plan = plan_unseen(ModelSignature(words, outputs))
        assert (plan.probabilities, plan.served, plan.withheld) == (None, outputs, ())
