"""What an attacker may make of a row: a ball around it, and what the columns of a table still have to obey.

While rows are searched they are *relaxed*: integers and one-hot groups pass through the numbers between. ``settle`` ends that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]
NORMS = ("linf", "l2")
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Threat:
    """Rows x + d with ||d / epsilon|| <= 1 in ``norm``, each column between ``low`` and ``high``, and more where it is said.

    Numbers, or tensors of the shape of one row. ``frozen``, ``whole``, ``rising``, ``falling``: masks of columns that stay,
    hold integers, may only grow, or may only shrink. ``groups``: columns of which one is 1 and the rest 0 (rows of one axis).
    A row that breaks a rule itself may go on doing so, no further: it is always one of its own neighbours.
    """

    norm: str
    epsilon: float | Tensor
    low: float | Tensor = -math.inf
    high: float | Tensor = math.inf
    frozen: Tensor | None = None
    whole: Tensor | None = None
    rising: Tensor | None = None
    falling: Tensor | None = None
    groups: Groups = ()

    def __post_init__(self) -> None:
        """Raises Invalid: no such norm, a negative or infinite radius, an empty range, or groups that share columns."""
        radius, low, high = (torch.as_tensor(one) for one in (self.epsilon, self.low, self.high))
        if self.norm not in NORMS:
            raise Invalid(f"{self.norm[:40]!r} is no norm of an attack: use {' or '.join(NORMS)}")
        if not bool((radius.isfinite() & (radius >= 0)).all()):
            raise Invalid("the radius of an attack is a number of 0 or more")
        if not bool((low <= high).all()):
            raise Invalid("a column has a range whose low end is above its high end")
        columns = [column for group in self.groups for column in group]
        if len(set(columns)) != len(columns) or any(len(group) < 2 for group in self.groups):
            raise Invalid("a one-hot group has two columns or more, and shares none with another")

    @property
    def discrete(self) -> bool:
        """Whether ``settle`` may move a relaxed row."""
        return bool(self.groups) or (self.whole is not None and bool(self.whole.any()))

    def to(self, device: torch.device) -> "Threat":
        """The same with its tensors on ``device``."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Threat(**{name: one.to(device) if isinstance(one, Tensor) else one for name, one in fields.items()})

    def widened(self, times: float) -> "Threat":
        """The same with a radius so many times as large."""
        return replace(self, epsilon=self.epsilon * times)

    def around(self, origin: Tensor) -> "Reach":
        """What may be made of the rows ``origin``, shape (n, ...)."""
        radius = origin.new_zeros(origin.shape[1:]) + _like(self.epsilon, origin)
        for group in self.groups:
            if origin.dim() != 2 or not all(0 <= column < origin.shape[1] for column in group):
                raise Invalid("a one-hot group names columns that these rows do not have")
        if self.frozen is not None:
            radius = torch.where(self.frozen, torch.zeros_like(radius), radius)
        box = radius if self.norm == "linf" else torch.where(radius > 0, math.inf, 0.0)
        lower, upper = origin - box, origin + box
        lower = torch.minimum(origin, lower.clamp(min=_like(self.low, origin)))
        upper = torch.maximum(origin, upper.clamp(max=_like(self.high, origin)))
        if self.rising is not None:
            lower = torch.where(self.rising, origin, lower)
        if self.falling is not None:
            upper = torch.where(self.falling, origin, upper)
        return Reach(self, origin, radius, lower, upper)


def threat_of(
    norm: str, epsilon: Floats, low: Floats, high: Floats, *, groups: Groups = (), masks: Mapping[str, NDArray[np.bool_]]
) -> Threat:
    """A threat from arrays of the shape of one row. ``masks``: as ``Threat`` calls them. Raises Invalid."""
    numbers = {name: torch.from_numpy(one) for name, one in {"epsilon": epsilon, "low": low, "high": high, **masks}.items()}
    return Threat(norm=norm, groups=groups, **numbers)


