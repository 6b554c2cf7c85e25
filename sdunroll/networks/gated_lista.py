r"""Gated LISTA: gates that undo the shrinkage of the thresholds.

    z_l = k_l(y_{l-1}) y_{l-1},    u_l = eta_l(z_l + W_l^T (x - D z_l)),
    y_l = y_{l-1} + o_l (u_l - y_{l-1}),    l = 1 .. L

with, entry by entry, the gain k_l(y) = 1 + mu_l theta_{l-1} exp(-nu_l |y|), larger where the threshold
before took a larger share away, and the overshoot o_l = 1 + a_l theta_l / (|u_l - y_{l-1}| + delta), of
those functions that the paper proposes the exponential and the inverse one. Reference: Wu, Guo, Li, Zhang,
"Sparse Coding with Gated Learned ISTA", https://openreview.net/forum?id=BygPO2VKPH. Legend: B instances,
m features, n atoms, L layers.
"""

import torch
from torch import Tensor, nn

from sdunroll import checks
from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.parts import (
    DECAY,
    THRESHOLD,
    Positive,
    analytic_weight,
    first_thresholds,
    lasso_of,
    residual,
    select_support,
    selected,
)
from sdunroll.problems import Problem

DELTA = 0.1  # of the overshoot's denominator


class GatedLista(UnrolledNetwork):
    """Coupled weights W_l (m, n), thresholds theta_l, gates mu_l, nu_l and a_l, all > 0; y_0 = 0.

    Args:
        problem: gives D and alpha.
        generator: draws nothing.
        num_layers: L.
        selection, max_selection, threshold, decay: as of :class:`CoupledLista`.
        gate: mu and a at the start; nu starts at 1.
    """

    dictionary: Tensor

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        num_layers: int = 16,
        selection: float = 0.012,
        max_selection: float = 0.13,
        threshold: float = THRESHOLD,
        decay: float = DECAY,
        gate: float = 0.1,
    ) -> None:
        super().__init__(num_layers=num_layers)
        lasso = lasso_of(problem, "Gated LISTA")
        self.register_buffer("dictionary", lasso.dictionary)
        analytic = analytic_weight(lasso.dictionary)
        self.weights = nn.ParameterList(analytic.clone() for _ in range(num_layers))
        gates = torch.full((num_layers,), checks.number("gate", gate, above=0))
        self.mu, self.overshoot = Positive(gates), Positive(gates)
        self.nu = Positive(torch.ones(num_layers))
        self.selected = selected(
            num_layers, lasso.dictionary.shape[1], share=selection, most=max_selection
        )
        self.theta = Positive(
            first_thresholds(
                problem, num_layers, threshold=threshold, decay=decay, selecting=selection > 0
            )
        )

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """0, (B, n)."""
        return obs.new_zeros(len(obs), self.dictionary.shape[1])

    def layer(self, index: int, y: Tensor, shared: Tensor) -> Tensor:
        theta = self.theta(index)
        z = y
        if index > 1:  # no threshold acted on y_0
            taken = self.theta(index - 1).detach()  # a weight of the layer before, which is its own
            z = y + self.mu(index) * taken * (-self.nu(index) * y.abs()).exp() * y
        step = residual(shared, z, self.dictionary) @ self.weights[index - 1]  # (B, n)
        change = select_support(z + step, theta, self.selected[index - 1]) - y
        return y + change + self.overshoot(index) * theta * change / (change.abs() + DELTA)
