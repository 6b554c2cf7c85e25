r"""Unrolled proximal gradient for inverse problems in imaging, with learned proximal steps.

    v_l = y_{l-1} + mu_l A^T (x - A y_{l-1}),    y_l = prox_l(v_l),    l = 1 .. L

GLOW-Prox takes the proximal step in the latent space of a flow g_l of the layer's own,

    prox_l(v) = g_l^{-1}(g_l(v) / (1 + lambda_l)),

which minimises 1/2 ||z - g_l(v)||^2 + lambda_l/2 ||z||^2 over the latents z. Reference: Wei et al., "Deep
Unfolding with Normalizing Flow Priors for Inverse Problems", https://arxiv.org/abs/2107.02848.
Legend: B images, C channels, H x W pixels, L layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdunroll import checks
from sdunroll.networks.base import UnrolledNetwork
from sdunroll.networks.flow import Glow
from sdunroll.networks.flow_steps import convolution
from sdunroll.problems import InverseImaging, Problem


class Proximal(nn.Module, ABC):
    """A learned proximal step; in a config a callable ``(channels, generator) -> Proximal``."""

    inverts = False  #: whether it inverts a map, for which it needs all digits

    @abstractmethod
    def forward(self, v: Tensor) -> Tensor:
        """prox(v), (B, C, H, W)."""

    def objective_terms(self) -> dict[str, Callable[..., Tensor]]:
        """``penalty`` and ``latent_gradient`` of :class:`InverseImaging` whose proximal step this is;
        empty where they are not known."""
        return {}

    def prepare(self, v: Tensor) -> None:
        """Start from the data: v, (B, C, H, W), are what the first step will receive."""

    def round_trip_error(self, y: Tensor) -> Tensor | None:
        """max |g^{-1}(g(y)) - y|, a scalar; None where nothing is inverted."""
        return None


class FlowProximal(Proximal):
    """The proximal step in the latent space of a flow; lambda > 0 by exp.

    Args:
        channels: C. generator: draws the flow's weights.
        depth, levels, width, shift_bound, reversible: of :class:`Glow`.
        shrinkage: lambda at the start.
    """

    inverts = True

    def __init__(
        self,
        channels: int,
        generator: torch.Generator,
        *,
        depth: int = 4,
        levels: int = 2,
        width: int = 32,
        shift_bound: float | None = None,
        shrinkage: float = 0.1,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        self.flow = Glow(
            channels,
            generator,
            depth=depth,
            levels=levels,
            width=width,
            shift_bound=shift_bound,
            reversible=reversible,
        )
        start = torch.tensor(checks.number("shrinkage", shrinkage, above=0))
        self.log_lambda = nn.Parameter(start.log())

    def forward(self, v: Tensor) -> Tensor:
        height, width = v.shape[-2:]
        keep = 1 / (1 + self.log_lambda.exp())
        maps = self.flow.maps()
        latents = [keep * latent for latent in self.flow(self._padded(v), maps)]
        return self.flow.inverse(latents, maps)[..., :height, :width]

    def _padded(self, y: Tensor) -> Tensor:
        """y continued at its right and lower border to the next size that the flow can take."""
        down, right = (-size % self.flow.period for size in y.shape[-2:])
        return functional.pad(y, (0, right, 0, down), mode="replicate") if down or right else y

    def objective_terms(self) -> dict[str, Callable[..., Tensor]]:
        return {"penalty": self.penalty, "latent_gradient": self.latent_gradient}

    def penalty(self, y: Tensor, *, twice: bool = False) -> Tensor:
        """lambda/2 ||g(y)||^2, (B,); with ``twice`` it can be differentiated twice."""
        return self.log_lambda.exp() / 2 * self._latents(y, twice).square().sum(1)

    def latent_gradient(self, y: Tensor) -> Tensor:
        """lambda g(y), (B, n)."""
        return self.log_lambda.exp() * self._latents(y)

    def _latents(self, y: Tensor, twice: bool = False) -> Tensor:
        latents = self.flow(self._padded(y), reversible=False if twice else None)
        return torch.cat([latent.flatten(1) for latent in latents], 1)

    def prepare(self, v: Tensor) -> None:
        self.flow.normalise(self._padded(v))

    @torch.no_grad()
    def round_trip_error(self, y: Tensor) -> Tensor:
        y = self._padded(y)
        maps = self.flow.maps()
        return (self.flow.inverse(self.flow(y, maps), maps) - y).abs().max()


class CnnProximal(Proximal):
    """prox(v) = v + CNN(v), three convolutions of which the last starts at 0.

    Args:
        channels: C. generator: draws the weights. width: hidden channels.
    """

    def __init__(self, channels: int, generator: torch.Generator, *, width: int = 32) -> None:
        super().__init__()
        checks.integer("width", width)
        self.net = nn.Sequential(
            convolution(channels, width, 3, generator),
            nn.ReLU(),
            convolution(width, width, 3, generator),
            nn.ReLU(),
            convolution(width, channels, 3, generator, zero=True),
        )

    def forward(self, v: Tensor) -> Tensor:
        return v + self.net(v)


class ProximalGradient(UnrolledNetwork):
    """L layers of a gradient step on the data and a learned proximal step; mu_l > 0 by exp.

    Args:
        problem: gives the operator A and the number of channels.
        generator: draws the weights.
        num_layers: L.
        proximal: ``(channels, generator) -> Proximal``.
        shared: one proximal step for all layers, or one each.
        start: y_0 is what is measured, A^T x ("measured"), or that with its holes filled by harmonic
            continuation ("harmonic").
        step: mu at the start.
    """

    def __init__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        proximal: Callable[[int, torch.Generator], Proximal],
        num_layers: int = 4,
        shared: bool = False,
        start: Literal["measured", "harmonic"] = "measured",
        step: float = 1.0,
    ) -> None:
        super().__init__(num_layers=num_layers)
        if not isinstance(problem, InverseImaging):
            raise checks.InvalidValue(
                "network: unrolled proximal gradient restores pictures, got the problem "
                f"{type(problem).__name__}; take another network or problem=glow_prox"
            )
        checks.boolean("shared", shared)
        self.start = checks.choice("start", start, ("measured", "harmonic"))
        self.problem = problem
        self.log_mu = nn.Parameter(
            torch.full((num_layers,), checks.number("step", step, above=0)).log()
        )
        count = 1 if shared else num_layers
        try:
            steps = [proximal(problem.channels, generator) for _ in range(count)]
        except checks.InvalidValue as error:
            raise checks.InvalidValue(f"proximal.{error}") from error
        self.proximal = nn.ModuleList(steps)
        self.shares_weights = shared and num_layers > 1
        self.exact = any(step.inverts for step in steps)

    def initial(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        operator = self.problem.operator
        if self.start == "harmonic":
            return operator.fill(obs)
        return operator.adjoint(operator.measurement(obs), obs)

    def _proximal(self, index: int) -> Proximal:
        return self.proximal[(index - 1) % len(self.proximal)]  # type: ignore[return-value]

    def _data_step(self, index: int, y: Tensor, obs: Tensor) -> Tensor:
        return y - self.log_mu[index - 1].exp() * self.problem.data_gradient(y, obs)

    def layer(self, index: int, y: Tensor, shared: Tensor) -> Tensor:
        return self._proximal(index)(self._data_step(index, y, shared))

    def problems(self) -> list[Problem]:
        """The objective of each layer: the problem's with the penalty of the layer's own flow."""
        terms = [self._proximal(index).objective_terms() for index in range(1, self.num_layers + 1)]
        return [
            InverseImaging(
                self.problem.operator,
                penalty=own.get("penalty"),
                latent_gradient=own.get("latent_gradient"),
            )
            for own in terms
        ]

    @torch.no_grad()
    def prepare(self, obs: Tensor, generator: torch.Generator) -> None:
        y = self.initial(obs, generator)
        for index in range(1, self.num_layers + 1):
            if index <= len(self.proximal):
                self._proximal(index).prepare(self._data_step(index, y, obs))
            y = self.layer(index, y, obs)

    def health(self, states: Tensor) -> dict[str, float]:
        """``round_trip_error``: the worst |g_l^{-1}(g_l(y_l)) - y_l| of the layers."""
        errors = [
            self._proximal(index).round_trip_error(states[index])
            for index in range(1, self.num_layers + 1)
        ]
        found = [error for error in errors if error is not None]
        return {"round_trip_error": float(torch.stack(found).max())} if found else {}
