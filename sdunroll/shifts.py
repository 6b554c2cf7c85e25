"""Shifts of the distribution in sparse recovery: other noise, codes or dictionaries than trained on."""

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data import Batch, with_power
from sdunroll.perturbations import Perturbation
from sdunroll.problems import Problem, SparseRecovery

Range = tuple[float, float] | None


def _recovery(problem: Problem) -> SparseRecovery:
    """Errors: another problem."""
    if not isinstance(problem, SparseRecovery):
        raise checks.InvalidValue(
            "perturbation: expected a run of sparse recovery for a shift of its codes or measurements, got "
            f"{type(problem).__name__}; take another perturbation or train with problem=synthetic"
        )
    return problem


class SnrShift(Perturbation):
    """Measurements with a signal-to-noise ratio of level dB, the noise of the same directions."""

    replaces_observations = True

    def instances(
        self, problem: Problem, signals: Tensor, generator: torch.Generator, value_range: Range
    ) -> Batch:
        return _recovery(problem).changed(snr_db=self.level).instances(signals)


class SparsityShift(Perturbation):
    """A share level of the entries is not 0, 0 < level <= 1; targets are the new codes.

    Entries are dropped at random or N(0, 1) ones added, so that the codes stay the same where the level
    is the share p that was trained on: below it, one is kept with probability level / p; above it, one
    is added with probability (level - p) / (1 - p).
    """

    def __init__(self, level: float) -> None:
        super().__init__(checks.number("level", level, above=0, high=1))

    def instances(
        self, problem: Problem, signals: Tensor, generator: torch.Generator, value_range: Range
    ) -> Batch:
        share = _recovery(problem).sparsity
        chance = torch.rand(signals.shape, generator=generator)
        values = torch.randn(signals.shape, generator=generator)
        if self.level <= share:
            codes = signals * (chance < self.level / share)
        else:
            added = (signals == 0) & (chance < (self.level - share) / (1 - share))
            codes = torch.where(added, values, signals)
        return problem.instances(codes)


class DictionaryShift(Perturbation):
    """Measurements by columns d_i + level u_i, scaled to unit norm, u_i random directions; the network
    knows the d_i alone."""

    def instances(
        self, problem: Problem, signals: Tensor, generator: torch.Generator, value_range: Range
    ) -> Batch:
        recovery = _recovery(problem)
        dictionary = recovery.coding.dictionary
        if self.level == 0:
            return recovery.instances(signals)
        noise = torch.randn(dictionary.shape, generator=generator)
        other = dictionary + self.level * noise / noise.norm(dim=0)
        return recovery.changed(dictionary=other / other.norm(dim=0)).instances(signals)


class CoefficientShift(Perturbation):
    """Coefficients g become sign(g) |g|^level at the same variance, for N(0, 1) ones; see
    :func:`sdunroll.data.with_power`. 1 changes nothing, 0 leaves signs; targets are the new codes."""

    def instances(
        self, problem: Problem, signals: Tensor, generator: torch.Generator, value_range: Range
    ) -> Batch:
        return _recovery(problem).instances(with_power(signals, self.level))
