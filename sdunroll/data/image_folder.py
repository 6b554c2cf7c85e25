"""Pictures in a folder, such as CelebA-HQ as its users download it.

Legend: N pictures, C channels (1 or 3), S side of a picture in pixels.
"""

import hashlib
import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split

log = logging.getLogger(__name__)

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
        self._read_splits: dict[Split, Tensor] = {}

    def signals(self, split: Split) -> Tensor:
        """(N, C, S, S) in [0, 1]."""
        checks.choice("split", split, SPLITS)
        if split not in self._read_splits:
            self._read_splits[split] = self._read_all(self._paths(split))
        return self._read_splits[split]

    def _read_all(self, paths: list[Path]) -> Tensor:
        from PIL import Image

        with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
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
        if official:  # which lists pictures by numbers alone, not masks and the like beside them
            found = [path for path in found if path.stem.isdigit()]
            unlisted = [path for path in found if int(path.stem) not in official]
            if unlisted:
                raise checks.UserError(
                    f"{unlisted[0]}: expected a picture that {MAPPING} lists, as {len(unlisted)} of "
                    f"{len(found)} are not; remove them, or the list to split by a hash of the names"
                )
            chosen = [path for path in found if official[int(path.stem)] == split]
        else:
            chosen = [path for path in found if _by_hash(names[path]) == split]
        count = self.counts[split]
        if not chosen or (count is not None and len(chosen) < count):
            raise checks.UserError(
                f"data.root: expected {count or 'some'} pictures ({', '.join(ENDINGS)}) in the {split} "
                f"split, got {len(chosen)} of the {len(found)} below {self.root}; name a folder with "
                "more" + (f", or lower data.num_{split}" if count is not None else "")
            )
        how = "CelebA's official split" if official else "split by a hash of the names"
        log.info("data: %d of %d pictures for %s, %s", len(chosen), len(found), split, how)
        return chosen[:count]

    def _official_split(self) -> dict[int, Split]:
        """The split of each picture by its number in CelebA-HQ; empty if the two lists are not there.

        Errors: a list that is not of the form that CelebA's authors give it.
        """
        places = (self.root, self.root.parent)
        mapping, partition = (
            next((folder / name for folder in places if (folder / name).is_file()), None)
            for name in (MAPPING, PARTITION)
        )
        if mapping is None or partition is None:
            return {}
        try:
            lines = partition.read_text(encoding="utf-8").splitlines()
            parts = {line.split()[0]: PARTS[int(line.split()[1])] for line in lines if line.strip()}
            rows = mapping.read_text(encoding="utf-8").splitlines()[1:]
            return {int(row.split()[0]): parts[row.split()[2]] for row in rows if row.strip()}
        except (ValueError, IndexError, KeyError) as error:
            raise checks.UserError(
                f"{mapping} and {partition}: expected lines 'idx orig_idx orig_file' and 'file part' "
                f"that fit together, got others ({type(error).__name__}: {error}); download them again"
            ) from error

    def _read(self, path: Path) -> np.ndarray:
        """(S, S, C) float32 in [0, 1]."""
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
                    deep = np.asarray(picture, np.float64) / 257
                    picture = Image.fromarray(deep.clip(0, 255).round().astype(np.uint8))
                picture = picture.convert("RGB" if self.color else "L")
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


def _by_hash(name: str) -> Split:
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return next(split for split in PARTS if share < SHARES[split])
