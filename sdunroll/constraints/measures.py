"""The measures whose descent can be demanded."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from sdunroll import checks
from sdunroll.constraints.base import DescentConstraint
from sdunroll.data import Batch
from sdunroll.problems import InverseImaging, Problem


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


class SplitGradient(DescentConstraint):
    """The gradient norm in two parts, each constrained by itself, as the paper does for GLOW-Prox.

    ``x``: ||A^T (A y - x)||_2, of the data term; ``z``: ||lambda g(y)||_2, of the penalty in the latent
    space of the layer's flow g. Only for inverse problems whose network has a latent space.
    """

    name = "split_gradient"
    parts = ("x", "z")

    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        if not isinstance(problem, InverseImaging) or problem.latent_gradient is None:
            raise checks.InvalidValue(
                "constraint: split_gradient expects layers with a penalty in a latent space, as those "
                "of network=glow_prox; take another constraint"
            )
        lead = y.ndim - batch.target.ndim + 1
        in_data = norm(problem.data_gradient(y, batch.obs), lead)
        in_latent = norm(problem.latent_gradient(y.flatten(0, lead - 1)), 1)
        return torch.stack([in_data, in_latent.view(in_data.shape)])


class Objective(DescentConstraint):
    """m(y; x) = f(y; x) >= 0, for problems whose targets are not the minimisers of f."""

    name = "objective_value"

    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        return problem.objective(y, batch.obs)


class ObjectiveGap(DescentConstraint):
    """m(y; x) = f(y; x) - f(y*; x), at least 0 but for rounding, which is cut off."""

    name = "objective"

    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        if not problem.minimised:
            raise checks.InvalidValue(
                "constraint: the objective gap expects targets that minimise the objective, got those of "
                f"{type(problem).__name__}; take constraint=objective_value or another constraint"
            )
        best = problem.objective(batch.target, batch.obs)  # (B,)
        return (problem.objective(y, batch.obs) - best).clamp_min(0)
