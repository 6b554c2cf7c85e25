"""Recorded steps, where there is no GPU: a tape of operations stands in for the CUDA graph."""

from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdunroll.checks import InvalidValue, UserError
from sdunroll.distributed import Ranks
from sdunroll.primal_dual import Ascent
from sdunroll.training.captured import WARM_UP
from sdunroll.training.steps import Steps
from tests.conftest import TINY, reads_back
from tests.training.test_loop import make, same


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """What a CUDA graph does: it keeps the operations, on the tensors that they had, and recording them
    leaves no trace. A value that is read back on the way is an error."""

    def __init__(self):
        super().__init__()
        self.operations, self.generators = [], []
        self.made, self.before = {}, {}

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if reads_back(func, args):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for one in tensors(value):
                    if id(one) not in self.made:
                        self.before.setdefault(id(one), (one, one.detach().clone()))
        results = func(*args, **kwargs)
        self.made |= {id(one): one for one in tensors(results)}
        self.operations.append((func, args, kwargs, results))
        return results

    def forget(self):
        """Put everything back to where it was before the recording."""
        for one, values in self.before.values():
            one.detach().copy_(values)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, results in self.operations:
            for kept, new in zip(tensors(results), tensors(func(*args, **kwargs)), strict=True):
                if kept.data_ptr() != new.data_ptr():
                    kept.detach().copy_(new)


@contextmanager
def recording(tape, *, pool, stream):
    states = [generator.get_state() for generator in tape.generators]
    try:
        with tape:
            yield
    except RuntimeError:  # as of CUDA: what went wrong first is told by the context alone
        raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    with torch.no_grad():
        tape.forget()
    for generator, state in zip(tape.generators, states, strict=True):
        generator.set_state(state)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def taped(monkeypatch):
    """What records: a function that makes a training take its steps so."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", recording)

    def on_gpu(training):
        training.steps.captures, training.primal_dual.waits = True, False
        training.steps.begin(training.stage)
        return training

    return on_gpu


def counted(training):
    """How often the Python of a step runs, by the number of instances."""
    calls, step = Counter(), training.steps.step.step

    def counting(batch):
        calls[len(batch.obs)] += 1
        return step(batch)

    training.steps.step.step = counting
    return calls


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dual": Ascent(rate=1.0, every="batch", smoothing=0.9)},
        {"clip_norm": 0.5, "loss": "log", "noise_level": 0.0},
        {"constrained": False},
    ],
)
def test_replayed_steps_are_the_steps(changes, taped):
    plain, replayed = make(**changes, epochs=6), taped(make(**changes, epochs=6))
    calls = counted(replayed)
    for one, other in zip(plain.run(), replayed.run(), strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
        assert other.slack == pytest.approx(one.slack, abs=1e-4)
        assert other.multipliers == pytest.approx(one.multipliers, abs=1e-4)
        assert (other.lr, other.feasible) == (one.lr, one.feasible)
    assert calls == {16: WARM_UP + 1, 12: WARM_UP + 1}
    for weight, other in zip(
        plain.network.parameters(), replayed.network.parameters(), strict=True
    ):
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stages", ["layerwise", "incremental"])
def test_each_stage_is_recorded_anew(stages, taped):
    plain, replayed = make(stages=stages, epochs=15), taped(make(stages=stages, epochs=15))
    losses = [[epoch.val_loss for epoch in training.run()] for training in (plain, replayed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_recorded_training_that_goes_on_gives_the_same_bits(taped, tmp_path):
    whole = taped(make(epochs=6))
    list(whole.run())
    first = taped(make(epochs=6, stop_after=3))
    list(first.run())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = taped(make(epochs=6))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    calls = counted(second)
    list(second.run())
    assert calls[16] == WARM_UP + 1
    assert same(whole.state_dict(), second.state_dict())


def test_a_step_that_reads_a_value_back_is_refused_in_one_line(taped):
    training = taped(make())
    layer = training.network.layer
    training.network.layer = lambda *args: layer(*args) * float(training.network.w2.max() < 1e9)
    with pytest.raises(UserError, match=r"cuda_graph: .*\(operation not .*; take") as caught:
        list(training.run())
    assert "\n" not in str(caught.value)


def test_running_out_of_memory_is_not_taken_for_that(taped):
    def too_much(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    training = taped(make())
    layer, calls = training.network.layer, []

    def full_when_recorded(*args):
        calls.append(torch.is_grad_enabled())  # else it is validation
        # of three layers; an epoch has as many whole batches as are not recorded, and a smaller one
        return (layer if sum(calls) <= 3 * (WARM_UP + 1) else too_much)(*args)

    training.network.layer = full_when_recorded
    epochs = training.run()
    next(epochs)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        next(epochs)


@pytest.mark.parametrize(("name", "fused"), [("SGD", False), ("SGD", True), ("Adam", False)])
def test_what_cannot_be_recorded_is_refused(taped, name, fused):
    optimizer = partial(getattr(torch.optim, name), fused=fused)
    match = rf"fused and capturable .*fused=true, got {name}; take that or"
    with pytest.raises(InvalidValue, match=match):
        taped(make(optimizer=optimizer))


def test_the_setting_arrives(sdunroll, monkeypatch):
    arrived, init = [], Steps.__init__

    def spy(self, **settings):
        arrived.append(settings["cuda_graph"])
        init(self, **settings)

    monkeypatch.setattr(Steps, "__init__", spy)
    run = sdunroll("train", *TINY, "cuda_graph=true", "training.stop_after=1").run
    assert sdunroll("train", f"resume={run}", "training.stop_after=1").status == 0
    assert sdunroll("train", f"resume={run}", "cuda_graph=false").status == 0
    assert sdunroll("train", *TINY, "cuda_graph=true", "dry_run=true").status == 0
    assert arrived == [True, True, False, True]
    assert "cuda_graph: expected true or false" in sdunroll("train", *TINY, "cuda_graph=1.5").err


def test_a_processor_does_without():
    steps = make(cuda_graph=True).steps
    assert steps.step == steps.take


def test_several_processes_are_refused(taped):
    with pytest.raises(InvalidValue, match="cuda_graph: expected one process, got 2"):
        taped(make(ranks=Ranks(0, 2)))
