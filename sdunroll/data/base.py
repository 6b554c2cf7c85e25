"""What a data source is: signals in three disjoint splits."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from sdunroll import checks

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_counts(*, num_train: int, num_val: int, num_test: int) -> dict[Split, int]:
    """The number of signals in each split. Errors: counts that are no whole numbers of at least 1."""
    return {
        "train": checks.integer("num_train", num_train),
        "val": checks.integer("num_val", num_val),
        "test": checks.integer("num_test", num_test),
    }


class Source(ABC):
    """Signals from which a problem makes its instances.

    Attributes:
        value_range: bounds of every entry (perturbed signals are clamped to them), None if unbounded.
        channels: C of signals that are pictures, None of others.
        notice: what must be said of the data wherever results are shown, None for nothing.
        dictionary: (m, n) the dictionary that made the signals, None if none did.
    """

    value_range: tuple[float, float] | None = None
    channels: int | None = None
    notice: str | None = None
    dictionary: Tensor | None = None

    @abstractmethod
    def signals(self, split: Split) -> Tensor:
        """The signals of a split, (N, C, H, W) or (N, m), float32 on the CPU; the same at each call."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` new signals, as those of a split but never the same ones again.

        Errors: a source that has its splits alone.
        """
        raise checks.InvalidValue(
            f"training.fresh: expected data that can be drawn without end, got {type(self).__name__}; "
            "take data=sparse_codes or training.fresh=false"
        )
