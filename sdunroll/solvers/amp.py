r"""Approximate message passing, and least squares on a known support.

Legend: B problems, m features, n atoms.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sdunroll.solvers.proximal import soft_threshold

COLUMN_ENTRIES = 2**24  # of the supports' columns at once, 128 MiB; some four such are alive


def amp(dictionary: Tensor, obs: Tensor, tuning: float, *, start: Tensor) -> Iterator[Tensor]:
    r"""The iterates y_0, y_1, ... of AMP with soft thresholding, (B, n) each, endless.

        v_t = x - D y_t + (||y_t||_0 / m) v_{t-1},    y_{t+1} = soft(y_t + D^T v_t, tau ||v_t|| / sqrt(m))

    The last term of v, Onsager's, keeps the errors of y_t + D^T v_t Gaussian for a large D of independent
    entries of variance 1/m, so that ||v_t|| / sqrt(m) estimates their standard deviation. Reference:
    Donoho, Maleki, Montanari, "Message Passing Algorithms for Compressed Sensing",
    https://arxiv.org/abs/0907.3574; the threshold as in Borgerding, Schniter, Rangan, "AMP-Inspired Deep
    Networks for Sparse Linear Inverse Problems", https://arxiv.org/abs/1612.01183.

    Args:
        dictionary: D, (m, n). obs: x, (B, m). tuning: tau. start: y_0, (B, n).
    """
    scale = tuning / math.sqrt(len(dictionary))
    y, v = start, torch.zeros_like(obs)
    while True:
        yield y
        onsager = (y != 0).sum(1, keepdim=True) / len(dictionary)  # (B, 1)
        v = obs - y @ dictionary.T + onsager * v
        y = soft_threshold(y + v @ dictionary, scale * torch.linalg.vector_norm(v, dim=1)[:, None])


def least_squares_on(dictionary: Tensor, obs: Tensor, support: Tensor) -> Tensor:
    """argmin ||x - D y|| over the y that are 0 off their support, (B, n), computed in float64.

    Who knows the support can do no better without knowing the values' distribution; the solution of
    minimum norm where several are best.

    Args:
        dictionary: D, (m, n). obs: x, (B, m). support: (B, n), bool.
    """
    size = int(support.sum(1).max())
    count = max(1, COLUMN_ENTRIES // max(1, size * len(dictionary)))
    parts = zip(obs.split(count), support.split(count), strict=True)
    return torch.cat([_least_squares(dictionary.double(), *part, size) for part in parts])


def _least_squares(dictionary: Tensor, obs: Tensor, support: Tensor, size: int) -> Tensor:
    """:func:`least_squares_on` of supports of at most ``size`` atoms."""
    chosen = support.to(torch.int8).topk(size, dim=1).indices  # (B, S), padded with other atoms
    inside = support.gather(1, chosen).double()
    columns = dictionary.T[chosen] * inside[..., None]  # (B, S, m), 0 on the padding
    values = torch.linalg.pinv(columns.transpose(1, 2)) @ obs.double()[..., None]  # (B, S, 1)
    found = torch.zeros_like(support, dtype=torch.float64)
    return found.scatter(1, chosen, values[..., 0] * inside).to(obs.dtype)
