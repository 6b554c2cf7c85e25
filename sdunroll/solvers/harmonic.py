"""Harmonic fill: the smoothest continuation of an image into its holes.

Legend: B images, C channels, H x W pixels.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

TOLERANCE = 1e-5  # of the residual's norm, relative to the right-hand side's


def _laplacian(y: Tensor) -> Tensor:
    """The sum of differences to the four neighbours; the border is mirrored."""
    padded = functional.pad(y, (1, 1, 1, 1), mode="replicate")
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
    around = around + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    return 4 * y - around


def harmonic_fill(image: Tensor, known: Tensor, *, limit: int = 500) -> Tensor:
    """The image with its missing pixels solved from Laplace's equation, (B, C, H, W).

        Laplace(y) = 0 in the hole, y = image where known

    by conjugate gradients, all images at once. An image without any known pixel becomes 0. Gradients
    reach the known pixels.

    Args:
        image: (B, C, H, W). known: 1 or 0, (B, 1, H, W). limit: iterations at most.
    """
    return _Fill.apply(image, known, limit)


class _Fill(torch.autograd.Function):
    """With P the hole's projection, K that of the known pixels and A the Laplacian, symmetric:

    y = K x - (P A P)^+ P A K x,    so x receives K (g - A (P A P)^+ P g).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, image: Tensor, known: Tensor, limit: int) -> Tensor:
        ctx.save_for_backward(known)
        ctx.limit = limit  # type: ignore[attr-defined]
        kept = image * known
        hole = 1 - known
        return kept + _solve(-hole * _laplacian(kept), hole, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (known,) = ctx.saved_tensors  # type: ignore[attr-defined]
        hole = 1 - known
        solvable = known.amax((2, 3), keepdim=True)  # 0 where no pixel is known
        solved = _solve(solvable * hole * gradient, hole, ctx.limit)  # type: ignore[attr-defined]
        return known * (gradient - _laplacian(solved)), None, None


def _solve(right: Tensor, hole: Tensor, limit: int) -> Tensor:
    """w, 0 but in the hole, with Laplace(w) = ``right`` there, by conjugate gradients."""
    found = torch.zeros_like(right)
    residual = direction = right
    power = residual.square().sum((2, 3), keepdim=True)  # (B, C, 1, 1)
    goal = TOLERANCE**2 * power
    for _ in range(limit):
        if (power <= goal).all():
            break
        image_of = hole * _laplacian(direction)
        curvature = (direction * image_of).sum((2, 3), keepdim=True)
        step = torch.where(curvature > 0, power / curvature, 0.0)
        found = found + step * direction
        residual = residual - step * image_of
        before, power = power, residual.square().sum((2, 3), keepdim=True)
        direction = residual + torch.where(before > 0, power / before, 0.0) * direction
    return found
