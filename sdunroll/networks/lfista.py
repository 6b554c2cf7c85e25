r"""LFISTA: the unrolled FISTA, its momentum learned.

    y_l = soft(Wg_l y_{l-1} + Wm_l y_{l-2} + We_l x, theta_l),    l = 1 .. L,    y_{-1} = y_0 = 0

Reference: Moreau & Bruna, "Understanding Trainable Sparse Coding via Matrix Factorization",
https://arxiv.org/abs/1609.00285. Legend: B instances, m features, n atoms, L layers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.parts import Positive, lasso_of, soft
from sdunroll.problems import Problem


@dataclass(slots=True)
class _Carried:
    """We_l x for all layers, (B, n) each; y_{l-2}."""

    drives: tuple[Tensor, ...]
    before: Tensor | None = None


class Lfista(UnrolledNetwork):
    """Untied Wg_l, Wm_l (n, n), We_l (n, m) and theta_l > 0; y_0 = 0. It starts as FISTA.

    Args:
        problem: gives D and alpha.
        generator: draws nothing.
        num_layers: L.
    """

    def __init__(
        self, problem: Problem, generator: torch.Generator, *, num_layers: int = 16
    ) -> None:
        super().__init__(num_layers=num_layers)
        lasso = lasso_of(problem, "LFISTA")
        exact = lasso.dictionary.double()
        step = torch.eye(exact.shape[1]) - exact.T @ exact / lasso.lipschitz
        momenta = fista_momenta(num_layers)
        # y_0 = 0 asks for no Wg in layer 1, and for no Wm in layers 1 and 2
        self.wg = nn.ParameterList(((1 + b) * step).to(lasso.dictionary) for b in momenta[1:])
        self.wm = nn.ParameterList((-b * step).to(lasso.dictionary) for b in momenta[2:])
        drive = (exact.T / lasso.lipschitz).to(lasso.dictionary)
        self.we = nn.Parameter(drive.repeat(num_layers, 1, 1))  # (L, n, m)
        self.theta = Positive(torch.full((num_layers,), float(lasso.alpha) / lasso.lipschitz))

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """0, (B, n)."""
        return obs.new_zeros(len(obs), self.we.shape[1])

    def precompute(self, obs: Tensor) -> _Carried:
        drives = obs @ self.we.flatten(0, 1).T  # (B, L n)
        return _Carried(drives.view(len(obs), self.num_layers, -1).unbind(1))

    def layer(self, index: int, y: Tensor, shared: _Carried) -> Tensor:
        v = shared.drives[index - 1]
        if index > 1:
            v = torch.addmm(v, y, self.wg[index - 2].T)
        if shared.before is not None:
            v = torch.addmm(v, shared.before, self.wm[index - 3].T)
        shared.before = y if index > 1 else None
        return soft(v, self.theta(index))


def fista_momenta(num_layers: int) -> list[float]:
    """beta_l = (t_{l-1} - 1) / t_l with t_1 = 1 and t_{l+1} = (1 + sqrt(1 + 4 t_l^2)) / 2, of FISTA's
    point y_{l-1} + beta_l (y_{l-1} - y_{l-2}) at which iteration l takes its gradient; beta_1 = 0."""
    found, t = [0.0], 1.0
    for _ in range(1, num_layers):
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        found.append((t - 1) / after)
        t = after
    return found
