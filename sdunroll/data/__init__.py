"""Where observations come from."""

from sdunroll.data.base import SPLITS, Source, Split
from sdunroll.data.batches import Batch, Loader
from sdunroll.data.cifar10 import Cifar10
from sdunroll.data.faces import Faces
from sdunroll.data.image_folder import ImageFolder
from sdunroll.data.photos import Photos
from sdunroll.data.synthetic import Synthetic

__all__ = [
    "SPLITS",
    "Batch",
    "Cifar10",
    "Faces",
    "ImageFolder",
    "Loader",
    "Photos",
    "Source",
    "Split",
    "Synthetic",
]
