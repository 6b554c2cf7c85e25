import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.constraints import Distance
from sdunroll.training import half_squared_distance, stages
from sdunroll.training.schedules import Stage
from tests.training.test_loop import TRAIN, VAL, draw, make, same


@pytest.mark.parametrize("schedule", ["joint", "layerwise", "incremental"])
@pytest.mark.parametrize(("num_layers", "epochs"), [(3, 3), (3, 7), (10, 80), (1, 1)])
def test_stages_follow_each_other_and_sum_to_all_epochs(schedule, num_layers, epochs):
    found = stages(schedule, num_layers=num_layers, epochs=epochs)
    assert found[0].first_epoch == 0
    assert sum(stage.epochs for stage in found) == found[-1].end == epochs
    assert all(stage.epochs >= 1 for stage in found)
    assert found[-1].layer == num_layers
    if schedule != "joint":
        assert [stage.layer for stage in found] == list(range(1, num_layers + 1))


@pytest.mark.parametrize(
    ("num_layers", "epochs", "together"),
    [(3, 9, 0), (3, 11, 2), (3, 20, 10), (3, 21, 10), (16, 96, 48), (1, 3, 0), (1, 6, 3)],
)
@pytest.mark.parametrize("shares_weights", [True, False])
def test_stagewise_has_three_stages_a_layer_and_one_together(
    num_layers, epochs, together, shares_weights
):
    found = stages("stagewise", num_layers=num_layers, epochs=epochs, shares_weights=shares_weights)
    if together:
        last = found.pop()
        assert last == Stage(epochs - together, together, num_layers, alone=False, lr_factor=0.2)
    assert [stage.layer for stage in found] == [1 + place // 3 for place in range(3 * num_layers)]
    assert [stage.lr_factor for stage in found] == [1.0, 0.2, 0.02] * num_layers
    assert [stage.alone for stage in found] == [not shares_weights, False, False] * num_layers
    assert all(stage.epochs >= 1 for stage in found)
    assert all(one.end == other.first_epoch for one, other in pairwise(found))
    assert (found[0].first_epoch, found[-1].end) == (0, epochs - together)


def test_fewer_epochs_than_layers_are_refused():
    with pytest.raises(
        InvalidValue, match="at least one a layer, 3, for layerwise training, got 2"
    ):
        make(stages="layerwise", epochs=2)
    assert len(list(make(stages="layerwise", epochs=3).run())) == 3
    with pytest.raises(InvalidValue, match="at least 3 a layer, 9, for stagewise training, got 8"):
        make(stages="stagewise", epochs=8)


def weights(training):
    """The weights by layer; of W2 the layer's own part."""
    network = training.network
    return [[network.w1[layer], network.theta[layer], network.w2[layer]] for layer in range(3)]


def snapshots(training):
    """The weights before the training and after each epoch."""
    found = [[[w.detach().clone() for w in layer] for layer in weights(training)]]
    for _ in training.run():
        found.append([[w.detach().clone() for w in layer] for layer in weights(training)])
    return found


def moved(found):
    """For each epoch, which layers' weights it changed."""
    return [
        [
            any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
            for old, new in zip(before, after, strict=True)
        ]
        for before, after in pairwise(found)
    ]


@pytest.mark.parametrize("constrained", [True, False])
def test_layerwise_moves_one_layer_at_a_time(constrained):
    training = make(constrained=constrained, stages="layerwise", epochs=6)
    expected = [[layer == current for layer in range(3)] for current in (0, 0, 1, 1, 2, 2)]
    assert moved(snapshots(training)) == expected


@pytest.mark.parametrize("constrained", [True, False])
def test_incremental_moves_the_layers_so_far(constrained):
    training = make(constrained=constrained, stages="incremental", epochs=6)
    expected = [[layer <= current for layer in range(3)] for current in (0, 0, 1, 1, 2, 2)]
    assert moved(snapshots(training)) == expected


@pytest.mark.parametrize("constrained", [True, False])
def test_stagewise_moves_the_new_layer_alone_and_then_all_so_far(constrained):
    training = make(constrained=constrained, stages="stagewise", epochs=9)
    expected = [
        [layer == current if phase == 0 else layer <= current for layer in range(3)]
        for current in range(3)
        for phase in range(3)
    ]
    assert moved(snapshots(training)) == expected


def test_stagewise_scales_the_step():
    training = make(stages="stagewise", epochs=11, schedule="constant")
    rates = [epoch.lr for epoch in training.run()]
    assert rates == pytest.approx([1e-2, 2e-3, 2e-4] * 3 + [2e-3] * 2)


def test_the_last_stage_of_stagewise_moves_all_layers_and_keeps_the_best_epoch():
    training = make(stages="stagewise", epochs=11, constrained=False)
    assert moved(snapshots(training))[9:] == [[True] * 3] * 2
    training = make(stages="stagewise", epochs=11, constrained=False)
    epochs = list(training.run())[6:]
    losses = [epoch.val_loss for epoch in epochs]
    expected = [losses[place] < min(losses[:place], default=math.inf) for place in range(5)]
    assert [epoch.best for epoch in epochs] == expected


def test_the_best_epoch_of_a_layer_is_kept_from_stage_to_stage():
    training = make(stages="stagewise", epochs=9, constrained=False)
    losses, best = [], []
    for epoch in training.run():
        losses.append(epoch.val_loss)
        best.append(epoch.best)
    for first in (0, 3, 6):
        layer = losses[first : first + 3]
        expected = [layer[place] < min(layer[:place], default=math.inf) for place in range(3)]
        assert best[first : first + 3] == expected


def test_the_loss_is_that_of_the_stage_layer():
    """The first epoch's validation loss by hand: layer 1 of 3."""
    training = make(stages="incremental", epochs=3)
    epoch = next(training.run())
    rng = torch.Generator().manual_seed(0)
    training.network.start = "zero"
    epoch_loss, distance, *_ = training._validate()
    path = training.network(VAL.obs, generator=rng)
    expected = half_squared_distance(path.states[1], VAL.target).mean()
    assert epoch_loss == pytest.approx(expected.item(), rel=1e-5)
    assert distance > 0
    assert epoch.val_slack[1:] == pytest.approx([-0.7, -0.7])  # layers that are not run yet


def test_weight_decay_which_would_move_layers_at_rest_is_for_joint_training():
    decaying = partial(torch.optim.AdamW, weight_decay=0.1)
    for schedule in ("layerwise", "incremental", "stagewise"):
        with pytest.raises(InvalidValue, match=r"weight_decay: expected 0 .* got 0.1"):
            make(stages=schedule, epochs=9, optimizer=decaying)
    assert len(list(make(optimizer=decaying).run())) == 4


@pytest.mark.parametrize("schedule", ["joint", "layerwise", "incremental", "stagewise"])
@pytest.mark.parametrize("constrained", [True, False])
def test_one_epsilon_a_layer_is_as_one_for_all(schedule, constrained):
    one, several = (
        make(
            constrained=constrained, stages=schedule, epochs=9, constraint=Distance(epsilon=epsilon)
        )
        for epsilon in (0.3, [0.3] * 3)
    )
    assert [epoch.slack for epoch in one.run()] == [epoch.slack for epoch in several.run()]
    assert same(one.state_dict(), several.state_dict())


def test_every_schedule_takes_as_many_steps():
    counts = []
    for layers in ("joint", "layerwise", "incremental", "stagewise"):
        training = make(stages=layers, epochs=9)
        steps = 0
        step = training.primal_dual.primal_step

        def counted(loss, slack, step=step):
            nonlocal steps
            steps += 1
            return step(loss, slack)

        training.primal_dual.primal_step = counted
        list(training.run())
        counts.append(steps)
    assert counts == [9 * -(-len(TRAIN.obs) // 16)] * 4


def test_the_step_decays_in_each_stage():
    training = make(stages="incremental", epochs=6)
    rates = [epoch.lr for epoch in training.run()]
    assert rates[0] > rates[1]
    assert rates[2] == pytest.approx(rates[0])
    assert rates[4] == pytest.approx(rates[0])


def test_the_best_epoch_is_one_of_the_last_stage():
    """Even if an earlier stage had a lower loss."""
    training = make(stages="layerwise", epochs=6, constrained=False)
    epochs = list(training.run())
    assert [epoch.best for epoch in epochs][::2] == [True, True, True]
    assert training.best_epoch >= 5


@pytest.mark.parametrize("draw", [None, draw])
@pytest.mark.parametrize("layers", ["layerwise", "incremental", "stagewise"])
def test_resuming_within_and_between_stages_is_exact(layers, draw, tmp_path):
    settings = {"stages": layers, "epochs": 9, "draw": draw}
    whole = make(**settings)
    list(whole.run())
    first = make(**settings)
    for epoch in first.run():
        if epoch.epoch in (1, 2, 3, 5):
            torch.save(first.state_dict(), tmp_path / f"{epoch.epoch}.pt")
    for stopped in sorted(tmp_path.iterdir()):
        second = make(**settings)
        second.load_state_dict(torch.load(stopped, weights_only=True))
        list(second.run())
        assert same(whole.state_dict(), second.state_dict()), stopped
    assert second.epochs_done == 9


def test_patience_is_for_joint_training():
    with pytest.raises(InvalidValue, match="patience: expected null for layerwise training"):
        make(stages="layerwise", patience=3)
    assert make(stages="joint", patience=3).settings.patience == 3
