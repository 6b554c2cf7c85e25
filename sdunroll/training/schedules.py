"""Which layers are trained when: all jointly, one after the other, or one more at a time.

Legend: L layers, E epochs.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from sdunroll import checks

Schedule = Literal["joint", "layerwise", "incremental"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A span of epochs in which the loss is taken at one layer.

    Attributes:
        first_epoch: from 0. epochs: how many.
        layer: the layer whose output the loss is taken of; the layers after it are not run.
        alone: whether that layer alone is trained, or those before it too.
    """

    first_epoch: int
    epochs: int
    layer: int
    alone: bool

    @property
    def end(self) -> int:
        """The epoch after the last, from 0."""
        return self.first_epoch + self.epochs


def stages(schedule: Schedule, *, num_layers: int, epochs: int) -> list[Stage]:
    """The stages of a training of E epochs in all, so that every schedule takes as many steps.

    ``joint`` is one stage, at layer L. ``layerwise`` and ``incremental`` have one a layer, of E / L
    epochs, rounded so that they sum to E.

    Errors: fewer epochs than layers, where each needs one.
    """
    if schedule == "joint":
        return [Stage(0, epochs, num_layers, alone=False)]
    if epochs < num_layers:
        raise checks.InvalidValue(
            f"training.epochs: expected at least one a layer, {num_layers}, for {schedule} training, "
            f"got {epochs}; give training.epochs={num_layers} or more"
        )
    ends = [epochs * layer // num_layers for layer in range(num_layers + 1)]
    return [
        Stage(start, end - start, layer, alone=schedule == "layerwise")
        for layer, (start, end) in enumerate(pairwise(ends), start=1)
    ]
