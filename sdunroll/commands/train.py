"""``sdunroll train``: build the experiment, train it, write the run directory."""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from sdunroll import metrics
from sdunroll.cache import WriteError
from sdunroll.checks import InvalidValue, UserError, boolean
from sdunroll.commands.assemble import Experiment, assemble, instantiate, set_up_torch
from sdunroll.randomness import generator
from sdunroll.runs import Run, collect_provenance, peak_memory_bytes
from sdunroll.training import Epoch, Training

log = logging.getLogger(__name__)

RESUMABLE = ("training.stop_after", "device", "threads", "resume")  # what may change when going on


def main(config: DictConfig) -> None:
    """Train as ``config`` says, or go on with the run in ``config.resume``."""
    began = time.monotonic()
    if config.resume is None:
        training, experiment, run = _begin(config)
    else:
        training, experiment, run = _go_on(config)
    if training.finished() and (run.folder / "summary.json").exists():
        log.info("%s has finished its %d epochs", run.folder, training.epochs_done)
        print(run.folder)
        return
    try:
        _train(training, experiment, run)
    except KeyboardInterrupt as stop:
        if training.epochs_done:
            then = f"go on with: sdunroll train resume={run.folder}"
        else:
            then = "nothing was saved yet, train again"
        log.error("interrupted in epoch %d; %s", training.epochs_done + 1, then)
        stop.already_shown = True  # type: ignore[attr-defined]
        raise
    finally:
        _add_cost(run, time.monotonic() - began)
    if training.finished():
        _summarise(training, experiment, run)
    else:
        print(
            f"stopped after epoch {training.epochs_done}, as training.stop_after asks; "
            f"go on with: sdunroll train resume={run.folder}"
        )
    print(run.folder)


def _add_cost(run: Run, seconds: float) -> None:
    """Add this session's time and memory to the provenance."""
    provenance = run.provenance
    provenance["wall_seconds"] = (provenance["wall_seconds"] or 0.0) + seconds
    peak = max(provenance["peak_memory_bytes"] or 0, peak_memory_bytes())
    provenance["peak_memory_bytes"] = peak
    with suppress(WriteError):  # on a full disk, the error on its way says more
        run.write_json("provenance.json", provenance)


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
    )
    if state is not None:
        training.load_state_dict(state)
    return training, experiment


def _begin(config: DictConfig) -> tuple[Training, Experiment, Run]:
    device = set_up_torch(config)
    hydra_config = HydraConfig.get()
    folder = _short(hydra_config.runtime.output_dir)
    Run.check_free(folder)
    training, experiment = _build(config, device)
    experiment.source.signals("test")  # what is wrong with it shows now, not after the training
    provenance = collect_provenance(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        seed=config.seed,
        overrides=hydra_config.overrides.task,
    )
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    return (
        training,
        experiment,
        Run.create(folder, resolved, provenance),
    )


def _go_on(config: DictConfig) -> tuple[Training, Experiment, Run]:
    run = Run(config.resume)
    given = HydraConfig.get().overrides.task
    refused = [item for item in given if item.split("=")[0].lstrip("+~") not in RESUMABLE]
    if refused:
        raise InvalidValue(
            f"resume: a run goes on as it was configured; beside resume, expected only "
            f"{', '.join(RESUMABLE[:-1])}, got {' '.join(refused)}; leave it out or start a new run"
        )
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
    state = run.load_checkpoint("last")
    training, experiment = _build(stored, device, state)
    run.truncate_history(training.epochs_done)
    return training, experiment, run


def _train(training: Training, experiment: Experiment, run: Run) -> None:
    """Train to the end, saving after each epoch."""
    labels = experiment.constraint.labels(training.network.num_layers)
    steps, total = len(training.loader), training.settings.epochs
    with tqdm(
        total=total * steps,
        initial=training.epochs_done * steps,
        unit="step",
        desc="train",
        disable=None,
    ) as bar:
        for epoch in training.run(bar.update):
            _save(training, experiment, run, epoch, labels)
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


def _save(
    training: Training, experiment: Experiment, run: Run, epoch: Epoch, labels: list[str]
) -> None:
    # history first: a row without its checkpoint is dropped on resume, the reverse would be a gap
    run.append_history(_history_row(epoch, labels))
    weights = {
        "network": training.network.state_dict(),
        "problem": experiment.problem.state_dict(),
        "epoch": epoch.epoch,
    }
    try:
        if epoch.best:
            run.save_checkpoint("best", weights)
        run.save_checkpoint("last", training.state_dict() | {"problem": weights["problem"]})
    except WriteError as error:
        raise UserError(f"{error}; then go on with: sdunroll train resume={run.folder}") from error


def _history_row(epoch: Epoch, labels: list[str]) -> dict[str, Any]:
    multipliers = zip(labels, epoch.multipliers, strict=True)
    return {
        "epoch": epoch.epoch,
        "train_loss": epoch.train_loss,
        "val_loss": epoch.val_loss,
        "val_distance": epoch.val_distance,
        **{f"slack_{label}": slack for label, slack in zip(labels, epoch.slack, strict=True)},
        **{f"multiplier_{label}": value for label, value in multipliers},
        "lr": epoch.lr,
        "seconds": epoch.seconds,
        "val_worst_slack": epoch.val_slack[epoch.worst_row],
        "feasible": int(epoch.feasible),
        "best": int(epoch.best),
    }


def _summarise(training: Training, experiment: Experiment, run: Run) -> None:
    """Write ``summary.json``: the best epoch on the test split."""
    experiment.network.load_state_dict(run.load_checkpoint("best")["network"])
    test = experiment.instances("test")
    figures = metrics.evaluate(
        experiment.network, experiment.problem, experiment.constraint, test, seed=run.config.seed
    )
    pairs = experiment.constraint.pairs(figures.before.double(), figures.after.double())
    slack = experiment.constraint.slack_of(pairs.mean(-1)).tolist()
    worst = max(training.demanded, key=slack.__getitem__)
    label = experiment.constraint.labels(training.network.num_layers)[worst]
    distance = figures.states["distance"][-1].double()
    summary = {
        "final_distance": float(distance.mean()),
        "final_loss": float(distance.square().mean() / 2),
        "slack": slack,
        "worst_slack": slack[worst],
        "feasible": slack[worst] <= 0,
        "epochs": training.epochs_done,
        "best_epoch": training.best_epoch,
        "seconds": run.provenance["wall_seconds"],
    }
    run.write_json("summary.json", summary)
    verdict = "every layer descends" if summary["feasible"] else "not every layer descends"
    log.debug("finished: %s", summary)
    print(
        f"test split: final distance {summary['final_distance']:.4f}, worst slack "
        f"{slack[worst]:+.4f} (layer {label}), {verdict} as demanded"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _short(folder: str) -> Path:
    """The path as a user would type it: relative where it is below the current directory."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
