"""Where observations come from."""

from sdunroll.data.base import SPLITS, Source, Split
from sdunroll.data.batches import Batch, Loader
from sdunroll.data.photos import Photos
from sdunroll.data.synthetic import Synthetic

__all__ = ["SPLITS", "Batch", "Loader", "Photos", "Source", "Split", "Synthetic"]
