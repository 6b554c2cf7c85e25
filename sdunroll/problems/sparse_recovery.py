r"""Sparse recovery: find the code that made a noisy measurement over a known dictionary.

    x = D c + w,    f(y; x) = 1/2 ||x - D y||^2 + alpha ||y||_1

The target is the true code c, which is not quite the minimiser of f; f is what the unrolled algorithms
descend on. Legend: B instances, m measurements, n atoms; ``...`` stands for leading dimensions such as
the layers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sdunroll import checks, solvers
from sdunroll.cache import Cache, digest
from sdunroll.data import Batch, Source, SparseCodes, gaussian_dictionary, noise_std
from sdunroll.problems.base import Problem
from sdunroll.problems.sparse_coding import SparseCoding
from sdunroll.randomness import generator

AMP_TUNING = 1.1402  # tau, tuned for this benchmark by Borgerding et al., section III-A
OFFSET = (
    1e-12  # of squared norms, so that the dB of an exact recovery and of a zero code are finite
)


class SparseRecovery(Problem):
    """min_y 1/2 ||x - D y||^2 + alpha ||y||_1, whose signals and targets are the codes.

    Args:
        dictionary: D, (m, n), columns of unit norm.
        alpha: weight of the l1 norm, > 0.
        sparsity: p, the share of entries of the codes that are not 0 (of variance 1).
        snr_db: E||Dc||^2 / E||w||^2 in dB for codes of that sparsity; None for no noise.
        seed: of the noise.
    """

    minimised = False

    def __init__(
        self,
        dictionary: Tensor,
        *,
        alpha: float,
        sparsity: float,
        snr_db: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.coding = SparseCoding(dictionary, alpha=alpha)
        self.sparsity = sparsity
        self.snr_db = snr_db
        self.seed = checks.integer("seed", seed, low=0)
        features, atoms = dictionary.shape
        self.std = noise_std(snr_db, sparsity=sparsity, num_atoms=atoms, num_features=features)

    def changed(
        self, *, dictionary: Tensor | None = None, snr_db: float | None = None
    ) -> "SparseRecovery":
        """The same problem measured by another dictionary, or with another noise."""
        return SparseRecovery(
            self.coding.dictionary if dictionary is None else dictionary,
            alpha=float(self.coding.alpha),
            sparsity=self.sparsity,
            snr_db=self.snr_db if snr_db is None else snr_db,
            seed=self.seed,
        )

    def instances(
        self, signals: Tensor, clean: Tensor | None = None, *, keep: bool = True
    ) -> Batch:
        """Measurements of the codes ``signals``, (B, n), with the clean codes as targets.

        The noise is drawn anew for each set of clean codes, the same at each call.
        """
        clean = signals if clean is None else clean
        obs = signals @ self.coding.dictionary.T  # (B, m)
        if self.std > 0:
            rng = generator(self.seed, f"measurement/{digest(clean)}")
            obs = obs + self.std * torch.randn(obs.shape, generator=rng)
        return Batch(obs, clean)

    def objective(self, y: Tensor, obs: Tensor) -> Tensor:
        return self.coding.objective(y, obs)

    def gradient(self, y: Tensor, obs: Tensor) -> Tensor:
        """The minimum-norm subgradient, (..., B, n)."""
        return self.coding.gradient(y, obs)

    def step_length(self, y: Tensor, obs: Tensor) -> Tensor:
        """How far one step of ISTA moves y, (..., B)."""
        return self.coding.step_length(y, obs)

    def baselines(self, batch: Batch) -> dict[str, Iterator[Tensor]]:
        """ISTA, FISTA and AMP from 0, and least squares on the true support (``oracle``)."""
        dictionary, obs = self.coding.dictionary, batch.obs
        start = torch.zeros_like(batch.target)
        return {
            **self.coding.baselines(batch),
            "amp": solvers.amp(dictionary, obs, AMP_TUNING, start=start),
            "oracle": (
                solvers.least_squares_on(dictionary, obs, batch.target != 0) for _ in range(1)
            ),
        }

    def cache_key(self) -> dict[str, object] | None:
        if type(self) is not SparseRecovery or (key := self.coding.cache_key()) is None:
            return None
        return {**key, "name": "sparse recovery", "amp_tuning": AMP_TUNING}

    def picture(self, obs: Tensor) -> Tensor:
        """D^T x, (B, n): the measurement as a code."""
        return obs @ self.coding.dictionary

    def figures(self, y: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``sample_nmse_db``, 10 log10(||y - c||^2 / ||c||^2); of the support {j: y_j != 0} the
        ``precision``, ``recall`` and number of ``false_positives``."""
        errors, powers = self.ratios(y, batch)["nmse_db"]
        found, true = y != 0, batch.target != 0
        hits = (found & true).sum(-1)
        return {
            "sample_nmse_db": 10 * (errors / powers).log10(),
            "precision": torch.where(found.any(-1), hits / found.sum(-1).clamp_min(1), 1.0),
            "recall": torch.where(true.any(-1), hits / true.sum(-1).clamp_min(1), 1.0),
            "false_positives": (found & ~true).sum(-1).to(y),
        }

    def ratios(self, y: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """``nmse_db``: ||y - c||^2 and ||c||^2, for 10 log10(E||y - c||^2 / E||c||^2)."""
        errors = (y - batch.target).square().sum(-1) + OFFSET
        powers = batch.target.square().sum(-1) + OFFSET
        return {"nmse_db": (errors, powers.expand_as(errors))}


def sparse_recovery(
    source: Source,
    cache: Cache,
    state: dict[str, Tensor] | None = None,
    *,
    num_features: int = 250,
    alpha: float = 0.2,
    snr_db: float | None = None,
    seed: int = 0,
) -> SparseRecovery:
    """Recovery of the source's codes from Gaussian measurements.

    Args:
        num_features: m.
        alpha, snr_db: of :class:`SparseRecovery`.
        seed: of the dictionary and of the noise.

    Errors: a source of other than sparse codes.
    """
    if not isinstance(source, SparseCodes):
        raise checks.UserError(
            "data: expected sparse codes for sparse recovery, got "
            f"{type(source).__name__}; take data=sparse_codes or problem=lista"
        )
    if state is None:
        dictionary = gaussian_dictionary(num_features, source.num_atoms, seed)
    else:
        dictionary = state["coding.dictionary"]
    return SparseRecovery(
        dictionary, alpha=alpha, sparsity=source.sparsity, snr_db=snr_db, seed=seed
    )
