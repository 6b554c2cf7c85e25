r"""Glow: a normalizing flow with exact inverse, g: image -> latents of the same total size.

A step is z = coupling(W (exp(s) (h + b))): actnorm and an invertible 1x1 convolution W, applied as one
convolution, then an affine coupling. A level squeezes 2x2 pixels into channels, takes ``depth`` steps
and splits half of the channels off as latents.
Reference: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions",
https://arxiv.org/abs/1807.03039. Legend: B images, C channels, H x W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdunroll import checks
from sdunroll.networks.flow_steps import Coupling, Mix, mix_matrices
from sdunroll.networks.reversible import Invertible, apply_chain, reversible_chain


def squeeze(h: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4 C, H / 2, W / 2): the pixels of each 2x2 block become channels."""
    return functional.pixel_unshuffle(h, 2)


def unsqueeze(h: Tensor) -> Tensor:
    """The inverse of :func:`squeeze`."""
    return functional.pixel_shuffle(h, 2)


class Glow(nn.Module):
    """g: (B, C, H, W) -> ``levels`` latents; H and W divisible by 2^levels, otherwise of any size.

    Args:
        channels: C of the images.
        generator: draws the weights.
        depth: steps a level. levels: how often the image is squeezed.
        width: hidden channels of the couplings.
        shift_bound: of the couplings' shifts; None for none.
        reversible: rebuild activations in the backward pass instead of keeping them; the same
            gradients, but they cannot be differentiated again.
    """

    def __init__(
        self,
        channels: int,
        generator: torch.Generator,
        *,
        depth: int = 4,
        levels: int = 2,
        width: int = 32,
        shift_bound: float | None = None,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        checks.integer("depth", depth)
        checks.integer("width", width)
        if shift_bound is not None:
            shift_bound = checks.number("shift_bound", shift_bound, above=0)
        self.reversible = checks.boolean("reversible", reversible)
        self.period = 2 ** checks.integer("levels", levels)
        self.levels = nn.ModuleList()
        for _ in range(levels):
            channels *= 4
            steps: list[Invertible] = []
            for _ in range(depth):
                coupling = Coupling(channels, width, generator, shift_bound=shift_bound)
                steps += [Mix(channels, generator), coupling]
            self.levels.append(nn.ModuleList(steps))
            channels //= 2  # the other half is split off

    def maps(self) -> list[list[Invertible]]:
        """The steps of each level as maps that share the making of their matrices, for :meth:`forward`
        and :meth:`inverse` within one graph."""
        each = []
        for level in self.levels:
            steps: list[Invertible] = list(level)  # type: ignore[call-overload]
            steps[::2] = mix_matrices(steps[::2])  # type: ignore[arg-type]
            each.append(steps)
        return each

    def forward(
        self,
        y: Tensor,
        maps: list[list[Invertible]] | None = None,
        *,
        reversible: bool | None = None,
    ) -> list[Tensor]:
        """The latents g(y), from the finest level to the coarsest.

        Args:
            maps: of :meth:`maps`; they are made where they are not given.
            reversible: False for a graph that can be differentiated twice; the setting by default.

        Errors: ``ValueError`` for a height or width that is not divisible by 2^levels.
        """
        self._check_size(y)
        run = self._chain(self.reversible if reversible is None else reversible)
        latents, h = [], y
        for level, steps in enumerate(maps or self.maps()):
            h = run(steps, squeeze(h), inverse=False)
            if level < len(self.levels) - 1:
                latent, h = h.chunk(2, 1)
                latents.append(latent)
        return [*latents, h]

    def inverse(self, latents: list[Tensor], maps: list[list[Invertible]] | None = None) -> Tensor:
        """y = g^{-1}(latents); ``maps`` as in :meth:`forward`."""
        run = self._chain(self.reversible)
        maps = maps or self.maps()
        h = latents[-1]
        for level in reversed(range(len(self.levels))):
            if level < len(self.levels) - 1:
                h = torch.cat([latents[level], h], 1)
            h = unsqueeze(run(maps[level], h, inverse=True))
        return h

    @staticmethod
    def _chain(reversible: bool) -> Callable[..., Tensor]:
        return reversible_chain if reversible and torch.is_grad_enabled() else apply_chain

    def log_det(self, y: Tensor) -> Tensor:
        """log |det dg(y) / dy|, (B,)."""
        self._check_size(y)
        total, h = y.new_zeros(len(y)), y
        for level, steps in enumerate(self.levels):
            h = squeeze(h)
            for step in steps:  # type: ignore[attr-defined]
                total = total + step.log_det(h)
                h = step(h)
            if level < len(self.levels) - 1:
                h = h.chunk(2, 1)[1]
        return total

    @torch.no_grad()
    def normalise(self, y: Tensor) -> None:
        """Set every actnorm from the images y, (B, C, H, W), as Glow does on its first batch."""
        h = y
        for level, steps in enumerate(self.levels):
            h = squeeze(h)
            for step in steps:  # type: ignore[attr-defined]
                if isinstance(step, Mix):
                    step.normalise(h)
                h = step(h)
            if level < len(self.levels) - 1:
                h = h.chunk(2, 1)[1]

    def _check_size(self, y: Tensor) -> None:
        height, width = y.shape[-2:]
        if height % self.period or width % self.period:
            raise ValueError(
                f"Glow: expected a height and width divisible by {self.period}, got {height} x {width}"
            )
