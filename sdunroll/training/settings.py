"""The settings of a training."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from sdunroll import checks
from sdunroll.perturbations import Perturbation
from sdunroll.training.schedules import Schedule

OptimizerFactory = Callable[..., torch.optim.Optimizer]


class TrainingSettings:
    """The settings of a :class:`Training`.

    Args:
        stages: layers are trained "joint" (the paper's), "layerwise", "incremental" or "stagewise"; see
            :func:`sdunroll.training.stages`.
        epochs: passes over the training split, or over as many new instances.
        batch_size: B.
        lr: primal step at the start.
        schedule: "cosine" decays the step to 0 over the updates of each stage, "constant" does not.
        optimizer: ``(parameters, lr=) -> Optimizer``.
        loss: what the multipliers are weighed against: "squared", the mean loss (the paper's), or "log",
            its logarithm, against which they do not depend on its scale. Over all data both have the same
            minima; of batches, the logarithm gives one with a large loss less weight.
        noise: ``level -> Perturbation`` between the layers in training; see ``noise_level``.
        noise_level: its level; 0 for none.
        clip_norm: the Lagrangian's gradient is scaled down to this norm; None leaves it.
        patience: stop after so many epochs without a better one; None never does. Only for training
            all layers jointly.
        stop_after: leave off after this epoch as if interrupted; None goes to the end.
        fresh: draw new instances for each step, of a source that can; an epoch has as many as the
            training split.
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
        loss: Literal["squared", "log"] = "squared",
        noise_level: float = 0.0,
        clip_norm: float | None = None,
        patience: int | None = None,
        stop_after: int | None = None,
        stages: Schedule = "joint",
        fresh: bool = False,
    ) -> None:
        checks.choice("stages", stages, ("joint", "layerwise", "incremental", "stagewise"))
        self.stages: Schedule = stages
        if patience is not None and stages != "joint":
            raise checks.InvalidValue(
                f"patience: expected null for {stages} training, whose stages have a fixed length, "
                f"got {patience}"
            )
        self.epochs = checks.integer("epochs", epochs)
        self.batch_size = checks.integer("batch_size", batch_size)
        self.lr = checks.number("lr", lr, above=0)
        self.schedule = checks.choice("schedule", schedule, ("cosine", "constant"))
        if not callable(optimizer):
            raise checks.InvalidValue(f"optimizer: expected the settings of one, got {optimizer!r}")
        self.optimizer = optimizer
        self.loss = checks.choice("loss", loss, ("squared", "log"))
        self.noise = noise(checks.number("noise_level", noise_level, low=0))
        self.clip_norm = (
            None if clip_norm is None else checks.number("clip_norm", clip_norm, above=0)
        )
        self.patience = None if patience is None else checks.integer("patience", patience)
        self.stop_after = None if stop_after is None else checks.integer("stop_after", stop_after)
        self.fresh = checks.boolean("fresh", fresh)

    def new_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of the primal steps.

        Errors: one whose weight decay would move layers that are at rest.
        """
        optimizer = self.optimizer(parameters, lr=self.lr)
        decays = [
            group["weight_decay"] for group in optimizer.param_groups if "weight_decay" in group
        ]
        if self.stages != "joint" and any(decays):
            raise checks.InvalidValue(
                "training.optimizer.weight_decay: expected 0 where layers are trained one after another, "
                f"since it moves those at rest too, got {max(decays)}; take 0 or training=end_to_end"
            )
        return optimizer

    def objective(self, loss: Tensor) -> Tensor:
        """What a step minimises, from the mean loss of its batch, a scalar."""
        if self.loss == "log":
            return loss.clamp_min(torch.finfo(loss.dtype).tiny).log()
        return loss

    def lr_at(self, share: float) -> float:
        """The primal step after a share (0 .. 1) of a stage's updates."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * share)) / 2
