"""A training step as a CUDA graph: recorded once, then replayed by a single call.

A step of an unrolled network is hundreds of small kernels, and to start each of them from Python takes
longer than most of them run. Reference: "CUDA Graphs",
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data import Batch

WARM_UP = 3  # steps taken as they are, in which libraries set up what cannot be recorded

Step = Callable[[Batch], tuple[Tensor, ...]]


class Captured:
    """A step on a GPU, recorded for each shape of a batch once that has been seen for some steps.

    A step that is replayed does what the recorded one did, with the values that its tensors have now;
    no Python of it runs. What it returns holds until the next one.

    Args:
        step: takes a batch; may neither wait for the GPU nor decide anything by its values.
        generators: those that it draws from.

    Errors: :class:`sdunroll.checks.UserError` for a step that cannot be recorded.
    """

    def __init__(self, step: Step, generators: Sequence[torch.Generator]) -> None:
        self.step = step
        self.generators = generators
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: Counter[tuple[torch.Size, ...]] = Counter()
        self.recorded: dict[tuple[torch.Size, ...], Callable[[Batch], tuple[Tensor, ...]]] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        shapes = tuple(values.shape for values in batch)
        self.seen[shapes] += 1
        if self.seen[shapes] <= WARM_UP:
            return self._as_it_is(batch)
        if shapes not in self.recorded:
            self.recorded[shapes] = self._record(batch)
        return self.recorded[shapes](batch)

    def _as_it_is(self, batch: Batch) -> tuple[Tensor, ...]:
        """On the stream of the recording, as it has to be."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, batch: Batch) -> Callable[[Batch], tuple[Tensor, ...]]:
        inputs = Batch(*(values.clone() for values in batch))
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                results = self.step(inputs)
        except RuntimeError as error:
            raise checks.UserError(
                "cuda_graph: expected a training step that a CUDA graph can hold, without .item(), "
                "print or other values read back from the GPU, got one that failed to be recorded "
                f"({str(error).splitlines()[0]}); take cuda_graph=false"
            ) from error

        def replay(batch: Batch) -> tuple[Tensor, ...]:
            for kept, values in zip(inputs, batch, strict=True):
                kept.copy_(values)
            graph.replay()
            return results

        return replay


def make_capturable(optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
    """Let ``optimizer`` take its step from ``lr``, () on the GPU, and keep its counters there.

    Errors: one that cannot.
    """
    if "capturable" not in optimizer.defaults:
        raise checks.InvalidValue(
            "cuda_graph: expected an optimizer that CUDA graphs can hold (capturable), such as "
            f"torch.optim.Adam, got {type(optimizer).__name__}; take that or cuda_graph=false"
        )
    for group in optimizer.param_groups:
        group.update(lr=lr, capturable=True)
