"""The measures whose descent can be demanded."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from sdunroll.constraints.base import DescentConstraint
from sdunroll.data import Batch
from sdunroll.problems import Problem


class _Norm(torch.autograd.Function):
    """||v||_2 over the last dimension; its gradient, v / ||v|| and 0 at v = 0, in one pass over v."""

    @staticmethod
    def forward(ctx: FunctionCtx, v: Tensor) -> Tensor:
        value = torch.linalg.vector_norm(v, dim=-1)
        ctx.save_for_backward(v, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        v, value = ctx.saved_tensors  # type: ignore[attr-defined]
        return v * torch.where(value > 0, grad / value, 0.0)[..., None]


def norm(y: Tensor, batch_dims: int) -> Tensor:
    """The 2-norm over all but the first ``batch_dims`` dimensions."""
    return _Norm.apply(y.flatten(batch_dims))


def distance(y: Tensor, target: Tensor) -> Tensor:
    """||y - y*||_2, (..., B), for y (..., B, n) and y* (B, n).

    Errors: shapes that would only fit by broadcasting.
    """
    if y.shape[-target.ndim :] != target.shape:
        raise ValueError(f"distance: expected y (..., {tuple(target.shape)}), got {tuple(y.shape)}")
    return norm(y - target, y.ndim - target.ndim + 1)


class Distance(DescentConstraint):
    """m(y; x) = ||y - y*||_2, the distance to the target."""

    name = "distance"

    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        return distance(y, batch.target)


class GradientNorm(DescentConstraint):
    """m(y; x) = ||grad f(y; x)||_2, which needs no targets."""

    name = "gradient"

    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        return norm(problem.gradient(y, batch.obs), y.ndim - batch.target.ndim + 1)


class ObjectiveGap(DescentConstraint):
    """m(y; x) = f(y; x) - f(y*; x)."""

    name = "objective"

    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        best = problem.objective(batch.target, batch.obs)  # (B,)
        return problem.objective(y, batch.obs) - best
