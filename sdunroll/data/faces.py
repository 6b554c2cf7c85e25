"""Synthetic aligned faces: pictures that share a structure, drawn by formula, no download.

Each face is a pure function of a seed and an index. They stand in for a set of aligned photographs of
faces, and are not photographs: wherever they are shown, that is said.
Legend: N faces, S side of a picture in pixels; coordinates run from -1 (left, top) to 1.
"""

import numpy as np
import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split, split_counts

FIRST_INDEX = {
    "train": 0,
    "val": 10**9,
    "test": 2 * 10**9,
}  # disjoint as long as splits are smaller
OVERSAMPLING = 2  # pictures are drawn at this multiple of their size and averaged
CHUNK = 500  # faces drawn at once

SKIN = np.array(
    [[0.98, 0.84, 0.73], [0.91, 0.71, 0.56], [0.70, 0.48, 0.34], [0.42, 0.27, 0.19]], np.float32
)
HAIR = np.array(
    [[0.09, 0.07, 0.06], [0.33, 0.20, 0.11], [0.74, 0.57, 0.30], [0.60, 0.60, 0.60]], np.float32
)
IRIS = np.array([[0.25, 0.16, 0.10], [0.30, 0.45, 0.60], [0.35, 0.45, 0.25]], np.float32)


class Faces(Source):
    """Synthetic aligned faces in colour; skin, hair, eyes, glasses, mouth, pose, light and background
    vary.

    Args:
        size: side S, in pixels.
        num_train, num_val, num_test: faces in each split.
        seed: another seed gives other faces.
    """

    value_range = (0.0, 1.0)
    channels = 3
    notice = "synthetic faces, drawn by formula"

    def __init__(
        self,
        *,
        size: int = 32,
        num_train: int = 4000,
        num_val: int = 200,
        num_test: int = 500,
        seed: int = 0,
    ) -> None:
        self.size = checks.integer("size", size, low=8)
        self.counts = split_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        self.seed = checks.integer("seed", seed, low=0)

    def signals(self, split: Split) -> Tensor:
        """(N, 3, S, S) in [0, 1]."""
        checks.choice("split", split, SPLITS)
        first = FIRST_INDEX[split]
        indices = range(first, first + self.counts[split])
        parts = [
            render(indices[start : start + CHUNK], self.size, self.seed)
            for start in range(0, len(indices), CHUNK)
        ]
        return torch.from_numpy(np.concatenate(parts))


class _Dice:
    """Uniform numbers of each face: face i's stream depends on the seed and on i alone."""

    def __init__(self, indices: range, seed: int) -> None:
        streams = (np.random.Generator(np.random.Philox(key=[seed, index])) for index in indices)
        numbers = np.stack([stream.random(64) for stream in streams])
        self.numbers = numbers.astype(np.float32)  # (N, 64)
        self.used = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """(N, 1, 1), the next number of each face."""
        self.used += 1
        return low + (high - low) * self.numbers[:, self.used - 1, None, None]

    def chance(self, probability: float) -> np.ndarray:
        """(N, 1, 1), 1 with this probability, else 0."""
        return (self.uniform() < probability).astype(np.float32)

    def mixture(self, palette: np.ndarray, spread: float) -> np.ndarray:
        """(N, 3, 1, 1), a colour between two neighbours of the palette, (K, 3), jittered."""
        place = self.uniform(0, len(palette) - 1 - 1e-9)[:, 0, 0]
        lower = place.astype(int)
        share = (place - lower)[:, None]
        color = palette[lower] * (1 - share) + palette[lower + 1] * share
        jitter = np.concatenate([self.uniform(-spread, spread)[:, 0] for _ in range(3)], 1)
        return np.clip(color + jitter, 0, 1)[..., None, None]


def _ellipse(
    x: np.ndarray, y: np.ndarray, left: np.ndarray | float, top: np.ndarray | float,
    width: np.ndarray | float, height: np.ndarray | float, soft: float,
) -> np.ndarray:  # fmt: skip
    """1 inside an ellipse around (left, top) and 0 outside, with an edge ``soft`` wide, (N, S, S)."""
    radius = np.sqrt(((x - left) / width) ** 2 + ((y - top) / height) ** 2)
    return np.clip((1 - radius) * np.minimum(width, height) / soft + 0.5, 0, 1)


def _paint(picture: np.ndarray, mask: np.ndarray, color: np.ndarray | float) -> np.ndarray:
    """``color`` over ``picture`` (N, 3, S, S) where ``mask`` (N, S, S) is 1."""
    return picture + mask[:, None] * (color - picture)


def render(indices: range, size: int, seed: int) -> np.ndarray:
    """The faces of these indices, (N, 3, S, S) float32 in [0, 1]."""
    dice = _Dice(indices, seed)
    side = OVERSAMPLING * size
    ticks = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)
    grid_y, grid_x = np.meshgrid(ticks, ticks, indexing="ij")
    soft = 3.0 / side
    # pose: a small turn of the head, a small shift and a scale
    turn, tilt = dice.uniform(-0.12, 0.12), dice.uniform(-0.08, 0.08)
    scale = dice.uniform(0.92, 1.08)
    x = (grid_x * np.cos(tilt) + grid_y * np.sin(tilt)) / scale + dice.uniform(-0.04, 0.04)
    y = (grid_y * np.cos(tilt) - grid_x * np.sin(tilt)) / scale + dice.uniform(-0.04, 0.04)
    picture = _background(dice, grid_x, grid_y)
    skin, hair = dice.mixture(SKIN, 0.03), dice.mixture(HAIR, 0.03)
    picture = _hair_and_head(dice, picture, x, y, skin, hair, soft)
    picture = _features(dice, picture, x - turn, y, skin, hair, soft)
    picture = picture * _light(dice, grid_x, grid_y)[:, None]
    count = len(picture)
    blocks = picture.reshape(count, 3, size, OVERSAMPLING, size, OVERSAMPLING)
    return np.clip(blocks.mean((3, 5)), 0, 1).astype(np.float32)


