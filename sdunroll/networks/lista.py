r"""LISTA: the unrolled iterative soft-thresholding algorithm.

    y_l = soft(W1_l y_{l-1} + W2_l x, theta_l),    l = 1 .. L

Reference: Gregor & LeCun, "Learning Fast Approximations of Sparse Coding", ICML 2010,
https://icml.cc/Conferences/2010/papers/449.pdf. Legend: B instances, m features, n atoms, L layers.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sdunroll import checks
from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.parts import (
    DECAY,
    THRESHOLD,
    analytic_weight,
    first_thresholds,
    lasso_of,
    soft,
)
from sdunroll.problems import Problem


class Lista(UnrolledNetwork):
    """LISTA with weights W1 (L, n, n), W2 (L, n, m) and thresholds theta (L, n) >= 0.

    The thresholds are absolute values of free weights: never negative, never without a gradient.
    All W2_l x are one matrix product.

    Args:
        problem: gives D and alpha.
        generator: draws the weights of ``init="random"``.
        num_layers: L.
        init: "ista" makes every layer one step of ISTA: W1 = I - D^T D / Lip, W2 = D^T / Lip,
            theta = alpha / Lip with Lip = ||D||_2^2. "random" draws W1 and W2 from
            N(0, 1 / (100 n)) and N(0, 1 / (100 m)), with the same theta. "analytic" takes W1 = I - W^T D
            and W2 = W^T with W of :func:`sdunroll.networks.parts.analytic_weight`, and theta as that of
            :class:`CoupledLista` without support selection.
        start: y_0 ~ N(0, start_std^2 I) ("random") or 0 ("zero").
        start_std: standard deviation of the entries of a random y_0.
        tied: one W1 and one W2 for all layers; the thresholds are each layer's own all the same.
    """

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        num_layers: int = 10,
        init: Literal["ista", "random", "analytic"] = "ista",
        start: Literal["random", "zero"] = "random",
        start_std: float = 0.4,
        tied: bool = False,
    ) -> None:
        super().__init__(num_layers=num_layers)
        lasso = lasso_of(problem, "LISTA")
        checks.choice("init", init, ("ista", "random", "analytic"))
        self.start = checks.choice("start", start, ("random", "zero"))
        self.start_std = checks.number("start_std", start_std, above=0)
        checks.boolean("tied", tied)
        self.shares_weights = tied and num_layers > 1
        dictionary = lasso.dictionary.double()
        features, atoms = dictionary.shape
        count = 1 if tied else num_layers
        if init == "random":
            w1 = torch.randn(count, atoms, atoms, generator=generator) / math.sqrt(100 * atoms)
            w2 = torch.randn(count, atoms, features, generator=generator)
            w2 = w2 / math.sqrt(100 * features)
        else:
            weight = dictionary / lasso.lipschitz if init == "ista" else analytic_weight(dictionary)
            w1 = torch.eye(atoms) - (weight.T @ dictionary).float()
            w1, w2 = (w.repeat(count, 1, 1) for w in (w1, weight.T.float()))
        if init == "analytic":
            theta = first_thresholds(
                problem, num_layers, threshold=THRESHOLD, decay=DECAY, selecting=False
            )
            theta = theta[:, None].repeat(1, atoms)
        else:
            theta = torch.full((num_layers, atoms), float(lasso.alpha) / lasso.lipschitz)
        # a parameter a layer, so that no gradient is copied into a stack; W2 is one for its one GEMM
        self.w1 = nn.ParameterList(w1.unbind())
        self.w2 = nn.Parameter(w2)
        self.theta = nn.ParameterList(theta.unbind())

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """y_0, (B, n)."""
        shape = (len(obs), self.w2.shape[1])
        if self.start == "zero":
            return obs.new_zeros(shape)
        noise = torch.randn(shape, generator=generator, device=obs.device, dtype=obs.dtype)
        return self.start_std * noise

    def precompute(self, obs: Tensor) -> tuple[Tensor, ...]:
        """W2_l x for all layers by one matrix product, (B, n) each; one for all if tied."""
        drive = obs @ self.w2.flatten(0, 1).T  # (B, L n)
        return drive.view(len(obs), len(self.w2), -1).unbind(1)

    def layer(self, index: int, y: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        """y_l, (B, n)."""
        own = (index - 1) % len(self.w1)
        v = torch.addmm(shared[own], y, self.w1[own].T)
        return soft(v, self.theta[index - 1].abs())
