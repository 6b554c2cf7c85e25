"""``sdunroll train``: build the experiment, train it, write the run directory."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from sdunroll import checks, distributed
from sdunroll.checks import InvalidValue, boolean
from sdunroll.commands import events, saving, sweep
from sdunroll.commands.assemble import (
    Experiment,
    set_up_torch,
)
from sdunroll.commands.dry_run import dry_run
from sdunroll.commands.opening import begin, build, go_on, load, resolved_config, resumed, setting
from sdunroll.interrupt import deferred
from sdunroll.lock import held
from sdunroll.provenance import forget_peak_memory
from sdunroll.runs import Run, resumption
from sdunroll.training import Training

log = logging.getLogger(__name__)


def main(config: DictConfig) -> float | None:
    """Train as ``config`` says, or go on with the run in ``config.resume``; or try, if ``dry_run``.

    Of several processes, the first one holds the run directory, and the others train along. Returns what
    a sweeper minimises, :func:`sweep.objective`.
    """
    settings = HydraConfig.get()
    of_sweep = settings.mode == RunMode.MULTIRUN
    tried = boolean("dry_run", config.dry_run)
    if distributed.launched().size > 1 and (of_sweep or tried):
        raise InvalidValue(
            "torchrun: expected one training for its processes to share, got a "
            f"{'sweep' if of_sweep else 'dry run'}; call that without torchrun"
        )
    if tried:
        dry_run(config)
        return None
    if distributed.launched().rank > 0:
        _train_along(config)
        return None
    resumes = config.resume is not None  # also in a sweep, whose jobs have directories of their own
    output = settings.runtime.output_dir
    if resumes:
        output = str(Run(checks.folder("resume", config.resume)).folder)
    folder = _short(output)
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
    forget_peak_memory()
    run = None
    if config.resume is not None:
        run = resumed(config)
    elif of_sweep:
        retry = boolean("retry", config.retry)
        run = sweep.standing(folder, resolved_config(config), retry=retry)
        if run is not None and (folder / "summary.json").exists():
            log.info("%s has finished before", folder)
            return run
    training, experiment, run = begin(config, folder) if run is None else go_on(config, run)
    distributed.announce(folder)
    if training.finished() and (folder / "summary.json").exists():
        log.info("%s has finished its %d epochs", folder, training.epochs_done)
        return run
    try:
        try:
            if not training.finished():  # or else the other processes are gone
                _train(training, experiment, run, setting(config, run.config, "logger"))
        finally:
            saving.add_cost(run, time.monotonic() - began)
        if training.finished():
            saving.summarise(training, experiment, run)
            return run
    except (KeyboardInterrupt, SystemExit) as stop:  # the latter: submitit queues the job again
        if distributed.may_tell(stop):
            log.error("interrupted %s", _how_to_go_on(training, resumption(folder, run.config)))
        stop.already_shown = True  # type: ignore[union-attr]
        raise
    done, asked = training.epochs_done, training.settings.stop_after
    where = f"stopped after epoch {done}, as training.stop_after asks"
    if asked is not None and asked < done:
        where = f"{done} epochs are done already, and training.stop_after={asked} asks for no more"
    print(f"{where}; go on with: {resumption(folder, run.config)}")
    return run


def _train_along(config: DictConfig) -> None:
    """Take part in the training of the first process; nothing is written here."""
    folder = distributed.wait_for_first()
    if config.resume is None:
        training, _ = build(config, set_up_torch(config))
    else:
        run = resumed(config)
        training, _ = load(config, run)
        config = run.config
    if not training.finished():
        with _together(training, resumption(folder, config)) as leave_if_asked:
            for _ in training.run(leave_if_asked):
                pass


@contextmanager
def _together(training: Training, resume: str) -> Iterator[Callable[[], None]]:
    """Connect the processes, if there are several, and let interruptions wait for the next call of what
    this yields.

    Errors: :class:`sdunroll.distributed.Lost`, unless it was an interruption that all processes heard.
    """
    # Ctrl-C comes from the terminal and from torchrun
    echo = float(distributed.launched().size > 1)
    with distributed.connected(training.train.obs.device), deferred(echo=echo) as leave_if_asked:
        try:
            yield leave_if_asked
        except distributed.Lost as error:
            leave_if_asked()
            distributed.may_tell(error)  # hears others out while signals still wait
            raise distributed.Lost(f"{error} {_how_to_go_on(training, resume)}") from error


def _how_to_go_on(training: Training, resume: str) -> str:
    """Where a training was interrupted, what of it is lost, and ``resume``, the command that goes on."""
    epoch = training.epochs_done
    where = f"in epoch {epoch + 1}, whose steps are lost"
    if training.finished():
        where = "after the last epoch"
    if not epoch:
        return f"{where}; nothing was saved yet, train again"
    return f"{where}; go on with: {resume}"


def _train(training: Training, experiment: Experiment, run: Run, logger: str) -> None:
    """Train to the end, saving after each epoch; an interruption waits for the end of a step."""
    labels = experiment.constraint.labels(training.network.num_layers)
    steps, total = len(training.loader), training.settings.epochs
    warn_if_stalled = saving.StallWarning(labels)
    with (
        _together(training, resumption(run.folder, run.config)) as leave_if_asked,
        tqdm(
            total=total * steps,
            initial=training.epochs_done * steps,
            unit="step",
            desc="train",
            disable=sweep.at_once() or None,  # None: unless a person looks on
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


def _short(folder: str) -> Path:
    """The path as a user would type it: relative where it is below the current directory."""
    path = Path(folder).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
