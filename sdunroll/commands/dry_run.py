"""``sdunroll train dry_run=true``: what a training would take, from a few steps of it.

It leaves no run directory and no log; a dictionary that it had to learn stays in the cache.
"""

import logging
import statistics
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from sdunroll.checks import InvalidValue, boolean
from sdunroll.commands.assemble import Experiment, assemble, set_up_torch
from sdunroll.commands.instantiate import instantiate
from sdunroll.data import Batch
from sdunroll.memory import LiveMemory, total_bytes
from sdunroll.networks import UnrolledNetwork
from sdunroll.training import Training, TrainingSettings
from sdunroll.training.schedules import stages

STEPS = 8  # the first to warm up, the second counted, the others timed


@dataclass(frozen=True)
class Trial:
    """What a few steps of a training came to.

    Attributes:
        flop: of the matrix products and convolutions of a step, backward pass included.
        step_bytes: the most that a step holds beside weights and optimizer.
        step_seconds: of a step, the median.
        validation_seconds: for as many instances as a batch has.
    """

    flop: int
    step_bytes: int
    step_seconds: float
    validation_seconds: float


def dry_run(config: DictConfig) -> None:
    """Print parameters, memory, FLOP, steps and the estimated time of the training of ``config``."""
    _leave_nothing()
    if config.resume is not None:
        raise InvalidValue(f"dry_run: expected a new run, got resume={config.resume}; leave it out")
    experiment = assemble(config, set_up_torch(config))
    counts = {split: len(experiment.source.signals(split)) for split in ("train", "val")}
    asked = instantiate(config, "training")
    asked.new_optimizer(experiment.network.parameters())  # or says why not
    training, batch = _short_training(config, experiment, counts["train"])
    trial = _try(training)
    settings = training.settings
    steps = -(-counts["train"] // settings.batch_size)
    epoch = steps * trial.step_seconds
    epoch += counts["val"] / len(batch.obs) * trial.validation_seconds
    parameters = list(experiment.network.parameters())
    state = training.primal_dual.optimizer.state.values()
    data = total_bytes(batch) / len(batch.obs) * sum(counts.values())
    rows = {
        "device": str(experiment.device),
        "parameters": f"{sum(one.numel() for one in parameters):,}",
        "memory": f"weights {_size(total_bytes(parameters))}, optimizer "
        f"{_size(total_bytes(value for entry in state for value in entry.values()))}, "
        f"activations and gradients of a step {_size(trial.step_bytes)} (peak), data {_size(data)}",
        "FLOP per step": f"{trial.flop:.3g} (matrix products and convolutions, backward included)",
        "steps": f"{settings.epochs * steps:,} ({steps:,} in each of {settings.epochs:,} epochs, "
        f"batches of {settings.batch_size})",
        "time per step": f"{1000 * trial.step_seconds:.3g} ms (median of {STEPS - 2})",
        "estimated time": f"{_duration(epoch * _whole_epochs(asked, training.network))}, validation "
        "included, preparing the data not",
    }
    for name, text in rows.items():
        print(f"{name:<16}{text}")


def _whole_epochs(settings: TrainingSettings, network: UnrolledNetwork) -> float:
    """The epochs of the training, those that run l of the L layers counted as l / L."""
    planned = stages(
        settings.stages,
        num_layers=network.num_layers,
        epochs=settings.epochs,
        shares_weights=network.shares_weights,
    )
    return sum(stage.epochs * stage.layer for stage in planned) / network.num_layers


def _short_training(
    config: DictConfig, experiment: Experiment, count: int
) -> tuple[Training, Batch]:
    """A training of all layers on one batch, :data:`STEPS` times in an epoch, and that batch."""
    joint = OmegaConf.merge(config, {"training": {"stages": "joint"}})
    assert isinstance(joint, DictConfig)
    settings = instantiate(joint, "training")
    signals = experiment.source.signals("train")[: min(count, settings.batch_size)]
    batch = experiment.reference.instances(signals, keep=False).to(experiment.device)
    repeated = Batch(*(torch.cat([values] * STEPS) for values in batch))
    settings.batch_size = len(batch.obs)
    training = Training(
        settings,
        network=experiment.network,
        problem=experiment.problem,
        constraint=experiment.constraint,
        constrained=boolean("constrained", config.constrained),
        dual=instantiate(config, "dual"),
        train=repeated,
        val=batch,
        order_seed=config.seed,
        noise_seed=config.seed,
        draw=experiment.draw if settings.fresh else None,
        precision=config.precision,
        cuda_graph=boolean("cuda_graph", config.cuda_graph),
    )
    return training, batch


class _NoModules(nullcontext):
    """In place of the counter's tracker of modules, which fails on a network that runs its layers again
    in the backward pass: all counts as one."""

    parents = ("Global",)


def flop_counter() -> FlopCounterMode:
    """Counts the floating-point operations of what runs in it, of all modules together."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


def _try(training: Training) -> Trial:
    """One short epoch of ``training``."""
    flops, memory, modes = flop_counter(), LiveMemory(), ExitStack()
    ends: list[float] = []

    def on_step() -> None:
        modes.close()
        _finish(training)
        ends.append(time.perf_counter())
        if len(ends) == 1:
            modes.enter_context(memory)
            modes.enter_context(flops)

    with modes:
        next(training.run(on_step))
    _finish(training)
    validation = time.perf_counter() - ends[-1]
    timed = [after - before for before, after in pairwise(ends[1:])]
    return Trial(flops.get_total_flops(), memory.peak, statistics.median(timed), validation)


def _finish(training: Training) -> None:
    """Wait for what the device has still to do."""
    if training.train.obs.device.type == "cuda":
        torch.cuda.synchronize()


def _leave_nothing() -> None:
    """Close the log files before anything is written, and take away the directory that Hydra made for
    a ``hydra.run.dir`` that was typed."""
    for name in (None, "sdunroll.traceback"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()
        logger.addHandler(logging.NullHandler())
    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder != Path.cwd():
        with suppress(OSError):  # it holds something
            folder.rmdir()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"
