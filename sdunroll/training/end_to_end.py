"""The settings of end-to-end training: all layers jointly, one loss on the last layer's output."""

import math
from collections.abc import Callable
from typing import Literal

import torch

from sdunroll import checks
from sdunroll.perturbations import Perturbation

OptimizerFactory = Callable[..., torch.optim.Optimizer]


class EndToEnd:
    """The settings of a :class:`Training`.

    Args:
        epochs: passes over the training split.
        batch_size: B.
        lr: primal step at the start.
        schedule: "cosine" decays the step to 0 over all updates, "constant" does not.
        optimizer: ``(parameters, lr=) -> Optimizer``.
        noise: ``level -> Perturbation`` between the layers in training; see ``noise_level``.
        noise_level: its level; 0 for none.
        clip_norm: the Lagrangian's gradient is scaled down to this norm; None leaves it.
        patience: stop after so many epochs without a better one; None never does.
        stop_after: leave off after this epoch as if interrupted; None goes to the end.
    """

    def __init__(
        self,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        schedule: Literal["cosine", "constant"],
        optimizer: OptimizerFactory,
        noise: Callable[[float], Perturbation],
        noise_level: float = 0.0,
        clip_norm: float | None = None,
        patience: int | None = None,
        stop_after: int | None = None,
    ) -> None:
        self.epochs = checks.integer("epochs", epochs)
        self.batch_size = checks.integer("batch_size", batch_size)
        self.lr = checks.number("lr", lr, above=0)
        self.schedule = checks.choice("schedule", schedule, ("cosine", "constant"))
        self.optimizer = optimizer
        self.noise = noise(checks.number("noise_level", noise_level, low=0))
        self.clip_norm = (
            None if clip_norm is None else checks.number("clip_norm", clip_norm, above=0)
        )
        self.patience = None if patience is None else checks.integer("patience", patience)
        self.stop_after = None if stop_after is None else checks.integer("stop_after", stop_after)

    def lr_at(self, share: float) -> float:
        """The primal step after a share (0 .. 1) of all updates."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * share)) / 2
