"""Pictures in a folder, such as CelebA-HQ as its users download it.

Legend: N pictures, C channels (1 or 3), S side of a picture in pixels.
"""

import hashlib
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SHARES = {"train": 0.90, "val": 0.95, "test": 1.0}  # upper ends, where no official split is known
MAPPING, PARTITION = "CelebA-HQ-to-CelebA-mapping.txt", "list_eval_partition.txt"
PARTS: tuple[Split, ...] = ("train", "val", "test")  # 0, 1 and 2 in the partition file
WORKERS = 4


class ImageFolder(Source):
    """The pictures in a folder and below it, centre-cropped to squares and resized.

    They are sorted by the numbers in their names. The split is CelebA's official one if its two files,
    ``CelebA-HQ-to-CelebA-mapping.txt`` and ``list_eval_partition.txt``, are in the folder or beside
    it; otherwise each picture's name decides by a hash, 90 / 5 / 5 in 100, so that a picture
    stays in its split when others are added.

    Args:
        root: the folder.
        size: side S in pixels.
        color: three channels, or grey.
        bits: grey levels a channel are reduced to 2^bits; 8 leaves them.
        num_train, num_val, num_test: the first so many of each split; None for all.

    Errors: a folder without pictures, a split with too few, a picture that cannot be read.
    """

    value_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        root: str,
        size: int = 64,
        color: bool = True,
        bits: int = 8,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
    ) -> None:
        self.root = Path(root)
        self.size = checks.integer("size", size, low=2)
        self.color = checks.boolean("color", color)
        self.channels = 3 if color else 1
        self.bits = checks.integer("bits", bits)
        if bits > 8:
            raise checks.InvalidValue(f"bits: expected 1 to 8, got {bits}")
        wanted = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
        self.counts = {
            name.removeprefix("num_"): None if count is None else checks.integer(name, count)
            for name, count in wanted.items()
        }

    def signals(self, split: Split) -> Tensor:
        """(N, C, S, S) in [0, 1]."""
        checks.choice("split", split, SPLITS)
        paths = self._paths(split)
        with ThreadPoolExecutor(WORKERS) as pool:
            pictures = list(pool.map(self._read, paths))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def _paths(self, split: Split) -> list[Path]:
        if not self.root.is_dir():
            raise checks.UserError(
                f"data.root: expected a folder of pictures, got {self.root}, which is none"
            )
        found = [path for path in self.root.rglob("*") if path.suffix.lower() in ENDINGS]
        names = {path: path.relative_to(self.root).as_posix() for path in found}
        found.sort(key=lambda path: (_numbers(path.stem), names[path]))
        official = self._official_split()
        if official:
            chosen = [path for path in found if official.get(_last_number(path.stem)) == split]
        else:
            chosen = [path for path in found if _by_hash(names[path]) == split]
        count = self.counts[split]
        if not chosen or (count is not None and len(chosen) < count):
            raise checks.UserError(
                f"data.root: expected {count or 'some'} pictures ({', '.join(ENDINGS)}) in the {split} "
                f"split, got {len(chosen)} of the {len(found)} below {self.root}; name another folder, "
                f"or lower data.num_{split}"
            )
        return chosen[:count]

    def _official_split(self) -> dict[int, Split]:
        """The split of each picture by its number in CelebA-HQ; empty if the two files are not there."""
        for folder in (self.root, self.root.parent):
            mapping, partition = folder / MAPPING, folder / PARTITION
            if mapping.is_file() and partition.is_file():
                parts = dict(
                    line.split()[:2] for line in partition.read_text().splitlines() if line
                )
                rows = [line.split() for line in mapping.read_text().splitlines()[1:] if line]
                return {int(row[0]): PARTS[int(parts[row[2]])] for row in rows if row[2] in parts}
        return {}

    def _read(self, path: Path) -> np.ndarray:
        """(S, S, C) float32 in [0, 1]."""
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as opened:
                    picture = opened.convert("RGB" if self.color else "L")
        except Exception as error:  # what Pillow raises on damaged files has no base of its own
            raise checks.UserError(
                f"{path}: expected a picture, but it could not be read "
                f"({' '.join(str(error).split())}); remove or replace it"
            ) from error
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        square = picture.crop((left, top, left + side, top + side))
        resized = np.asarray(square.resize((self.size, self.size), Image.Resampling.BOX))
        levels = np.floor(resized / 2 ** (8 - self.bits)) / (2**self.bits - 1)
        return levels.astype(np.float32).reshape(self.size, self.size, self.channels)


def _numbers(stem: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", stem)]


def _last_number(stem: str) -> int:
    return (_numbers(stem) or [-1])[-1]


def _by_hash(name: str) -> Split:
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return next(split for split in PARTS if share < SHARES[split])
