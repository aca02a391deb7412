"""Losses that attacks raise, with their gradients at the logits: (loss (n,), gradient (n, k)).

Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
section 4. Gradients are written out: a softmax that saturates would lose them, and one pass less is made.
"""

from typing import Any

import torch


def cross_entropy(logits: Any, labels: Any, _targets: Any) -> tuple[Any, Any]:
    """Cross-entropy. The gradient at the true class is minus the sum of the others, not 1 less a number next to 1."""
    gradient = torch.softmax(logits, dim=1)
    at = labels[:, None]
    loss = torch.logsumexp(logits, dim=1) - logits.gather(1, at).squeeze(1)
    gradient.scatter_(1, at, 0.0)
    gradient.scatter_(1, at, -gradient.sum(dim=1, keepdim=True))
    return loss, gradient


def margin(logits: Any, labels: Any, targets: Any) -> tuple[Any, Any]:
    """The score of the target above that of the label."""
    gradient = torch.zeros_like(logits)
    gradient.scatter_(1, targets[:, None], 1.0).scatter_(1, labels[:, None], -1.0)
    return (logits * gradient).sum(dim=1), gradient


def targeted_dlr(logits: Any, labels: Any, targets: Any) -> tuple[Any, Any]:
    """Difference of logits ratio: the margin, divided by the spread of the largest scores, so that their scale does not matter.

    The spread is z1 - (z3 + z4) / 2; of three classes z1 - z3, and of two the margin itself is the loss.
    """
    above, gradient = margin(logits, labels, targets)
    classes = logits.shape[1]
    if classes < 3:
        return above, gradient
    largest, at = logits.topk(min(classes, 4), dim=1)
    weights = logits.new_tensor([1.0, 0.0, -0.5, -0.5] if classes > 3 else [1.0, 0.0, -1.0])
    spread = (largest @ weights).clamp_min_(1e-12)
    gradient.div_(spread[:, None])
    gradient.scatter_add_(1, at, (-above / spread.square())[:, None] * weights)
    return above / spread, gradient
