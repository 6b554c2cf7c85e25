"""What ``logger`` adds to the history: each epoch as TensorBoard events.

Legend: L layers, N pictures, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.randomness import generator
from sdunroll.training import Epoch, Training

PICTURES = 4  # of the validation split, restored after each epoch


def writer_of(logger: object) -> type | None:
    """The class that writes events; None where the history alone is wanted.

    Errors: another logger than csv and tensorboard; one that is not installed.
    """
    if checks.choice("logger", logger, ("csv", "tensorboard")) == "csv":
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise checks.UserError(
            f"logger: expected the package tensorboard, got: {error}; pip install 'sdunroll[log]', or "
            "take logger=csv"
        ) from error
    return SummaryWriter


@contextmanager
def logged(
    logger: str, folder: Path, training: Training, labels: list[str]
) -> Iterator[Callable[[Epoch], None]]:
    """What to call after each epoch; a resumed training writes over what came after its checkpoint.

    Args:
        folder: of the run; the events are in ``tensorboard/`` there.
        labels: names of the constraint's rows.
    """
    writer_class = writer_of(logger)
    if writer_class is None:
        yield lambda epoch: None
        return
    with writer_class(str(folder / "tensorboard"), purge_step=training.epochs_done + 1) as writer:

        def add(epoch: Epoch) -> None:
            for name, value in _scalars(epoch, labels).items():
                writer.add_scalar(name, value, epoch.epoch)
            if training.val.target.ndim == 4:
                writer.add_image("restored", _pictures(training), epoch.epoch)
            writer.flush()

        yield add


def _scalars(epoch: Epoch, labels: list[str]) -> dict[str, float]:
    rows: dict[str, Any] = {
        "slack": epoch.slack,
        "slack_validation": epoch.val_slack,
        "multiplier": epoch.multipliers,
    }
    return {
        "loss/train": epoch.train_loss,
        "loss/validation": epoch.val_loss,
        "distance/validation": epoch.val_distance,
        "lr": epoch.lr,
    } | {
        f"{name}/layer_{label}": value
        for name, values in rows.items()
        for label, value in zip(labels, values, strict=True)
    }


@torch.no_grad()
def _pictures(training: Training) -> Tensor:
    """Some pictures of the validation split, (C, N H, (L + 2) W): a row each, with y_0 .. y_L and the
    clean one."""
    obs, clean = (values[:PICTURES] for values in training.val)
    rng = generator(training.noise_seed, "events", obs.device)
    states = training.network(obs, generator=rng, depth=training.stage.layer).states
    both = torch.cat([states, clean[None]]).clamp(0, 1)  # (L + 2, N, C, H, W)
    return both.permute(2, 1, 3, 0, 4).flatten(3, 4).flatten(1, 2)
