"""Where an attack may go: a ball of the norm around each row, within the box of what inputs can be. Rows are flat, (n, d)."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from modelkeep.errors import Invalid

NORMS = ("linf", "l2")


@dataclass(frozen=True, eq=False)
class Ball:
    """``epsilon``: radius in ``norm`` (``linf``, ``l2``), in units of the input; ``low``, ``high``: of every feature, (d,).

    Raises Invalid (another norm, a radius that is not positive, a box that is empty).
    """

    norm: str
    epsilon: float
    low: Any
    high: Any

    def __post_init__(self) -> None:
        if self.norm not in NORMS or not self.epsilon > 0:
            raise Invalid(f"attacks know the norms {', '.join(NORMS)} and radii above 0, not {self.norm} {self.epsilon:g}")
        if not bool((self.low < self.high).any()) or bool((self.low > self.high).any()):
            raise Invalid("an attack needs a box: the lowest value of each feature must not be above its highest")

    def grown(self, epsilon: float) -> "Ball":
        """The ball with another radius."""
        return replace(self, epsilon=epsilon)

    def unbounded(self) -> "Ball":
        """The ball that holds the whole box."""
        span = self.high - self.low
        return self.grown(float(span.max() if self.norm == "linf" else span.norm()))

    def clip(self, x: Any) -> Any:
        """Into the box, in place."""
        return torch.maximum(torch.minimum(x, self.high, out=x), self.low, out=x)

    def draw(self, centre: Any, generator: torch.Generator) -> Any:
        """A random point on the surface of the ball of each row, then into the box."""
        if self.norm == "linf":
            t = torch.rand(centre.shape, generator=generator, dtype=centre.dtype).to(centre.device).mul_(2).sub_(1)
            t /= t.abs().amax(1, keepdim=True).clamp_min_(1e-12)
        else:
            t = torch.randn(centre.shape, generator=generator, dtype=centre.dtype).to(centre.device)
            t /= t.norm(dim=1, keepdim=True)
        return self.clip(t.mul_(self.epsilon).add_(centre))

    def project(self, x: Any, centre: Any) -> Any:
        """Into the ball and the box, in place. The L2 ball is left by no more than the box takes away."""
        if self.norm == "linf":
            torch.maximum(torch.minimum(x, centre + self.epsilon, out=x), centre - self.epsilon, out=x)
        else:
            moved = x.sub_(centre)
            scale = (self.epsilon / moved.norm(dim=1, keepdim=True).clamp_min_(1e-12)).clamp_max_(1.0)
            moved.mul_(scale).add_(centre)
        return self.clip(x)

    def steepest(self, gradient: Any) -> Any:
        """The direction of length 1 that raises the loss most: signs, or the gradient scaled; however small its numbers are."""
        if self.norm == "linf":
            return gradient.sign()
        scaled = gradient / gradient.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(gradient.dtype).tiny)
        return scaled / scaled.norm(dim=1, keepdim=True).clamp_min_(1e-12)

    def distance(self, x: Any, centre: Any) -> Any:
        """Of each row, shape (n,)."""
        moved = x - centre
        return moved.abs().amax(1) if self.norm == "linf" else moved.norm(dim=1)
