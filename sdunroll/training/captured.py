"""A training step as a CUDA graph: recorded once, then replayed by a single call.

A step of an unrolled network is hundreds of small kernels, and to start each of them from Python takes
longer than most of them run. Reference: "CUDA Graphs",
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import gc
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
        stream: on which it is recorded.

    Errors: :class:`sdunroll.checks.UserError` for a step that cannot be recorded.
    """

    def __init__(
        self, step: Step, generators: Sequence[torch.Generator], stream: torch.cuda.Stream
    ) -> None:
        self.step = step
        self.generators = generators
        self.stream = stream
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: Counter[tuple[torch.Size, ...]] = Counter()
        self.recorded: dict[tuple[torch.Size, ...], Step] = {}

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

    def _record(self, batch: Batch) -> Step:
        inputs = Batch(*(values.clone() for values in batch))
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        gc.collect()  # a graph that is freed while another is recorded would break it
        try:
            # the outer one is left whatever happens, torch.cuda.graph's own only after a success
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
            ):
                results = self.step(inputs)
        except RuntimeError as error:
            first = _first_cause(error)
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise checks.UserError(
                "cuda_graph: expected a training step that a CUDA graph can hold, without .item(), "
                "print or other values read back from the GPU, got one that failed to be recorded "
                f"({str(first).splitlines()[0]}); take cuda_graph=false"
            ) from error

        def replay(batch: Batch) -> tuple[Tensor, ...]:
            for kept, values in zip(inputs, batch, strict=True):
                kept.copy_(values)
            graph.replay()
            return results

        return replay


def _first_cause(error: BaseException) -> BaseException:
    """What was raised first; the end of a recording that has failed raises an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def make_capturable(optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
    """Let ``optimizer`` take its step from ``lr``, () on the GPU, and keep its counters there.

    Errors: one that cannot, or that cannot leave out a step whose values are not finite.
    """
    if not (optimizer.defaults.get("fused") and "capturable" in optimizer.defaults):
        raise checks.InvalidValue(
            "cuda_graph: expected a fused and capturable optimizer, such as torch.optim.Adam with "
            f"training.optimizer.fused=true, got {type(optimizer).__name__}; take that or "
            "cuda_graph=false"
        )
    for group in optimizer.param_groups:
        group.update(lr=lr, capturable=True)
