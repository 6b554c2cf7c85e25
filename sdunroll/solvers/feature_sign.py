r"""Feature-sign search: the LASSO by exact steps on a support that grows and shrinks.

    P(y) = 1/2 ||x - D y||^2 + alpha ||y||_1

With the signs s of the entries that are not 0 (A) given, P is a quadratic whose minimum solves
D_A^T D_A y_A = D_A^T x - alpha s_A. On the way there P is least where an entry crosses 0, or at the end;
so each step lowers P, no support comes twice, and it ends. One problem at a time: for the few that a
batched solver leaves. Reference: Lee, Battle, Raina, Ng, "Efficient Sparse Coding Algorithms",
https://papers.nips.cc/paper/2979-efficient-sparse-coding-algorithms, algorithm 1.
"""

import torch
from torch import Tensor

RIDGE = 1e-12  # relative; where atoms depend on each other, a long step to where one of them leaves
SLACK = 1e-10  # relative; a correlation that exceeds alpha by less counts as rounding


def feature_sign(
    y: Tensor, gram: Tensor, drive: Tensor, alpha: float, *, max_steps: int = 2000
) -> Tensor:
    """The code (n,) that the search reaches from ``y``, no worse than it; y* if it ends in time.

    Args:
        y: start, (n,), float64. gram: D^T D, (n, n). drive: D^T x, (n,).
        alpha: weight of the l1 norm. max_steps: at most.
    """
    signs = y.sign()
    settled = not bool(y.any())  # whether y is the minimum for its signs
    for _ in range(max_steps):
        if settled:
            active = signs.nonzero()[:, 0]
            correlation = (drive - y[active] @ gram[active]).masked_fill(signs != 0, 0.0)
            worst = correlation.abs().argmax()
            if correlation[worst].abs() <= alpha * (1 + SLACK):
                break
            signs[worst] = correlation[worst].sign()
        active = signs.nonzero()[:, 0]
        own, start = gram[active][:, active], y[active]
        downhill = drive[active] - alpha * signs[active] - own @ start
        ridge = RIDGE * own.diagonal().amax() * torch.eye(len(own)).to(own)
        end = start + torch.linalg.solve(own + ridge, downhill)
        values = _least_on_the_way(start, end, own, drive[active], alpha)
        settled = bool((end.sign() == signs[active]).all())
        y = torch.zeros_like(y).index_put((active,), values)
        signs = y.sign()
        settled = settled or not bool(y.any())  # all entries have left
    return y


def _least_on_the_way(
    start: Tensor, end: Tensor, gram: Tensor, drive: Tensor, alpha: float
) -> Tensor:
    """Where P is least among ``end`` and the points between where an entry of ``start`` becomes 0."""
    share = start / (start - end)  # of the way; not finite where nothing moves
    crossing = ((share > 0) & (share < 1)).nonzero()[:, 0]
    points = torch.cat([torch.lerp(start, end, share[crossing, None]), end[None]])
    points[torch.arange(len(crossing)), crossing] = 0.0
    value = ((points @ gram) * points).sum(1) / 2 - points @ drive + alpha * points.abs().sum(1)
    return points[value.argmin()]
