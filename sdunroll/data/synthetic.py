"""Synthetic sparse signals: a Gaussian dictionary and Bernoulli-Gaussian codes."""

import math

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split, split_counts
from sdunroll.randomness import generator


class Synthetic(Source):
    r"""Signals x = D c + w with a known dictionary.

    D_ij ~ N(0, 1/m), columns then scaled to unit norm; c_j = b_j g_j with b_j ~ Bernoulli(p) and
    g_j ~ N(0, 1); w white with E||Dc||^2 / E||w||^2 = 10^(snr_db / 10).
    The benchmark of Chen et al., "Theoretical Linear Convergence of Unfolded ISTA and Its Practical
    Weights and Thresholds", https://arxiv.org/abs/1808.10038.

    Args:
        num_features, num_atoms: m and n.
        sparsity: p, the share of codes that are not 0.
        snr_db: signal-to-noise ratio in dB; None for no noise.
        num_train, num_val, num_test: signals in each split.
        seed: of the dictionary and of the codes.
    """

    def __init__(
        self,
        *,
        num_features: int = 250,
        num_atoms: int = 500,
        sparsity: float = 0.1,
        snr_db: float | None = None,
        num_train: int = 8000,
        num_val: int = 1000,
        num_test: int = 2000,
        seed: int = 0,
    ) -> None:
        self.num_features = checks.integer("num_features", num_features)
        self.num_atoms = checks.integer("num_atoms", num_atoms)
        self.sparsity = checks.number("sparsity", sparsity, above=0, high=1)
        self.snr_db = None if snr_db is None else checks.number("snr_db", snr_db)
        self.counts = split_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        self.seed = checks.integer("seed", seed, low=0)
        rng = generator(self.seed, "synthetic/dictionary")
        gaussian = torch.randn(self.num_features, self.num_atoms, generator=rng)
        self.dictionary = gaussian / gaussian.norm(dim=0)

    def codes(self, split: Split) -> Tensor:
        """The codes c that made the signals of ``split``, (N, n)."""
        shape = (self.counts[split], self.num_atoms)
        rng = generator(self.seed, f"synthetic/codes/{split}")
        support = torch.rand(shape, generator=rng) < self.sparsity
        return support * torch.randn(shape, generator=rng)

    def signals(self, split: Split) -> Tensor:
        """(N, m)."""
        checks.choice("split", split, SPLITS)
        assert self.dictionary is not None
        clean = self.codes(split) @ self.dictionary.T
        if self.snr_db is None:
            return clean
        # E||Dc||^2 = p n, since columns have unit norm and codes are independent with variance p
        power = self.sparsity * self.num_atoms / self.num_features
        std = math.sqrt(power / 10 ** (self.snr_db / 10))
        rng = generator(self.seed, f"synthetic/noise/{split}")
        return clean + std * torch.randn(clean.shape, generator=rng)
