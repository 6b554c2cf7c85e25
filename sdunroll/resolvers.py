"""What the configs ask for: where a run, a sweep and its jobs go, and how many jobs run at once.

Hydra calls these before a command runs, so nothing heavy is imported unless it is needed.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from sdunroll.checks import InvalidValue, folder

LONGEST = 100  # bytes of the readable part of a directory's name
# overrides that leave a job the same
FREE = (
    "sweep",
    "retry",
    "launcher",
    "sweeper",
    "device",
    "threads",
    "cuda_graph",
    "logger",
    "trust",
    "training.stop_after",
)


def register_resolvers() -> None:
    """Make the functions below known to the configs, as ``sdunroll.run_dir`` and so on."""
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[..., Any]] = {
        "run_dir": run_folder,
        "sweep_dir": sweep_folder,
        "job_dir": job_folder,
        "jobs": parallel_jobs,
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(f"sdunroll.{name}", resolve, replace=True)


def run_folder(resume: str | None, new: str, dry_run: object = False) -> str:
    """The directory of a resumed run, checked before Hydra makes it; else the new one; of a dry run the
    current one, so that none is made."""
    if dry_run is True:
        return "."
    if resume is None:
        return new
    from sdunroll.runs import Run

    return str(Run(folder("resume", resume)).folder)


def sweep_folder(given: object, new: str, dry_run: object = False) -> str:
    """The directory of a sweep: the one that is ``given``, else a new one.

    Errors: a dry run, which is of one run alone.
    """
    if dry_run is True:
        raise InvalidValue("dry_run: expected one run, got a sweep; leave out -m and the launcher")
    return new if given is None else str(given)


def job_folder(given: object, number: int, overrides: Sequence[str]) -> str:
    """The directory of a job in its sweep's: with a sweep that is ``given``, named by its overrides,
    in any order; else by its number."""
    if given is None:
        return str(number)
    kept = sorted(item for item in overrides if item.split("=")[0].lstrip("+~") not in FREE)
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
    short = (item.split("=")[0].split(".")[-1] + "=" + item.partition("=")[2] for item in kept)
    readable = re.sub(r"[^\w.]+", "-", "_".join(short)).strip("-.")
    readable = readable.encode()[:LONGEST].decode(errors="ignore")
    return f"{readable}-{digest}" if readable else digest


def parallel_jobs(
    overrides: Sequence[str], device: str, threads: int | None, asked: int | None = None
) -> int:
    """How many jobs run at once on this machine: one a GPU; without any, cores // threads, where
    ``threads`` None is one thread, but no more than there are jobs, or than a search has ``asked`` for.

    Each job then has cores // jobs threads, unless ``threads`` or the environment says otherwise.
    """
    import joblib

    if device != "cpu":
        import torch

        if gpus := torch.cuda.device_count():
            return gpus
    places = max(1, joblib.cpu_count() // (threads if isinstance(threads, int) and threads else 1))
    size = _size(overrides) or asked
    return places if size is None else min(places, size)


def _size(overrides: Sequence[str]) -> int | None:
    """The number of jobs of a grid; None where a sweeper decides that."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType

    size = 1
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            continue
        if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            return None
        size *= sum(1 for _ in override.sweep_string_iterator())
    return size