def _background(dice: _Dice, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A colour gradient with faint stripes, (N, 3, S, S)."""
    ends = [
        np.stack([dice.uniform(0.1, 0.9) for _ in range(3)], 1)[..., 0, 0][..., None, None]
        for _ in range(2)
    ]
    angle = dice.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / 2 + 0.5  # (N, S, S)
    stripes = dice.uniform(0, 0.06) * np.sin(dice.uniform(3, 9) * along * np.pi)
    return ends[0] + along[:, None] * (ends[1] - ends[0]) + stripes[:, None]


def _hair_and_head(
    dice: _Dice, picture: np.ndarray, x: np.ndarray, y: np.ndarray, skin: np.ndarray,
    hair: np.ndarray, soft: float,
) -> np.ndarray:  # fmt: skip
    """Hair behind the head, neck, head, and a fringe over the forehead."""
    head_width, head_height = dice.uniform(0.52, 0.62), dice.uniform(0.70, 0.80)
    long = dice.chance(0.5)
    volume = dice.uniform(0.06, 0.16)
    behind = _ellipse(x, y, 0, -0.08, head_width + volume, head_height + volume, soft)
    below = np.clip((0.75 * long - 0.15 - y) / soft, 0, 1)  # short hair ends beside the ears
    picture = _paint(picture, behind * below, hair)
    neck = np.clip((0.26 - np.abs(x)) / soft, 0, 1) * np.clip((y - 0.3) / soft, 0, 1)
    picture = _paint(picture, neck, skin * 0.8)
    head = _ellipse(x, y, 0, 0.0, head_width, head_height, soft)
    picture = _paint(picture, head, skin)
    parting = dice.uniform(-0.4, 0.4)
    fringe = dice.uniform(-0.62, -0.38) + 0.25 * (x - parting) ** 2
    return _paint(picture, head * np.clip((fringe - y) / (2 * soft), 0, 1), hair)


def _features(
    dice: _Dice, picture: np.ndarray, x: np.ndarray, y: np.ndarray, skin: np.ndarray,
    hair: np.ndarray, soft: float,
) -> np.ndarray:  # fmt: skip
    """Eyes, brows, nose, mouth, and glasses for some."""
    iris, level = dice.mixture(IRIS, 0.05), dice.uniform(-0.14, -0.08)
    apart, wide = dice.uniform(0.22, 0.27), dice.uniform(0.10, 0.13)
    opened, brow = dice.uniform(0.045, 0.075), dice.uniform(0.14, 0.19)
    glasses, frame = dice.chance(0.25), dice.uniform(0.05, 0.3)
    for sign in (-1, 1):
        eye = _ellipse(x, y, sign * apart, level, wide, opened, soft)
        picture = _paint(picture, eye, 0.95)
        pupil = _ellipse(x, y, sign * apart, level, opened, opened, soft)
        picture = _paint(picture, pupil * eye, iris)
        arch = level - brow + 0.6 * (x - sign * apart) ** 2
        line = np.clip(1 - np.abs(y - arch) / 0.045, 0, 1) * (np.abs(x - sign * apart) < 0.15)
        picture = _paint(picture, 0.8 * line, hair * 0.7)
        outer = _ellipse(x, y, sign * apart, level, 0.19, 0.16, soft)
        inner = _ellipse(x, y, sign * apart, level, 0.15, 0.12, soft)
        picture = _paint(picture, glasses * (outer - inner).clip(0, 1), frame[:, None])
    bridge = (np.abs(y - level) < 0.02) & (np.abs(x) < apart - 0.16)
    picture = _paint(picture, glasses * bridge, frame[:, None])
    length = dice.uniform(0.14, 0.2)
    nose = np.clip(1 - np.abs(x - 0.04) / 0.05, 0, 1) * ((y > level + 0.05) & (y < length))
    picture = _paint(picture, 0.35 * nose, skin * 0.6)
    picture = _paint(picture, 0.6 * _ellipse(x, y, 0, length, 0.09, 0.03, soft), skin * 0.65)
    height, width = dice.uniform(0.38, 0.44), dice.uniform(0.15, 0.24)
    smile = dice.uniform(-0.2, 1.2)
    lips = y - smile * (0.05 - x**2) - (height - 0.02)
    thick = dice.uniform(0.035, 0.06)
    mouth = np.clip(1.3 - np.abs(lips) / thick, 0, 1) * np.clip((width - np.abs(x)) / soft, 0, 1)
    redness = np.stack([np.full_like(height, value) for value in (0.75, 0.25, 0.25)], 1)[..., 0, 0]
    return _paint(picture, mouth, 0.5 * skin + 0.5 * redness[..., None, None])


def _light(dice: _Dice, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light from one side, (N, S, S), around 1."""
    return dice.uniform(0.8, 1.1) * (1 + dice.uniform(-0.25, 0.25) * x - dice.uniform(0, 0.1) * y)
