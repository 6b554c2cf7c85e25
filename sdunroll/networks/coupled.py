r"""LISTA with coupled weights: LISTA-CP, LISTA-CPSS, TiLISTA and ALISTA.

    y_l = eta_l(y_{l-1} + gamma_l W_l^T (x - D y_{l-1})),    l = 1 .. L

eta_l is the soft threshold theta_l, with support selection or without. References: Chen, Liu, Wang, Yin,
"Theoretical Linear Convergence of Unfolded ISTA and Its Practical Weights and Thresholds",
https://arxiv.org/abs/1808.10038 (LISTA-CP, LISTA-CPSS); Liu, Chen, Wang, Yin, "ALISTA: Analytic Weights Are
As Good As Learned Weights in LISTA", https://openreview.net/forum?id=B1lnzn0ctQ (TiLISTA, ALISTA).
Legend: B instances, m features, n atoms, L layers.
"""

from typing import Literal

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


class CoupledLista(UnrolledNetwork):
    """Coupled weights W (m, n), thresholds theta_l > 0, steps gamma_l > 0; y_0 = 0.

    Args:
        problem: gives D and alpha.
        generator: draws nothing; all starts are given by D.
        num_layers: L.
        weight: "untied" learns W_l, with gamma_l = 1 (LISTA-CP); "tied" learns one W and the gamma_l
            (TiLISTA); "analytic" learns the gamma_l alone (ALISTA). All start at the analytic weight.
        selection: layer l leaves l times this share of the entries unthresholded, 0 for none ...
        max_selection: ... but never more than this share.
        threshold, decay: of theta at the start, see :func:`sdunroll.networks.parts.first_thresholds`.
    """

    dictionary: Tensor
    analytic: Tensor | None

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        num_layers: int = 16,
        weight: Literal["untied", "tied", "analytic"] = "untied",
        selection: float = 0.012,
        max_selection: float = 0.13,
        threshold: float = THRESHOLD,
        decay: float = DECAY,
    ) -> None:
        super().__init__(num_layers=num_layers)
        lasso = lasso_of(problem, "LISTA")
        checks.choice("weight", weight, ("untied", "tied", "analytic"))
        self.register_buffer("dictionary", lasso.dictionary)
        analytic = analytic_weight(lasso.dictionary)
        count = {"untied": num_layers, "tied": 1, "analytic": 0}[weight]
        self.weights = nn.ParameterList(analytic.clone() for _ in range(count))
        self.register_buffer("analytic", analytic if weight == "analytic" else None)
        self.shares_weights = weight == "tied" and num_layers > 1
        self.gamma = None if weight == "untied" else Positive(torch.ones(num_layers))
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

    def _weight(self, index: int) -> Tensor:
        if self.analytic is not None:
            return self.analytic
        return self.weights[(index - 1) % len(self.weights)]

    def layer(self, index: int, y: Tensor, shared: Tensor) -> Tensor:
        step = residual(shared, y, self.dictionary) @ self._weight(index)  # (B, n)
        if self.gamma is not None:
            step = self.gamma(index) * step
        return select_support(y + step, self.theta(index), self.selected[index - 1])
