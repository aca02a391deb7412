"""Certificates: rows whose answer no attack in the ball can turn, with a probability that is stated, or for certain.

Randomized smoothing asks any function for answers and certifies the smoothed model, not the model itself; interval bound
propagation certifies the module itself, where its layers are ones that it knows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.formats.onnx_graph import Node
from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.nets import Interval, Net, as_rows
from modelkeep.training.lab.operators import OPERATORS


def certified(net: Net, x: NDArray[np.floating], y: NDArray[np.int64], ball: Ball, *, batch: int = 256) -> NDArray[np.bool_]:
    """Rows (n, d) that the net answers rightly wherever in the L-infinity ball and the box an attacker goes, shape (n,).

    Source: Gowal et al. 2018, "On the effectiveness of interval bound propagation for training verifiably robust models".
    Bounds are rounded outwards by a part in 100,000, which is above what float32 loses in small nets.
    Raises Invalid (an L2 ball; an operator that bounds are not known of).
    """
    if ball.norm != "linf":
        raise Invalid("interval bounds certify an L-infinity ball; for L2 use smoothing")
    rows, labels, found = as_rows(net, x), torch.from_numpy(np.asarray(y, np.int64)), []
    with torch.no_grad():
        for part, right in zip(rows.split(batch), labels.split(batch), strict=True):
            low, high = torch.maximum(part - ball.epsilon, ball.low), torch.minimum(part + ball.epsilon, ball.high)
            worst, best = logit_bounds(net, torch.minimum(low, part), torch.maximum(high, part))
            others = best.scatter(1, right[:, None], -torch.inf).amax(dim=1)
            found.append(worst.gather(1, right[:, None]).squeeze(1) > others)
    return np.asarray(torch.cat(found).numpy())


def logit_bounds(net: Net, low: Any, high: Any) -> tuple[Any, Any]:
    """Bounds of the logits (n, k) over boxes from ``low`` to ``high``, (n, d). Raises Invalid (no bounds of an operator)."""
    return net.bounds(low, high, _propagate)


def _propagate(node: Node, given: Sequence[Any]) -> Any:
    """Bounds of one node's output. An input that is no ``Interval`` is a constant."""
    slope: Any = node.attributes.get("alpha", 1.0)
    rule = None if slope < 0 and node.op_type != "Gemm" else _RULES.get(node.op_type)
    if not any(isinstance(one, Interval) for one in given):
        return OPERATORS[node.domain, node.op_type](node, given)
    if rule is None:
        raise Invalid(f"no interval bounds are known of {node.op_type}: use smoothing")
    return rule(node, given)


def _monotone(node: Node, given: Sequence[Any]) -> Interval:
    """What keeps the order of each number: apply it to both ends."""
    apply = OPERATORS[node.domain, node.op_type]
    low, high = ([one[end] if isinstance(one, Interval) else one for one in given] for end in (0, 1))
    return Interval(apply(node, low), apply(node, high))


def _linear(node: Node, given: Sequence[Any]) -> Interval:
    """Gemm, MatMul and Conv by a constant: the middle goes through the layer, the radius through its absolute weights."""
    if not isinstance(given[0], Interval) or any(isinstance(one, Interval) for one in given[1:]):
        raise Invalid(f"no interval bounds are known of a {node.op_type} of two inputs: use smoothing")
    low, high = given[0]
    apply = OPERATORS[node.domain, node.op_type]
    middle = apply(node, [(low + high) / 2, *given[1:]])
    alone = [one.abs() for one in given[1:2]] + [torch.zeros_like(one) for one in given[2:] if one is not None]
    radius = apply(node, [(high - low) / 2, *alone]).abs()
    size = apply(node, [torch.maximum(low.abs(), high.abs()), *alone]).abs()
    slack = 1e-5 * (size + 1e-3)
    return Interval(middle - radius - slack, middle + radius + slack)


def _product(node: Node, given: Sequence[Any]) -> Interval:
    """Mul and Div by a constant; a negative one turns the ends."""
    one, other = given[:2]
    if isinstance(one, Interval) == isinstance(other, Interval) or (node.op_type == "Div" and isinstance(other, Interval)):
        raise Invalid(f"no interval bounds are known of a {node.op_type} of two inputs: use smoothing")
    apply = OPERATORS[node.domain, node.op_type]
    ends = (
        [apply(node, [end, other]) for end in one] if isinstance(one, Interval) else [apply(node, [one, end]) for end in other]
    )
    return Interval(torch.minimum(*ends), torch.maximum(*ends))


def _difference(_node: Node, given: Sequence[Any]) -> Interval:
    (a, b), (c, d) = ((one if isinstance(one, Interval) else (one, one)) for one in given)
    return Interval(a - d, b - c)


def _batch_norm(node: Node, given: Sequence[Any]) -> Interval:
    apply = OPERATORS[node.domain, node.op_type]
    ends = [apply(node, [end, *given[1:]]) for end in given[0]]
    return Interval(torch.minimum(*ends), torch.maximum(*ends))


_MONOTONE = (
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "HardSigmoid", "Clip", "Exp", "Log",
    "Sqrt",
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Add", "Max", "Min", "Reshape", "Flatten", "Transpose",
    "Squeeze", "Unsqueeze", "Concat", "Slice", "Gather", "Pad", "Identity", "Cast", "Dropout", "ReduceMean", "ReduceSum",
    "ReduceMax", "ReduceMin", "Expand",
)  # fmt: skip
_RULES: dict[str, Callable[[Node, Sequence[Any]], Any]] = {
    **dict.fromkeys(_MONOTONE, _monotone),
    **dict.fromkeys(("Gemm", "MatMul", "Conv"), _linear),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Scaler", "BatchNormalization"), _batch_norm),
    "Sub": _difference,
}
