"""Data-parallel training: several processes that share each batch and hold the same weights.

Every process walks over the same batches and takes its part of each; means run over all parts, and the
gradients of the parts are summed, so that the result is that of one process but for rounding. The
processes are started by ``torchrun``, which tells each its rank. The first of them alone writes files.
Legend: B instances of a batch, b of them in this process's part.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from sdunroll import checks

SMALL = 2**16  # numbers of a tensor that travels with others rather than by itself
POLL = 0.05  # seconds between looks at the notes
PATIENCE = 1.0  # seconds in which another process may say why it ended


class Lost(checks.UserError):
    """Another process of the training that has ended or cannot be reached."""


@contextmanager
def reaching_others() -> Iterator[None]:
    """Errors: :class:`Lost` for those of the connection to the other processes."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("a process of the training has ended or cannot be reached") from error


class _Total(torch.autograd.Function):
    """The sum over the processes. All go on with the same sum, so each one's gradient is that of its own
    part: the identity."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        with reaching_others():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return grad


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a training: this one's number, from 0, and how many there are."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> "Share":
        """This process's part of a batch of ``count`` instances."""
        start, stop = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return Share(self, count, start, stop)

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes; the gradient is that of this one's alone."""
        return values if self.size == 1 else _Total.apply(values)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor its sum over the processes."""
        if self.size == 1 or not tensors:
            return
        small = [tensor for tensor in tensors if tensor.numel() < SMALL]
        with reaching_others():
            for tensor in tensors:
                if tensor.numel() >= SMALL:
                    dist.all_reduce(tensor)
            if small:
                together = torch.cat([tensor.flatten() for tensor in small])
                dist.all_reduce(together)
                parts = together.split([tensor.numel() for tensor in small])
                for tensor, part in zip(small, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def align(self, module: nn.Module) -> None:
        """Give ``module`` the weights and buffers that it has in the first process."""
        if self.size == 1:
            return
        with reaching_others(), torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, 0)


ALONE = Ranks()


@dataclass(frozen=True, slots=True)
class Share:
    """The part start .. stop of a batch of ``count`` instances.

    A batch may have fewer instances than there are processes; one that gets none works on the first
    instance with weight 0, so that all do the same.
    """

    ranks: Ranks
    count: int
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """Where the part stands in the batch."""
        return slice(self.start, self.stop) if self.stop > self.start else slice(0, 1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the whole batch, (...), of what each process has for its part, (..., b)."""
        if self.ranks.size == 1:
            return values.mean(-1)
        return self.ranks.total(values.mean(-1) * ((self.stop - self.start) / self.count))

    def gather(self, values: Tensor) -> Tensor:
        """The values of the whole batch, (..., B), from those of the parts, (..., b)."""
        if self.ranks.size == 1:
            return values
        whole = values.new_zeros(*values.shape[:-1], self.count)
        whole[..., self.start : self.stop] = values[..., : self.stop - self.start]
        return self.ranks.total(whole)

    def perturb(
        self, perturb: Callable[[int, Tensor], Tensor] | None
    ) -> Callable[[int, Tensor], Tensor] | None:
        """What acts on the whole batch, acting on the part: it sees zeros in place of the others'
        instances, so that it draws the same numbers in each process."""
        if perturb is None or self.ranks.size == 1:
            return perturb

        def on_part(index: int, y: Tensor) -> Tensor:
            before = y.new_zeros(self.rows.start, *y.shape[1:])
            after = y.new_zeros(self.count - self.rows.stop, *y.shape[1:])
            return perturb(index, torch.cat([before, y, after]))[self.rows]

        return on_part


def launched() -> Ranks:
    """The processes that ``torchrun`` has started, this one among them; :data:`ALONE` without it."""
    if "RANK" not in os.environ:
        return ALONE
    return Ranks(int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1")))


@cache
def notes() -> dist.Store:
    """Where the processes leave notes for each other, before they are connected and after."""
    with reaching_others():
        store, _, _ = next(iter(dist.rendezvous("env://")))
    return store


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine; a CPU is shared.

    Errors: more processes than GPUs.
    """
    if device.type != "cuda" or launched().size == 1:
        return device
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise checks.InvalidValue(
            f"device: expected a GPU for each process, got {count} for {local + 1} or more; take "
            f"torchrun --nproc-per-node={count} or device=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def announce(folder: Path) -> None:
    """Let the other processes begin: what they read is there. ``folder`` is that of the run."""
    if launched().size > 1:
        with reaching_others():
            notes().set("ready", str(folder))


def wait_for_first() -> Path:
    """Wait for :func:`announce` by the first process, however long that prepares data; the folder."""
    with reaching_others():
        while not notes().check(["ready"]):  # asked again and again, so that a signal gets through
            time.sleep(POLL)
        return Path(notes().get("ready").decode())


@contextmanager
def connected(device: torch.device) -> Iterator[None]:
    """Connect the processes when all are here: by NCCL between GPUs, by gloo otherwise."""
    ranks = launched()
    if ranks.size == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with reaching_others():
        notes().add("here", 1)
        while notes().add("here", 0) < ranks.size:
            time.sleep(POLL)
        dist.init_process_group(backend, store=notes(), rank=ranks.rank, world_size=ranks.size)
    try:
        yield
    except BaseException:
        if backend == "gloo":  # so that others notice; NCCL would wait for those that are gone
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def may_tell(error: BaseException) -> bool:
    """Whether it is for this process to say why the training ends, which one alone does; the same
    answer each time.

    Who knows only that another is gone waits for that one's own words first. Of an interruption, which
    all notice, the first process speaks, or else whoever has lost the interrupted one.
    """
    ranks = launched()
    if ranks.size == 1:
        return True
    waits = PATIENCE if isinstance(error, Lost) else 0.0
    if isinstance(error, KeyboardInterrupt) and ranks.rank > 0:
        waits = 2 * PATIENCE
    until = time.monotonic() + waits
    try:
        while time.monotonic() < until:
            if notes().check(["told"]):
                break
            time.sleep(POLL)
        own = str(ranks.rank)
        return notes().compare_set("told", "", own).decode() == own
    except (RuntimeError, Lost):  # the notes are gone with the process that kept them
        return True
