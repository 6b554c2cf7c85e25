"""``sdunroll train``: build the experiment, train it, write the run directory."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from sdunroll import distributed
from sdunroll.checks import InvalidValue, boolean
from sdunroll.commands import events, saving
from sdunroll.commands.assemble import Experiment, assemble, instantiate, set_up_torch, trusted_run
from sdunroll.interrupt import deferred
from sdunroll.lock import held
from sdunroll.provenance import collect_provenance
from sdunroll.randomness import generator
from sdunroll.runs import Run
from sdunroll.training import Training

log = logging.getLogger(__name__)

# what may change when going on
RESUMABLE = ("training.stop_after", "device", "threads", "logger", "trust", "resume")


def main(config: DictConfig) -> None:
    """Train as ``config`` says, or go on with the run in ``config.resume``; of several processes, the
    first one holds the run directory, and the others train along."""
    if distributed.launched().rank > 0:
        _train_along(config)
        return
    folder = _short(HydraConfig.get().runtime.output_dir)
    with held(folder / "train.lock"):
        _main(config, folder)
    print(folder)


def _main(config: DictConfig, folder: Path) -> None:
    began = time.monotonic()
    if config.resume is None:
        training, experiment, run = _begin(config, folder)
    else:
        training, experiment, run = _go_on(config)
    distributed.announce(folder)
    if training.finished() and (folder / "summary.json").exists():
        log.info("%s has finished its %d epochs", folder, training.epochs_done)
        return
    try:
        try:
            _train(training, experiment, run, _setting(config, run.config, "logger"))
        finally:
            saving.add_cost(run, time.monotonic() - began)
        if training.finished():
            saving.summarise(training, experiment, run)
            return
    except KeyboardInterrupt as stop:
        if distributed.may_tell(stop):
            log.error("interrupted %s", _how_to_go_on(training, folder))
        stop.already_shown = True  # type: ignore[attr-defined]
        raise
    print(
        f"stopped after epoch {training.epochs_done}, as training.stop_after asks; "
        f"go on with: sdunroll train resume={run.folder}"
    )


def _train_along(config: DictConfig) -> None:
    """Take part in the training of the first process; nothing is written here."""
    folder = distributed.wait_for_first()
    if config.resume is None:
        training, _ = _build(config, set_up_torch(config))
    else:
        training, *_ = _load(config)
    if not training.finished():
        with _together(training, folder) as leave_if_asked:
            for _ in training.run(leave_if_asked):
                pass


@contextmanager
def _together(training: Training, folder: Path) -> Iterator[Callable[[], None]]:
    """Connect the processes, if there are several, and let interruptions wait for the next call of what
    this yields.

    Errors: :class:`sdunroll.distributed.Lost`, unless it was an interruption that all processes heard.
    """
    echo = float(
        distributed.launched().size > 1
    )  # Ctrl-C comes from the terminal and from torchrun
    with distributed.connected(training.train.obs.device), deferred(echo=echo) as leave_if_asked:
        try:
            yield leave_if_asked
        except distributed.Lost as error:
            leave_if_asked()
            distributed.may_tell(error)  # hears others out while signals still wait
            raise distributed.Lost(f"{error} {_how_to_go_on(training, folder)}") from error


def _how_to_go_on(training: Training, folder: Path) -> str:
    """Where a training was interrupted, what of it is lost, and how to go on."""
    epoch = training.epochs_done
    where = f"in epoch {epoch + 1}, whose steps are lost"
    if training.finished():
        where = "after the last epoch"
    if not epoch:
        return f"{where}; nothing was saved yet, train again"
    return f"{where}; go on with: sdunroll train resume={folder}"


def _build(
    config: DictConfig, device: torch.device, state: dict[str, Any] | None = None
) -> tuple[Training, Experiment]:
    constrained = boolean("constrained", config.constrained)
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
        seed=config.seed,
        draw=experiment.draw if settings.fresh else None,
        ranks=distributed.launched(),
        precision=config.get("precision", "fp32"),
    )
    if state is not None:
        training.load_state_dict(state)
    return training, experiment


def _begin(config: DictConfig, folder: Path) -> tuple[Training, Experiment, Run]:
    Run.check_free(folder)
    events.writer_of(config.logger)  # what is missing shows now
    device = set_up_torch(config)
    training, experiment = _build(config, device)
    experiment.source.signals("test")  # what is wrong with it shows now, not after the training
    provenance = collect_provenance(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        processes=distributed.launched().size,
        seed=config.seed,
        overrides=HydraConfig.get().overrides.task,
    )
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    del resolved["trust"]  # it is the reader's to say, not the run's
    return training, experiment, Run.create(folder, resolved, provenance)


def _go_on(config: DictConfig) -> tuple[Training, Experiment, Run]:
    training, experiment, run = _load(config)
    run.truncate_history(training.epochs_done)
    return training, experiment, run


def _load(config: DictConfig) -> tuple[Training, Experiment, Run]:
    run = trusted_run(config.resume, config.trust)
    given = HydraConfig.get().overrides.task
    refused = [item for item in given if item.split("=")[0].lstrip("+~") not in RESUMABLE]
    if refused:
        raise InvalidValue(
            f"resume: a run goes on as it was configured; beside resume, expected only "
            f"{', '.join(RESUMABLE[:-1])}, got {' '.join(refused)}; leave it out or start a new run"
        )
    stored = run.config.copy()
    stored.training.stop_after = config.training.stop_after
    machine = {name: _setting(config, stored, name) for name in ("device", "threads")}
    device = set_up_torch(OmegaConf.create(machine))
    state = run.load_last()
    training, experiment = _build(stored, device, state)
    return training, experiment, run


def _setting(config: DictConfig, stored: DictConfig, name: str) -> Any:
    """What the call gives, or else what the run was configured with."""
    given = any(item.startswith(f"{name}=") for item in HydraConfig.get().overrides.task)
    return config[name] if given else stored.get(name, config[name])


def _train(training: Training, experiment: Experiment, run: Run, logger: str) -> None:
    """Train to the end, saving after each epoch; an interruption waits for the end of a step."""
    labels = experiment.constraint.labels(training.network.num_layers)
    steps, total = len(training.loader), training.settings.epochs
    warn_if_stalled = saving.StallWarning(labels)
    with (
        _together(training, run.folder) as leave_if_asked,
        tqdm(
            total=total * steps,
            initial=training.epochs_done * steps,
            unit="step",
            desc="train",
            disable=None,
        ) as bar,
        events.logged(logger, run.folder, training, labels) as log_events,
    ):

        def on_step() -> None:
            bar.update()
            leave_if_asked()

        for epoch in training.run(on_step):
            saving.save(training, experiment, run, epoch, labels)
            log_events(epoch)
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
