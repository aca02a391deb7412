"""``POST …/explain``: the request of the Open Inference Protocol read as "explain this row", and the answer in the same shape.

The request's inputs are one row, as for ``…/infer``; its ``parameters`` choose what is explained. The answer's outputs bear the
names of the inputs and hold, in the shape of each, how much every number moved the answer.
"""

import math
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid
from modelkeep.serving.oip import InferRequest
from modelkeep.serving.runtime import OutputPlan
from modelkeep.serving.shapley import Attribution, in_units

EXPLAIN = "explain"
"""Kind of the audit record of an explanation."""
_FLOATING = ("FP16", "FP32", "FP64")
_MOST_SAMPLES = 4096


class Asked(msgspec.Struct, frozen=True):
    """What is to be explained. ``target``: the class or the value of the output, None = the top class, or the first value;
    ``samples``: pairs of permutations, None = as many as the settings say; ``output``: of a model that is no classifier."""

    target: int | None
    samples: int | None
    output: str


def price(features: int) -> float:
    """What an explanation of ``features`` numbers costs, in natural questions: it says as many numbers as a model that is
    linear near the row has, which that many answers would give away, too."""
    return features + 1.0


def asked_of(request: InferRequest, plan: OutputPlan) -> Asked:
    """Read the parameters of a request. Raises Invalid (unknown or out of bounds; the model has nothing to explain)."""
    if request.output_names():
        raise Invalid("an explanation has no outputs to choose: name the class or the value in the parameter 'target'")
    given = {} if request.parameters is UNSET else request.parameters
    unknown = sorted(given.keys() - {"target", "samples", "output"})
    if unknown:
        raise Invalid(f"parameter {unknown[0][:60]!r} is none of an explanation; it takes target, samples, output")
    target, samples = _whole(given, "target", 0, 1 << 31), _whole(given, "samples", 1, _MOST_SAMPLES)
    return Asked(target, samples, _output(given.get("output"), plan))


def _output(wanted: Any, plan: OutputPlan) -> str:
    if plan.probabilities is not None:
        if wanted not in (None, plan.probabilities):
            raise Invalid(f"of a classifier the output {plan.probabilities!r} is explained, and no other")
        return plan.probabilities
    names = [spec.name for spec in plan.served if spec.datatype in _FLOATING]
    if not names:
        raise Invalid("this model gives neither probabilities nor floating numbers: there is nothing to explain")
    if wanted is not None and wanted not in names:
        raise Invalid(f"output {str(wanted)[:60]!r} cannot be explained; these can: {', '.join(names)}")
    return names[0] if wanted is None else str(wanted)


def _whole(given: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(f"parameter {name!r} is a whole number from {least} to {most}")
    return value


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class _Facts(msgspec.Struct, frozen=True):
    output: str
    target: int
    value: float
    base_value: float
    samples: int
    charged: float


class ExplainResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer. ``parameters``: ``value`` is the model's answer and ``base_value`` its mean over the background; the data of
    all outputs add up to their difference. ``samples``: pairs of permutations, 0 = exact; ``charged``: natural questions taken
    from the extraction budget."""

    model_name: str
    model_version: str
    outputs: list[_Tensor]
    parameters: _Facts
    id: str | UnsetType = UNSET


_ENCODER = msgspec.json.Encoder()


class Told(msgspec.Struct, frozen=True):
    """What an answer is made of. ``inputs``: the row's arrays in the order of the columns; ``exponent``: all numbers are whole
    multiples of ten to it."""

    ref: ReleaseRef
    id: str | UnsetType
    asked: Asked
    target: int
    inputs: dict[str, NDArray[Any]]
    found: Attribution
    exponent: int


def encode_explanation(told: Told) -> bytes:
    """The body of the answer."""
    whole, value, base = in_units(told.found, 10.0**told.exponent)
    outputs, at = [], 0
    for name, one in told.inputs.items():
        data = [_decimal(n, told.exponent) for n in whole[at : at + one.size].tolist()]
        outputs.append(_Tensor(name, "FP64", list(one.shape), data))
        at += one.size
    facts = _Facts(
        told.asked.output,
        told.target,
        _decimal(value, told.exponent),
        _decimal(base, told.exponent),
        told.found.pairs,
        price(len(whole)),
    )
    return _ENCODER.encode(ExplainResponse(told.ref.name, str(told.ref.version), outputs, facts, told.id))


def _decimal(whole: int, exponent: int) -> float:
    return float(f"{whole}e{exponent}")


def exponent_of(found: Attribution, digits: int, *, probability: bool) -> int:
    """Ten to it is the last digit that is told: ``digits`` decimals of a probability, otherwise ``digits`` significant digits
    of the largest number there is."""
    if probability:
        return -digits
    largest = max(abs(found.value), abs(found.base), float(np.abs(found.phi).max()))
    return math.floor(math.log10(largest)) - digits + 1 if largest > 0 else 0
