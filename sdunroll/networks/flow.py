r"""Glow: a normalizing flow with exact inverse, g: image -> latents of the same total size.

A step is z = coupling(W (exp(s) (h + b))): actnorm and an invertible 1x1 convolution W, applied as one
convolution, then an affine coupling. A level squeezes 2x2 pixels into channels, takes ``depth`` steps
and splits half of the channels off as latents.
Reference: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions",
https://arxiv.org/abs/1807.03039. Legend: B images, C channels, H x W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sdunroll import checks
from sdunroll.networks.reversible import Invertible, apply_chain, reversible_chain


class Mix(Invertible):
    """Actnorm and an invertible 1x1 convolution: W (exp(s) (h + b)), W = P L (U + diag(d)).

    P is a fixed permutation, L unit lower and U strictly upper triangular, and d = sign * exp(.) with
    fixed signs, so that W is invertible whatever the weights; W starts as a random rotation.

    Args:
        channels: C. generator: draws the rotation.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        rotation = torch.linalg.qr(
            torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        ).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        return mix_matrices([self], inverse=False)[0](h)

    def inverse(self, h: Tensor) -> Tensor:
        return mix_matrices([self], inverse=True)[0].inverse(h)

    def log_det(self, h: Tensor) -> Tensor:
        """log |det d forward(h) / d h|, (B,)."""
        per_pixel = (self.log_diagonal + self.log_scale).sum()
        return (per_pixel * h.shape[-1] * h.shape[-2]).expand(len(h))

    @torch.no_grad()
    def normalise(self, h: Tensor) -> None:
        """Set the actnorm so that exp(s) (h + b) has mean 0 and variance 1 in each channel."""
        std, mean = torch.std_mean(h.transpose(0, 1).flatten(1), dim=1, correction=0)
        self.bias.copy_(-mean)
        constant = std < 1e-6 * (1 + mean.abs())  # nothing to normalise by
        self.log_scale.copy_(-torch.where(constant, 1.0, std).log())


class MixMatrices(Invertible):
    """W h + c and its inverse, of matrices that are given.

    Args:
        weight, shift: W, (C, C), and c, (C,). back, back_shift: those of the inverse.
    """

    def __init__(self, weight: Tensor, shift: Tensor, back: Tensor, back_shift: Tensor) -> None:
        super().__init__()
        self.there = [weight, shift]
        self.back = [back, back_shift]

    def forward(self, h: Tensor) -> Tensor:
        return _mix_channels(h, *self.there)

    def inverse(self, h: Tensor) -> Tensor:
        return _mix_channels(h, *self.back)

    def weights(self, inverse: bool) -> list[Tensor]:
        return self.back if inverse else self.there


def mix_matrices(mixes: Sequence[Mix], *, inverse: bool) -> list[MixMatrices]:
    """The maps of K mixes of as many channels, whose matrices are made together: a handful of
    operations rather than K times as many. The backward pass makes them again, rather than keep all of
    their making.

    Args:
        inverse: whether gradients are to pass the inverses rather than the maps themselves.
    """
    if torch.is_grad_enabled():
        made = checkpoint(
            _make_matrices, mixes, inverse, use_reentrant=False, preserve_rng_state=False
        )
    else:
        made = _make_matrices(mixes, inverse)
    each = (values.unbind() for values in made)
    return [MixMatrices(*values) for values in zip(*each, strict=True)]


def _make_matrices(mixes: Sequence[Mix], inverse: bool) -> tuple[Tensor, ...]:
    """What each of :class:`MixMatrices` takes, (K, C, C) and (K, C) in turns; made in float64, so that the
    round trip stays at the rounding error of the activations."""
    lower, upper, log_diagonal, log_scale, bias, sign, permutation = (
        torch.stack([getattr(mix, name) for mix in mixes]).double()
        for name in ("lower", "upper", "log_diagonal", "log_scale", "bias", "sign", "permutation")
    )
    identity = torch.eye(bias.shape[1], dtype=bias.dtype, device=bias.device)
    lower = lower.tril(-1) + identity
    upper = upper.triu(1) + torch.diag_embed(sign * log_diagonal.exp())
    upper = upper * log_scale.exp()[:, None]  # U diag(exp(s))
    differentiable = torch.is_grad_enabled()
    with torch.set_grad_enabled(differentiable and not inverse):
        weight = permutation @ lower @ upper
        shift = (weight @ bias[..., None])[..., 0]
    with torch.set_grad_enabled(differentiable and inverse):
        solve = torch.linalg.solve_triangular
        back = solve(lower, permutation.mT, upper=False, unitriangular=True)
        back = solve(upper, back, upper=True)
    dtype = mixes[0].bias.dtype
    return weight.to(dtype), shift.to(dtype), back.to(dtype), (-bias).to(dtype)


