"""What a training leaves in its run directory."""

import logging
from collections import deque
from contextlib import suppress
from typing import Any

import torch

from sdunroll import metrics
from sdunroll.cache import WriteError
from sdunroll.checks import UserError
from sdunroll.commands.assemble import Experiment
from sdunroll.data import SPLITS
from sdunroll.primal_dual import stalled
from sdunroll.provenance import peak_gpu_memory_bytes, peak_memory_bytes
from sdunroll.runs import Run, resumption
from sdunroll.training import Epoch, Stage, Training

log = logging.getLogger(__name__)


STALLED_AFTER = 50  # epochs in which a multiplier grows and its slack stays where it is
MUCH = 0.05  # of the validation loss, to give up for constraints that hold more surely


class StallWarning:
    """Warns, once a layer, of multipliers that grow without end while nothing moves.

    Args:
        labels: names of the constraint's rows.
    """

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self.recent: deque[Epoch] = deque(maxlen=STALLED_AFTER)
        self.warned: set[int] = set()

    def __call__(self, epoch: Epoch) -> None:
        self.recent.append(epoch)
        if len(self.recent) < STALLED_AFTER:
            return
        multipliers = torch.tensor([one.multipliers for one in self.recent])
        slack = torch.tensor([one.slack for one in self.recent])
        for row in set(stalled(multipliers, slack)) - self.warned:
            self.warned.add(row)
            log.warning(
                "the multiplier of layer %s has grown for %d epochs, to %.3g, while its slack did not "
                "move from %+.3f: raise training.lr, lower constraint.epsilon or constraint.margin, or "
                "begin with a later constraint.first_layer",
                self.labels[row], STALLED_AFTER, epoch.multipliers[row], epoch.slack[row],
            )  # fmt: skip


def add_cost(run: Run, seconds: float) -> None:
    """Add this session's time and memory to the provenance."""
    provenance = run.provenance
    provenance["wall_seconds"] = (provenance["wall_seconds"] or 0.0) + seconds
    for name, peak in (
        ("peak_memory_bytes", peak_memory_bytes()),
        ("peak_gpu_memory_bytes", peak_gpu_memory_bytes()),
    ):
        if peak is not None:
            provenance[name] = max(provenance.get(name) or 0, peak)
    with suppress(UserError):  # on a full disk, the error on its way says more
        run.write_json("provenance.json", provenance)


def save(
    training: Training, experiment: Experiment, run: Run, epoch: Epoch, labels: list[str]
) -> None:
    """Save an epoch: its row, its checkpoint and, if it is the best, its weights."""
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
        instances = {split: len(experiment.source.signals(split)) for split in SPLITS}
        rest = {"problem": weights["problem"], "instances": instances}
        run.save_checkpoint("last", training.state_dict() | rest)
    except WriteError as error:
        raise UserError(
            f"{error}; then go on with: {resumption(run.folder, run.config)}"
        ) from error


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


def passed_over(
    history: list[dict[str, float]], best_epoch: int, stages: list[Stage]
) -> str | None:
    """What the best epoch cost, where that is much: another epoch is feasible too, only less surely, at a
    lower validation loss."""
    # before, losses are those of another layer
    first = min(stage.first_epoch for stage in stages if stage.layer == stages[-1].layer)
    losses = {
        int(row["epoch"]): row["val_loss"]
        for row in history
        if row["feasible"] and row["epoch"] > first
    }
    if best_epoch not in losses:
        return None
    lowest = min(losses, key=losses.__getitem__)
    if losses[lowest] >= (1 - MUCH) * losses[best_epoch]:
        return None
    return (
        f"epoch {best_epoch} was taken, where the constraints hold more surely; epoch {lowest} is feasible "
        f"too, at {losses[lowest] / losses[best_epoch]:.2f} of its validation loss: to take such an epoch, "
        "lower constraint.margin"
    )


def summarise(training: Training, experiment: Experiment, run: Run) -> None:
    """Write ``summary.json``: the best epoch on the test split."""
    experiment.network.load_state_dict(run.load_checkpoint("best")["network"])
    test = experiment.instances("test")
    figures = metrics.evaluate(
        experiment.network, experiment.problem, experiment.constraint, test, seed=run.config.seed,
        last_state=True,
    )  # fmt: skip
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
    if cost := passed_over(run.history(), training.best_epoch, training.stages):
        print(cost)
