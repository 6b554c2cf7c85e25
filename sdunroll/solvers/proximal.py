r"""ISTA and FISTA for the LASSO, batched.

    f(y; x) = 1/2 ||x - D y||^2 + alpha ||y||_1

Legend: B problems, m features, n atoms.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def soft_threshold(v: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal operator of threshold * ||.||_1: sign(v) max(|v| - threshold, 0)."""
    return v - v.clamp(-threshold, threshold)  # type: ignore[arg-type]


def lipschitz(dictionary: Tensor) -> float:
    """||D||_2^2, the Lipschitz constant of the gradient of 1/2 ||x - D y||^2, computed in float64."""
    return float(torch.linalg.matrix_norm(dictionary.double(), 2) ** 2)


def _gradient_of(
    dictionary: Tensor, obs: Tensor, gram: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """y -> D^T (D y - x)."""
    if gram is None:
        return lambda y: (y @ dictionary.T - obs) @ dictionary
    drive = obs @ dictionary
    return lambda y: torch.addmm(drive, y, gram, beta=-1)


def ista(
    dictionary: Tensor,
    obs: Tensor,
    alpha: float,
    *,
    start: Tensor,
    constant: float | None = None,
    gram: Tensor | None = None,
) -> Iterator[Tensor]:
    """The iterates y_0, y_1, ... of the iterative soft-thresholding algorithm, (B, n) each, endless.

    y <- soft(y - D^T (D y - x) / Lip, alpha / Lip). Reference: Daubechies, Defrise, De Mol, "An
    iterative thresholding algorithm for linear inverse problems with a sparsity constraint",
    https://arxiv.org/abs/math/0307152.

    Args:
        dictionary: D, (m, n). obs: x, (B, m). start: y_0, (B, n).
        constant: ||D||_2^2 if it is known. gram: D^T D, with which an iteration takes n^2
            multiplications a problem rather than 2 m n.
    """
    step = 1 / (lipschitz(dictionary) if constant is None else constant)
    gradient = _gradient_of(dictionary, obs, gram)
    y = start
    while True:
        yield y
        y = soft_threshold(torch.sub(y, gradient(y), alpha=step), step * alpha)


def fista(
    dictionary: Tensor,
    obs: Tensor,
    alpha: float,
    *,
    start: Tensor,
    constant: float | None = None,
    gram: Tensor | None = None,
) -> Iterator[Tensor]:
    """The iterates y_0, y_1, ... of FISTA, (B, n) each, endless.

    Reference: Beck & Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse
    Problems", https://doi.org/10.1137/080716542.

    Args:
        dictionary: D, (m, n). obs: x, (B, m). start: y_0, (B, n).
        constant: ||D||_2^2 if it is known. gram: D^T D, with which an iteration takes n^2
            multiplications a problem rather than 2 m n.
    """
    step = 1 / (lipschitz(dictionary) if constant is None else constant)
    gradient = _gradient_of(dictionary, obs, gram)
    y = point = start  # point: where the gradient is taken, extrapolated from the last two iterates
    t = 1.0
    while True:
        yield y
        y_next = soft_threshold(torch.sub(point, gradient(point), alpha=step), step * alpha)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        point = torch.lerp(y, y_next, 1 + (t - 1) / t_next)
        y, t = y_next, t_next
