"""Problem instances with their targets, and the loaders that make batches of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdunroll import checks

CHUNK = 1000  # instances evaluated at once at most, to bound the memory
CHUNK_NUMBERS = 2**20  # and numbers in their targets


class Batch(NamedTuple):
    """Problem instances.

    Attributes:
        obs: x, (B, m) or (B, C, H, W).
        target: y*, (B, n) or (B, C, H, W).
    """

    obs: Tensor
    target: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on ``device``."""
        return Batch(self.obs.to(device), self.target.to(device))

    def chunks(self) -> "Iterator[Batch]":
        """The same instances in parts small enough to be evaluated at once."""
        size = max(1, min(CHUNK, CHUNK_NUMBERS // self.target[0].numel()))
        return map(Batch, self.obs.split(size), self.target.split(size))


class Loader:
    """Walks over a data set in batches, in a new random order each time; the last may be smaller.

    Args:
        data: all instances; they stay on their device.
        batch_size: B.
        generator: of the order, on the CPU; its state is the loader's whole state.
    """

    def __init__(self, data: Batch, *, batch_size: int, generator: torch.Generator) -> None:
        self.data = data
        self.batch_size = checks.integer("batch_size", batch_size)
        self.generator = generator
        self.num_instances = len(data.obs)  #: in one walk

    def __len__(self) -> int:
        return -(-self.num_instances // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(self.num_instances, generator=self.generator)
        for index in order.to(self.data.obs.device).split(self.batch_size):
            yield Batch(self.data.obs[index], self.data.target[index])


class FreshLoader:
    """Draws new instances for every batch; as long as a :class:`Loader` over ``num_instances``.

    Args:
        draw: ``(count, generator) -> Batch``.
        num_instances: drawn in one walk.
        batch_size: B.
        generator: of the instances, on the CPU; its state is the loader's whole state.
    """

    def __init__(
        self,
        draw: Callable[[int, torch.Generator], Batch],
        *,
        num_instances: int,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self.draw = draw
        self.num_instances = checks.integer("num_instances", num_instances)
        self.batch_size = checks.integer("batch_size", batch_size)
        self.generator = generator

    def __len__(self) -> int:
        return -(-self.num_instances // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.num_instances, self.batch_size):
            yield self.draw(min(self.batch_size, self.num_instances - start), self.generator)


def loader(
    data: Batch,
    draw: Callable[[int, torch.Generator], Batch] | None,
    *,
    batch_size: int,
    generator: torch.Generator,
) -> Loader | FreshLoader:
    """Batches of ``data``, or with ``draw`` of new instances, as many."""
    if draw is None:
        return Loader(data, batch_size=batch_size, generator=generator)
    count = len(data.obs)
    return FreshLoader(draw, num_instances=count, batch_size=batch_size, generator=generator)