@dataclass(frozen=True, eq=False)
class Reach:
    """The neighbours of the rows ``origin``: the box from ``lower`` to ``upper``, and under L2 what of it is in the ball."""

    threat: Threat
    origin: Tensor
    radius: Tensor
    lower: Tensor
    upper: Tensor

    def start(self) -> Tensor:
        """A random neighbour of each row, drawn from PyTorch's own generator."""
        if self.threat.norm == "linf":
            return self.relax(self.origin + (2 * torch.rand_like(self.origin) - 1) * self.radius)
        direction = torch.randn_like(self.origin)
        share = torch.rand(len(direction), device=direction.device, dtype=direction.dtype)
        return self.relax(self.origin + _rows(share / _lengths(direction), direction) * direction * self.radius)

    def step(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        """Uphill along ``gradient`` by ``size`` radii, and back to the nearest neighbour (L2: to one not far from it)."""
        if self.threat.norm == "linf":
            return torch.clamp(torch.addcmul(x, gradient.sign(), self.radius, value=size), self.lower, self.upper)
        scaled = gradient * self.radius
        return self.relax(x + _rows(size / _lengths(scaled), x) * scaled * self.radius)

    def relax(self, x: Tensor) -> Tensor:
        """``x`` brought into the box, and then towards the origin until it is in the ball."""
        x = torch.clamp(x, self.lower, self.upper)
        if self.threat.norm == "linf":
            return x
        shift = x - self.origin
        inside = (1 / self._lengths(shift).clamp(min=_TINY)).clamp(max=1.0)
        return self.origin + _rows(inside, shift) * shift

    def settle(self, x: Tensor) -> Tensor:
        """A relaxed ``x`` with integers and one-hot groups again, and still a neighbour.

        To the nearest integer, and the largest of a group; what leaves the ball so goes towards the origin instead: integers by
        cutting off, groups by staying what they were.
        """
        if not self.threat.discrete:
            return x
        x = self._groups(x)
        if self.threat.whole is None:
            return x
        near = torch.where(self.threat.whole, self._rounded(x), x)
        cut = torch.where(self.threat.whole, self.origin + (x - self.origin).trunc(), x)
        return torch.where(_rows(self._fits(near), x), near, cut)

    def _groups(self, x: Tensor) -> Tensor:
        chosen = x.clone()
        for group in self.threat.groups:
            columns = torch.tensor(group, device=x.device)
            hot = torch.zeros_like(x[:, columns]).scatter_(1, x[:, columns].argmax(dim=1, keepdim=True), 1.0)
            was = self.origin[:, columns]
            allowed = (hot >= self.lower[:, columns] - 1e-6) & (hot <= self.upper[:, columns] + 1e-6)
            chosen[:, columns] = torch.where(allowed.all(dim=1, keepdim=True), hot, was)
        stayed = x.clone()
        for group in self.threat.groups:
            stayed[:, list(group)] = self.origin[:, list(group)]
        return torch.where(_rows(self._fits(chosen), x), chosen, stayed)

    def _rounded(self, x: Tensor) -> Tensor:
        """To integers of the box; a column that starts between two integers moves by whole numbers from where it is."""
        shift = (x - self.origin).round()
        return self.origin + torch.minimum(
            torch.maximum(shift, (self.lower - self.origin).ceil()), (self.upper - self.origin).floor()
        )

    def _fits(self, x: Tensor) -> Tensor:
        """Whether each row is in the ball; under L-infinity the box says so."""
        if self.threat.norm == "linf":
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self._lengths(x - self.origin) <= 1 + 1e-6

    def _lengths(self, shift: Tensor) -> Tensor:
        return _lengths(shift / self.radius.clamp(min=_TINY))


def _lengths(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).clamp(min=_TINY)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """One value a row, shaped so that it meets ``like``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _like(given: float | Tensor, rows: Tensor) -> Any:
    """Tensors as ``rows`` have them; a plain number as it is, for it would be copied to the device every time."""
    return given.to(rows) if isinstance(given, Tensor) else given
