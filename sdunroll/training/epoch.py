"""What an epoch came to, and the loss.

Legend: L layers, R rows of the constraint (L times its parts, mostly 1).
"""

from dataclasses import dataclass

from torch import Tensor

from sdunroll.constraints import distance


def half_squared_distance(y: Tensor, target: Tensor) -> Tensor:
    """1/2 ||y - y*||^2, (B,): the training loss at the last layer."""
    return distance(y, target).square() / 2


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: from 1.
        train_loss: mean loss over the epoch's batches.
        slack: of every row of the constraint over the epoch, without margin, (R,).
        multipliers: of every row after the epoch, 0 where unconstrained, (R,).
        val_loss, val_distance: mean loss and mean distance on the validation split, at the stage's
            layer.
        val_slack: of every row on the validation split, without margin, (R,).
        worst_row: where val_slack is largest, from the constraint's first layer on.
        feasible: whether val_slack <= 0 from the constraint's first layer on, enforced or not.
        best: whether this is the best epoch so far.
        lr: step of the last update.
        seconds: wall time.
    """

    epoch: int
    train_loss: float
    slack: list[float]
    multipliers: list[float]
    val_loss: float
    val_distance: float
    val_slack: list[float]
    worst_row: int
    feasible: bool
    best: bool
    lr: float
    seconds: float
