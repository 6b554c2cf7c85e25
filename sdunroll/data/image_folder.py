"""Pictures in a folder, such as CelebA-HQ as its users download it.

Legend: N pictures, C channels (1 or 3), S side of a picture in pixels.
"""

import hashlib
import json
import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sdunroll import checks
from sdunroll.cache import Cache
from sdunroll.data.base import SPLITS, Source, Split

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SAMPLED = 16  # pictures whose content is looked at before the cache is trusted
NAMED = 10  # pictures that are left out and named on the console; all are, in the log file
SHARES = {"train": 0.90, "val": 0.95, "test": 1.0}  # upper ends, where no official split is known
MAPPING, PARTITION = "CelebA-HQ-to-CelebA-mapping.txt", "list_eval_partition.txt"
PARTS: tuple[Split, ...] = ("train", "val", "test")  # 0, 1 and 2 in the partition file
WORKERS = 4
AT_ONCE = 1000  # pictures under way, to bound the memory


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

    A picture that cannot be read is named in the log and left out.

    Errors: a folder without pictures, a split with too few that can be read.
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
        self.channels: int = 3 if color else 1
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
            self._read_splits[split] = self._read_all(self._paths(split), split)
        return self._read_splits[split]

    def _read_all(self, paths: list[Path], split: Split) -> Tensor:
        """The pictures of a split that can be read, (N, C, S, S); the others are named and left out.

        They are decoded once: the cache keeps them as bytes, known by the names, sizes and times of all
        files and the content of some, and maps them into memory.
        """
        files = [[path.relative_to(self.root).as_posix(), *_state(path)] for path in paths]
        key = {
            "what": "pictures",
            "content": _sampled(paths),
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "size": self.size,
            "channels": self.channels,
            "count": self.counts[split],
        }
        cache = Cache(Cache.default_folder())
        found = cache.tensors(key, lambda: self._decode(paths, split), mapped=True)
        refused = json.loads(bytes(found["refused"].tolist()))
        for number, (name, reason) in enumerate(refused):
            level = logging.WARNING if number < NAMED else logging.DEBUG
            log.log(level, "data: %s is left out: %s", self.root / name, reason)
        if len(refused) > NAMED:
            log.warning("data: and %d pictures more are left out", len(refused) - NAMED)
        self._check_count(split, len(found["pictures"]), len(paths), "readable pictures")
        levels = found["pictures"].permute(0, 3, 1, 2) >> (8 - self.bits)
        return levels.to(torch.float32, memory_format=torch.contiguous_format).div_(
            2**self.bits - 1
        )

    def _decode(self, paths: list[Path], split: Split) -> dict[str, Tensor]:
        """``pictures``: those that can be read, (N, S, S, C) bytes, in the order of ``paths``, N at most
        what is wanted; ``refused``: names of the others and why they cannot, as JSON."""
        from PIL import Image

        count = self.counts[split] or len(paths)
        pictures = torch.empty(
            min(count, len(paths)), self.size, self.size, self.channels, dtype=torch.uint8
        )
        read, refused, left = 0, [], iter(paths)
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(WORKERS) as pool,  # Pillow decodes outside the interpreter's lock
            tqdm(
                total=len(pictures), desc=f"pictures for {split}", disable=None, leave=False
            ) as bar,
        ):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            while chosen := list(islice(left, min(count - read, AT_ONCE))):
                for path, found in zip(chosen, pool.map(self._try, chosen), strict=True):
                    if isinstance(found, str):
                        refused.append((path.relative_to(self.root).as_posix(), found))
                    else:
                        pictures[read] = torch.from_numpy(found)
                        read += 1
                bar.update(read - bar.n)
        said = json.dumps(refused).encode()
        return {
            "pictures": pictures[:read].clone() if read < len(pictures) else pictures,
            "refused": torch.tensor(list(said), dtype=torch.uint8),
        }

    def _check_count(self, split: Split, found: int, among: int, what: str) -> None:
        """Errors: fewer than are wanted, or none."""
        count = self.counts[split]
        if found < (count or 1):
            raise checks.UserError(
                f"data.root: expected {count or 'some'} {what} ({', '.join(ENDINGS)}) in the {split} "
                f"split, got {found} of the {among} below {self.root}; name a folder with "
                "more" + (f", or lower data.num_{split}" if count is not None else "")
            )

    def _paths(self, split: Split) -> list[Path]:
        if not self.root.is_dir():
            raise checks.UserError(
                f"data.root: expected a folder of pictures, got {self.root}, which is none"
            )
        found = [
            path
            for path in self.root.rglob("*")
            if path.suffix.lower() in ENDINGS and path.is_file()  # a pipe would be waited for
        ]
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
        self._check_count(split, len(chosen), len(found), "pictures")
        how = "CelebA's official split" if official else "split by a hash of the names"
        log.info("data: %d of %d pictures for %s, %s", len(chosen), len(found), split, how)
        return chosen

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

    def _try(self, path: Path) -> np.ndarray | str:
        """The picture, or why there is none."""
        try:
            return self._read(path)
        except MemoryError:
            raise
        except Exception as error:  # what Pillow raises on damaged files has no base of its own
            if isinstance(error, OSError) and error.errno is not None:  # may be another tomorrow
                raise checks.UserError(
                    f"data: {path} could not be read ({error.strerror}); put that right, or take the file "
                    "away"
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"could not be read ({reason})"

    def _read(self, path: Path) -> np.ndarray:
        """(S, S, C) bytes."""
        from PIL import Image, ImageOps

        with Image.open(path, formats=FORMATS) as opened:  # not those that call another program
            picture = ImageOps.exif_transpose(opened)
            if picture.mode == "F":
                raise ValueError("floating-point numbers, whose range is not known")
            if picture.mode == "I" and opened.format != "PNG":  # which has 16 bits
                raise ValueError("whole numbers of 32 bits, whose range is not known")
            picture = in_eight_bits(picture).convert("RGB" if self.color else "L")
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        square = picture.crop((left, top, left + side, top + side))
        resized = np.array(square.resize((self.size, self.size), Image.Resampling.BOX))
        return resized.reshape(self.size, self.size, self.channels)


def in_eight_bits(picture: "Image.Image") -> "Image.Image":
    """A picture of 16 bits in 8, which convert() would clip at 255; others as they are."""
    if not picture.mode.startswith("I"):
        return picture
    from PIL import Image

    deep = np.asarray(picture, np.float64) / 257
    return Image.fromarray(deep.clip(0, 255).round().astype(np.uint8))


def _state(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which a change of it is noticed."""
    with suppress(OSError):  # it is named when it is read
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return -1, -1


def _sampled(paths: list[Path]) -> str:
    """A checksum of the content of :data:`SAMPLED` files or some more, spread over all: names, sizes and
    times may be those of other pictures, where they are not compressed and times are set."""
    found = hashlib.sha256()
    for path in paths[:: max(1, len(paths) // SAMPLED)]:
        with suppress(OSError):
            found.update(path.read_bytes())
    return found.hexdigest()


def _numbers(stem: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", stem)]


def _by_hash(name: str) -> Split:
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return next(split for split in PARTS if share < SHARES[split])
