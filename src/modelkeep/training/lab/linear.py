"""A classifier of an ONNX file made ready to train: coefficients of linear models as weights, and rows as it takes them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modelkeep.formats.onnx_graph import Node
from modelkeep.training.lab.nets import Floats, Net, as_rows


def with_weights(net: Net) -> Net:
    """``net`` itself, its LinearClassifier nodes as a product and a sum with parameters; the scores are the same.

    ONNX keeps their coefficients as attributes of the node, where nothing is trained.
    """
    net.nodes = tuple(one for number, node in enumerate(net.nodes) for one in _opened(net, number, node))
    return net


def tensors(net: Net, rows: Floats, labels: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows as ``net`` takes them and their classes, on ``device``."""
    return as_rows(net, rows).to(device), torch.from_numpy(labels).to(device)


def _opened(net: Net, number: int, node: Node) -> Iterator[Node]:
    if node.op_type != "LinearClassifier":
        yield node
        return
    bias = _numbers(node, "intercepts")
    matrix = _numbers(node, "coefficients").reshape(len(bias), -1).T.contiguous()
    flat, product, names = f"{number}/rows", f"{number}/product", (f"{number}/matrix", f"{number}/bias")
    for name, own, value in zip(names, (f"matrix{number}", f"bias{number}"), (matrix, bias), strict=True):
        net.register_parameter(own, nn.Parameter(value))
        net._held[name] = own
    yield Node("Flatten", "", (node.inputs[0],), (flat,), {"axis": 1})
    yield Node("MatMul", "", (flat, names[0]), (product,), {})
    yield Node("Add", "", (product, names[1]), (node.outputs[1],), {})


def _numbers(node: Node, name: str) -> Tensor:
    held: Any = node.attributes[name]
    return torch.tensor(held, dtype=torch.float32)
