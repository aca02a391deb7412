"""Architectures for training from fresh weights: by a word, or the layers of an ONNX file, whose weights are left alone."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from modelkeep.errors import Invalid
from modelkeep.formats.onnx_graph import Graph, Node, graph_of

WORDS = "linear, mlp:WIDTH[,WIDTH…] or cnn:CHANNELS[,CHANNELS…]"
_WORD = re.compile(r"(linear|mlp|cnn)(?::(\d{1,5}(?:,\d{1,5}){0,7}))?\Z")


def architecture(said: str | bytes, shape: tuple[int, ...], classes: int) -> nn.Module:
    """By a word, or the layers of an ONNX file. Raises Invalid (also: the file has other classes)."""
    if isinstance(said, str):
        return by_word(said, shape, classes)
    found = layers_of(said)
    last = next(layer for layer in reversed(found) if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv1d))
    made = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    if made != classes:
        raise Invalid(f"the layers of the file end in {made} numbers, and the rows have {classes} classes")
    return found


def by_word(word: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A classifier of rows of this ``shape``, in the words of ``WORDS``: tanh between layers, which noise harms least
    (Papernot et al. 2021); ``cnn``: convolutions 3 x 3 with halving, rows (channels, height, width) or (height, width).

    Raises Invalid.
    """
    found = _WORD.match(word)
    if not found or classes < 2 or not shape or (found[1] == "linear") == bool(found[2]):
        raise Invalid(f"{word[:60]!r} is no architecture: use {WORDS}, with two classes or more")
    widths = [int(one) for one in (found[2] or "").split(",") if one]
    if min(widths, default=1) < 1:
        raise Invalid(f"{word[:60]!r} has a layer without units")
    return _pictures(shape, widths, classes) if found[1] == "cnn" else _tables(shape, widths, classes)


def _tables(shape: tuple[int, ...], widths: list[int], classes: int) -> nn.Module:
    size = 1
    for one in shape:
        size *= one
    layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
    for width in widths:
        layers += [nn.Linear(size, width), nn.Tanh()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes))


def _pictures(shape: tuple[int, ...], widths: list[int], classes: int) -> nn.Module:
    if len(shape) not in (2, 3) or min(shape[-2:]) >> len(widths) < 1:
        raise Invalid(f"rows of shape {shape} are no pictures that {len(widths)} convolutions can halve")
    layers: list[nn.Module] = [nn.Unflatten(1, (1, shape[0]))] if len(shape) == 2 else []
    channels, height, width = (1, *shape)[-3:]
    for each in widths:
        layers += [nn.Conv2d(channels, each, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)]
        channels, height, width = each, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, classes))


def layers_of(data: bytes) -> nn.Sequential:
    """The layers of an ONNX file that are one after the other, up to its logits, with fresh weights.

    Numbers that the file scales rows by may be learnt from data, and so may trees: they are refused. Raises Invalid.
    """
    graph = graph_of(data)
    if len(graph.inputs) != 1:
        raise Invalid("the layers of a file are taken when it has one input")
    at, layers = graph.inputs[0], _Layers(graph)
    for node in graph.nodes:
        if at not in node.inputs:
            continue
        if node.op_type in _TAIL:
            break
        layers.take(node)
        at = node.outputs[0]
    if not any(isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) for layer in layers.made):
        raise Invalid("the file has no layers with weights that could be trained")
    return nn.Sequential(*layers.made)


_TAIL = ("Softmax", "LogSoftmax", "ArgMax", "ZipMap", "TopK")
_SAME = ("Identity", "Cast", "Dropout")
_SIMPLE: dict[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU, "Tanh": nn.Tanh, "Sigmoid": nn.Sigmoid, "Elu": nn.ELU, "Selu": nn.SELU, "Gelu": nn.GELU,
    "Softplus": nn.Softplus, "Softsign": nn.Softsign, "HardSwish": nn.Hardswish, "LeakyRelu": nn.LeakyReLU,
    "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1), "Flatten": nn.Flatten,
}  # fmt: skip


