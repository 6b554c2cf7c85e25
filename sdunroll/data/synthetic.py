"""Synthetic sparse signals: a Gaussian dictionary and Bernoulli-Gaussian codes."""

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split
from sdunroll.data.sparse_codes import SparseCodes, gaussian_dictionary, noise_std
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
        self.source = SparseCodes(
            num_atoms=num_atoms,
            sparsity=sparsity,
            num_train=num_train,
            num_val=num_val,
            num_test=num_test,
            seed=seed,
        )
        self.dictionary = gaussian_dictionary(num_features, num_atoms, seed)
        self.seed = seed
        self.std = noise_std(
            snr_db, sparsity=sparsity, num_atoms=num_atoms, num_features=num_features
        )

    def codes(self, split: Split) -> Tensor:
        """The codes c that made the signals of ``split``, (N, n)."""
        return self.source.signals(split)

    def signals(self, split: Split) -> Tensor:
        """(N, m)."""
        checks.choice("split", split, SPLITS)
        assert self.dictionary is not None
        clean = self.codes(split) @ self.dictionary.T
        if self.std == 0:
            return clean
        rng = generator(self.seed, f"synthetic/noise/{split}")
        return clean + self.std * torch.randn(clean.shape, generator=rng)
