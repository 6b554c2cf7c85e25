"""What an unrolled network is: layers that each refine an estimate.

Legend: L layers, B instances; y_0 is the start, y_l the estimate after layer l.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdunroll import checks
from sdunroll.problems import Problem

Perturb = Callable[[int, Tensor], Tensor]
"""(l, y_l) -> the perturbed y_l that the next layer receives; l = 0 is the start, L is never asked."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The estimates of one pass, all in one unit.

    Attributes:
        states: y_0 .. y_L, (L + 1, B, ...), each as its layer returned it.
        received: what each layer received, (L, B, ...); None if that was y_0 .. y_{L-1} unperturbed.
        problems: the problem whose objective each layer descends on, (L,); None if that is the same
            for all.
        final: y_L, (B, ...), by itself: the gradient of a loss on it alone need not pass the stack of
            all states; ``states[-1]`` if it is not given.
    """

    states: Tensor
    received: Tensor | None = None
    problems: Sequence[Problem] | None = None
    final: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """y_L, (B, ...)."""
        return self.states[-1] if self.final is None else self.final

    @property
    def inputs(self) -> Tensor:
        """What each layer received, after any perturbation, (L, B, ...)."""
        return self.states[:-1] if self.received is None else self.received

    @property
    def outputs(self) -> Tensor:
        """What each layer returned, before any perturbation, (L, B, ...)."""
        return self.states[1:]


class UnrolledNetwork(nn.Module, ABC):
    """L layers, each one iteration of an unrolled algorithm.

    A network in a config is a callable ``(problem, generator) -> UnrolledNetwork``, where
    ``generator`` draws the weights at the start.

    Args:
        num_layers: L.
    """

    def __init__(self, *, num_layers: int) -> None:
        super().__init__()
        self.num_layers = checks.integer("num_layers", num_layers)
        self.shares_weights = False  # whether training one layer alone would move another
        self.exact = False  # whether layers need all digits of float32, as inverses do

    @abstractmethod
    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """y_0, (B, ...)."""

    @abstractmethod
    def layer(self, index: int, y: Tensor, shared: Any) -> Tensor:
        """y_l from y_{l-1}, for index l = 1 .. L; ``shared`` is what :meth:`precompute` returned."""

    def precompute(self, obs: Tensor) -> Any:
        """What all layers need of the observation; the observation itself by default.

        It is made anew for each pass, so that a network that carries more than y from layer to layer,
        such as a momentum, can keep it there.
        """
        return obs

    def problems(self) -> Sequence[Problem] | None:
        """The problem whose objective each layer descends on, (L,), where layers have penalties of
        their own; None, the default, where all descend on the same."""
        return None

    def prepare(self, obs: Tensor, generator: torch.Generator) -> None:
        """Start weights from the first batch of observations, before the first step of training; by
        default nothing does."""

    def health(self, states: Tensor) -> dict[str, float]:
        """Figures by name that tell whether the network computes what it should, at y_0 .. y_L."""
        return {}

    def forward(
        self,
        obs: Tensor,
        *,
        generator: torch.Generator,
        perturb: Perturb | None = None,
        depth: int | None = None,
        frozen: int = 0,
        start: Tensor | None = None,
    ) -> Trajectory:
        """Run the layers on x, (B, ...), and return their trajectory.

        Args:
            generator: of the start.
            perturb: acts on y_0 .. y_{L-1} before the next layer.
            depth: the last layer to run, L by default.
            frozen: the number of first layers that are run without gradients.
            start: y_0, (B, ...), by default what :meth:`initial` gives.
        """
        depth = self.num_layers if depth is None else depth
        shared = self.precompute(obs)
        problems = self.problems()
        y = self.initial(obs, generator) if start is None else start
        states, received = [y], []
        for index in range(1, depth + 1):
            if perturb is not None:
                y = perturb(index - 1, y)
                received.append(y)
            with torch.set_grad_enabled(torch.is_grad_enabled() and index > frozen):
                after = checks.shaped(
                    f"{type(self).__name__}.layer", self.layer(index, y, shared), y.shape
                )
                # under autocast, a layer may return fewer digits than the estimates are kept in
                y = after.to(y.dtype)
            states.append(y)
        return Trajectory(
            torch.stack(states),
            torch.stack(received) if received else None,
            None if problems is None else problems[:depth],
            y,
        )
