"""Optimizer steps that the processes of one machine share, through memory that they share.

Each weight belongs to one process. The others write their gradients of it where that one adds them up; it
alone steps the weight, and the others take over the new values. So no step is taken twice, and all go on
with the same bits. Reference: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models", https://arxiv.org/abs/1910.02054, of which this is stage 2. Legend: K processes.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdunroll.distributed import Ranks, reaching_others


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """To which of ``count`` processes each of the weights of so many numbers belongs: the largest first,
    each to whoever has least."""
    loads, found = [0] * count, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        found[index] = loads.index(min(loads))
        loads[found[index]] += sizes[index]
    return found


class SharedStep:
    """The weights of a training and who steps which.

    Args:
        weights: the same in each process, in the same order. ranks: the processes.
    """

    def __init__(self, weights: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.weights = weights
        self.ranks = ranks
        self.owners = owners([weight.numel() for weight in weights], ranks.size)
        #: (K, numbers of all weights); None where memory can't be shared, or before the first step
        self.slots: Tensor | None = None
        self.opened = False
        self.stepped: list[tuple[nn.Parameter, int, Tensor]] = []

    def collect(self) -> bool:
        """Add up the gradients over the processes, each weight's at its owner; elsewhere they are gone.

        False, and nothing done, where the processes cannot share memory: on several machines, on GPUs,
        on systems other than Linux.
        """
        with reaching_others():
            if not self.opened:
                self.slots, self.opened = self._open(), True
            if self.slots is None:
                return False
            rank = self.ranks.rank
            places = self.slots.split([weight.numel() for weight in self.weights], dim=1)
            self.stepped = [
                (weight, owner, place.view(-1, *weight.shape))
                for weight, owner, place in zip(self.weights, self.owners, places, strict=True)
                if weight.grad is not None
            ]
            for weight, owner, place in self.stepped:
                if owner != rank and weight.grad is not None:
                    place[rank].copy_(weight.grad)
                    weight.grad = None  # so that the optimizer leaves it alone
            dist.barrier()  # all have written
            for weight, _, place in self.stepped:
                for other in range(self.ranks.size):
                    if other != rank and weight.grad is not None:
                        weight.grad.add_(place[other])
            return True

    def norms(self) -> Tensor:
        """Of each gradient that was collected, at whichever process it is."""
        first, _, _ = self.stepped[0]
        norms = first.new_zeros(len(self.stepped))
        for index, (weight, _, _) in enumerate(self.stepped):
            if weight.grad is not None:
                norms[index] = torch.linalg.vector_norm(weight.grad)
        self.ranks.sum_([norms])
        return norms

    @torch.no_grad()
    def spread(self) -> None:
        """Give all processes the weights that their owners have stepped."""
        rank = self.ranks.rank
        with reaching_others():
            # where the owner writes no gradient, so that nobody reads what is not yet there
            for weight, owner, place in self.stepped:
                if owner == rank:
                    place[rank].copy_(weight)
            dist.barrier()
            for weight, owner, place in self.stepped:
                if owner != rank:
                    weight.copy_(place[owner])

    def complete(self, state: dict[Tensor, Any]) -> None:
        """Put into an optimizer's ``state`` of single weights what their owners have."""
        if self.slots is None:
            return
        own = {
            index: state[weight]
            for index, (weight, owner) in enumerate(zip(self.weights, self.owners, strict=True))
            if owner == self.ranks.rank and weight in state
        }
        found: list[dict[int, Any]] = [{}] * self.ranks.size
        with reaching_others():
            dist.all_gather_object(found, own)
        for rank, each in enumerate(found):
            if rank != self.ranks.rank:
                state.update({self.weights[index]: one for index, one in each.items()})

    def _open(self) -> Tensor | None:
        """The slots; None if one of the processes cannot reach them.

        The file behind them has no name, so it goes with the last process, however that ends.
        """
        rank, size = self.ranks.rank, self.ranks.size
        here = os.environ.get("LOCAL_WORLD_SIZE") == str(size) and hasattr(os, "memfd_create")
        dtypes = {weight.dtype for weight in self.weights}
        if not here or len(dtypes) != 1 or any(one.device.type != "cpu" for one in self.weights):
            return None
        count, dtype = sum(weight.numel() for weight in self.weights), dtypes.pop()
        handle, place = -1, [""]
        if rank == 0:
            handle = os.memfd_create("sdunroll")
            os.ftruncate(handle, size * count * dtype.itemsize)
            place = [f"/proc/{os.getpid()}/fd/{handle}"]
        dist.broadcast_object_list(place)
        try:
            slots = torch.from_file(place[0], shared=True, size=size * count, dtype=dtype)
        except RuntimeError:
            slots = None
        reached = torch.tensor(int(slots is not None))
        dist.all_reduce(reached, dist.ReduceOp.MIN)
        if handle >= 0:
            os.close(handle)
        return slots.view(size, count) if slots is not None and reached else None
