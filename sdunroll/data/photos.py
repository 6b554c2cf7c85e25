"""Crops of the freely licensed photographs inside scikit-image's wheel (no download).

Legend: N crops, C channels (1 or 3), S side of a crop in pixels.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split, split_counts
from sdunroll.interrupt import deferred
from sdunroll.randomness import generator

COLOR = ("astronaut", "chelsea", "coffee", "rocket")
GREY = ("camera", "brick", "grass", "gravel", "coins")
CUTS = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}
FLAT = 5 / 255  # crops whose standard deviation is below this carry no structure to learn from
CROPS_AT_ONCE = 1000  # looked at, to bound the memory
HALF_UP_TO = 32  # crops up to this side are also taken from the half-resolution copy


@cache
def load_pictures(color: bool) -> dict[str, np.ndarray]:
    """The photographs by name, (H, W, C) float32 in [0, 1]; the grey ones only if ``color`` is false.

    Kept: every split asks for them, and decoding takes a tenth of a second for 10 MB.
    """
    from skimage import color as colors
    from skimage import data, util

    with deferred():  # a reader that is interrupted complains on the console
        read = {name: getattr(data, name)() for name in (COLOR if color else COLOR + GREY)}
    pictures = {name: util.img_as_float32(picture) for name, picture in read.items()}
    if not color:
        pictures |= {name: colors.rgb2gray(pictures[name]) for name in COLOR}
        pictures = {name: grey.astype(np.float32)[..., None] for name, grey in pictures.items()}
    for picture in pictures.values():
        picture.setflags(write=False)
    return pictures


def band(picture: np.ndarray, split: Split) -> np.ndarray:
    """The vertical band (H, w, C) of ``picture`` that belongs to ``split``: bands share no pixel."""
    left, right = (round(cut * picture.shape[1]) for cut in CUTS[split])
    return picture[:, left:right]


def halved(picture: np.ndarray) -> np.ndarray:
    """Means over blocks of 2x2 pixels, (H // 2, W // 2, C)."""
    height, width, channels = picture.shape
    even = picture[: height // 2 * 2, : width // 2 * 2]
    return even.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def random_crops(
    areas: list[np.ndarray], size: int, count: int, generator: torch.Generator
) -> np.ndarray:
    """``count`` crops (count, C, S, S), uniform over all positions in ``areas``, flat ones left out."""
    # (H-S+1, W-S+1, C, S, S) each: views, not copies
    windows = [
        np.lib.stride_tricks.sliding_window_view(area, (size, size), axis=(0, 1)) for area in areas
    ]
    ends = np.cumsum([view.shape[0] * view.shape[1] for view in windows])
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < count:
        positions = torch.randint(int(ends[-1]), (count,), generator=generator)
        for some in positions.split(CROPS_AT_ONCE):
            crops = _crops(windows, ends, some.numpy())
            kept.append(crops[crops.std((2, 3)).max(1) >= FLAT])  # a colour alone is no structure
    return np.concatenate(kept)[:count]


def _crops(windows: list[np.ndarray], ends: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The windows at ``positions`` (K,) among all of them, one area after the other, (K, C, S, S)."""
    crops = np.empty((len(positions), *windows[0].shape[2:]), windows[0].dtype)
    area = np.searchsorted(ends, positions, side="right")
    for index, view in enumerate(windows):
        mine = area == index
        first = ends[index] - view.shape[0] * view.shape[1]
        crops[mine] = view[np.divmod(positions[mine] - first, view.shape[1])]
    return crops


class Photos(Source):
    """Random crops of photographs, split by vertical bands so that no pixel is in two splits.

    Args:
        size: side S of a crop, in pixels.
        color: colour crops (C = 3) of the colour photographs, or grey crops (C = 1) of all nine.
        num_train, num_val, num_test: crops in each split.
        seed: of the crop positions.

    Errors: a size for which some split has no room, counts below 1.
    """

    value_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        size: int = 16,
        color: bool = False,
        num_train: int = 8000,
        num_val: int = 1000,
        num_test: int = 2000,
        seed: int = 0,
    ) -> None:
        self.size = checks.integer("size", size, low=2)
        self.color = checks.boolean("color", color)
        self.channels = 3 if color else 1
        self.counts = split_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        self.seed = checks.integer("seed", seed, low=0)

    def signals(self, split: Split) -> Tensor:
        """(N, C, S, S) in [0, 1]."""
        checks.choice("split", split, SPLITS)
        areas = [band(picture, split) for picture in load_pictures(self.color).values()]
        if self.size <= HALF_UP_TO:
            areas += [halved(area) for area in areas]
        areas = [area for area in areas if min(area.shape[:2]) >= self.size]
        if not areas:
            raise checks.UserError(
                f"data.size: the {split} bands of the photographs have no room for crops of {self.size} "
                "pixels; take a smaller size"
            )
        rng = generator(self.seed, f"photos/{split}")
        return torch.from_numpy(random_crops(areas, self.size, self.counts[split], rng))
