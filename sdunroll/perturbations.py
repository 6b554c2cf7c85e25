"""What can disturb a trained network: noise between its layers, on its input, on its start.

Legend: L layers, B instances, n unknowns.
"""

from typing import Literal

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.networks import Perturb
from sdunroll.problems import Problem


class Perturbation:
    """A disturbance of a given level >= 0; the base disturbs nothing.

    A perturbation in a config is a callable ``level -> Perturbation``.
    """

    def __init__(self, level: float) -> None:
        self.level = checks.number("level", level, low=0)

    def observe(
        self, obs: Tensor, generator: torch.Generator, value_range: tuple[float, float] | None
    ) -> Tensor:
        """The disturbed observation, in the shape of ``obs``; clamped to ``value_range``."""
        return obs

    def between_layers(
        self, problem: Problem, obs: Tensor, generator: torch.Generator
    ) -> Perturb | None:
        """What acts on y_0 .. y_{L-1}; None for nothing."""
        return None


def random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform on the unit sphere of each instance, in the shape of ``like``, (B, ...)."""
    noise = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    norms = torch.linalg.vector_norm(noise.flatten(1), dim=1)
    return noise / norms.view(-1, *[1] * (like.ndim - 1))


class LayerNoise(Perturbation):
    """Noise on what the layers pass on, after layers 1 .. L-1.

    ``relative``: a random direction of norm level * ||G(y)|| / Lip, the length of one classical step
    from y (:meth:`Problem.step_length`), so that it fades at the optimum. ``absolute``: level * N(0, I),
    the paper's.
    """

    def __init__(self, level: float, *, mode: Literal["relative", "absolute"] = "relative") -> None:
        super().__init__(level)
        self.mode = checks.choice("mode", mode, ("relative", "absolute"))

    def between_layers(
        self, problem: Problem, obs: Tensor, generator: torch.Generator
    ) -> Perturb | None:
        if self.level == 0:
            return None

        def perturb(index: int, y: Tensor) -> Tensor:
            if index == 0:
                return y
            if self.mode == "absolute":
                noise = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
                return y + self.level * noise
            size = self.level * problem.step_length(y.detach(), obs)  # (B,)
            direction = random_direction(y, generator)
            return y + size.view(-1, *[1] * (y.ndim - 1)) * direction

        return perturb


class InputNoise(Perturbation):
    """x + level * N(0, I), clamped to the range of the data; a shift of the distribution."""

    def observe(
        self, obs: Tensor, generator: torch.Generator, value_range: tuple[float, float] | None
    ) -> Tensor:
        noise = torch.randn(obs.shape, generator=generator, device=obs.device, dtype=obs.dtype)
        shifted = obs + self.level * noise
        return shifted if value_range is None else shifted.clamp(*value_range)


class InitialScale(Perturbation):
    """y_0 scaled by the level: a start farther off (or nearer) than those trained on."""

    def between_layers(
        self, problem: Problem, obs: Tensor, generator: torch.Generator
    ) -> Perturb | None:
        return lambda index, y: self.level * y if index == 0 else y
