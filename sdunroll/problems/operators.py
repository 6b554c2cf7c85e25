"""Measurement operators x = A y + noise of images, with their adjoints.

The observation that a network receives holds all of one instance: the measurement x and, for
inpainting, the mask as one more channel.
Legend: B images, C channels, H x W pixels; ``...`` stands for leading dimensions such as the layers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdunroll import checks
from sdunroll.data.image_folder import in_eight_bits
from sdunroll.solvers import harmonic_fill

Range = float | Sequence[float]
DRAWN = ("box", "random_box", "random_pixels")  # masks that come from no file
MASKS = f"one of {', '.join(DRAWN)} or the path of a picture"


def _range(name: str, value: object, *, lowest: float = 0.0) -> tuple[float, float]:
    """A number, or the two ends of a range, as two ends."""
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(ends) not in (1, 2):
        raise checks.InvalidValue(f"{name}: expected a number or [low, high], got {value!r}")
    low, high = (checks.number(name, end, low=lowest) for end in (ends[0], ends[-1]))
    if low > high:
        raise checks.InvalidValue(f"{name}: expected [low, high] with low <= high, got {value!r}")
    return low, high


def _whole_range(name: str, value: Any, *, lowest: int) -> tuple[int, int]:
    """The same in whole numbers."""
    for end in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        checks.integer(name, end, low=lowest)
    low, high = _range(name, value, lowest=lowest)
    return int(low), int(high)


class Operator(nn.Module, ABC):
    """A linear operator A and the noise of its measurements.

    Args:
        noise: standard deviation of white noise on x; [low, high] draws one for each image.
        seed: of masks and noise.
    """

    def __init__(self, *, noise: Range = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.noise = _range("noise", noise)
        self.seed = checks.integer("seed", seed, low=0)

    @abstractmethod
    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What is observed of ``images``, (B, C, H, W): x, with the mask if there is one."""

    @abstractmethod
    def forward(self, y: Tensor, obs: Tensor) -> Tensor:
        """A y, (..., B, C, H, W) for y of the same shape."""

    @abstractmethod
    def adjoint(self, x: Tensor, obs: Tensor) -> Tensor:
        """A^T x, (..., B, C, H, W)."""

    @abstractmethod
    def peer(self, picture: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        """The classical reconstruction of one measured ``picture``, (H, W, C), whose pixels are known
        where ``known``, (H, W), is true; None: all are measured."""

    peer_name: str  #: of the classical reconstruction

    def measurement(self, obs: Tensor) -> Tensor:
        """x, (B, C, H, W)."""
        return obs

    def known(self, obs: Tensor) -> Tensor | None:
        """1 where a pixel is measured and 0 where it is missing, (B, 1, H, W); None: no mask."""
        return None

    def fill(self, obs: Tensor) -> Tensor:
        """A first guess of the image, (B, C, H, W): the measurement, holes filled harmonically."""
        return self.measurement(obs)

    def add_noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x with white noise of the operator's level, drawn for each picture from its range."""
        low, high = self.noise
        if high == 0:
            return x
        std = low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator)
        return x + std * torch.randn(x.shape, generator=generator)


