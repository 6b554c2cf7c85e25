"""Backpropagation through invertible maps without keeping their activations.

A chain of invertible maps keeps its last output alone. The backward pass walks the chain from its end,
rebuilds each map's input from its output, and takes the gradient of that one map, so that the memory
does not grow with the length of the chain. Reference: Gomez et al., "The Reversible Residual Network:
Backpropagation Without Storing Activations", https://arxiv.org/abs/1707.04585.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class Invertible(nn.Module, ABC):
    """An invertible map of (B, C, H, W) to the same shape."""

    @abstractmethod
    def forward(self, h: Tensor) -> Tensor:
        """The map."""

    @abstractmethod
    def inverse(self, h: Tensor) -> Tensor:
        """Its inverse."""

    def weights(self) -> list[Tensor]:
        """What it depends on beside h."""
        return list(self.parameters())

    def retrace(
        self, out: Tensor, grad: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """One step of the backward pass, from what this map gave to what it was given.

        Args:
            out: an output of :meth:`forward`, or with ``inverse`` of :meth:`inverse`.
            grad: dL/d out.

        Returns:
            the input h, dL/dh, and dL/dw for each of :meth:`weights`, None where it is frozen.
        """
        undo, redo = (self, self.inverse) if inverse else (self.inverse, self)
        h = undo(out).requires_grad_()
        with torch.enable_grad():
            again = redo(h)
        grad, gradients = gradients_of(again, h, self.weights(), grad)
        return h.detach(), grad, gradients


def gradients_of(
    out: Tensor, h: Tensor, weights: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """dL/dh, and dL/dw for each of the weights, None where it is frozen, from grad = dL/d out."""
    free = [weight for weight in weights if weight.requires_grad]
    of_h, *of_free = torch.autograd.grad(out, [h, *free], grad)
    found = iter(of_free)
    return of_h, [next(found) if weight.requires_grad else None for weight in weights]


def apply_chain(maps: Iterable[Invertible], h: Tensor, *, inverse: bool) -> Tensor:
    """The maps one after the other; with ``inverse`` their inverses, the last map first."""
    for step in reversed(list(maps)) if inverse else maps:
        h = step.inverse(h) if inverse else step(h)
    return h


class _Chain(torch.autograd.Function):
    """:func:`apply_chain` that keeps its output alone; ``weights`` are those of all maps."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, maps: list[Invertible], inverse: bool, h: Tensor, *weights: Tensor
    ) -> Tensor:
        out = apply_chain(maps, h, inverse=inverse)
        ctx.maps, ctx.inverse = maps, inverse  # type: ignore[attr-defined]
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors  # type: ignore[attr-defined]
        maps, inverse = ctx.maps, ctx.inverse  # type: ignore[attr-defined]
        gradients: dict[int, Sequence[Tensor | None]] = {}
        order = range(len(maps)) if inverse else reversed(range(len(maps)))
        for place in order:  # from the map that was applied last
            out, grad, gradients[place] = maps[place].retrace(out, grad, inverse)
        flat = [gradient for place in range(len(maps)) for gradient in gradients[place]]
        return None, None, grad, *flat


def reversible_chain(maps: list[Invertible], h: Tensor, *, inverse: bool) -> Tensor:
    """:func:`apply_chain`, the same values and gradients, in memory that does not grow with the
    number of maps, but for their weights; it cannot be differentiated twice."""
    weights = [weight for step in maps for weight in step.weights()]
    return _Chain.apply(maps, inverse, h, *weights)
