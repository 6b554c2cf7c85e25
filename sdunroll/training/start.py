"""What comes before the first step of a training."""

import torch

from sdunroll import checks
from sdunroll.data import Batch
from sdunroll.training.forward import Forward


def prepare(forward: Forward, batch: Batch, *, rows: list[int], generator: torch.Generator) -> None:
    """Let the network start from the first instances of the training split.

    Args:
        rows: of the constraint, those that are enforced.

    Errors: a layer that is to descend from a measure of 0, which nothing can.
    """
    network, constraint = forward.network, forward.constraint
    network.prepare(batch.obs, generator)
    with torch.no_grad():
        path = network(batch.obs, generator=generator)
        before, after = constraint.measures(forward.problem, path, batch)
    labels = constraint.labels(network.num_layers)
    for row in rows:
        if before[row].max() == 0 and after[row].max() > 0:
            raise checks.InvalidValue(
                f"constraint.first_layer: layer {labels[row]} receives a measure of 0, below which "
                "nothing falls; take constraint.first_layer=2, another start or another constraint"
            )