class _Layers:
    """Layers so far, from the nodes of a graph in their order."""

    def __init__(self, graph: Graph) -> None:
        self.made: list[nn.Module] = []
        self._graph = graph

    def take(self, node: Node) -> None:
        """Raises Invalid: it is no layer that can be trained anew."""
        if node.op_type in _SAME:
            return
        if node.op_type in _SIMPLE:
            self.made.append(_SIMPLE[node.op_type]())
        elif node.op_type in ("Gemm", "MatMul"):
            self._linear(node)
        elif node.op_type == "Add":
            self._bias(node)
        elif node.op_type == "Conv":
            self._convolution(node)
        elif node.op_type in ("MaxPool", "AveragePool"):
            self._pool(node)
        elif node.op_type == "Reshape":
            tail = tuple(int(one) for one in self._constant(node, 1)[1:])
            self.made.append(nn.Flatten() if len(tail) == 1 else nn.Unflatten(1, tail))
        elif node.op_type == "BatchNormalization":
            pictures = any(isinstance(layer, nn.Conv2d) for layer in self.made[-2:])
            self.made.append((nn.BatchNorm2d if pictures else nn.BatchNorm1d)(len(self._constant(node, 1))))
        else:
            raise Invalid(
                f"{node.op_type[:40]} is no layer that can be trained anew: use {WORDS}"
                + (
                    ", and --bounds to scale rows by what is public"
                    if node.op_type in ("Sub", "Div", "Mul", "Max", "Min", "Clip", "Scaler")
                    else ""
                )
            )

    def _constant(self, node: Node, number: int) -> Any:
        found = self._graph.constants.get(node.inputs[number]) if number < len(node.inputs) else None
        if found is None:
            raise Invalid(f"the weights of a {node.op_type[:40]} are no constants of the file")
        return found

    def _linear(self, node: Node) -> None:
        shape = self._constant(node, 1).shape
        if len(shape) != 2:
            raise Invalid(f"a {node.op_type} with a weight of shape {shape} is no layer that can be trained anew")
        given, made = reversed(shape) if node.attributes.get("transB") else shape
        self.made.append(nn.Linear(given, made, bias=len(node.inputs) > 2))

    def _bias(self, node: Node) -> None:
        last = self.made[-1] if self.made else None
        constants = [self._graph.constants.get(name) for name in node.inputs]
        sizes = [one.size for one in constants if one is not None]
        if not isinstance(last, nn.Linear) or last.bias is not None or sizes != [last.out_features]:
            raise Invalid("an Add that is no layer's bias cannot be trained anew")
        self.made[-1] = nn.Linear(last.in_features, last.out_features)

    def _convolution(self, node: Node) -> None:
        shape = self._constant(node, 1).shape
        kind = {3: nn.Conv1d, 4: nn.Conv2d}.get(len(shape))
        if kind is None:
            raise Invalid(f"a convolution with a weight of shape {shape} is no layer that can be trained anew")
        group = int(node.attributes.get("group", 1))  # type: ignore[arg-type]  # ONNX has a whole number there
        how = self._places(node, len(shape) - 2)
        self.made.append(kind(shape[1] * group, shape[0], shape[2:], groups=group, bias=len(node.inputs) > 2, **how))

    def _pool(self, node: Node) -> None:
        size: Any = node.attributes.get("kernel_shape", ())
        if len(size) != 2:
            raise Invalid("only pooling over two axes can be trained anew")
        how = self._places(node, 2)
        dilation = how.pop("dilation")
        self.made.append(
            nn.MaxPool2d(size, dilation=dilation, **how) if node.op_type == "MaxPool" else nn.AvgPool2d(size, **how)
        )

    @staticmethod
    def _places(node: Node, axes: int) -> dict[str, Any]:
        """Stride, padding and dilation. Raises Invalid (padding by a rule, or uneven)."""
        said = node.attributes
        pads: Any = said.get("pads") or (0,) * (2 * axes)
        if said.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:axes] != pads[axes:] or said.get("ceil_mode"):
            raise Invalid(f"a {node.op_type} that is padded unevenly cannot be trained anew")
        ones = (1,) * axes
        return {"stride": said.get("strides") or ones, "padding": pads[:axes], "dilation": said.get("dilations") or ones}
