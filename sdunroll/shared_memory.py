"""Optimizer steps that the processes of one machine share, through memory that they share.

Each weight belongs to one process, for as long as there is one optimizer. The others write their gradients
of it where that one adds them up; it alone steps the weight, and the others take over the new values. So
no step is taken twice, and all go on with the same bits. Reference: Rajbhandari et al., "ZeRO: Memory
Optimizations Toward Training Trillion Parameter Models", https://arxiv.org/abs/1910.02054, of which this is
stage 2. Legend: K processes.
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
        #: (K, numbers of all weights); None where memory can't be shared, or before the first step
        self.slots: Tensor | None = None
        self.opened = False
        #: of the weights, from the first step of an optimizer on
        self.owners: list[int] | None = None
        self.stepped: list[int] = []  # the weights of this step

    def collect(self) -> bool:
        """Add up the gradients over the processes, each weight's at its owner; elsewhere they are gone.

        False, and nothing done, where the processes cannot share memory: on several machines, on GPUs,
        on systems other than Linux.
        """
        if not self.opened:
            self.slots, self.opened = self._open(), True
        if self.slots is None:
            return False
        self.stepped = [i for i, weight in enumerate(self.weights) if weight.grad is not None]
        if self.owners is None:  # by what this stage of the training steps
            sizes = [0 if one.grad is None else one.numel() for one in self.weights]
            self.owners = owners(sizes, self.ranks.size)
        rank, places = self.ranks.rank, self._places()
        for index in self.stepped:
            weight = self.weights[index]
            if self.owners[index] != rank and weight.grad is not None:
                places[index][rank].copy_(weight.grad)
                weight.grad = None  # so that the optimizer leaves it alone
        _wait()  # all have written
        for index in self.stepped:
            gradient = self.weights[index].grad
            for other in range(self.ranks.size):
                if other != rank and gradient is not None:
                    gradient.add_(places[index][other])
        return True

    def norms(self) -> Tensor:
        """Of each gradient that was collected, at whichever process it is."""
        gradients = [self.weights[index].grad for index in self.stepped]
        norms = self.weights[0].new_zeros(len(gradients))
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                norms[place] = torch.linalg.vector_norm(gradient)
        self.ranks.sum_([norms])
        return norms

    @torch.no_grad()
    def spread(self) -> None:
        """Give all processes the weights that their owners have stepped."""
        assert self.owners is not None
        rank, places = self.ranks.rank, self._places()
        # where the owner writes no gradient, so that nobody reads what is not yet there
        for index in self.stepped:
            if self.owners[index] == rank:
                places[index][rank].copy_(self.weights[index])
        _wait()
        for index in self.stepped:
            if self.owners[index] != rank:
                self.weights[index].copy_(places[index][self.owners[index]])

    def complete(self, state: dict[Tensor, Any]) -> None:
        """Put into an optimizer's ``state`` what the owners have, in the first process, which saves it."""
        if self.slots is None or self.owners is None:
            return
        rank = self.ranks.rank
        own = {
            index: state[weight]
            for index, weight in enumerate(self.weights)
            if self.owners[index] == rank and weight in state
        }
        with os.fdopen(os.memfd_create("sdunroll"), "wb") as file:
            if rank > 0:
                torch.save(own, file)
                file.flush()
            files = [""] * self.ranks.size
            with reaching_others():
                dist.all_gather_object(files, f"/proc/{os.getpid()}/fd/{file.fileno()}")
            if rank == 0:
                for other in files[1:]:
                    for index, one in torch.load(other, weights_only=True).items():
                        state[self.weights[index]] = one
            _wait()  # the files go with this

    def _places(self) -> list[Tensor]:
        """Where each weight stands in the slots, (K, ...)."""
        assert self.slots is not None
        each = self.slots.split([weight.numel() for weight in self.weights], dim=1)
        return [
            place.view(self.ranks.size, *weight.shape)
            for place, weight in zip(each, self.weights, strict=True)
        ]

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
        with reaching_others():
            dist.broadcast_object_list(place)
        try:
            slots = torch.from_file(place[0], shared=True, size=size * count, dtype=dtype)
        except RuntimeError:
            slots = None
        reached = torch.tensor(int(slots is not None))
        with reaching_others():
            dist.all_reduce(reached, dist.ReduceOp.MIN)
        if handle >= 0:
            os.close(handle)
        return slots.view(size, count) if slots is not None and reached else None


def _wait() -> None:
    """Until all processes are here."""
    with reaching_others():
        dist.barrier()
