"""CIFAR-10's training images, read from the binary archive as it is distributed.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import io
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data.base import SPLITS, Source, Split, split_counts
from sdunroll.randomness import generator

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE = "cifar-10-binary.tar.gz"
MEMBERS = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))
ROW = 1 + 3 * 32 * 32  # a label and the red, green and blue planes, one byte each
LARGEST = 10_000 * ROW  # bytes of a member
LARGEST_ARCHIVE = (
    6 * LARGEST + 2**20
)  # bytes of the archive, unpacked: its test images are the sixth
LUMA = (0.2125, 0.7154, 0.0721)  # of ITU-R BT.709, as in the photographs


class Cifar10(Source):
    """The 50,000 training images, split at random; the test images are not used, as in the paper.

    Args:
        root: folder that holds, or is to hold, ``cifar-10-binary.tar.gz``; None for the cache folder
            of pooch, the library that downloads it.
        color: three channels, or grey.
        num_train, num_val, num_test: images in each split, 50,000 together at most.
        seed: of the split.
        sha256: of the archive.

    Errors: an archive that cannot be had or is not the expected one.
    """

    value_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        root: str | None = None,
        color: bool = False,
        num_train: int = 32_000,
        num_val: int = 8_000,
        num_test: int = 10_000,
        seed: int = 0,
        sha256: str = SHA256,
    ) -> None:
        self.root = root
        self.color = checks.boolean("color", color)
        self.channels = 3 if color else 1
        self.counts = split_counts(num_train=num_train, num_val=num_val, num_test=num_test)
        self.seed = checks.integer("seed", seed, low=0)
        self.sha256 = sha256

    def signals(self, split: Split) -> Tensor:
        """(N, C, 32, 32) in [0, 1]."""
        checks.choice("split", split, SPLITS)
        images = self._images()  # (N, 3, 32, 32) bytes
        wanted = sum(self.counts.values())
        if wanted > len(images):
            raise checks.UserError(
                f"data.num_train + num_val + num_test: expected at most {len(images)}, got {wanted}"
            )
        order = torch.randperm(len(images), generator=generator(self.seed, "cifar10")).numpy()
        first = sum(self.counts[name] for name in SPLITS[: SPLITS.index(split)])
        chosen = images[order[first : first + self.counts[split]]].astype(np.float32) / 255
        if not self.color:
            chosen = np.tensordot(chosen, np.array(LUMA, np.float32), (1, 0))[:, None]
        return torch.from_numpy(chosen)

    def _images(self) -> np.ndarray:
        path = self._archive()
        try:
            data = b"".join(_read_members(path))
        except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, KeyError) as error:
            raise checks.UserError(
                f"{path}: expected CIFAR-10 as it is distributed, got an archive that could not be read "
                f"({' '.join(str(error).split())}); remove it to download another"
            ) from error
        rows = np.frombuffer(data, np.uint8).reshape(-1, ROW)
        return rows[:, 1:].reshape(-1, 3, 32, 32)

    def _archive(self) -> Path:
        """The verified archive, downloaded if it is not there."""
        import pooch

        folder = Path(self.root) if self.root is not None else pooch.os_cache("sdunroll")
        web = pooch.HTTPDownloader(progressbar=sys.stderr.isatty())
        try:
            found = pooch.retrieve(ADDRESS, self.sha256, ARCHIVE, folder, downloader=web)
        except Exception as error:  # pooch passes on whatever its network library raises
            raise checks.UserError(
                f"data: expected {folder / ARCHIVE} with SHA-256 {self.sha256[:12]}..., and could not "
                f"download it from {ADDRESS} ({type(error).__name__}); put a copy there, or set "
                "data.root to the folder that holds one"
            ) from error
        return Path(found)


def _read_members(path: Path) -> list[bytes]:
    """The members of the archive; nothing is unpacked to the disk, and no more into memory than fits.

    Errors: ``ValueError`` for one that is no file or too large, and what the readers raise.
    """
    with gzip.open(path) as stream:
        unpacked = stream.read(LARGEST_ARCHIVE + 1)
    if len(unpacked) > LARGEST_ARCHIVE:
        raise ValueError(f"more than {LARGEST_ARCHIVE} bytes when unpacked")
    found = []
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
        for name in MEMBERS:
            member = archive.getmember(name)
            file = archive.extractfile(member) if member.isreg() else None
            if file is None or member.size > LARGEST or member.size % ROW:
                raise ValueError(f"{name} is no file of whole pictures")
            found.append(file.read())
    return found
