r"""Inverse problems in imaging: restore a picture from a linear measurement of it.

    f(y; x) = 1/2 ||x - A y||^2 + r(y)

A is an operator (:mod:`sdunroll.problems.operators`) and r a penalty, such as lambda/2 ||g(y)||^2 of a
normalizing flow g. The penalty belongs to a layer of a network: by itself the problem has none.
Legend: B images, C channels, H x W pixels; ``...`` stands for leading dimensions such as the layers.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.cache import Cache, digest
from sdunroll.data import Batch, Source
from sdunroll.problems.base import Problem
from sdunroll.problems.operators import Inpainting, Operator
from sdunroll.randomness import generator

SMALLEST_WINDOW = 3  # of the structural similarity, in pixels
OfPictures = Callable[..., Tensor]


class InverseImaging(Problem):
    """min_y 1/2 ||x - A y||^2 + r(y); the target is the clean picture, of values in [0, 1].

    Args:
        operator: A, and how it observes.
        channels: C of the pictures.
        penalty: ``(y, twice=False)``, r(y), (B, C, H, W) -> (B,); None for 0. With ``twice`` its graph
            must allow for second derivatives.
        latent_gradient: the gradient of r in its latent space, (B, C, H, W) -> (B, n), if it has one.
    """

    minimised = False

    def __init__(
        self,
        operator: Operator,
        *,
        channels: int = 3,
        penalty: OfPictures | None = None,
        latent_gradient: OfPictures | None = None,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.channels = channels
        self.penalty = penalty
        self.latent_gradient = latent_gradient

    def instances(
        self, signals: Tensor, clean: Tensor | None = None, *, keep: bool = True
    ) -> Batch:
        """Observations of ``signals``, (B, C, H, W), with the clean pictures as targets.

        Masks and noise are drawn anew for each set of clean pictures, the same at each call.
        """
        clean = signals if clean is None else clean
        rng = generator(self.operator.seed, f"operator/{digest(clean)}")
        return Batch(self.operator.observe(signals, rng), clean)

    def residual(self, y: Tensor, obs: Tensor) -> Tensor:
        """A y - x, (..., B, C, H, W)."""
        return self.operator(y, obs) - self.operator.measurement(obs)

    def data_gradient(self, y: Tensor, obs: Tensor) -> Tensor:
        """A^T (A y - x), (..., B, C, H, W): the gradient of the quadratic part."""
        return self.operator.adjoint(self.residual(y, obs), obs)

    def objective(self, y: Tensor, obs: Tensor) -> Tensor:
        value = self.residual(y, obs).square().sum((-3, -2, -1)) / 2
        if self.penalty is None:
            return value
        return value + self.penalty(y.reshape(-1, *y.shape[-3:])).view(value.shape)

    def gradient(self, y: Tensor, obs: Tensor) -> Tensor:
        """The gradient of all of f; the penalty's by one vector-Jacobian product."""
        gradient = self.data_gradient(y, obs)
        if self.penalty is None:
            return gradient
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            flat = y.reshape(-1, *y.shape[-3:])
            if not (keep and flat.requires_grad):
                flat = flat.detach().requires_grad_()
            value = self.penalty(flat, twice=keep).sum()
            (of_penalty,) = torch.autograd.grad(value, flat, create_graph=keep)
        return gradient + of_penalty.view(y.shape)

    def step_length(self, y: Tensor, obs: Tensor) -> Tensor:
        """||A^T (A y - x)||, (..., B): a gradient step of the quadratic part, whose ||A|| is 1."""
        return torch.linalg.vector_norm(self.data_gradient(y, obs).flatten(-3), dim=-1)

    def baselines(self, batch: Batch) -> dict[str, Iterator[Tensor]]:
        """The classical peer of the operator; for inpainting also the harmonic fill."""
        obs = batch.obs
        found: dict[str, Iterator[Tensor]] = {  # computed when asked for
            self.operator.peer_name: (self._peer(obs) for _ in range(1))
        }
        if self.operator.known(obs) is not None:
            found["harmonic fill"] = (self.operator.fill(obs) for _ in range(1))
        return found

    def _peer(self, obs: Tensor) -> Tensor:
        pictures = self.operator.measurement(obs).permute(0, 2, 3, 1).double().cpu().numpy()
        known = self.operator.known(obs)
        masks = [None] * len(obs) if known is None else [*(known[:, 0].cpu().numpy() > 0)]
        restored = [
            self.operator.peer(picture, mask) for picture, mask in zip(pictures, masks, strict=True)
        ]
        return torch.from_numpy(np.stack(restored)).permute(0, 3, 1, 2).to(obs)

    def picture(self, obs: Tensor) -> Tensor:
        """The measurement, (B, C, H, W), missing pixels in grey."""
        known = self.operator.known(obs)
        return self.operator.measurement(obs) + (0.0 if known is None else 0.5 * (1 - known))

    @torch.no_grad()
    def figures(self, y: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``psnr`` (dB) and ``ssim`` of the whole picture and, where pixels are missing, of the hole
        alone; ``known_rmse``, the error of the known pixels. Values are clamped to [0, 1] first."""
        y = y.clamp(0, 1)
        squares = (y - batch.target).square().mean(-3)  # (K, B, H, W)
        found = {"psnr": _psnr(squares.mean((-2, -1)))}
        similarity = None
        if min(y.shape[-2:]) >= SMALLEST_WINDOW:
            similarity = _similarity(y, batch.target)  # (K, B, H, W)
            border = _window(y.shape) // 2  # where windows reach over the picture's edge
            inside = slice(border, -border)
            found["ssim"] = similarity[..., inside, inside].mean((-2, -1))
        known = self.operator.known(batch.obs)
        if known is None:
            return found
        known = known[:, 0]  # (B, H, W)
        hole = 1 - known
        found["hole_psnr"] = _psnr(_mean_where(hole, squares))
        if similarity is not None:
            found["hole_ssim"] = _mean_where(hole, similarity)
        found["known_rmse"] = _mean_where(known, squares).sqrt()
        return found


def _mean_where(mask: Tensor, values: Tensor) -> Tensor:
    """The mean of values (K, B, H, W) over the pixels of mask (B, H, W), (K, B)."""
    return (values * mask).sum((-2, -1)) / mask.sum((-2, -1)).clamp_min(1)


def _psnr(mean_square: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for values in [0, 1]; at most 100, where pictures are equal."""
    return -10 * mean_square.clamp_min(1e-10).log10()


def _window(shape: Sequence[int]) -> int:
    """The side of the window of the structural similarity, odd."""
    return min(7, (min(shape[-2:]) - 1) // 2 * 2 + 1)


def _similarity(y: Tensor, target: Tensor) -> Tensor:
    """The structural similarity at each pixel, (K, B, H, W), mean over the channels.

    Reference: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    https://doi.org/10.1109/TIP.2003.819861, as scikit-image computes it.
    """
    from skimage.metrics import structural_similarity

    states, pictures = y.cpu().numpy(), target.cpu().numpy()
    window = _window(pictures.shape)
    maps = [
        structural_similarity(
            clean, state, data_range=1.0, channel_axis=0, win_size=window, full=True
        )[1].mean(0)
        for stage in states
        for state, clean in zip(stage, pictures, strict=True)
    ]
    return torch.from_numpy(np.stack(maps)).view(*y.shape[:2], *y.shape[-2:]).to(y)


def inverse_imaging(
    source: Source, cache: Cache, state: dict[str, Tensor] | None = None, *, operator: Operator
) -> InverseImaging:
    """The inverse problem of ``operator`` on the source's pictures.

    Errors: a source of other than pictures with values in [0, 1].
    """
    if source.channels is None or source.value_range != (0.0, 1.0):
        raise checks.UserError(
            "data: expected pictures with values in [0, 1] for an inverse problem in imaging, got "
            f"{type(source).__name__}; take data=faces or data=photos"
        )
    if isinstance(operator, Inpainting):  # a mask from a file is kept with the run
        operator.picture = (
            operator.read_picture() if state is None else state.get("operator.picture")
        )
    problem = InverseImaging(operator, channels=source.channels)
    if state is not None:
        problem.load_state_dict(state)
    return problem
