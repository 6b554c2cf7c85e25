"""What a problem is: an objective with its gradient, and instances with their targets.

Legend: B instances, m features, n unknowns; ``...`` stands for leading dimensions such as the layers.
Pictures have (C, H, W) in place of m and n.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from sdunroll.data import Batch


class Problem(nn.Module, ABC):
    """A family of problems min_y f(y; x); a module, so that its buffers move and are saved.

    A problem in a config is a callable ``(source, cache, state) -> Problem``, where ``state`` is a
    state dict to restore (None when the problem is made for the first time).
    """

    minimised = True  #: whether the targets are the minimisers of f

    @abstractmethod
    def instances(
        self, signals: Tensor, clean: Tensor | None = None, *, keep: bool = True
    ) -> Batch:
        """Instances made of ``signals``, (B, C, H, W) or (B, m), with their targets; the same ones at
        each call, and differentiable in the signals if they are not kept.

        Args:
            clean: what the signals were before a disturbance, themselves by default. Where the target
                is what was observed, it is the clean one; where it is an optimum, it is that of the
                disturbed problem.
            keep: whether what is computed may be cached.
        """

    @abstractmethod
    def objective(self, y: Tensor, obs: Tensor) -> Tensor:
        """f(y; x), (..., B) for y (..., B, n) and x (B, m)."""

    @abstractmethod
    def gradient(self, y: Tensor, obs: Tensor) -> Tensor:
        """grad f(y; x), (..., B, n), without Jacobians; exactly 0 at the optimum."""

    @abstractmethod
    def step_length(self, y: Tensor, obs: Tensor) -> Tensor:
        """Length of one classical step from y, (..., B): the natural unit of a perturbation of y."""

    @abstractmethod
    def baselines(self, batch: Batch) -> dict[str, Iterator[Tensor]]:
        """Classical solvers by name: their iterates y_0, y_1, ..., (B, n) each, without end; of a
        solver that does not iterate, its one answer. Only an oracle looks at the targets."""

    def cache_key(self) -> dict[str, object] | None:
        """All that decides f and what the classical solvers make of instances, as JSON values; None
        where nobody knows, and the solvers are run again for each network."""
        return None

    def certificate(self, y: Tensor, obs: Tensor) -> Tensor | None:
        """Upper bound of (f(y) - f(y*)) / f(y), (B,), in float64; None where there is none."""
        return None

    def reconstruct(self, y: Tensor) -> Tensor:
        """The signal that y stands for; y itself by default."""
        return y

    def picture(self, obs: Tensor) -> Tensor:
        """The observation as a signal, (B, C, H, W) or (B, m); itself by default."""
        return obs

    def figures(self, y: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What else is measured at y (K, B, ...) in this field, by name, (K, B) each."""
        return {}

    def ratios(self, y: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """What is measured at y (K, B, ...) as a ratio of means in dB, by name: numerators and
        denominators, > 0, (K, B) both."""
        return {}