def _mix_channels(h: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """The 1x1 convolution weight h + shift, as a matrix product: faster for so few channels."""
    each = weight.expand(len(h), -1, -1)  # (B, C, C)
    return torch.baddbmm(shift[:, None], each, h.flatten(2)).view(h.shape)


class Coupling(Invertible):
    """Affine coupling: (a, b) -> (a, exp(s(a)) b + t(a)), with a log-scale |s| < ``bound``.

    s and t come of a small convolutional network that starts at 0.

    Args:
        channels: C, even. width: channels of the network's hidden layers. generator: its weights.
        bound: of the log-scale, so that no step can blow up what passes it.
    """

    def __init__(
        self, channels: int, width: int, generator: torch.Generator, *, bound: float = 0.5
    ) -> None:
        super().__init__()
        self.bound = bound
        self.net = nn.Sequential(
            convolution(channels // 2, width, 3, generator),
            nn.ReLU(),
            convolution(width, width, 1, generator),
            nn.ReLU(),
            convolution(width, channels, 3, generator, zero=True),
        )

    def _affine(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """s and t, (B, C / 2, H, W) each."""
        raw, shift = self.net(a).chunk(2, 1)
        return self.bound * torch.tanh(raw / self.bound), shift

    def forward(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, 1)
        log_scale, shift = self._affine(a)
        return torch.cat([a, b * log_scale.exp() + shift], 1)

    def inverse(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, 1)
        log_scale, shift = self._affine(a)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], 1)

    def log_det(self, h: Tensor) -> Tensor:
        """log |det d forward(h) / d h|, (B,)."""
        return self._affine(h.chunk(2, 1)[0])[0].flatten(1).sum(1)

    def replay(self, out: Tensor, inverse: bool) -> tuple[list[Tensor], Tensor]:
        """As :meth:`Invertible.replay`, with one pass of the network for both directions."""
        a, b = (half.contiguous() for half in out.detach().chunk(2, 1))
        a.requires_grad_()
        log_scale, shift = self._affine(a)
        with torch.no_grad():
            b = b * log_scale.exp() + shift if inverse else (b - shift) * (-log_scale).exp()
        b.requires_grad_()
        again = (b - shift) * (-log_scale).exp() if inverse else b * log_scale.exp() + shift
        return [a, b], torch.cat([a, again], 1)


def convolution(
    inputs: int, outputs: int, size: int, generator: torch.Generator, *, zero: bool = False
) -> nn.Conv2d:
    """A convolution that keeps height and width; weights of He's variance 2 / fan-in, or 0."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    std = 0.0 if zero else (2 / (inputs * size * size)) ** 0.5
    with torch.no_grad():
        layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer


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
        reversible: bool = True,
    ) -> None:
        super().__init__()
        checks.integer("depth", depth)
        checks.integer("width", width)
        self.reversible = checks.boolean("reversible", reversible)
        self.period = 2 ** checks.integer("levels", levels)
        self.levels = nn.ModuleList()
        for _ in range(levels):
            channels *= 4
            steps: list[Invertible] = []
            for _ in range(depth):
                steps += [Mix(channels, generator), Coupling(channels, width, generator)]
            self.levels.append(nn.ModuleList(steps))
            channels //= 2  # the other half is split off

    def _run(self, level: int, h: Tensor, *, inverse: bool, reversible: bool) -> Tensor:
        steps = list(self.levels[level])  # type: ignore[call-overload]
        maps: list[Invertible] = [*steps]
        maps[::2] = mix_matrices(steps[::2], inverse=inverse)
        run = reversible_chain if reversible and torch.is_grad_enabled() else apply_chain
        return run(maps, h, inverse=inverse)

    def forward(self, y: Tensor, *, reversible: bool | None = None) -> list[Tensor]:
        """The latents g(y), from the finest level to the coarsest.

        Args:
            reversible: False for a graph that can be differentiated twice; the setting by default.

        Errors: ``ValueError`` for a height or width that is not divisible by 2^levels.
        """
        self._check_size(y)
        reversible = self.reversible if reversible is None else reversible
        latents, h = [], y
        for level in range(len(self.levels)):
            h = self._run(level, squeeze(h), inverse=False, reversible=reversible)
            if level < len(self.levels) - 1:
                latent, h = h.chunk(2, 1)
                latents.append(latent)
        return [*latents, h]

    def inverse(self, latents: list[Tensor]) -> Tensor:
        """y = g^{-1}(latents)."""
        h = latents[-1]
        for level in reversed(range(len(self.levels))):
            if level < len(self.levels) - 1:
                h = torch.cat([latents[level], h], 1)
            h = unsqueeze(self._run(level, h, inverse=True, reversible=self.reversible))
        return h

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
