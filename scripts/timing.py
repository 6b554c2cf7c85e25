"""What the benchmarks measure with."""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``work`` took, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def gemm_peak(rows: int, size: int, dtype: torch.dtype = torch.float32) -> float:
    """Multiplications a second of a product (rows, size) times (size, size), the median of nine."""
    a, b = torch.randn(rows, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return rows * size**2 / statistics.median(timed(lambda: a @ b)[0] for _ in range(9))
