"""Where observations come from."""

from sdunroll.data.base import SPLITS, Source, Split
from sdunroll.data.batches import Batch, FreshLoader, Loader, loader
from sdunroll.data.cifar10 import Cifar10
from sdunroll.data.faces import Faces
from sdunroll.data.image_folder import ImageFolder
from sdunroll.data.photos import Photos
from sdunroll.data.sparse_codes import SparseCodes, gaussian_dictionary, noise_std, with_power
from sdunroll.data.synthetic import Synthetic

__all__ = [
    "SPLITS",
    "Batch",
    "Cifar10",
    "Faces",
    "FreshLoader",
    "ImageFolder",
    "Loader",
    "Photos",
    "Source",
    "SparseCodes",
    "Split",
    "Synthetic",
    "gaussian_dictionary",
    "loader",
    "noise_std",
    "with_power",
]
