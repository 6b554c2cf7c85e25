"""What a step reads back, and what it does about values that are not finite."""

import pytest
import torch

from sdunroll.constraints import Distance, GradientNorm, Objective
from sdunroll.data import Batch
from sdunroll.primal_dual import NotFinite
from tests.conftest import Transfers
from tests.training.test_loop import TRAIN, make, same


def test_stops_before_the_update_and_names_the_layer():
    training = make()
    with torch.no_grad():
        training.network.w1[1][0, 0] = torch.inf
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    with pytest.raises(NotFinite, match="layer 2 returned values that are not finite"):
        next(training.run())
    assert same(before, dict(training.network.state_dict()))
    assert training.epochs_done == 0


def test_where_nobody_waits_the_place_is_named_after_the_epoch():
    """As on a GPU."""
    training = make()
    training.primal_dual.waits = False
    epochs = training.run()
    next(epochs)
    with torch.no_grad():
        training.network.w1[1][0, 0] = torch.inf
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    with pytest.raises(NotFinite, match="epoch 2: layer 2 returned values that are not finite"):
        next(epochs)
    assert same(before, dict(training.network.state_dict()))


def test_where_nobody_waits_a_break_that_is_not_seen_again_ends_the_training_too():
    training = make()
    training.primal_dual.waits = False
    take, calls, shown = training.steps.take, [], []

    def breaks_once(batch):
        calls.append(batch)
        if len(calls) == 2:
            batch = Batch(batch.obs * torch.nan, batch.target)
        return take(batch)

    training.steps.step = training.steps.take = breaks_once
    with pytest.raises(NotFinite, match="epoch 1: the Lagrangian or a gradient is not finite"):
        next(training.run(lambda: shown.append(1)))
    assert len(calls) == 4 + 4  # those of the epoch, and those in search of the place
    assert len(shown) == len(calls)


def test_a_long_epoch_is_looked_at_on_the_way(monkeypatch):
    monkeypatch.setattr("sdunroll.training.loop.CHECKED_EVERY", 2)
    training = make()
    training.primal_dual.waits = False
    taken = []
    with torch.no_grad():
        training.network.w1[1][0, 0] = torch.inf
    with pytest.raises(NotFinite, match="layer 2 returned values that are not finite"):
        next(training.run(lambda: taken.append(1)))
    assert len(taken) == 2


def test_a_gradient_that_is_not_finite_names_its_weight():
    training = make()
    training.network.w2.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    with pytest.raises(NotFinite, match=r"epoch 1: the gradient of w2 is not finite"):
        next(training.run())
    assert same(before, dict(training.network.state_dict()))


@pytest.mark.parametrize("epsilon", [0.3, [0.3, 0.2, 0.1]])
@pytest.mark.parametrize("measure", [Distance, GradientNorm, Objective])
def test_a_step_reads_nothing_back_but_for_its_one_check(epsilon, measure, monkeypatch):
    training = make(constraint=measure(epsilon=epsilon))
    reads = []
    numbers = lambda self: reads.append(1) or self.numpy().tolist()  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "tolist", numbers)
    with Transfers() as transfers:
        training.steps.take(TRAIN)
        assert len(reads) == 1
        training.primal_dual.waits = False  # as on a GPU
        training.steps.take(TRAIN)
    assert not transfers.seen
    assert len(reads) == 1
