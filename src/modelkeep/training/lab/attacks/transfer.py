"""Transfer: what fools a stand-in, which has gradients, may fool the model. The stand-in learns from the model's answers alone.

Source: Papernot et al. 2017, "Practical black-box attacks against machine learning".
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Floats = NDArray[np.float64]
HIDDEN, STEPS, BATCH = 128, 400, 128


class StandIn(nn.Module):
    """A network of two hidden layers of 128 that answers rows (n, d) with logits (n, k)."""

    kind = torch.float32

    def __init__(self, width: int, classes: int, middle: Floats, spread: Floats) -> None:
        """``middle``, ``spread``: of each feature, shape (d,)."""
        super().__init__()
        layers = (nn.Linear(width, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, classes))
        self.stack = nn.Sequential(*layers)
        self.register_buffer("middle", torch.from_numpy(middle).float())
        self.register_buffer("spread", torch.from_numpy(spread).float())

    def forward(self, x: Any) -> Any:
        """Logits."""
        return self.stack((x - self.middle) / self.spread)


def stand_in(predict: Callable[[Floats], Floats], x: Floats, radius: Floats, *, seed: int = 0) -> StandIn:
    """A module that answers as ``predict`` does, rows to probabilities (n, k), around rows ``x`` (n, d).

    ``radius``: how far around them it is asked, per feature, shape (d,): as far as the attack will go.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    around = [x, *(x + rng.uniform(-1.5, 1.5, x.shape) * radius for _ in range(4)), x + rng.choice([-1, 1], x.shape) * radius]
    rows = np.concatenate(around)
    answers = torch.from_numpy(predict(rows)).float()
    inputs = torch.from_numpy(rows).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = StandIn(x.shape[1], answers.shape[1], x.mean(axis=0), x.std(axis=0) + 1e-6 + np.abs(radius))
    adam = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(STEPS):
        some = torch.randint(len(inputs), (BATCH,), generator=generator)
        adam.zero_grad()
        functional.cross_entropy(made(inputs[some]), answers[some]).backward()
        adam.step()
    made.eval()
    return made
