"""An ONNX classifier as a PyTorch module with gradients: the same graph, computed node by node."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.onnx import parse_onnx
from modelkeep.formats.onnx_graph import Graph, Node, graph_of
from modelkeep.training.lab.operators import OPERATORS

Floats = NDArray[np.floating]
TOLERANCE = 1e-4
"""Greatest difference of a probability, or of a score beside its size, between the module and the file."""
_SAME = ("Identity", "Cast", "Dropout")
_LEARNT = {"Gemm": (1, 2), "MatMul": (0, 1), "Conv": (1, 2), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2)}
"""Inputs that training changes."""
_KINDS = {"FP32": torch.float32, "FP64": torch.float64, "FP16": torch.float32}
_LINEAR = {b"SOFTMAX": "softmax", b"LOGISTIC": "linear-logistic", b"NONE": "logits"}
"""How logits come from the scores of a LinearClassifier, by its post_transform."""


class Interval(NamedTuple):
    """Bounds of a tensor, of its shape."""

    low: Any
    high: Any


class Net(nn.Module):
    """A classifier whose scores have gradients. ``forward`` is ``logits``.

    ``tail``: the shape of one row, -1 where it is open; ``exact``: logits were found before the softmax, else they are
    logarithms of probabilities, and their gradients vanish where those saturate; ``scores``: what was compared with the file's
    answers, ``probabilities`` or ``logits``. Weights of layers are parameters, every other number of the file a buffer.
    """

    def __init__(self, graph: Graph, tail: Sequence[int], kind: str, output: str) -> None:
        """``output``: the tensor of probabilities or scores of classes, shape (n, k). Raises Invalid (black box only)."""
        super().__init__()
        self.tail, self.input, self.kind = tuple(tail), graph.inputs[0], _KINDS[kind]
        self._head, self._pattern = _head(graph, output)
        self.exact = self._pattern != "scores"
        self.nodes = _needed(graph, self._head)
        self.fixed: dict[str, Any] = {}
        self._held: dict[str, str] = {}
        learnt = _learnt(self.nodes)
        for number, (name, value) in enumerate(graph.constants.items()):
            if not any(name in node.inputs for node in self.nodes):
                continue
            if value is None:
                raise Invalid(f"black box only: the constant {name[:80]!r} cannot be read")
            if value.dtype.kind in "iu":
                self.fixed[name] = value
                continue
            tensor = torch.from_numpy(np.array(value))
            own = f"{'weight' if name in learnt else 'constant'}{number}"
            self._held[name] = own
            if name in learnt and tensor.is_floating_point():
                self.register_parameter(own, nn.Parameter(tensor))
            else:
                self.register_buffer(own, tensor)
        self.eval()

    @property
    def scores(self) -> str:
        """What the file answers with: ``logits``, or ``probabilities``, which are the softmax of them."""
        return "logits" if self._pattern == "logits" else "probabilities"

    def forward(self, x: Any) -> Any:
        """``logits``."""
        return self.logits(x)

    def logits(self, x: Any) -> Any:
        """Scores of classes (n, k), of which the probabilities are the softmax. ``x``: rows (n, d) or (n, *tail)."""
        return self._as_logits(self.values(x)[self._head])

    def bounds(self, low: Any, high: Any, rule: Callable[[Node, Sequence[Any]], Any]) -> tuple[Any, Any]:
        """Bounds of the logits over the boxes from ``low`` to ``high``, (n, d). ``rule``: an operator on an ``Interval``."""
        found = self._run(Interval(*(self._shaped(one).to(self.kind) for one in (low, high))), rule)[self._head]
        return self._as_logits(found.low), self._as_logits(found.high)

    def values(self, x: Any) -> dict[str, Any]:
        """Every tensor of the graph by name, for rows ``x``."""
        return self._run(self._shaped(x).to(self.kind), _compute)

    def _run(self, x: Any, rule: Callable[[Node, Sequence[Any]], Any]) -> dict[str, Any]:
        held: dict[str, Any] = {**self.fixed, **{name: getattr(self, own) for name, own in self._held.items()}, self.input: x}
        for node in self.nodes:
            made = rule(node, [held[name] if name else None for name in node.inputs])
            single = isinstance(made, Interval) or not isinstance(made, tuple | list)
            held.update(zip(node.outputs, [made] if single else made, strict=False))
        return held

    def _as_logits(self, found: Any) -> Any:
        match self._pattern:
            case "log-odds":  # of the second of two classes
                flat = found.reshape(-1, 1)  # len() would fix the number of rows where it is exported
                return torch.cat([torch.zeros_like(flat), flat], dim=1)
            case "linear-logistic":
                return functional.logsigmoid(found)
            case "scores":
                return found.clamp_min(torch.finfo(found.dtype).tiny).log()
            case _:
                return found

    def _shaped(self, x: Any) -> Any:
        if len(self.tail) > 1 and x.ndim == 2:
            return x.reshape(-1, *self.tail)
        return x.flatten(1) if len(self.tail) == 1 and x.ndim > 2 else x


def _compute(node: Node, given: Sequence[Any]) -> Any:
    return OPERATORS[node.domain, node.op_type](node, given)


def load(onnx: bytes, rows: Floats | None = None) -> Net:
    """The classifier of an ONNX file. ``rows``: a few that it takes, (n, d), without which none is tried.

    Raises Invalid, beginning with "black box only" where the file cannot be computed with gradients (trees, an operator that is
    not known here, several inputs, no classes).
    """
    model = parse_onnx(onnx)
    unknown = sorted(
        {f"{one.domain}:{one.op_type}".lstrip(":") for one in model.operators if _strange(one.domain, one.op_type)}
    )
    if unknown:
        raise Invalid(f"black box only: no gradient goes through {', '.join(unknown)[:200]}")
    if len(model.inputs) != 1 or model.inputs[0].datatype not in _KINDS or model.functions:
        raise Invalid("black box only: gradients need a model with one floating input, and no functions of its own")
    graph = graph_of(onnx)
    whole, tail, problem = model.inputs[0], model.inputs[0].shape[1:], "it has no output of scores"
    for output in model.outputs:
        if output.datatype not in _KINDS or len(output.shape) not in (1, 2) or output.shape[-1] == 1:
            continue
        try:
            net = Net(graph, tail, whole.datatype, output.name)
            return net if rows is None else _tried(net, rows)
        except (Invalid, RuntimeError, ValueError, TypeError, KeyError, IndexError) as cause:  # of shapes that do not fit
            problem = str(cause).removeprefix("black box only: ").partition("\n")[0][:200]
    raise Invalid(f"black box only: {problem}")


def compare(net: Net, rows: Floats, answers: Floats) -> float:
    """The greatest difference between the module's scores of ``rows`` (n, d) and ``answers`` (n, k) that the file gave to them.

    Of scores above 1, beside their size. Raises NotTrusted: above ``TOLERANCE``, or in another shape.
    """
    with torch.no_grad():
        found = net.logits(as_rows(net, rows))
        found = (torch.softmax(found, dim=1) if net.scores == "probabilities" else found).double().numpy()
    if found.shape != answers.shape:
        raise NotTrusted(f"the module answers in the shape {found.shape}, the file in {answers.shape}")
    difference = float((np.abs(found - answers) / np.maximum(1.0, np.abs(answers))).max(initial=0.0))
    if not difference <= TOLERANCE:
        raise NotTrusted(f"the module differs by {difference:.2g} from the file, more than {TOLERANCE:g}")
    return difference


def as_rows(net: Net, rows: Floats) -> Any:
    """Rows as a tensor of the type that the net takes."""
    return torch.from_numpy(np.ascontiguousarray(rows)).to(net.kind)


def _tried(net: Net, rows: Floats) -> Net:
    with torch.no_grad():
        found = net.logits(as_rows(net, rows[:8]))
        if found.ndim != 2 or found.shape[1] < 2 or len(found) != len(rows[:8]):
            raise Invalid(f"it answers in the shape {tuple(found.shape)}, and not with scores of classes")
        if net._pattern == "scores" and not _adds_up(net.values(as_rows(net, rows[:8]))[net._head]):
            net._pattern, net.exact = "logits", True
    return net


def _adds_up(found: Any) -> bool:
    return bool((found >= 0).all() and ((found.sum(dim=1) - 1).abs() < 1e-3).all())


def _strange(domain: str, name: str) -> bool:
    """Whether a graph that holds this operator is not computed; what makes labels of classes is no part of it."""
    labels = {("", "ArgMax"), ("", "Constant"), ("ai.onnx.ml", "ArrayFeatureExtractor"), ("ai.onnx.ml", "ZipMap")}
    key = ("" if domain == "ai.onnx" else domain, name)
    return key not in OPERATORS and key not in labels


def _needed(graph: Graph, head: str) -> tuple[Node, ...]:
    """The nodes that ``head`` is computed from. Raises Invalid (one of them is not computed)."""
    wanted, kept = {head}, []
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        if (node.domain, node.op_type) not in OPERATORS:
            raise Invalid(f"black box only: no gradient goes through {node.op_type}")
        kept.append(node)
        wanted.update(node.inputs)
    return tuple(reversed(kept))


def _learnt(nodes: Iterable[Node]) -> set[str]:
    found, products = set[str](), set[str]()
    for node in nodes:
        found.update(node.inputs[at] for at in _LEARNT.get(node.op_type, ()) if at < len(node.inputs))
        if node.op_type == "MatMul":
            products.update(node.outputs)
        elif node.op_type == "Add" and products.intersection(node.inputs):  # a bias
            found.update(node.inputs)
    return found


def _head(graph: Graph, output: str) -> tuple[str, str]:
    """The tensor that logits come from, and how: the softmax, or what stands in its place, undone."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    node = makers.get(output)
    while node is not None and _passes(node):
        output = node.inputs[0]
        node = makers.get(output)
    if node is None:
        raise Invalid("its scores are its input")
    if node.op_type == "Softmax" and node.attributes.get("axis", -1) in (1, -1):
        return node.inputs[0], "softmax"
    if node.op_type == "LogSoftmax":
        return output, "logits"
    if node.op_type == "Concat" and (odds := _log_odds(graph, makers, node)):
        return odds, "log-odds"
    if node.op_type == "LinearClassifier":
        kind = node.attributes.get("post_transform", b"NONE")
        found = _LINEAR.get(kind if isinstance(kind, bytes) else b"")
        if found is None:
            raise Invalid(f"a LinearClassifier with {kind!r} is not computed")
        return node.outputs[1], found
    return output, "scores"


def _passes(node: Node) -> bool:
    """Whether probabilities leave it as they came: scaled to sum 1, at most."""
    return node.op_type in _SAME or (node.op_type == "Normalizer" and node.attributes.get("norm") == b"L1")


def _log_odds(graph: Graph, makers: dict[str, Node], node: Node) -> str | None:
    """The z of [1 - sigmoid(z), sigmoid(z)], as scikit-learn's networks end for two classes."""
    if len(node.inputs) != 2:
        return None
    rest, second = (makers.get(name) for name in node.inputs)
    if rest is None or second is None or rest.op_type != "Sub" or second.op_type != "Sigmoid":
        return None
    one = graph.constants.get(rest.inputs[0])
    if one is None or rest.inputs[1] != node.inputs[1] or not np.all(one == 1):
        return None
    return second.inputs[0]
