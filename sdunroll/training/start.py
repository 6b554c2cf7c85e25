"""What comes before the first step of a training."""

import torch
from torch import Tensor
from torch.func import functional_call

from sdunroll import checks
from sdunroll.data import Batch
from sdunroll.randomness import generator as new_generator
from sdunroll.training.forward import Forward

NUDGE = 0.01  # standard deviation of what is added to weights, to see where they can lead


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
        wrong = _leaving_zero(before, after, rows)
        still = [row for row in rows if before[row].max() == after[row].max() == 0]
        if still and not wrong:  # they may stay there only since the weights do nothing yet
            rng = new_generator(0, "nudge", batch.obs.device)
            path = functional_call(network, _nudged(network, rng), batch.obs, {"generator": rng})
            wrong = _leaving_zero(*constraint.measures(forward.problem, path, batch), still)
    if wrong:
        label = constraint.labels(network.num_layers)[wrong[0]]
        raise checks.InvalidValue(
            f"constraint.first_layer: layer {label} receives a measure of 0, below which nothing falls; "
            "take constraint.first_layer=2, another start or another constraint"
        )


def _leaving_zero(before: Tensor, after: Tensor, rows: list[int]) -> list[int]:
    """The rows whose measure is 0 before and not after."""
    return [row for row in rows if before[row].max() == 0 and after[row].max() > 0]


def _nudged(network: torch.nn.Module, rng: torch.Generator) -> dict[str, Tensor]:
    """The weights of ``network``, moved a little."""
    return {
        name: weight + NUDGE * torch.randn(weight.shape, generator=rng, device=weight.device)
        for name, weight in network.named_parameters()
    }
