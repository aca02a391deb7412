"""Sums of clipped gradients, one a row, from one backward pass ("book-keeping": Bu et al. 2023, arXiv:2210.00038).

Of a layer with weights, the gradient of each row follows from what went in and from the gradient of what came out. So the
backward pass is asked for the latter alone, norms are taken without writing gradients of rows down where that is less work,
and the clipped sum is one product. A module with other layers, or one that uses a layer twice, goes through Opacus's hooks.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from modelkeep.errors import Invalid

OWN, HOOKS = "book-keeping", "opacus hooks"
_KNOWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
_TINY = 1e-6


class _Unfit(Exception):
    """The module does something that book-keeping does not see."""


@dataclass(frozen=True, eq=False)
class _Tap:
    """One use of a layer: what went in (detached), what came out, and its version then."""

    layer: nn.Module
    given: Tensor
    made: Tensor
    version: int


@dataclass(frozen=True, eq=False)
class _Part:
    """Of one layer: squared norms (b,) of its rows' gradients, and from weights (b,) of rows to the sum, one a parameter."""

    squares: Tensor
    total: Callable[[Tensor], list[Tensor]]


class Clipper:
    """Sums of gradients of rows, each at most ``clip`` long. ``way``: how they are made."""

    def __init__(self, module: nn.Module, example: Tensor, clip: float) -> None:
        """``example``: a few rows that are nobody's, to see how the module works. Raises Invalid (not row by row)."""
        self.clip = clip
        self._taps: list[_Tap] = []
        self._module = module
        self._handles: list[Any] = []
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        self.way = OWN if self._fits(example) else HOOKS
        if self.way == HOOKS:
            for handle in self._handles:
                handle.remove()
            try:
                self._hooked: Any = GradSampleModule(module, batch_first=True, loss_reduction="sum")
                self._hooks(example, torch.zeros(len(example), dtype=torch.long))
            except (RuntimeError, NotImplementedError, ValueError, AttributeError) as cause:
                reason = str(cause).partition("\n")[0][:200]
                raise Invalid(
                    f"this module has no gradients of single rows, and cannot be trained privately: {reason}"
                ) from cause

    def sums(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """The sum of the clipped gradients of cross-entropy over rows ``x`` (b, ...), classes ``y`` (b,); one a parameter."""
        return self._book(x, y) if self.way == OWN else self._hooks(x, y)

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()
        if self.way == HOOKS:
            self._hooked.remove_hooks()
            for one in self.parameters:
                with suppress(AttributeError):
                    del one.grad_sample

    def _fits(self, example: Tensor) -> bool:
        owners = [layer for layer in self._module.modules() if any(True for _ in layer.parameters(recurse=False))]
        held = [one for layer in owners for one in layer.parameters(recurse=False)]
        if not all(map(_known, owners)) or not all(one.requires_grad for one in held) or len(held) != len(self.parameters):
            return False
        self._handles = [layer.register_forward_hook(self._note) for layer in owners]
        try:
            self._book(example, torch.zeros(len(example), dtype=torch.long))
        except _Unfit:
            return False
        return True

    def _note(self, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        self._taps.append(_Tap(layer, given[0].detach(), made, made._version))

    def _book(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self._taps.clear()
        loss = functional.cross_entropy(self._module(x), y, reduction="sum")
        taps, self._taps = self._taps, []
        if len({id(tap.layer) for tap in taps}) < len(taps) or any(tap.made._version != tap.version for tap in taps):
            raise _Unfit
        try:
            grads = torch.autograd.grad(loss, [tap.made for tap in taps])
        except RuntimeError as cause:  # a layer that the answer does not depend on
            raise _Unfit from cause
        with torch.no_grad():
            parts = [_part(tap.layer, tap.given, grad) for tap, grad in zip(taps, grads, strict=True)]
            squares = torch.stack([part.squares for part in parts]).sum(dim=0)
            kept = self._kept(squares)
            found = {id(tap.layer): part.total(kept) for tap, part in zip(taps, parts, strict=True)}
        held = {
            id(one): total
            for tap in taps
            for one, total in zip(tap.layer.parameters(recurse=False), found[id(tap.layer)], strict=True)
        }
        if len(held) != len(self.parameters):
            raise _Unfit
        return [held[id(one)] for one in self.parameters]

    def _hooks(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self._hooked.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks that fire where no input needs a gradient, as they must
            functional.cross_entropy(self._hooked(x), y, reduction="sum").backward()
        samples = [one.grad_sample for one in self.parameters]
        with torch.no_grad():
            kept = self._kept(torch.stack([one.flatten(1).square().sum(dim=1) for one in samples]).sum(dim=0))
            sums = [torch.einsum("b,b...->...", kept, one) for one in samples]
        for one in self.parameters:
            one.grad_sample, one.grad = None, None
        return sums

    def _kept(self, squares: Tensor) -> Tensor:
        """By what each row's gradient is multiplied."""
        return (self.clip / (squares.sqrt() + _TINY)).clamp(max=1.0)


def _known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) in _KNOWN


def _part(layer: nn.Module, given: Tensor, grad: Tensor) -> _Part:
    if isinstance(layer, nn.GroupNorm):
        return _scaled(functional.group_norm(given, layer.num_groups, eps=layer.eps), grad, channels=1)
    if isinstance(layer, nn.LayerNorm):
        return _scaled(functional.layer_norm(given, layer.normalized_shape, eps=layer.eps), grad, shape=layer.normalized_shape)
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        if given.dim() == 2:
            return _flat(given, grad, bias)
        return _long(given.flatten(1, -2), grad.flatten(1, -2), layer.weight.shape, bias)
    if isinstance(layer, nn.Conv1d):
        size, pads = ((1, layer.kernel_size[0]), (1, layer.stride[0])), ((0, layer.padding[0]), (1, layer.dilation[0]))
        columns = functional.unfold(given.unsqueeze(2), size[0], stride=size[1], padding=pads[0], dilation=pads[1])
    else:
        columns = functional.unfold(
            given, layer.kernel_size, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
    return _long(columns.transpose(1, 2), grad.flatten(2).transpose(1, 2), layer.weight.shape, bias)


def _flat(given: Tensor, grad: Tensor, bias: bool) -> _Part:
    """A product of ``given`` (b, d) with a weight, and ``grad`` (b, o)."""
    heights = grad.square().sum(dim=1)
    squares = heights * (given.square().sum(dim=1) + float(bias))

    def total(kept: Tensor) -> list[Tensor]:
        scaled = grad * kept[:, None]
        return [scaled.T @ given, *([scaled.sum(dim=0)] if bias else [])]

    return _Part(squares, total)


def _long(given: Tensor, grad: Tensor, shape: torch.Size, bias: bool) -> _Part:
    """The same at t places of each row: ``given`` (b, t, d), ``grad`` (b, t, o); ``shape``: of the weight."""
    places, width, height = given.shape[1], given.shape[2], grad.shape[2]
    sums = grad.sum(dim=1)
    squares = sums.square().sum(dim=1) if bias else torch.zeros(len(given))
    if places * (width + height) < width * height:
        squares = squares + ((given @ given.transpose(1, 2)) * (grad @ grad.transpose(1, 2))).sum(dim=(1, 2))

        def product(kept: Tensor) -> Tensor:
            return (grad * kept[:, None, None]).flatten(0, 1).T @ given.flatten(0, 1)
    else:
        each = grad.transpose(1, 2) @ given
        squares = squares + each.square().sum(dim=(1, 2))

        def product(kept: Tensor) -> Tensor:
            return (kept @ each.flatten(1)).view(height, width)

    def total(kept: Tensor) -> list[Tensor]:
        return [product(kept).reshape(shape), *([kept @ sums] if bias else [])]

    return _Part(squares, total)


def _scaled(normal: Tensor, grad: Tensor, *, channels: int = 0, shape: Any = ()) -> _Part:
    """A weight and a bias for each channel of ``normal`` (b, c, ...), or for each place of its last axes ``shape``."""
    if channels:
        each, sums = ((one.flatten(2) if one.dim() > 2 else one[..., None]).sum(dim=2) for one in (normal * grad, grad))
    else:
        places = tuple(range(1, grad.dim() - len(shape)))
        each, sums = ((one.sum(dim=places) if places else one) for one in (normal * grad, grad))
    squares = each.flatten(1).square().sum(dim=1) + sums.flatten(1).square().sum(dim=1)

    def total(kept: Tensor) -> list[Tensor]:
        return [torch.einsum("b,b...->...", kept, one) for one in (each, sums)]

    return _Part(squares, total)
