"""ONNX operators as PyTorch functions with gradients: what classifiers of torch.onnx and skl2onnx are made of.

A value is a tensor, or a numpy array of whole numbers (shapes, axes) that the file holds as a constant. Source: the operator
specifications of ONNX 1.23 (opset 24; older forms of an operator that differ are read too) and ai.onnx.ml 5.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from modelkeep.errors import Invalid
from modelkeep.formats.onnx_graph import Node

Operator = Callable[[Node, Sequence[Any]], Any]
_TYPES = {
    1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64,
}  # fmt: skip


def ints(value: Any) -> list[int]:
    """A constant, or an attribute, as Python's whole numbers."""
    return [int(one) for one in (value.tolist() if hasattr(value, "tolist") else value)] if np.ndim(value) else [int(value)]


def _attribute(node: Node, name: str, default: Any) -> Any:
    return node.attributes.get(name, default)


def _axes(node: Node, given: Sequence[Any]) -> list[int] | None:
    """Axes, which older operators have as an attribute and newer ones as the second input."""
    if len(given) > 1 and given[1] is not None:
        return ints(given[1])
    held = _attribute(node, "axes", None)
    return None if held is None else ints(held)


def _gemm(node: Node, given: Sequence[Any]) -> Any:
    a, b = given[:2]
    a = a.transpose(0, 1) if _attribute(node, "transA", 0) else a
    weight = b if _attribute(node, "transB", 0) else b.transpose(0, 1)
    alpha, beta = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
    bias = given[2] if len(given) > 2 else None
    if alpha == 1.0 and beta == 1.0 and (bias is None or bias.ndim == 1):
        return functional.linear(a, weight, bias)
    product = alpha * functional.linear(a, weight)
    return product if bias is None else product + beta * bias


