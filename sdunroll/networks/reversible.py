"""Backpropagation through invertible maps without keeping their activations.

A chain of invertible maps keeps its last output alone. The backward pass walks the chain from its end,
rebuilds each map's input from its output, and takes the gradient of that one map, so that the memory
does not grow with the length of the chain. Reference: Gomez et al., "The Reversible Residual Network:
Backpropagation Without Storing Activations", https://arxiv.org/abs/1707.04585.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

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

    def weights(self, inverse: bool) -> list[Tensor]:
        """What its forward direction, or with ``inverse`` the other one, depends on beside h."""
        return list(self.parameters())

    def replay(self, out: Tensor, inverse: bool) -> tuple[list[Tensor], Tensor]:
        """The input that gave ``out``, as leaves, and ``out`` computed from them again, with a graph.

        Args:
            inverse: whether ``out`` is an output of :meth:`inverse` rather than of :meth:`forward`.

        Returns:
            the input in parts that follow each other along the channels, and the output.
        """
        undo, redo = (self, self.inverse) if inverse else (self.inverse, self)
        with torch.no_grad():
            source = undo(out)
        source.requires_grad_()
        return [source], redo(source)


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
        gradients: dict[int, tuple[Tensor, ...]] = {}
        order = range(len(maps)) if inverse else reversed(range(len(maps)))
        for place in order:  # from the map that was applied last
            step = maps[place]
            with torch.enable_grad():
                parts, again = step.replay(out, inverse)
            both = torch.autograd.grad(again, [*parts, *step.weights(inverse)], grad)
            grad = torch.cat(both[: len(parts)], 1)
            gradients[place] = both[len(parts) :]
            out = torch.cat(parts, 1).detach()
        flat = [gradient for place in range(len(maps)) for gradient in gradients[place]]
        return None, None, grad, *flat


def reversible_chain(maps: list[Invertible], h: Tensor, *, inverse: bool) -> Tensor:
    """:func:`apply_chain`, the same values and gradients, in memory that does not grow with the
    number of maps, but for their weights; it cannot be differentiated twice."""
    weights = [weight for step in maps for weight in step.weights(inverse)]
    return _Chain.apply(maps, inverse, h, *weights)