class Denoising(Operator):
    """A = I. The classical peer is non-local means (Buades et al. 2005), told the mean noise level."""

    peer_name = "non-local means"

    def __init__(self, *, noise: Range = 0.1, seed: int = 0) -> None:
        super().__init__(noise=noise, seed=seed)

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.add_noise(images, generator)

    def forward(self, y: Tensor, obs: Tensor) -> Tensor:
        return y

    def adjoint(self, x: Tensor, obs: Tensor) -> Tensor:
        return x

    def peer(self, picture: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        from skimage.restoration import denoise_nl_means

        sigma = sum(self.noise) / 2
        restored = denoise_nl_means(
            picture, h=0.8 * sigma, sigma=sigma, patch_size=5, patch_distance=6, channel_axis=-1
        )
        return restored.reshape(picture.shape)  # it drops a single channel


class Deblurring(Operator):
    """A blurs by a Gaussian, periodic at the border, so that A is symmetric.

    The classical peer is the unsupervised Wiener filter (Orieux et al. 2010), which knows the kernel.

    Args:
        sigma: standard deviation of the Gaussian, in pixels.
    """

    peer_name = "Wiener filter"
    kernel: Tensor

    def __init__(self, *, sigma: float = 1.5, noise: Range = 0.01, seed: int = 0) -> None:
        super().__init__(noise=noise, seed=seed)
        checks.number("sigma", sigma, above=0)
        offsets = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1).double()
        line = torch.exp(-(offsets**2) / (2 * sigma**2))
        self.register_buffer("kernel", (line / line.sum()).float())

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.add_noise(self(images, images), generator)

    def forward(self, y: Tensor, obs: Tensor) -> Tensor:
        radius = len(self.kernel) // 2
        if radius >= min(y.shape[-2:]):
            raise checks.InvalidValue(
                f"operator.sigma: expected a blur of less than the image's {min(y.shape[-2:])} pixels, "
                f"got a kernel of radius {radius}"
            )
        flat = y.reshape(-1, 1, *y.shape[-2:])
        flat = functional.pad(flat, (radius,) * 4, mode="circular")
        kernel = self.kernel.to(y.dtype)
        flat = functional.conv2d(flat, kernel.view(1, 1, -1, 1))
        return functional.conv2d(flat, kernel.view(1, 1, 1, -1)).view(y.shape)

    def adjoint(self, x: Tensor, obs: Tensor) -> Tensor:
        return self(x, obs)

    def peer(self, picture: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        from skimage.restoration import unsupervised_wiener

        lines = [self._line(length) for length in picture.shape[:2]]
        rng = np.random.default_rng(self.seed)
        planes = [
            unsupervised_wiener(plane, np.outer(*lines), rng=rng)[0]
            for plane in np.moveaxis(picture, -1, 0)
        ]
        return np.stack(planes, -1)

    def _line(self, length: int) -> np.ndarray:
        """The kernel on a periodic line of so many pixels, its middle at length // 2."""
        kernel = self.kernel.cpu().numpy()
        line = np.zeros(length, kernel.dtype)
        np.add.at(line, (np.arange(len(kernel)) - len(kernel) // 2 + length // 2) % length, kernel)
        return line


class Inpainting(Operator):
    """A sets missing pixels to 0. The classical peer is biharmonic inpainting (Damelin & Hoang 2018).

    Args:
        mask: "box" (one hole in the middle), "random_box" (of random side and place), "random_pixels",
            or the path of a picture of the images' size whose dark pixels are missing.
        size: side of a box in pixels; [low, high] for a random one.
        offset: of the box from the middle, in pixels, down and to the right; [low, high] draws both for
            each image.
        rate: share of missing random pixels.
    """

    peer_name = "biharmonic"
    picture: Tensor | None

    def __init__(
        self,
        *,
        mask: str = "box",
        size: int | Sequence[int] = 12,
        offset: int | Sequence[int] = 0,
        rate: float = 0.5,
        noise: Range = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(noise=noise, seed=seed)
        known = isinstance(mask, str) and (mask in DRAWN or Path(mask).suffix != "")
        if not known:  # a file may be gone when a trained network is looked at
            raise checks.InvalidValue(f"mask: expected {MASKS}, got {mask!r}")
        self.mask = mask
        self.register_buffer("picture", None)  # the mask of a file, once it is read
        self.sizes = _whole_range("size", size, lowest=1)
        if mask == "box" and self.sizes[0] != self.sizes[1]:
            raise checks.InvalidValue(
                f"size: expected one number for mask=box, got {size}; a range needs mask=random_box"
            )
        self.offsets = _whole_range("offset", offset, lowest=-10_000)
        self.rate = checks.number("rate", rate, above=0, below=1)

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C + 1, H, W): the known pixels, 0 in the holes; 1 where known in the last channel."""
        known = self._masks(images.shape, generator)
        return torch.cat([self.add_noise(images, generator) * known, known], 1)

    def forward(self, y: Tensor, obs: Tensor) -> Tensor:
        return y * obs[:, -1:]

    def adjoint(self, x: Tensor, obs: Tensor) -> Tensor:
        return x * obs[:, -1:]

    def measurement(self, obs: Tensor) -> Tensor:
        return obs[:, :-1]

    def known(self, obs: Tensor) -> Tensor:
        return obs[:, -1:]

    def fill(self, obs: Tensor) -> Tensor:
        return harmonic_fill(obs[:, :-1], obs[:, -1:])

    def peer(self, picture: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        from skimage.restoration import inpaint_biharmonic

        assert known is not None
        return inpaint_biharmonic(picture, ~known, channel_axis=-1).reshape(picture.shape)

    def _masks(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B, 1, H, W)."""
        count, _, height, width = shape
        if self.mask == "random_pixels":
            drawn = torch.rand(count, height * width, generator=generator)
            known = drawn >= self.rate
            known.scatter_(1, drawn.argmin(1, keepdim=True), False)  # at least one is missing
            known.scatter_(1, drawn.argmax(1, keepdim=True), True)  # and one known
            return known.view(count, 1, height, width).float()
        if self.mask not in DRAWN:
            return self._mask_from_file(height, width).expand(count, 1, -1, -1)
        low, high = self.sizes
        if high >= min(height, width):
            raise checks.InvalidValue(
                f"operator.size: expected less than the image's {min(height, width)} pixels, got {high}"
            )
        side = torch.randint(low, high + 1, (count, 1), generator=generator)  # (B, 1)
        room = (min(height, width) - high) // 2
        first, last = self.offsets
        if self.mask == "box" and max(abs(first), abs(last)) > room:
            raise checks.InvalidValue(
                f"operator.offset: expected at most {room} pixels for a box of {high} to stay inside "
                f"{height} x {width}, got {first if first == last else [first, last]}"
            )
        if self.mask == "random_box":
            places = torch.rand(2, count, 1, generator=generator)
            top = (places[0] * (height - side + 1)).long()
            left = (places[1] * (width - side + 1)).long()
        else:
            top, left = (height - side) // 2 + first, (width - side) // 2 + first
            if first < last:
                moves = torch.randint(last - first + 1, (2, count, 1), generator=generator)
                top, left = top + moves[0], left + moves[1]
        rows, columns = torch.arange(height), torch.arange(width)
        inside_rows = (rows >= top) & (rows < top + side)  # (B, H)
        inside_columns = (columns >= left) & (columns < left + side)  # (B, W)
        return (~(inside_rows[:, :, None] & inside_columns[:, None, :])).float()[:, None]

    def read_picture(self) -> Tensor | None:
        """The mask from its file, 1 where known, (H, W); None for masks that are drawn.

        Errors: no file that holds a picture.
        """
        from PIL import Image

        if self.mask in DRAWN:
            return None
        try:
            with Image.open(self.mask) as picture:
                light = np.asarray(in_eight_bits(picture).convert("L")) >= 128
        except OSError as error:
            reason = error.strerror or "not a picture that Pillow can read"
            raise checks.UserError(
                f"operator.mask: expected {MASKS}, got {self.mask!r} ({reason})"
            ) from error
        return torch.from_numpy(light.astype(np.float32))

    def _mask_from_file(self, height: int, width: int) -> Tensor:
        picture = self.read_picture() if self.picture is None else self.picture.cpu()
        assert picture is not None
        known = picture > 0
        if known.shape != (height, width) or known.all() or not known.any():
            got = f"{known.shape[0]} x {known.shape[1]} pixels, {int((~known).sum())} of them dark,"
            raise checks.InvalidValue(
                f"operator.mask: expected a picture of {height} x {width} pixels, dark where pixels are "
                f"missing and light elsewhere, got {got} in {self.mask}"
            )
        return picture
