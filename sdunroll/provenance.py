"""Where, from what and how a run is made."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sdunroll.allocator import give_back_freed_memory

PACKAGES = ("sdunroll", "torch", "numpy", "hydra-core", "omegaconf", "scikit-image", "matplotlib")


def collect_provenance(
    *, device: str, threads: int, processes: int, seed: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """The provenance of a run that begins now, with so many threads in each of its processes."""
    return {
        "git": _git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "processes": processes,
        "command_line": sys.argv,
        "overrides": list(overrides),
        "seed": seed,
        "wall_seconds": None,
        "peak_memory_bytes": None,
        "peak_gpu_memory_bytes": None,
    }


def forget_peak_memory() -> None:
    """Count the peaks from here on: jobs of a sweep may follow each other in one process. Systems other
    than Linux remember the largest of them."""
    give_back_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_gpu_memory_bytes() -> int | None:
    """The most memory that tensors have held on the GPU, in bytes; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def peak_memory_bytes() -> int:
    """The most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Revision of the checkout that holds the package, and whether it has changes other than results;
    None without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", "runs.py"):
            return None  # installed inside somebody else's repository
        changes = git("status", "--porcelain", "--", ":(top)", ":(top,exclude)outputs")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
