r"""The steps of Glow: actnorm and an invertible 1x1 convolution as one, and an affine coupling.

Both pass the backward pass of :mod:`sdunroll.networks.reversible` in closed form.
Reference: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions",
https://arxiv.org/abs/1807.03039. Legend: B images, C channels, H x W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdunroll.networks.reversible import Invertible, gradients_of


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
        return mix_matrices([self])[0](h)

    def inverse(self, h: Tensor) -> Tensor:
        return mix_matrices([self])[0].inverse(h)

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
        weight, shift: W, (C, C), and c, (C,), in float64. back, back_shift: those of the inverse.
    """

    def __init__(self, weight: Tensor, shift: Tensor, back: Tensor, back_shift: Tensor) -> None:
        super().__init__()
        self.there = [weight, shift]
        self.back = [back, back_shift]

    def forward(self, h: Tensor) -> Tensor:
        return _mix_channels(h, *self.there)

    def inverse(self, h: Tensor) -> Tensor:
        return _mix_channels(h, *self.back)

    def weights(self) -> list[Tensor]:
        """W and c alone: the inverse's are functions of them."""
        return self.there

    def retrace(
        self, out: Tensor, grad: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As :meth:`Invertible.retrace`, in closed form: of y = W h + c they are dL/dW = g h^T and
        dL/dc = g, with g = dL/dy, and of its inverse, where y is the input, -g h^T and -g; gradients keep
        the digits of the activations."""
        applied, undone = (self.back, self.there) if inverse else (self.there, self.back)
        h = _mix_channels(out, *undone)
        below = torch.matmul(applied[0].mT.to(grad.dtype), grad.flatten(2)).view_as(grad)
        sign, g, h_there = (-1, below, out) if inverse else (1, grad, h)
        weight = torch.bmm(g.flatten(2), h_there.flatten(2).mT).sum(0)
        return h, below, [sign * weight.double(), sign * g.sum((0, 2, 3)).double()]


def mix_matrices(mixes: Sequence[Mix]) -> list[MixMatrices]:
    """The maps of K mixes of as many channels, whose matrices are made together: a handful of
    operations rather than K times as many. The backward pass makes them again, rather than keep all of
    their making.
    """
    if torch.is_grad_enabled():
        made = checkpoint(_make_matrices, mixes, use_reentrant=False, preserve_rng_state=False)
    else:
        made = _make_matrices(mixes)
    each = (values.unbind() for values in made)
    return [MixMatrices(*values) for values in zip(*each, strict=True)]


def _make_matrices(mixes: Sequence[Mix]) -> tuple[Tensor, ...]:
    """What each of :class:`MixMatrices` takes, (K, C, C) and (K, C) in turns."""
    lower, upper, log_diagonal, log_scale, bias, sign, permutation = (
        torch.stack([getattr(mix, name) for mix in mixes]).double()
        for name in ("lower", "upper", "log_diagonal", "log_scale", "bias", "sign", "permutation")
    )
    identity = torch.eye(bias.shape[1], dtype=bias.dtype, device=bias.device)
    lower = lower.tril(-1) + identity
    upper = upper.triu(1) + torch.diag_embed(sign * log_diagonal.exp())
    upper = upper * log_scale.exp()[:, None]  # U diag(exp(s))
    weight = permutation @ lower @ upper
    shift = (weight @ bias[..., None])[..., 0]
    solve = torch.linalg.solve_triangular
    back = solve(lower, permutation.mT, upper=False, unitriangular=True)
    back = solve(upper, back, upper=True)
    return weight, shift, back, -bias


def _mix_channels(h: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """The 1x1 convolution weight h + shift, as a matrix product: faster for so few channels. It is rounded
    once, to h's digits: with products in float32, the round trip would lose more here than in all else.
    """
    each = weight.expand(len(h), -1, -1)  # (B, C, C)
    wide = torch.baddbmm(shift[:, None], each, h.flatten(2).double())
    return wide.to(h.dtype).view(h.shape)


class Coupling(Invertible):
    """Affine coupling: (a, b) -> (a, exp(s(a)) b + t(a)), with a log-scale |s| <= ``bound``.

    s and t come of a small convolutional network that starts at 0. It is homogeneous but for its
    biases, so what an unbounded t adds grows with a, from step to step: after training latents can be a
    thousand times the image, and of float32's seven digits the image then keeps three.

    Args:
        channels: C, even. width: channels of the network's hidden layers. generator: its weights.
        bound: of the log-scale, so that no step can blow up what passes it.
        shift_bound: of |t|; None for none.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        generator: torch.Generator,
        *,
        bound: float = 0.5,
        shift_bound: float | None = None,
    ) -> None:
        super().__init__()
        self.bound = bound
        self.shift_bound = shift_bound
        self.net = nn.Sequential(
            convolution(channels // 2, width, 3, generator),
            nn.ReLU(inplace=True),
            convolution(width, width, 1, generator),
            nn.ReLU(inplace=True),
            convolution(width, channels, 3, generator, zero=True),
        )

    def _raw(self, a: Tensor) -> Tensor:
        """s and t before they are bounded, (B, C, H, W); convolved with channels last, the faster order
        for so few of them."""
        return self.net(a.contiguous(memory_format=torch.channels_last)).contiguous()

    def _affine(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """s and t, (B, C / 2, H, W) each."""
        return self._limited(self._raw(a))

    def _limited(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """s and t of what :meth:`_raw` gave."""
        log_scale, shift = raw.chunk(2, 1)
        return _bounded(log_scale, self.bound), _bounded(shift, self.shift_bound)

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

    def retrace(
        self, out: Tensor, grad: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """As :meth:`Invertible.retrace`, with one pass of the network for both directions, through which
        alone autograd takes gradients; those of exp(s) b + t and its inverse are written out."""
        (a, b), (grad_a, grad_b) = out.chunk(2, 1), grad.chunk(2, 1)
        a = a.detach().requires_grad_()
        with torch.enable_grad():
            raw = self._raw(a)
        log_scale, shift = self._limited(raw.detach())
        scale = log_scale.exp()
        if inverse:  # b was (below - shift) / scale
            below = torch.addcmul(shift, b, scale)
            grad_below = grad_b / scale
            grad_shift, grad_log_scale = -grad_below, -grad_b * b
        else:
            moved = b - shift
            below = moved / scale
            grad_below = grad_b * scale
            grad_shift, grad_log_scale = grad_b, grad_b * moved
        grad_log_scale = grad_log_scale * _slope(log_scale, self.bound)
        grad_shift = grad_shift * _slope(shift, self.shift_bound)
        grad_raw = torch.cat([grad_log_scale, grad_shift], 1)
        through, weights = gradients_of(raw, a, self.weights(), grad_raw)
        return (
            torch.cat([a.detach(), below], 1),
            torch.cat([grad_a + through, grad_below], 1),
            weights,
        )


def _bounded(raw: Tensor, bound: float | None) -> Tensor:
    """bound tanh(raw / bound); raw itself without a bound."""
    return raw if bound is None else bound * torch.tanh(raw / bound)


def _slope(value: Tensor, bound: float | None) -> Tensor | float:
    """The derivative of :func:`_bounded` by raw, where it has this value."""
    return 1.0 if bound is None else 1 - (value / bound).square()


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
