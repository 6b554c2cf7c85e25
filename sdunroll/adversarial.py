r"""Worst-case perturbations: projected gradient ascent on the final distance within a small ball.

    delta <- P(delta + eta_k s(grad_delta ||y_L - y*||)),    eta_k = 2 level (1 - k / steps)

with P the projection onto the ball of radius ``level`` and s the steepest direction in its norm; the
steps begin as long as the ball is wide, and shrink. Per instance, the worst delta on the way counts, the
random start (of full norm) among them; so the result is never weaker than that random noise.
Reference: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
Adversarial Attacks", https://arxiv.org/abs/1706.06083. Legend: L layers, B instances, n unknowns.

Where y* depends on what is attacked, it is solved anew at every step, and the gradient passes through
it: without that, an attack moves the network's answer and the optimum along with it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import distance
from sdunroll.data import Batch
from sdunroll.networks import Perturb, UnrolledNetwork
from sdunroll.perturbations import Perturbation, random_direction
from sdunroll.problems import Problem
from sdunroll.randomness import generator as generator_of

Norm = Literal["l2", "linf"]
Where = Literal["input", "layer"]
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""delta (B, ...) -> the final distance (B,) and its gradient in delta (B, ...)."""


def project(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """delta (B, ...) onto the balls of ``radius``, (B,), in the l2 or the l-infinity norm."""
    radius = radius.view(-1, *[1] * (delta.ndim - 1))
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -radius), radius)
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).view(radius.shape)
    return delta * (radius / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit norm along which a loss with this gradient, (B, ...), rises most."""
    if norm == "linf":
        return gradient.sign()
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    safe = length.clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / safe.view(-1, *[1] * (gradient.ndim - 1))


@torch.no_grad()
def ascend(
    loss: Loss, like: Tensor, radius: Tensor, *, norm: Norm, steps: int, restarts: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The delta of the largest loss found for each instance, (B, ...), in the shape of ``like``.

    Args:
        radius: of each instance's ball, (B,).
        steps: of each ascent. restarts: ascents, each from a random delta of norm ``radius``.
        generator: of the random starts.
    """
    sizes = radius.view(-1, *[1] * (like.ndim - 1))
    worst = torch.zeros_like(like)
    highest, _ = loss(worst)
    for _ in range(restarts):
        delta = random_direction(like, generator)
        delta = sizes * (delta.sign() if norm == "linf" else delta)
        for step in range(steps + 1):
            value, gradient = loss(delta)
            higher = value > highest
            worst[higher], highest = delta[higher], torch.where(higher, value, highest)
            if step < steps:
                # not finite where the atoms of y* are dependent: that instance stays where it is
                gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
                move = 2 * (1 - step / steps) * sizes * steepest(gradient, norm)
                delta = project(delta + move, radius, norm)
    return worst


class Adversarial(Perturbation):
    """The worst perturbation that projected gradient ascent finds, of the signals or after a layer.

    Args:
        level: radius of the ball. Of the signals, in their unit (per entry for "linf"); after a layer,
            in lengths of a classical step from there (:meth:`Problem.step_length`), for "linf" that
            length divided by sqrt(n), so that the ball lies inside the one for "l2".
        where: "input" or "layer".
        layer: after which layer, 1 .. L-1; None for the middle one, L // 2.
        norm: "l2" or "linf". steps, restarts: see :func:`ascend`.
    """

    network: UnrolledNetwork
    seed: int
    norm: Norm
    where: Where

    def __init__(
        self,
        level: float,
        *,
        where: Where = "input",
        layer: int | None = None,
        norm: Norm = "l2",
        steps: int = 20,
        restarts: int = 1,
    ) -> None:
        super().__init__(level)
        self.where = where
        checks.choice("where", where, ("input", "layer"))
        self.layer = None if layer is None else checks.integer("layer", layer)
        self.norm = norm
        checks.choice("norm", norm, ("l2", "linf"))
        self.steps = checks.integer("steps", steps)
        self.restarts = checks.integer("restarts", restarts)

    def aim(self, network: UnrolledNetwork, seed: int) -> "Adversarial":
        """The attack on this network, whose starts y_0 are drawn from ``seed`` as an evaluation does.

        Errors: a layer that is not among 1 .. L-1.
        """
        if self.where == "layer":
            last = network.num_layers - 1
            if last == 0:
                raise checks.InvalidValue(
                    "perturbation.where: expected input, since the one layer of this network passes "
                    "nothing on, got layer"
                )
            if not 1 <= (self.layer or network.num_layers // 2) <= last:
                raise checks.InvalidValue(
                    f"perturbation.layer: expected one of the layers 1 to {last}, which pass something "
                    f"on, got {self.layer or network.num_layers // 2}"
                )
        aimed = Adversarial(
            self.level, where=self.where, layer=self.layer, norm=self.norm, steps=self.steps,
            restarts=self.restarts,
        )  # fmt: skip
        aimed.network, aimed.seed = network, seed
        return aimed

    def instances(
        self,
        problem: Problem,
        signals: Tensor,
        generator: torch.Generator,
        value_range: tuple[float, float] | None,
    ) -> Batch:
        if self.where == "layer" or self.level == 0:
            return problem.instances(signals)

        def moved(delta: Tensor) -> Tensor:
            shifted = signals + delta
            return shifted if value_range is None else shifted.clamp(*value_range)

        def loss(delta: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                delta = delta.detach().requires_grad_()
                batch = problem.instances(moved(delta), clean=signals, keep=False)
                fixed = Batch(batch.obs.detach(), batch.target.detach())
                value, slopes = self._final_distance(fixed)
                moving = [place for place, part in enumerate(batch) if part.requires_grad]
                outputs, weights = ([parts[place] for place in moving] for parts in (batch, slopes))
                (gradient,) = torch.autograd.grad(outputs, delta, weights)
            return value, gradient

        radius = signals.new_full((len(signals),), self.level)
        delta = ascend(
            loss, signals, radius, norm=self.norm, steps=self.steps, restarts=self.restarts,
            generator=generator,
        )  # fmt: skip
        return problem.instances(moved(delta), clean=signals)

    def _final_distance(self, batch: Batch) -> tuple[Tensor, Batch]:
        """||y_L - y*||, (B,), and its gradients in x and y*, in chunks, on the batch's device."""
        device = next(self.network.parameters()).device
        start = generator_of(self.seed, "evaluation/start", device)
        values, slopes = [], []
        for chunk in batch.to(device).chunks():
            x, target = (part.requires_grad_() for part in chunk)
            final = distance(self.network(x, generator=start).output, target)
            slopes.append(torch.autograd.grad(final.sum(), (x, target)))
            values.append(final.detach())
        parts = zip(*slopes, strict=True)
        gradients = Batch(*(torch.cat(part).to(batch.obs.device) for part in parts))
        return torch.cat(values).to(batch.obs.device), gradients

    def between_layers(
        self, problem: Problem, batch: Batch, generator: torch.Generator
    ) -> Perturb | None:
        if self.where == "input" or self.level == 0:
            return None
        attacked = self.layer or self.network.num_layers // 2
        start: list[Tensor] = []

        def perturb(index: int, y: Tensor) -> Tensor:
            if index == 0:
                start.append(y)
            return (
                y + self._worst(problem, batch, start[0], y, generator) if index == attacked else y
            )

        return perturb

    def _worst(
        self, problem: Problem, batch: Batch, start: Tensor, y: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The worst delta after the attacked layer, which returned ``y``, of a pass from ``start``."""
        attacked = self.layer or self.network.num_layers // 2
        unused = generator_of(0, "unused", y.device)

        def loss(delta: Tensor) -> tuple[Tensor, Tensor]:
            def fixed(index: int, state: Tensor) -> Tensor:
                return start if index == 0 else y + delta if index == attacked else state

            with torch.enable_grad():
                delta = delta.detach().requires_grad_()
                path = self.network(batch.obs, generator=unused, perturb=fixed)
                final = distance(path.output, batch.target)
                (gradient,) = torch.autograd.grad(final.sum(), delta)
            return final.detach(), gradient

        radius = self.level * problem.step_length(y, batch.obs)  # (B,)
        if self.norm == "linf":
            radius = radius / y[0].numel() ** 0.5
        return ascend(
            loss, y, radius, norm=self.norm, steps=self.steps, restarts=self.restarts,
            generator=generator,
        )  # fmt: skip
