"""A training from its configuration: a new one, or one that goes on."""

import copy
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sdunroll import checks, distributed
from sdunroll.checks import InvalidValue, UserError, boolean
from sdunroll.commands import events
from sdunroll.commands.assemble import (
    Experiment,
    assemble,
    check_rows,
    part_seed,
    set_up_torch,
    trusted_run,
)
from sdunroll.commands.instantiate import instantiate
from sdunroll.data import SPLITS, Batch
from sdunroll.provenance import collect_provenance
from sdunroll.randomness import generator
from sdunroll.runs import Run
from sdunroll.training import Training

# what may change when going on
RESUMABLE = ("training.stop_after", "device", "threads", "cuda_graph", "logger", "trust", "resume")
OF_THE_CALL = ("trust", "sweep", "retry", "dry_run")  # settings of a call, not of the run


def build(
    config: DictConfig, device: torch.device, state: dict[str, Any] | None = None
) -> tuple[Training, Experiment]:
    """The training that ``config`` describes; with ``state``, a checkpoint, as it was then."""
    constrained = boolean("constrained", config.constrained)
    cuda_graph = boolean("cuda_graph", config.get("cuda_graph", False))
    order_seed, noise_seed = (part_seed(config, part) for part in ("order", "noise"))
    settings = instantiate(config, "training")
    dual = instantiate(config, "dual")
    experiment = assemble(config, device, state)
    _check_splits(experiment, None if state is None else state.get("instances"))
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
        ranks=distributed.launched(),
        precision=config.get("precision", "fp32"),
        cuda_graph=cuda_graph,
    )
    if state is not None:
        training.load_state_dict(state)
    return training, experiment


def begin(config: DictConfig, folder: Path) -> tuple[Training, Experiment, Run]:
    """A new training and its run, in ``folder``, whose lock is held."""
    Run.check_free(folder)
    events.writer_of(config.logger)  # what is missing shows now
    device = set_up_torch(config)
    training, experiment = build(config, device)
    _try_out(training, experiment)
    provenance = collect_provenance(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        processes=distributed.launched().size,
        seed=config.seed,
        overrides=HydraConfig.get().overrides.task,
    )
    return training, experiment, Run.create(folder, resolved_config(config), provenance)


def _check_splits(experiment: Experiment, before: dict[str, int] | None = None) -> None:
    """What is wrong with a split shows now, not after the training.

    Args:
        before: how many instances the splits had when the run began.

    Errors: other numbers of them; signals of another shape than those of the training split; pictures
    may be of another size, where the problem takes them.
    """
    for split in SPLITS:
        signals = experiment.source.signals(split)
        check_rows(signals, f"data: the {split} split", signals=True)
        if before is not None and len(signals) != before[split]:
            raise UserError(
                f"data: the {split} split: expected {before[split]:,} instances, as when the run began, "
                f"got {len(signals):,}; put the data back as they were, or start a new run"
            )
        if split == "train":
            train = signals
            fixed = 2 if train.ndim == 4 else train.ndim
        if signals.ndim != train.ndim or signals.shape[1:fixed] != train.shape[1:fixed]:
            raise UserError(
                f"data: the {split} split: expected signals of shape {tuple(train.shape[1:])}, as in the "
                f"train split, got {tuple(signals.shape[1:])}"
            )
        if signals.shape[1:] != train.shape[1:]:
            try:
                experiment.reference.instances(signals[:2], keep=False)
            except UserError as error:
                raise UserError(f"data: the {split} split: {error}") from error


@torch.no_grad()
def _try_out(training: Training, experiment: Experiment) -> None:
    """Run a copy of the network once, on two instances: what does not fit together shows now, before
    anything is written.

    Errors: :class:`sdunroll.checks.UserError` that names what does not fit.
    """
    few = Batch(*(values[:2] for values in training.train))
    device = few.obs.device
    rng = generator(0, "trial", device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            network = copy.deepcopy(experiment.network)
        except (
            RuntimeError,
            TypeError,
        ):  # some hold what cannot be copied; their training will tell
            return
        network.prepare(few.obs, rng)
        what = f"{type(network).__name__}.initial, of the shape of the targets"
        start = checks.shaped(what, network.initial(few.obs, rng), few.target.shape)
        path = network(few.obs, generator=rng, start=start)
        constraint = experiment.constraint
        measures = torch.stack(constraint.measures(experiment.problem, path, few))
    if measures.isnan().any() and path.states.isfinite().all():
        raise UserError(
            f"{type(constraint).__name__}.measure: expected numbers, got nan of estimates that are finite; "
            "look at what it divides by"
        )


def resolved_config(config: DictConfig) -> DictConfig:
    """The configuration as it is saved."""
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    for name in OF_THE_CALL:
        del resolved[name]
    return resolved


def resumed(config: DictConfig) -> Run:
    """The run in ``config.resume``. Errors: overrides that would make it another run."""
    run = trusted_run(checks.folder("resume", config.resume), config.trust)
    overrides = HydraConfig.get().overrides
    given = list(overrides.task)
    if distributed.launched().rank == 0:  # the others' directory is not the user's to give
        given += [item for item in overrides.hydra if item.startswith("hydra.run.dir=")]
    refused = [item for item in given if item.split("=")[0].lstrip("+") not in RESUMABLE]
    if refused:
        raise InvalidValue(
            f"resume: a run goes on as it was configured; beside resume, expected only "
            f"{', '.join(RESUMABLE[:-1])}, got {' '.join(refused)}; leave it out or start a new run"
        )
    return run


def go_on(config: DictConfig, run: Run) -> tuple[Training, Experiment, Run]:
    """Go on with ``run``, whose lock is held."""
    training, experiment = load(config, run)
    if training.best_epoch:  # which the end needs: what is wrong with it shows now
        run.load_checkpoint("best")
    run.truncate_history(training.epochs_done)
    return training, experiment, run


def load(config: DictConfig, run: Run) -> tuple[Training, Experiment]:
    """The training of ``run`` as it was last saved."""
    stored = run.config.copy()
    stored.training.stop_after = config.training.stop_after
    machine = {name: setting(config, stored, name) for name in ("device", "threads")}
    stored.cuda_graph = setting(config, stored, "cuda_graph")
    device = set_up_torch(OmegaConf.create(machine))
    state = run.load_last()
    return build(stored, device, state)


def setting(config: DictConfig, stored: DictConfig, name: str) -> Any:
    """What the call gives, or else what the run was configured with."""
    overrides = HydraConfig.get().overrides.task
    given = any(item.split("=")[0].lstrip("+") == name for item in overrides)
    return config[name] if given else stored.get(name, config[name])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
