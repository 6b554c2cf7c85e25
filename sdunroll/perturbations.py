"""What can disturb a trained network: noise between its layers, on its input, on its start.

Legend: L layers, B instances, n unknowns.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data import Batch
from sdunroll.networks import Perturb, UnrolledNetwork
from sdunroll.problems import Inpainting, InverseImaging, Problem


class Perturbation:
    """A disturbance of a given level >= 0; the base disturbs nothing.

    A perturbation in a config is a callable ``level -> Perturbation``.
    """

    replaces_observations = False  #: whether the run's own observations make no difference

    def __init__(self, level: float) -> None:
        self.level = checks.number("level", level, low=0)

    def aim(self, network: UnrolledNetwork, seed: int) -> "Perturbation":
        """The disturbance as directed at ``network``, whose starts an evaluation draws from ``seed``;
        itself, where it does not depend on the network."""
        return self

    def disturb(
        self, signals: Tensor, generator: torch.Generator, value_range: tuple[float, float] | None
    ) -> Tensor:
        """The disturbed signals, in the shape of ``signals``; clamped to ``value_range``."""
        return signals

    def instances(
        self,
        problem: Problem,
        signals: Tensor,
        generator: torch.Generator,
        value_range: tuple[float, float] | None,
    ) -> Batch:
        """The instances that the network is to solve; by default those of the disturbed signals."""
        what = f"{type(self).__name__}.disturb"
        disturbed = self.disturb(signals, generator, value_range)
        checks.shaped(what, disturbed, signals.shape)
        return problem.instances(disturbed, clean=signals)

    def between_layers(
        self, problem: Problem, batch: Batch, generator: torch.Generator
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
    the paper's for sparse coding. ``fading``: a random direction of norm level / l, the paper's for
    inpainting.
    """

    def __init__(
        self, level: float, *, mode: Literal["relative", "absolute", "fading"] = "relative"
    ) -> None:
        super().__init__(level)
        self.mode = checks.choice("mode", mode, ("relative", "absolute", "fading"))

    def between_layers(
        self, problem: Problem, batch: Batch, generator: torch.Generator
    ) -> Perturb | None:
        if self.level == 0:
            return None

        def perturb(index: int, y: Tensor) -> Tensor:
            if index == 0:
                return y
            if self.mode == "absolute":
                noise = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
                return y + self.level * noise
            direction = random_direction(y, generator)
            if self.mode == "fading":
                return y + self.level / index * direction
            size = self.level * problem.step_length(y.detach(), batch.obs)  # (B,)
            return y + size.view(-1, *[1] * (y.ndim - 1)) * direction

        return perturb


class InputNoise(Perturbation):
    """Noise on the signals, clamped to the range of the data; a shift of the distribution.

    By ``mode``: ``white``, level * N(0, I); ``normalised``, a random direction of norm level;
    ``ramp``, white noise whose standard deviation rises over the last axis from 0 to 2 level.
    """

    def __init__(
        self, level: float, *, mode: Literal["white", "normalised", "ramp"] = "white"
    ) -> None:
        super().__init__(level)
        self.mode = checks.choice("mode", mode, ("white", "normalised", "ramp"))

    def disturb(
        self, signals: Tensor, generator: torch.Generator, value_range: tuple[float, float] | None
    ) -> Tensor:
        if self.mode == "normalised":
            noise = random_direction(signals, generator)
        else:
            noise = torch.randn(
                signals.shape, generator=generator, device=signals.device, dtype=signals.dtype
            )
        if self.mode == "ramp":
            noise = noise * torch.linspace(0, 2, signals.shape[-1]).to(signals)
        shifted = signals + self.level * noise
        return shifted if value_range is None else shifted.clamp(*value_range)


class MeasurementNoise(Perturbation):
    """Inverse problems whose measurements have white noise of standard deviation level, of the same
    directions at each level, in place of that of the training; masks stay as they are."""

    replaces_observations = True

    def instances(
        self,
        problem: Problem,
        signals: Tensor,
        generator: torch.Generator,
        value_range: tuple[float, float] | None,
    ) -> Batch:
        """Errors: :class:`checks.InvalidValue` for another problem."""
        if not isinstance(problem, InverseImaging):
            raise checks.InvalidValue(
                "perturbation: expected a run of an inverse problem for other noise of its measurements, "
                f"got {type(problem).__name__}; take perturbation=input_noise or snr"
            )
        operator = copy.deepcopy(problem.operator)
        operator.noise = (self.level, self.level)
        return InverseImaging(operator).instances(signals)


class MaskChange(Perturbation):
    """Inpainting with another mask than in training.

    Args:
        level: of what varies.
        vary: "offset" moves the box by level pixels, down and to the right, from where it was in
            training, of several places the middle; "size" gives it a side of level pixels; "rate"
            leaves out a share level of all pixels at random.
        size: side of the box where it does not vary; None for that of the training, of several the
            middle.
    """

    replaces_observations = True

    def __init__(
        self, level: float, *, vary: Literal["offset", "size", "rate"], size: int | None = None
    ) -> None:
        super().__init__(level)
        self.vary = checks.choice("vary", vary, ("offset", "size", "rate"))
        self.size = None if size is None else checks.integer("size", size)

    def instances(
        self,
        problem: Problem,
        signals: Tensor,
        generator: torch.Generator,
        value_range: tuple[float, float] | None,
    ) -> Batch:
        """Errors: :class:`checks.InvalidValue` for a problem other than inpainting, for a level that
        makes no mask, and for a size that is needed and not known."""
        if not isinstance(problem, InverseImaging) or not isinstance(problem.operator, Inpainting):
            raise checks.InvalidValue(
                "perturbation: expected a run of inpainting for another mask, got "
                f"{type(problem).__name__}; take another perturbation"
            )
        operator = problem.operator
        settings: dict[str, Any] = {"noise": operator.noise, "seed": operator.seed}
        side = self._side(operator) if self.vary == "offset" else 0
        offset = sum(operator.offsets) // 2 if operator.mask == "box" else 0  # of the training
        try:
            if self.vary == "rate":
                other = Inpainting(mask="random_pixels", rate=self.level, **settings)
            elif self.vary == "size":
                other = Inpainting(size=_whole(self.level), offset=offset, **settings)
            else:
                other = Inpainting(size=side, offset=offset + _whole(self.level), **settings)
            return InverseImaging(other).instances(signals)
        except checks.InvalidValue as error:
            raise checks.InvalidValue(f"levels: at level {self.level:g}: {error}") from error

    def _side(self, operator: Inpainting) -> int:
        if self.size is not None:
            return self.size
        if operator.mask not in ("box", "random_box"):
            raise checks.InvalidValue(
                "perturbation.size: expected the side of a box, since the run was trained on masks of "
                "other kinds; give perturbation.size=12, for example"
            )
        return sum(operator.sizes) // 2


def _whole(level: float) -> int:
    if level != int(level):
        raise checks.InvalidValue(f"expected whole numbers of pixels, got {level!r}")
    return int(level)


class InitialScale(Perturbation):
    """y_0 scaled by the level: a start farther off (or nearer) than those trained on."""

    def between_layers(
        self, problem: Problem, batch: Batch, generator: torch.Generator
    ) -> Perturb | None:
        return lambda index, y: self.level * y if index == 0 else y
