"""Requests against a model's signature, and what its outputs are."""

import json

import numpy as np
import pytest

from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, NotTrusted, TooLarge
from modelkeep.serving.oip import decode_request
from modelkeep.serving.runtime import plan_outputs, probability_rows, round_floats
from modelkeep.serving.validate import InputPlan

TWO = ModelSignature((TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1, 1))), ())


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def check(plan, *tensors):
    return plan.check(decode_request(json.dumps({"inputs": tensors}).encode()))


def test_two_inputs_in_any_order_become_one_matrix():
    plan = InputPlan(TWO)
    checked = check(plan, tensor("b", "INT64", [2, 1], [7, 8]), tensor("a", "FP32", [2, 2], [1, 2, 3, 4]))
    assert checked.rows == 2 and plan.matrix(checked).tolist() == [[1, 2, 7], [3, 4, 8]]
    assert checked.feeds["a"].dtype == np.float32 and checked.feeds["b"].dtype == np.int64


A, B = tensor("a", "FP32", [2, 2], [1, 2, 3, 4]), tensor("b", "INT64", [2, 1], [7, 8])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((A,), "'b' is missing"),
        ((A, A, B), "'a' is given twice"),
        ((A, B, tensor("c", "FP32", [1], [1])), "no input 'c'"),
        ((A, tensor("b", "INT64", [1, 1], [7])), "disagree"),
        ((A, tensor("b", "INT32", [2, 1], [7, 8])), "takes INT64"),
        ((A, tensor("b", "INT64", [2], [7, 8])), "dimensions"),
        ((A, tensor("b", "INT64", [2, 2], [7, 8, 9, 9])), r"\[any, 1\]"),
        ((A, tensor("b", "INT64", [2, 1], [7])), "needs 2"),
        ((tensor("a", "FP32", [2, 2], [1, 2, 3, 3.5e38]), B), "does not fit"),
        ((tensor("a", "FP32", [0, 2], []), tensor("b", "INT64", [0, 1], [])), "no rows"),
        ((tensor("a", "FP32", [2000000000, 2], []), tensor("b", "INT64", [2000000000, 1], [])), "more than"),
    ],
)
def test_what_does_not_fit_the_model(tensors, words):
    with pytest.raises(Invalid, match=words):
        check(InputPlan(TWO), *tensors)


def test_bounds_and_texts():
    plan = InputPlan(ModelSignature((TensorSpec("t", "BYTES", (-1,)),), ()), max_rows=2)
    assert check(plan, tensor("t", "BYTES", [2], ["a", "ä"])).feeds["t"].tolist() == ["a", "ä"]
    assert plan.matrix(check(plan, tensor("t", "BYTES", [1], ["a"]))).shape == (1, 0)
    with pytest.raises(TooLarge):
        check(plan, tensor("t", "BYTES", [3], ["a", "b", "c"]))
    with pytest.raises(Invalid, match="cannot be served"):
        InputPlan(ModelSignature((TensorSpec("t", "COMPLEX64", (-1,)),), ()))


def test_a_model_without_a_batch_dimension_answers_one_row():
    plan = InputPlan(ModelSignature((TensorSpec("x", "FP32", (2, 3)),), ()))
    assert check(plan, tensor("x", "FP32", [2, 3], list(range(6)))).rows == 1
    with pytest.raises(Invalid):
        check(plan, tensor("x", "FP32", [1, 3], [1, 2, 3]))


def test_the_probe_is_a_benign_row_if_it_fits():
    plan = InputPlan(TWO)
    assert plan.probe(np.array([0.5, 1.5, 3.0]))["a"].tolist() == [[0.5, 1.5]]
    assert plan.probe(np.zeros(5))["a"].tolist() == [[0, 0]] and plan.probe(None)["b"].tolist() == [[0]]


CLASSIFIER = ModelSignature(
    (),
    (
        TensorSpec("logits", "FP32", (-1, 3)),
        TensorSpec("label", "INT64", (-1,)),
        TensorSpec("probs", "FP32", (-1, 3)),
        TensorSpec("again", "FP32", (-1, 3)),
    ),
)
P = np.array([[0.2, 0.3, 0.5]], np.float32)


def test_only_the_label_and_the_probabilities_leave():
    plan = plan_outputs(CLASSIFIER, {"logits": np.log(P) - 1, "label": np.array([2]), "probs": P, "again": P})
    assert (plan.probabilities, plan.label, plan.withheld) == ("probs", "label", ("logits", "again"))
    assert [spec.name for spec in plan.served] == ["label", "probs"]
    assert [spec.name for spec in plan.wanted(("probs",))] == ["probs"] and plan.wanted(()) == plan.served
    for names in (("logits",), ("nothing",), ("probs", "probs")):
        with pytest.raises(Invalid):
            plan.wanted(names)


def test_other_models_and_broken_promises():
    regression = ModelSignature((), (TensorSpec("y", "FP32", (-1, 1)),))
    plan = plan_outputs(regression, {"y": np.array([[4.0]], np.float32)})
    assert plan.probabilities is None and plan.served == regression.outputs
    with pytest.raises(NotTrusted):
        plan_outputs(CLASSIFIER, {"probs": P})


def test_probabilities_are_checked_on_every_answer():
    assert probability_rows(P, 1).dtype == np.float64
    for bad in (P * 2, P - P, P[0], np.full((1, 3), np.nan, np.float32), np.array([[-1, 1, 1]], np.float32)):
        with pytest.raises(Invalid):
            probability_rows(bad, 1)
    with pytest.raises(Invalid):
        probability_rows(P, 2)


def test_rounding_keeps_six_digits():
    values = np.array([[123456.789, -0.000123456789, 0.0, 1e-30]], np.float32)
    assert np.allclose(round_floats(values), [[123457, -0.000123457, 0, 1e-30]], rtol=1e-6, atol=0)
    assert round_floats(np.array([7])).tolist() == [7]
    with pytest.raises(Invalid):
        round_floats(np.array([np.inf]))
