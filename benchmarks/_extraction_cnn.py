"""A small convolutional network as a user would serve one: trained with PyTorch, exported to ONNX, run by onnxruntime."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.targets import OnnxTarget
from modelkeep.torch import to_onnx

Floats = NDArray[np.float64]

EPOCHS = 5
BATCH = 128


def fit_cnn(x: Floats, y: NDArray[np.int64]) -> Callable[[Floats], Floats]:
    """Learn from square pictures (n, side * side), values 0 ... 1, and labels (n,); it answers with probabilities.

    Two convolutions of 16 and 32 maps, pooled, and 64 hidden units: about 100,000 weights. Deterministic on one machine.
    """
    import torch
    from torch import nn

    torch.manual_seed(1)
    side = int(np.sqrt(x.shape[1]))
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, int(y.max()) + 1),
    )  # fmt: skip
    pictures = torch.tensor(x.reshape(-1, 1, side, side), dtype=torch.float32)
    labels, adam = torch.tensor(y), torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            adam.zero_grad()
            nn.functional.cross_entropy(module(pictures[rows]), labels[rows]).backward()
            adam.step()
    served = OnnxTarget(to_onnx(module, pictures[:4], logits=True))
    return lambda rows: np.concatenate([served.predict(rows[at : at + 1024]) for at in range(0, len(rows), 1024)])
