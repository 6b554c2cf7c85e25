r"""LAMP: learned approximate message passing.

    v_l = x - D y_{l-1} + b_l v_{l-1},    b_l = ||y_{l-1}||_0 / m
    y_l = soft(y_{l-1} + B_l v_l, tau_l ||v_l|| / sqrt(m)),    l = 1 .. L,    v_0 = 0

Reference: Borgerding, Schniter, Rangan, "AMP-Inspired Deep Networks for Sparse Linear Inverse Problems",
https://arxiv.org/abs/1612.01183. Legend: B instances, m features, n atoms, L layers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdunroll import checks
from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.parts import Positive, lasso_of, residual, soft
from sdunroll.problems import Problem


@dataclass(slots=True)
class _Carried:
    """x; b_l v_{l-1}, (B, m), Onsager's term. b_l counts what the layer before returned, whatever
    disturbed it since: the derivative of its threshold is what the term corrects for."""

    obs: Tensor
    onsager: Tensor | None = None


class Lamp(UnrolledNetwork):
    """Untied B_l (n, m), D^T at the start, and tau_l > 0; y_0 = 0. It starts as AMP.

    Args:
        problem: gives D.
        generator: draws nothing.
        num_layers: L.
        tuning: tau at the start.
    """

    dictionary: Tensor

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        num_layers: int = 16,
        tuning: float = 1.1402,
    ) -> None:
        super().__init__(num_layers=num_layers)
        dictionary = lasso_of(problem, "LAMP").dictionary
        self.register_buffer("dictionary", dictionary)
        self.weights = nn.ParameterList(dictionary.T.clone() for _ in range(num_layers))
        self.tau = Positive(torch.full((num_layers,), checks.number("tuning", tuning, above=0)))

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """0, (B, n)."""
        return obs.new_zeros(len(obs), self.dictionary.shape[1])

    def precompute(self, obs: Tensor) -> _Carried:
        return _Carried(obs)

    def layer(self, index: int, y: Tensor, shared: _Carried) -> Tensor:
        features = len(self.dictionary)
        v = residual(shared.obs, y, self.dictionary)  # (B, m)
        if shared.onsager is not None:
            v = v + shared.onsager
        size = torch.linalg.vector_norm(v, dim=1, keepdim=True) / math.sqrt(features)  # (B, 1)
        out = soft(y + v @ self.weights[index - 1].T, self.tau(index) * size)
        shared.onsager = (out != 0).sum(1, keepdim=True) / features * v
        return out
