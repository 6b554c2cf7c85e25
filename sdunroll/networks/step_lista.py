r"""Step-LISTA: ISTA with a learned step size a layer.

    y_l = soft(y_{l-1} - gamma_l D^T (D y_{l-1} - x), gamma_l alpha),    l = 1 .. L

Reference: Ablin, Moreau, Massias, Gramfort, "Learning step sizes for unfolded sparse coding",
https://arxiv.org/abs/1905.11071. Legend: B instances, m features, n atoms, L layers.
"""

import torch
from torch import Tensor

from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.parts import Positive, lasso_of, residual, soft
from sdunroll.problems import Problem


class StepLista(UnrolledNetwork):
    """Steps gamma_l > 0, one a layer, 1 / ||D||_2^2 at the start; y_0 = 0.

    Args:
        problem: gives D and alpha.
        generator: draws nothing.
        num_layers: L.
    """

    dictionary: Tensor

    def __init__(
        self, problem: Problem, generator: torch.Generator, *, num_layers: int = 16
    ) -> None:
        super().__init__(num_layers=num_layers)
        lasso = lasso_of(problem, "Step-LISTA")
        self.register_buffer("dictionary", lasso.dictionary)
        self.alpha = float(lasso.alpha)
        self.gamma = Positive(torch.full((num_layers,), 1 / lasso.lipschitz))

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """0, (B, n)."""
        return obs.new_zeros(len(obs), self.dictionary.shape[1])

    def layer(self, index: int, y: Tensor, shared: Tensor) -> Tensor:
        gamma = self.gamma(index)
        step = residual(shared, y, self.dictionary) @ self.dictionary  # (B, n)
        return soft(y + gamma * step, gamma * self.alpha)
