"""The paper's bounds of the gradient norm for a trained network, by :mod:`sdunroll.theory`."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdunroll import checks, metrics, theory
from sdunroll.commands.assemble import Experiment
from sdunroll.data import Batch
from sdunroll.randomness import generator


class Bounds:
    """The bounds of one network, whose norms on the training split are measured once.

    Args:
        test: undisturbed instances. seed: of the starts. delta: see :mod:`sdunroll.theory`.
    """

    def __init__(self, experiment: Experiment, test: Batch, *, seed: int, delta: float) -> None:
        self.experiment = experiment
        self.test = test
        self.seed = seed
        self.delta = checks.number("delta", delta, above=0, below=1)

    def _norms(self, data: Batch) -> Tensor:
        """From the same starts whatever the split: y_0 is drawn anew in each step of training, so what a
        split is a sample of is instances."""
        e = self.experiment
        found = metrics.evaluate(
            e.network, e.problem, e.constraint, data, seed=self.seed, last_state=True
        )
        return found.states["gradient_norm"]

    @cached_property
    def _train_norms(self) -> Tensor:
        return self._norms(self.experiment.instances("train"))

    @cached_property
    def _test_norms(self) -> Tensor:
        return self._norms(self.test)

    def __call__(
        self, data: Batch | None = None, norms: Tensor | None = None
    ) -> dict[str, Any] | None:
        """The bounds on the test split, or on ``data`` of a shifted distribution with its ``norms``.

        None where layers have objectives of their own, and for data that are not shifted.
        """
        if self.experiment.network.problems() is not None:
            return None
        shift = 0.0
        if data is not None:
            if data.obs.shape != self.test.obs.shape or torch.equal(data.obs, self.test.obs):
                return None
            rng = generator(self.seed, "theory/directions")
            shift = theory.sliced_wasserstein(self.test.obs, data.obs, rng)
        constraint, network = self.experiment.constraint, self.experiment.network
        return theory.guarantee(
            self._train_norms,
            self._test_norms,
            # what is asked of the layers before is nothing
            epsilon=min(constraint.epsilons(network.num_layers)[constraint.first_layer - 1 :]),
            delta=self.delta,
            first_layer=constraint.first_layer,
            shifted=None if data is None else norms,
            shift=shift,
        ).as_dict()
