"""Sparse codes: Bernoulli times a symmetric distribution of the coefficients.

Legend: N codes of n entries; p the share of entries that are not 0.
"""

import math

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split, split_counts
from sdunroll.randomness import generator


def with_power(gaussian: Tensor, power: float) -> Tensor:
    """sign(g) |g|^q / sqrt(E |g|^(2q)): coefficients of variance 1 made of g ~ N(0, 1), zeros kept.

    q = 1 leaves them Gaussian, q = 0 makes them signs, q > 1 gives them heavy tails. With
    E |g|^(2q) = 2^q Gamma(q + 1/2) / sqrt(pi).
    """
    if power == 1:
        return gaussian
    # by logarithms, since the factors overflow long before their product does
    second = power * math.log(2) + math.lgamma(power + 0.5) - math.log(math.pi) / 2
    size = torch.special.xlogy(power, gaussian.abs())
    return gaussian.sign() * (size - second / 2).exp()


class SparseCodes(Source):
    """Codes c_j = b_j g_j with b_j ~ Bernoulli(p) and g_j of variance 1.

    Args:
        num_atoms: n.
        sparsity: p.
        power: q of the coefficients, see :func:`with_power`; 1 for N(0, 1).
        num_train, num_val, num_test: codes in each split.
        seed: of the splits.
    """

    def __init__(
        self,
        *,
        num_atoms: int = 500,
        sparsity: float = 0.1,
        power: float = 1.0,
        num_train: int = 8000,
        num_val: int = 1000,
        num_test: int = 2000,
        seed: int = 0,
    ) -> None:
        self.num_atoms = checks.integer("num_atoms", num_atoms)
        self.sparsity = checks.number("sparsity", sparsity, above=0, high=1)
        self.power = checks.number("power", power, low=0)
        self.counts = split_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        self.seed = checks.integer("seed", seed, low=0)

    def signals(self, split: Split) -> Tensor:
        """(N, n)."""
        checks.choice("split", split, SPLITS)
        return self.draw(self.counts[split], generator(self.seed, f"synthetic/codes/{split}"))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        shape = (count, self.num_atoms)
        support = torch.rand(shape, generator=generator) < self.sparsity
        return support * with_power(torch.randn(shape, generator=generator), self.power)


def gaussian_dictionary(num_features: int, num_atoms: int, seed: int) -> Tensor:
    """D, (m, n): D_ij ~ N(0, 1/m), columns then scaled to unit norm; made on the CPU."""
    shape = (checks.integer("num_features", num_features), num_atoms)
    gaussian = torch.randn(shape, generator=generator(seed, "synthetic/dictionary"))
    return gaussian / gaussian.norm(dim=0)


def noise_std(snr_db: float | None, *, sparsity: float, num_atoms: int, num_features: int) -> float:
    """Standard deviation of white noise w with E||Dc||^2 / E||w||^2 = 10^(snr_db / 10); 0 for None.

    E||Dc||^2 = p n, since the columns of D have unit norm and the codes are independent with variance p.
    """
    if snr_db is None:
        return 0.0
    power = sparsity * num_atoms / num_features
    return math.sqrt(power / 10 ** (checks.number("snr_db", snr_db) / 10))
