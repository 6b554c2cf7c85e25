"""Which layers are trained when: all jointly, one after the other, one more at a time, or in stages.

Legend: L layers, E epochs.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from sdunroll import checks

Schedule = Literal["joint", "layerwise", "incremental", "stagewise"]

# of a layer's epochs in stagewise training: the share after which each phase ends, and its step
PHASES = ((0.4, 1.0), (0.8, 0.2), (1.0, 0.02))
TOGETHER = 0.2  # the step of the last stage, which trains all layers


@dataclass(frozen=True, slots=True)
class Stage:
    """A span of epochs in which the loss is taken at one layer.

    Attributes:
        first_epoch: from 0. epochs: how many.
        layer: the layer whose output the loss is taken of; the layers after it are not run.
        alone: whether that layer alone is trained, or those before it too.
        lr_factor: of the primal step.
    """

    first_epoch: int
    epochs: int
    layer: int
    alone: bool
    lr_factor: float = 1.0

    @property
    def end(self) -> int:
        """The epoch after the last, from 0."""
        return self.first_epoch + self.epochs


def stages(
    schedule: Schedule, *, num_layers: int, epochs: int, shares_weights: bool = False
) -> list[Stage]:
    """The stages of a training of E epochs in all, so that every schedule takes as many steps.

    ``joint`` is one stage, at layer L. ``layerwise`` and ``incremental`` have one a layer, of E / L
    epochs, rounded so that they sum to E. ``stagewise`` has three a layer: the new layer alone, then all
    layers so far at 0.2 and at 0.02 of the step; and, since the stages are short where the reference
    trains each until it stalls, one more of all layers at 0.2 of the step: half of the epochs, or what
    three a layer leave. Reference: Chen, Liu, Wang, Yin, "Theoretical Linear
    Convergence of Unfolded ISTA and Its Practical Weights and Thresholds", section 4,
    https://arxiv.org/abs/1808.10038.

    Args:
        shares_weights: layers that share weights are never trained alone in ``stagewise``.

    Errors: fewer epochs than stages, where each needs one; layerwise training of layers that share
    weights.
    """
    if schedule == "layerwise" and shares_weights:
        raise checks.InvalidValue(
            "training: expected layers with weights of their own for layerwise training, got layers "
            "that share them; take training=incremental, or a network whose layers share none "
            "(network.tied=false, network.shared=false)"
        )
    if schedule == "joint":
        return [Stage(0, epochs, num_layers, alone=False)]
    each = len(PHASES) if schedule == "stagewise" else 1
    if epochs < each * num_layers:
        wanted = "one" if each == 1 else f"{each}"
        raise checks.InvalidValue(
            f"training.epochs: expected at least {wanted} a layer, {each * num_layers}, for {schedule} "
            f"training, got {epochs}; give training.epochs={each * num_layers} or more"
        )
    together = min(epochs // 2, epochs - each * num_layers) if schedule == "stagewise" else 0
    first = epochs - together
    ends = [first * layer // num_layers for layer in range(num_layers + 1)]
    spans = list(enumerate(pairwise(ends), start=1))
    if schedule != "stagewise":
        return [
            Stage(start, end - start, layer, alone=schedule == "layerwise")
            for layer, (start, end) in spans
        ]
    found = []
    for layer, (start, end) in spans:
        begin = start
        for share, factor in PHASES:
            until = start + int(share * (end - start))
            alone = factor == 1 and not shares_weights
            found.append(Stage(begin, until - begin, layer, alone=alone, lr_factor=factor))
            begin = until
    if together:
        found.append(Stage(first, together, num_layers, alone=False, lr_factor=TOGETHER))
    return found
