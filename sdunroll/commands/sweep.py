"""The jobs of a sweep: their directories, and what is to be done in each when the sweep is started again.

A job's directory is known by the job's overrides, so that a sweep that is started again finds what is
done (skipped), what was interrupted (gone on with) and what failed (refused unless ``retry=true``).
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sdunroll import failed, seals
from sdunroll.checks import UserError
from sdunroll.lock import Busy, held
from sdunroll.runs import Run, RunError

log = logging.getLogger(__name__)

INFEASIBLE = 1e6  # added to the objective of a run whose best epoch is not feasible


class FailedBefore(UserError):
    """A job that failed when the sweep was last started."""


def standing(folder: Path, config: DictConfig, *, retry: bool) -> Run | None:
    """The run of a job that was begun before; None if it is to begin.

    Args:
        folder: the job's, whose lock is held.
        config: what would be its ``config.yaml``.
        retry: whether a job that failed is tried again.

    Errors: :class:`FailedBefore`; :class:`RunError` for a run of other settings.
    """
    finished = (folder / "summary.json").exists()
    if not finished and (reason := failed.reason(folder)) is not None:
        if not retry:
            raise FailedBefore(f"failed before: {reason}; put that right and add retry=true")
        failed.forget(folder)
    saved = any((folder / "checkpoints" / f"{name}.pt").exists() for name in ("last", "previous"))
    if not finished and not saved:
        return None
    run = Run(folder)
    if run.identity != seals.identity(config):
        raise RunError(
            f"{folder}: expected the run of this job, found one of other settings; were defaults "
            "changed? take another directory for the sweep"
        )
    return run


def record_failure(folder: Path, error: Exception, line: str) -> None:
    """Leave ``failed.json`` with the reason, one line, in a job's directory."""
    if isinstance(error, (Busy, FailedBefore)):  # it is another's failure, or none
        return
    if (folder / "summary.json").exists():  # the call was wrong, the run is done
        return
    with suppress(UserError):  # what cannot be written was the failure
        failed.record(folder, line)


def objective(run: Run) -> float | None:
    """What a sweeper minimises: the validation loss of the best epoch, plus :data:`INFEASIBLE` if a
    layer does not descend there; None before the first epoch."""
    best = [row for row in run.history() if row["best"]]
    if not best:
        return None
    return best[-1]["val_loss"] + (0 if best[-1]["feasible"] else INFEASIBLE)


def at_once() -> bool:
    """Whether jobs run at once, so that their progress bars would be written over each other."""
    return not HydraConfig.get().launcher._target_.endswith(".BasicLauncher")


@contextmanager
def own_gpu(folder: Path, number: int) -> Iterator[None]:
    """Where there are several GPUs, work on one that no other job of the sweep in ``folder`` has."""
    import torch

    count = torch.cuda.device_count()
    with ExitStack() as claims:
        if count > 1:
            index = _free_gpu(folder, count, claims)
            torch.cuda.set_device(number % count if index is None else index)
        yield


def _free_gpu(folder: Path, count: int, claims: ExitStack) -> int | None:
    for index in range(count):
        with suppress(Busy):
            claims.enter_context(held(folder / f"gpu{index}.lock"))
            return index
    return None
