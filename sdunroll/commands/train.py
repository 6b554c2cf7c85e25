"""``sdunroll train``: build the experiment, train it, write the run directory."""

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from sdunroll.checks import InvalidValue, boolean
from sdunroll.commands import saving, sweep
from sdunroll.commands.assemble import (
    Experiment,
    assemble,
    instantiate,
    part_seed,
    set_up_torch,
    trusted_run,
)
from sdunroll.commands.dry_run import dry_run
from sdunroll.interrupt import deferred
from sdunroll.lock import held
from sdunroll.provenance import collect_provenance
from sdunroll.randomness import generator
from sdunroll.runs import Run
from sdunroll.training import Training

log = logging.getLogger(__name__)

# what may change when going on
RESUMABLE = ("training.stop_after", "device", "threads", "trust", "resume")
OF_THE_CALL = ("trust", "sweep", "retry", "dry_run")  # settings of a call, not of the run


def main(config: DictConfig) -> float | None:
    """Train as ``config`` says, or go on with the run in ``config.resume``; or try, if ``dry_run``.

    Returns what a sweeper minimises, :func:`sweep.objective`.
    """
    if boolean("dry_run", config.dry_run):
        dry_run(config)
        return None
    settings = HydraConfig.get()
    folder = _short(settings.runtime.output_dir)
    of_sweep = settings.mode == RunMode.MULTIRUN
    if config.sweep is not None and not of_sweep:
        raise InvalidValue(
            f"sweep: expected -m or a launcher beside it, got sweep={config.sweep} alone; for one run "
            "give hydra.run.dir"
        )
    with held(folder / "train.lock"), ExitStack() as stack:
        if of_sweep and config.device != "cpu":
            stack.enter_context(sweep.own_gpu(Path(settings.sweep.dir), settings.job.num))
        run = _main(config, folder, of_sweep=of_sweep)
    print(folder)
    return sweep.objective(run)


def _main(config: DictConfig, folder: Path, *, of_sweep: bool) -> Run:
    began = time.monotonic()
    run = None
    if config.resume is not None:
        run = _resumed(config)
    elif of_sweep:
        retry = boolean("retry", config.retry)
        run = sweep.standing(folder, _resolved(config), retry=retry)
        if run is not None and (folder / "summary.json").exists():
            log.info("%s has finished before", folder)
            return run
    training, experiment, run = _begin(config, folder) if run is None else _go_on(config, run)
    if training.finished() and (folder / "summary.json").exists():
        log.info("%s has finished its %d epochs", folder, training.epochs_done)
        return run
    try:
        try:
            _train(training, experiment, run)
        finally:
            saving.add_cost(run, time.monotonic() - began)
        if training.finished():
            saving.summarise(training, experiment, run)
            return run
    except (KeyboardInterrupt, SystemExit) as stop:  # the latter: submitit queues the job again
        log.error("interrupted %s", _how_to_go_on(training, run))
        stop.already_shown = True  # type: ignore[union-attr]
        raise
    print(
        f"stopped after epoch {training.epochs_done}, as training.stop_after asks; "
        f"go on with: sdunroll train resume={run.folder}"
    )
    return run


def _how_to_go_on(training: Training, run: Run) -> str:
    """Where a training was interrupted, what of it is lost, and how to go on."""
    epoch = training.epochs_done
    where = f"in epoch {epoch + 1}, whose steps are lost"
    if training.finished():
        where = "after the last epoch"
    if not epoch:
        return f"{where}; nothing was saved yet, train again"
    return f"{where}; go on with: sdunroll train resume={run.folder}"


def _build(
    config: DictConfig, device: torch.device, state: dict[str, Any] | None = None
) -> tuple[Training, Experiment]:
    constrained = boolean("constrained", config.constrained)
    order_seed, noise_seed = (part_seed(config, part) for part in ("order", "noise"))
    settings = instantiate(config, "training")
    dual = instantiate(config, "dual")
    experiment = assemble(config, device, state)
    if settings.fresh:  # what cannot be drawn shows now
        experiment.source.draw(1, generator(config.seed, "trial"))
    training = Training(
        settings,
        network=experiment.network,
        problem=experiment.problem,
        constraint=experiment.constraint,
        constrained=constrained,
        dual=dual,
        train=experiment.instances("train"),
        val=experiment.instances("val"),
        order_seed=order_seed,
        noise_seed=noise_seed,
        draw=experiment.draw if settings.fresh else None,
    )
    if state is not None:
        training.load_state_dict(state)
    return training, experiment


def _begin(config: DictConfig, folder: Path) -> tuple[Training, Experiment, Run]:
    Run.check_free(folder)
    device = set_up_torch(config)
    training, experiment = _build(config, device)
    experiment.source.signals("test")  # what is wrong with it shows now, not after the training
    provenance = collect_provenance(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        seed=config.seed,
        overrides=HydraConfig.get().overrides.task,
    )
    return training, experiment, Run.create(folder, _resolved(config), provenance)


def _resolved(config: DictConfig) -> DictConfig:
    """The configuration as it is saved."""
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    for name in OF_THE_CALL:
        del resolved[name]
    return resolved


def _resumed(config: DictConfig) -> Run:
    """The run in ``config.resume``."""
    run = trusted_run(config.resume, config.trust)
    given = HydraConfig.get().overrides.task
    refused = [item for item in given if item.split("=")[0].lstrip("+~") not in RESUMABLE]
    if refused:
        raise InvalidValue(
            f"resume: a run goes on as it was configured; beside resume, expected only "
            f"{', '.join(RESUMABLE[:-1])}, got {' '.join(refused)}; leave it out or start a new run"
        )
    return run


def _go_on(config: DictConfig, run: Run) -> tuple[Training, Experiment, Run]:
    given = HydraConfig.get().overrides.task
    stored = run.config.copy()
    stored.training.stop_after = config.training.stop_after
    device = set_up_torch(
        OmegaConf.create(
            {
                name: config[name]
                if any(item.startswith(f"{name}=") for item in given)
                else stored[name]
                for name in ("device", "threads")
            }
        )
    )
    state = run.load_last()
    training, experiment = _build(stored, device, state)
    run.truncate_history(training.epochs_done)
    return training, experiment, run


def _train(training: Training, experiment: Experiment, run: Run) -> None:
    """Train to the end, saving after each epoch; an interruption waits for the end of a step."""
    labels = experiment.constraint.labels(training.network.num_layers)
    steps, total = len(training.loader), training.settings.epochs
    warn_if_stalled = saving.StallWarning(labels)
    with (
        deferred() as leave_if_asked,
        tqdm(
            total=total * steps,
            initial=training.epochs_done * steps,
            unit="step",
            desc="train",
            disable=sweep.at_once() or None,  # None: unless a person looks on
        ) as bar,
    ):

        def on_step() -> None:
            bar.update()
            leave_if_asked()

        for epoch in training.run(on_step):
            saving.save(training, experiment, run, epoch, labels)
            warn_if_stalled(epoch)
            worst, label = epoch.val_slack[epoch.worst_row], labels[epoch.worst_row]
            log.debug(
                "epoch %d: loss %.4g, validation %.4g, worst slack %+.3f (layer %s)",
                epoch.epoch,
                epoch.train_loss,
                epoch.val_loss,
                worst,
                label,
            )
            bar.set_postfix_str(
                f"epoch {epoch.epoch} of {total}: loss {epoch.train_loss:.4g}, "
                f"worst slack {worst:+.3f} (layer {label})"
            )
            leave_if_asked()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _short(folder: str) -> Path:
    """The path as a user would type it: relative where it is below the current directory."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
