"""The forward pass of a training step: its trajectory, its loss and the constraint's moments.

Of several processes, each takes its part of the batch; loss and moments are those of the whole.
Legend: L layers, P parts of a measure (mostly 1), R = P L rows of the constraint, B instances.
"""

import logging
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import DescentConstraint
from sdunroll.data import Batch
from sdunroll.distributed import Ranks, Share
from sdunroll.networks import Perturb, Trajectory, UnrolledNetwork
from sdunroll.perturbations import Perturbation
from sdunroll.problems import Problem
from sdunroll.randomness import generator
from sdunroll.training.epoch import half_squared_distance
from sdunroll.training.schedules import Stage

Precision = Literal["fp32", "bf16"]

log = logging.getLogger(__name__)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device's instructions multiply bfloat16 numbers; others emulate them, which is slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Pass(NamedTuple):
    """What a forward pass came to.

    Attributes:
        path: the trajectory of this process's part.
        loss: mean loss, a scalar with its graph.
        moments: the constraint's, (2, R), with their graph where multipliers need it.
    """

    path: Trajectory
    loss: Tensor
    moments: Tensor


class Forward:
    """Runs a network on a batch, with noise between the layers, and measures it.

    Args:
        network, problem, constraint: of the training.
        noise: what disturbs the layers.
        seed: of the starts and of the noise.
        device: where the batches are.
        ranks: the processes that share them.
        precision: "bf16" runs the network's matrix products in bfloat16 while it trains; weights,
            estimates, measures, loss and moments have the digits of the data, as with "fp32".

    Errors: bf16 for a network that needs more digits.
    """

    def __init__(
        self,
        *,
        network: UnrolledNetwork,
        problem: Problem,
        constraint: DescentConstraint,
        noise: Perturbation,
        seed: int,
        device: torch.device,
        ranks: Ranks,
        precision: Precision,
    ) -> None:
        checks.choice("precision", precision, ("fp32", "bf16"))
        if precision == "bf16" and network.exact:
            raise checks.InvalidValue(
                "precision: expected fp32 for layers that invert a map, whose inverse is wrong with "
                "fewer digits, got bf16; take precision=fp32 or network=prox_cnn"
            )
        if precision == "bf16" and not multiplies_bf16(device):
            log.warning(
                "precision: this %s has no instructions for bf16 and emulates them, which is slower "
                "than precision=fp32",
                "GPU" if device.type == "cuda" else "processor",
            )
        self.network = network
        self.problem = problem
        self.constraint = constraint
        self.noise = noise
        self.ranks = ranks
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.start_rng = generator(seed, "training/start", device)
        self.noise_rng = generator(seed, "training/noise", device)

    @property
    def generators(self) -> tuple[torch.Generator, torch.Generator]:
        """What a pass draws from."""
        return self.start_rng, self.noise_rng

    def __call__(self, batch: Batch, stage: Stage, *, constrained: bool) -> Pass:
        """The pass of a stage, up to its layer; ``constrained`` says whether the moments need a graph."""
        noise = self.noise.between_layers(self.problem, batch, self.noise_rng)
        frozen = stage.layer - 1 if stage.alone else 0
        with self.autocast:
            path, part, share = self.run(
                batch, self.start_rng, perturb=noise, depth=stage.layer, frozen=frozen
            )
        loss = share.mean(half_squared_distance(path.output, part.target))
        with torch.set_grad_enabled(constrained):
            moments = self._moments(path, part, share, stage)
        return Pass(path, loss, moments)

    def run(
        self,
        batch: Batch,
        generator: torch.Generator,
        *,
        depth: int,
        perturb: Perturb | None = None,
        frozen: int = 0,
    ) -> tuple[Trajectory, Batch, Share]:
        """The trajectory of this process's part of a batch, that part, and which it is.

        y_0 and ``perturb`` are drawn for the whole batch, so that they do not depend on the number of
        processes. Arguments as those of the network.
        """
        with torch.autocast(batch.obs.device.type, enabled=False):  # y_0 has all digits, too
            start = self.network.initial(batch.obs, generator)
        share = self.ranks.share(len(batch.obs))
        part = Batch(*(values[share.rows] for values in batch))
        path = self.network(
            part.obs,
            generator=generator,
            perturb=share.perturb(perturb),
            depth=depth,
            frozen=frozen,
            start=start[share.rows],
        )
        return path, part, share

    def _moments(self, path: Trajectory, part: Batch, share: Share, stage: Stage) -> Tensor:
        """The constraint's moments, (2, R); 0 for layers that are not run yet, which so count as
        descending."""
        moments = self.constraint.moments(self.problem, path, part, mean=share.mean)
        depth = len(path.outputs)
        if stage.alone:  # the layers before are fixed
            moments = moments.unflatten(1, (-1, depth))  # (2, P, depth)
            moments = torch.cat([moments[..., :-1].detach(), moments[..., -1:]], -1).flatten(1)
        return all_layers(moments, depth, self.network.num_layers)

    def state_dict(self) -> dict:
        """The states of the generators."""
        return {
            "start_rng": self.start_rng.get_state(),
            "noise_rng": self.noise_rng.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict`."""
        self.start_rng.set_state(state["start_rng"].cpu())
        self.noise_rng.set_state(state["noise_rng"].cpu())


def all_layers(values: Tensor, depth: int, num_layers: int) -> Tensor:
    """``values`` of the first ``depth`` layers, (2, P depth, ...), with 0 for the rest, (2, R, ...)."""
    if depth == num_layers:
        return values
    parts = values.unflatten(1, (-1, depth))
    missing = parts.new_zeros(*parts.shape[:2], num_layers - depth, *parts.shape[3:])
    return torch.cat([parts, missing], 2).flatten(1, 2)


def first_broken(path: Trajectory, ranks: Ranks) -> str | None:
    """Where values that are not finite come from; None if all states of all processes are finite."""
    broken = ranks.total((~path.states.isfinite()).flatten(1).any(1).float()).tolist()
    if not any(broken):
        return None
    layer = list(map(bool, broken)).index(True)
    place = f"layer {layer} returned" if layer else "the start y_0 has"
    return f"{place} values that are not finite"
