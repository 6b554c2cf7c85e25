"""What is minimised: f(y; x), its gradient and its optimum."""

from sdunroll.problems.base import Problem
from sdunroll.problems.sparse_coding import SparseCoding, sparse_coding

__all__ = ["Problem", "SparseCoding", "sparse_coding"]
