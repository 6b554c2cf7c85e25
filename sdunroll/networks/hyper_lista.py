r"""HyperLISTA: ALISTA with momentum whose parameters follow each instance's own error.

    y_l = eta_l(y_{l-1} + W^T (x - D y_{l-1}) + beta_l (y_{l-1} - y_{l-2})),    l = 1 .. L
    theta_l = c1 e_l,    beta_l = c2 ||y_{l-1}||_0,    p_l = c3 min(log(e_1 / e_l), n)

with the error estimated by e_l = ||D^+ (D y_{l-1} - x)||_1; eta_l is the soft threshold theta_l that leaves
the p_l largest entries as they are. Reference: Chen, Liu, Wang, Yin, "Hyperparameter Tuning is All You
Need for LISTA", https://arxiv.org/abs/2110.15900. Legend: B instances, m features, n atoms, L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.parts import Positive, analytic_weight, lasso_of, residual, select_support
from sdunroll.problems import Problem

TINY = 1e-20  # an estimate of the error that is never 0


@dataclass(slots=True)
class _Carried:
    """x; y_{l-2}; how many entries the layer before returned that are not 0; e_1."""

    obs: Tensor
    before: Tensor | None = None
    nonzeros: Tensor | None = None
    first_error: Tensor | None = None


class HyperLista(UnrolledNetwork):
    """Three numbers for all layers, c1 and c2 learned; y_0 = 0.

    Args:
        problem: gives D and alpha.
        generator: draws nothing.
        num_layers: L.
        threshold, momentum: c1 and c2 at the start.
        selection: c3, in entries. It enters by a count, which has no gradient, so it is not learned.
    """

    dictionary: Tensor
    analytic: Tensor
    inverse: Tensor

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        num_layers: int = 16,
        threshold: float = 2e-3,
        momentum: float = 2e-3,
        selection: float = 8.0,
    ) -> None:
        super().__init__(num_layers=num_layers)
        dictionary = lasso_of(problem, "HyperLISTA").dictionary
        self.register_buffer("dictionary", dictionary)
        self.register_buffer("analytic", analytic_weight(dictionary))
        self.register_buffer("inverse", torch.linalg.pinv(dictionary.double()).to(dictionary))
        self.c1 = Positive(torch.tensor([checks.number("threshold", threshold, above=0)]))
        self.c2 = Positive(torch.tensor([checks.number("momentum", momentum, above=0)]))
        self.selection = checks.number("selection", selection, low=0)
        self.shares_weights = num_layers > 1

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """0, (B, n)."""
        return obs.new_zeros(len(obs), self.dictionary.shape[1])

    def precompute(self, obs: Tensor) -> _Carried:
        return _Carried(obs)

    def layer(self, index: int, y: Tensor, shared: _Carried) -> Tensor:
        left = residual(shared.obs, y, self.dictionary)  # (B, m)
        error = (left @ self.inverse.T).abs().sum(1, keepdim=True) + TINY  # (B, 1)
        v = y + left @ self.analytic
        if shared.before is None or shared.nonzeros is None or shared.first_error is None:
            shared.first_error = error
        else:
            v = v + self.c2(1) * shared.nonzeros * (y - shared.before)
        out = select_support(v, self.c1(1) * error, self._count(error, shared.first_error))
        shared.before, shared.nonzeros = y, (out != 0).sum(1, keepdim=True)
        return out

    @torch.no_grad()
    def _count(self, error: Tensor, first_error: Tensor) -> Tensor:
        """p_l, (B, 1), a whole number from 0 to n."""
        atoms = self.dictionary.shape[1]
        share = (first_error / error).log().clamp(0, atoms)
        return (self.selection * share).round().clamp(0, atoms).long()
