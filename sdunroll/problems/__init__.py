"""What is minimised: f(y; x), its gradient and its optimum."""

from sdunroll.problems.base import Problem
from sdunroll.problems.inverse_imaging import InverseImaging, inverse_imaging
from sdunroll.problems.operators import Deblurring, Denoising, Inpainting, Operator
from sdunroll.problems.sparse_coding import SparseCoding, sparse_coding
from sdunroll.problems.sparse_recovery import SparseRecovery, sparse_recovery

__all__ = [
    "Deblurring",
    "Denoising",
    "Inpainting",
    "InverseImaging",
    "Operator",
    "Problem",
    "SparseCoding",
    "SparseRecovery",
    "inverse_imaging",
    "sparse_coding",
    "sparse_recovery",
]