def _spatial(node: Node, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after of each spatial axis."""
    if _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Invalid(f"{node.op_type} with auto_pad is not computed: give pads")
    pads = ints(_attribute(node, "pads", [0] * 2 * rank))
    strides, dilations = ints(_attribute(node, "strides", [1] * rank)), ints(_attribute(node, "dilations", [1] * rank))
    return strides, dilations, pads[:rank], pads[rank:]


def _padded(x: Any, before: list[int], after: list[int], value: float) -> Any:
    flat = [one for pair in zip(reversed(before), reversed(after), strict=True) for one in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def _conv(node: Node, given: Sequence[Any]) -> Any:
    x, weight = given[:2]
    rank = weight.ndim - 2
    strides, dilations, before, after = _spatial(node, rank)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    if before != after:
        x, before = _padded(x, before, after, 0.0), [0] * rank
    bias = given[2] if len(given) > 2 else None
    return function(x, weight, bias, strides, before, dilations, _attribute(node, "group", 1))


def _pool(node: Node, given: Sequence[Any]) -> Any:
    kernel = ints(_attribute(node, "kernel_shape", ()))
    strides, dilations, before, after = _spatial(node, len(kernel))
    if _attribute(node, "ceil_mode", 0):
        raise Invalid(f"{node.op_type} with ceil_mode is not computed")
    if node.op_type == "MaxPool":
        function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
        return function(_padded(given[0], before, after, -math.inf), kernel, strides, 0, dilations)
    average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    if any(one != 1 for one in dilations) or (any(before + after) and not _attribute(node, "count_include_pad", 0)):
        raise Invalid("AveragePool with dilations, or with padding that does not count, is not computed")
    return average(_padded(given[0], before, after, 0.0), kernel, strides)


def _global_pool(node: Node, given: Sequence[Any]) -> Any:
    axes = tuple(range(2, given[0].ndim))
    return given[0].mean(dim=axes, keepdim=True) if node.op_type == "GlobalAveragePool" else given[0].amax(axes, keepdim=True)


def _batch_norm(node: Node, given: Sequence[Any]) -> Any:
    x, scale, bias, mean, variance = given[:5]
    if _attribute(node, "training_mode", 0):
        raise Invalid("a BatchNormalization in training mode is not computed: export the model as for evaluation")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, _attribute(node, "epsilon", 1e-5))


def _layer_norm(node: Node, given: Sequence[Any]) -> Any:
    axis = _attribute(node, "axis", -1)
    shape = given[0].shape[axis:]
    bias = given[2] if len(given) > 2 else None
    return functional.layer_norm(given[0], list(shape), given[1], bias, _attribute(node, "epsilon", 1e-5))


def _reshape(node: Node, given: Sequence[Any]) -> Any:
    wanted = ints(given[1])
    if not _attribute(node, "allowzero", 0):
        wanted = [given[0].shape[at] if one == 0 else one for at, one in enumerate(wanted)]
    return given[0].reshape(wanted)


def _flatten(node: Node, given: Sequence[Any]) -> Any:
    axis = _attribute(node, "axis", 1)
    if axis == 1:
        return given[0].flatten(1)
    raise Invalid("a Flatten that mixes rows is not computed")


def _squeeze(node: Node, given: Sequence[Any]) -> Any:
    axes = _axes(node, given)
    if isinstance(given[0], np.ndarray):
        return given[0].squeeze() if axes is None else given[0].squeeze(tuple(axes))
    if axes is None:
        raise Invalid("a Squeeze without axes is not computed: of one row it would squeeze the rows")
    return given[0].squeeze(tuple(axes))


def _unsqueeze(node: Node, given: Sequence[Any]) -> Any:
    found = given[0]
    for axis in sorted(_axes(node, given) or ()):
        found = np.expand_dims(found, axis) if isinstance(found, np.ndarray) else found.unsqueeze(axis)
    return found


def _concat(node: Node, given: Sequence[Any]) -> Any:
    axis = _attribute(node, "axis", 0)
    if all(isinstance(one, np.ndarray) for one in given):
        return np.concatenate(given, axis=axis)
    return torch.cat([one if isinstance(one, torch.Tensor) else torch.as_tensor(one) for one in given], dim=axis)


def _slice(_node: Node, given: Sequence[Any]) -> Any:
    starts, ends = ints(given[1]), ints(given[2])
    axes = ints(given[3]) if len(given) > 3 and given[3] is not None else list(range(len(starts)))
    steps = ints(given[4]) if len(given) > 4 and given[4] is not None else [1] * len(starts)
    if min(steps) < 1:
        raise Invalid("a Slice that goes backwards is not computed")
    index = [slice(None)] * given[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return given[0][tuple(index)]


def _gather(node: Node, given: Sequence[Any]) -> Any:
    axis = _attribute(node, "axis", 0)
    if isinstance(given[0], np.ndarray):
        return np.take(given[0], given[1], axis=axis)
    index = torch.as_tensor(given[1], device=given[0].device).long()
    index = torch.where(index < 0, index + given[0].shape[axis], index)
    found = given[0].index_select(axis, index.reshape(-1))
    return found.reshape(*given[0].shape[:axis], *index.shape, *given[0].shape[axis + 1 :])


def _pad(node: Node, given: Sequence[Any]) -> Any:
    if _attribute(node, "mode", b"constant") != b"constant" or (len(given) > 3 and given[3] is not None):
        raise Invalid("Pad is computed with a constant, on every axis")
    pads, rank = ints(given[1] if len(given) > 1 else _attribute(node, "pads", ())), given[0].ndim
    value = float(given[2]) if len(given) > 2 and given[2] is not None else float(_attribute(node, "value", 0.0))
    return _padded(given[0], pads[:rank], pads[rank:], value)


def _split(node: Node, given: Sequence[Any]) -> Any:
    axis = _attribute(node, "axis", 0)
    held = given[1] if len(given) > 1 else _attribute(node, "split", None)
    size = given[0].shape[axis]
    return given[0].split(ints(held) if held is not None else -(-size // len(node.outputs)), dim=axis)


def _clip(node: Node, given: Sequence[Any]) -> Any:
    low = given[1] if len(given) > 1 else _attribute(node, "min", None)
    high = given[2] if len(given) > 2 else _attribute(node, "max", None)
    x = given[0] if low is None else torch.maximum(given[0], torch.as_tensor(low, dtype=given[0].dtype))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))


def _reduce(node: Node, given: Sequence[Any]) -> Any:
    x, axes, keep = given[0], _axes(node, given), bool(_attribute(node, "keepdims", 1))
    if axes is None:
        raise Invalid(f"a {node.op_type} over all axes, rows too, is not computed")
    axes_of = tuple(axes)
    return {
        "ReduceMean": lambda: x.mean(dim=axes_of, keepdim=keep),
        "ReduceSum": lambda: x.sum(dim=axes_of, keepdim=keep),
        "ReduceMax": lambda: x.amax(axes_of, keep),
        "ReduceMin": lambda: x.amin(axes_of, keep),
        "ReduceL1": lambda: x.abs().sum(dim=axes_of, keepdim=keep),
        "ReduceL2": lambda: x.square().sum(dim=axes_of, keepdim=keep).sqrt(),
        "ReduceSumSquare": lambda: x.square().sum(dim=axes_of, keepdim=keep),
    }[node.op_type]()


def _cast(node: Node, given: Sequence[Any]) -> Any:
    kind = _TYPES.get(int(_attribute(node, "to", 0)))
    if kind is None:
        raise Invalid("a Cast to this type is not computed")
    if isinstance(given[0], np.ndarray):
        return given[0] if not kind.is_floating_point else torch.as_tensor(given[0]).to(kind)
    if given[0].is_floating_point() and not kind.is_floating_point:
        raise Invalid("a Cast to whole numbers has no gradient")
    return given[0].to(kind)


def _shape(node: Node, given: Sequence[Any]) -> Any:
    whole = np.array([int(one) for one in given[0].shape], np.int64)
    return whole[slice(_attribute(node, "start", 0), _attribute(node, "end", None))]


def _constant_of_shape(node: Node, given: Sequence[Any]) -> Any:
    held = node.attributes.get("value")
    value = np.float32(0.0) if held is None else np.asarray(held).ravel()[0]
    made = np.full(ints(given[0]), value)
    return made if made.dtype.kind in "iu" else torch.as_tensor(made)


def _scaler(node: Node, given: Sequence[Any]) -> Any:
    x = given[0].float()
    offset, scale = (x.new_tensor(_attribute(node, name, default)) for name, default in (("offset", [0.0]), ("scale", [1.0])))
    return (x - offset) * scale


def _normalizer(node: Node, given: Sequence[Any]) -> Any:
    x, kind = given[0].float(), _attribute(node, "norm", b"MAX")
    size = {b"L1": lambda: x.abs().sum(1, True), b"L2": lambda: x.norm(dim=1, keepdim=True), b"MAX": lambda: x.amax(1, True)}
    found = size[kind]()
    return x / torch.where(found == 0, torch.ones_like(found), found)


def _linear_classifier(node: Node, given: Sequence[Any]) -> Any:
    """No labels, and the scores as they are before ``post_transform``, shape (n, k)."""
    x = given[0].float().flatten(1)
    intercepts = x.new_tensor(_attribute(node, "intercepts", ()))
    return None, functional.linear(x, x.new_tensor(_attribute(node, "coefficients", ())).reshape(-1, x.shape[1]), intercepts)


def _softmax(node: Node, given: Sequence[Any]) -> Any:
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    return function(given[0], dim=_attribute(node, "axis", -1))


def _gelu(node: Node, given: Sequence[Any]) -> Any:
    return functional.gelu(given[0], approximate=_attribute(node, "approximate", b"none").decode())


def _selu(node: Node, given: Sequence[Any]) -> Any:
    for name, usual in (("alpha", 1.6732632), ("gamma", 1.0507010)):
        if abs(_attribute(node, name, usual) - usual) > 1e-6:
            raise Invalid(f"a Selu with another {name} is not computed")
    return functional.selu(given[0])


def _tensor_of(one: Any, like: Any) -> Any:
    return torch.as_tensor(one, device=like.device) if isinstance(one, np.ndarray) else one


def _plain(function: Callable[..., Any]) -> Operator:
    """Of all inputs in order; where one is a tensor, all are."""

    def apply(_node: Node, given: Sequence[Any]) -> Any:
        like = next((one for one in given if isinstance(one, torch.Tensor)), None)
        return function(*(given if like is None else [_tensor_of(one, like) for one in given]))

    return apply


def _folded(function: Callable[[Any, Any], Any]) -> Operator:
    """Of two inputs at a time, as Max and Min take any number."""

    def apply(_node: Node, given: Sequence[Any]) -> Any:
        found = given[0]
        for one in given[1:]:
            found = function(found, one)
        return found

    return apply


OPERATORS: dict[tuple[str, str], Operator] = {
    **{("", name): _plain(function) for name, function in {
        "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": lambda a, b: a / b,
        "Pow": lambda a, b: a ** b, "MatMul": lambda a, b: a @ b, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log,
        "Abs": torch.abs, "Neg": lambda a: -a, "Erf": torch.erf, "Reciprocal": lambda a: 1 / a, "Relu": functional.relu,
        "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softplus": functional.softplus, "Softsign": functional.softsign,
        "Mish": functional.mish, "HardSwish": functional.hardswish, "Sin": torch.sin, "Cos": torch.cos,
        "Identity": lambda a: a, "Dropout": lambda a, *_: a, "PRelu": lambda a, b: torch.where(a < 0, a * b, a),
        "Where": torch.where, "Greater": lambda a, b: a > b, "GreaterOrEqual": lambda a, b: a >= b,
        "Less": lambda a, b: a < b, "LessOrEqual": lambda a, b: a <= b, "Equal": lambda a, b: a == b, "Not": torch.logical_not,
    }.items()},
    **dict.fromkeys([("", f"Reduce{name}") for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare")], _reduce),
    ("", "Max"): _folded(torch.maximum), ("", "Min"): _folded(torch.minimum), ("", "Clip"): _clip, ("", "Cast"): _cast,
    ("", "LeakyRelu"): lambda node, given: functional.leaky_relu(given[0], _attribute(node, "alpha", 0.01)),
    ("", "Elu"): lambda node, given: functional.elu(given[0], _attribute(node, "alpha", 1.0)),
    ("", "Celu"): lambda node, given: functional.celu(given[0], _attribute(node, "alpha", 1.0)),
    ("", "Selu"): _selu, ("", "Gelu"): _gelu,
    ("", "HardSigmoid"): lambda node, given: (
        _attribute(node, "alpha", 0.2) * given[0] + _attribute(node, "beta", 0.5)).clamp(0, 1),
    ("", "Gemm"): _gemm, ("", "Conv"): _conv, ("", "MaxPool"): _pool, ("", "AveragePool"): _pool,
    ("", "GlobalAveragePool"): _global_pool, ("", "GlobalMaxPool"): _global_pool, ("", "BatchNormalization"): _batch_norm,
    ("", "LayerNormalization"): _layer_norm, ("", "Softmax"): _softmax, ("", "LogSoftmax"): _softmax,
    ("", "Reshape"): _reshape, ("", "Flatten"): _flatten, ("", "Squeeze"): _squeeze, ("", "Unsqueeze"): _unsqueeze,
    ("", "Transpose"): lambda node, given: given[0].permute(
        ints(_attribute(node, "perm", list(reversed(range(given[0].ndim)))))),
    ("", "Concat"): _concat, ("", "Slice"): _slice, ("", "Gather"): _gather, ("", "Pad"): _pad, ("", "Split"): _split,
    ("", "Expand"): lambda _node, given: given[0] * given[0].new_ones(ints(given[1])), ("", "Shape"): _shape,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("ai.onnx.ml", "Scaler"): _scaler, ("ai.onnx.ml", "Normalizer"): _normalizer,
    ("ai.onnx.ml", "LinearClassifier"): _linear_classifier,
}  # fmt: skip
"""By domain and name."""
