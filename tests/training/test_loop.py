import math
from functools import partial

import pytest
import torch

from sdunroll.checks import InvalidValue, UserError
from sdunroll.constraints import Distance
from sdunroll.data import Batch
from sdunroll.distributed import ALONE
from sdunroll.networks import Lista
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import Ascent, NotFinite, ProportionalIntegral
from sdunroll.randomness import generator
from sdunroll.training import Training, TrainingSettings, half_squared_distance
from sdunroll.training.validation import Validation
from tests.conftest import make_batch, make_problem

PROBLEM = make_problem(dtype=torch.float32)
TRAIN, VAL = make_batch(PROBLEM, 60, seed=1), make_batch(PROBLEM, 30, seed=2)


def draw(count, rng):
    features = PROBLEM.dictionary.shape[0]
    return PROBLEM.instances(torch.randn(count, features, generator=rng))


def make(
    constrained=True,
    dual=None,
    constraint=None,
    seed=0,
    draw=None,
    ranks=ALONE,
    precision="fp32",
    cuda_graph=False,
    **changes,
):
    settings = {
        "epochs": 4,
        "batch_size": 16,
        "lr": 1e-2,
        "schedule": "cosine",
        "optimizer": partial(torch.optim.Adam, fused=True),
        "noise": LayerNoise,
        "noise_level": 0.5,
    } | changes
    network = Lista(PROBLEM, generator(seed, "weights"), num_layers=3)
    return Training(
        TrainingSettings(**settings),
        network=network,
        problem=PROBLEM,
        constraint=constraint or Distance(epsilon=0.3),
        constrained=constrained,
        dual=dual or ProportionalIntegral(k_i=1.0, k_p=3.0),
        train=TRAIN,
        val=VAL,
        order_seed=seed,
        noise_seed=seed,
        draw=draw,
        ranks=ranks,
        precision=precision,
        cuda_graph=cuda_graph,
    )


def same(one, other):
    """Whether two nested states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    "dual",
    [
        ProportionalIntegral(k_i=1.0, k_p=3.0),
        Ascent(rate=1.0, every="batch", smoothing=0.9),
    ],
)
def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(dual, tmp_path):
    whole = make(dual=dual)
    epochs = list(whole.run())
    first = make(dual=dual, stop_after=2)
    assert len(list(first.run())) == 2
    assert not first.finished()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(dual=dual, seed=0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = list(second.run())
    assert [epoch.epoch for epoch in rest] == [3, 4]
    assert same(whole.state_dict(), second.state_dict())
    assert [e.train_loss for e in rest] == [e.train_loss for e in epochs[2:]]


def test_same_seed_same_training_other_seed_another():
    one, again, other = make(), make(), make(seed=1)
    for training in (one, again, other):
        list(training.run())
    assert same(one.state_dict(), again.state_dict())
    assert not same(one.state_dict()["network"], other.state_dict()["network"])


def test_trains():
    training = make(constrained=False, epochs=15)
    epochs = list(training.run())
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    assert epochs[-1].val_distance < epochs[0].val_distance


def test_the_log_of_the_loss_weighs_it_against_multipliers_of_no_scale():
    """d log E = dE / E: the step with a loss of E, the multipliers times E and the step by E."""
    settings = {"epochs": 1, "batch_size": 60, "schedule": "constant", "optimizer": torch.optim.SGD}

    def weights(multiplier, **changes):
        training = make(**settings | changes)
        training.primal_dual.multipliers.fill_(multiplier)
        epoch = next(training.run())
        return epoch.train_loss, torch.cat([p.flatten() for p in training.network.parameters()])

    loss, logarithm = weights(0.7, loss="log", lr=1e-2)
    _, squared = weights(0.7 * loss, lr=1e-2 / loss)
    _, other = weights(0.7, lr=1e-2 / loss)
    assert torch.allclose(logarithm, squared, atol=1e-6)
    assert not torch.allclose(logarithm, other, atol=1e-4)


def test_the_log_of_a_loss_of_0_is_finite():
    settings = make(loss="log").settings
    assert settings.objective(torch.zeros(())).isfinite()


def test_constraints_make_layers_descend_that_otherwise_do_not():
    settings = {"epochs": 60, "noise_level": 0.0, "constraint": Distance(epsilon=0.4, margin=0.0)}
    standard = list(make(constrained=False, **settings).run())[-1]
    constrained = list(make(**settings).run())[-1]
    assert max(standard.slack) > 0.05
    assert max(constrained.slack) <= 0.01
    assert standard.multipliers == [0.0, 0.0, 0.0]


def test_without_constraints_it_is_plain_training():
    """The same steps by hand: the loss's gradient, Adam, cosine decay, the same noise and order."""
    training = make(constrained=False, epochs=2)
    network = Lista(PROBLEM, generator(0, "weights"), num_layers=3)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    order, noise = generator(0, "training/order"), generator(0, "training/noise")
    start = generator(0, "training/start")
    for epoch in range(2):
        for step, index in enumerate(torch.randperm(60, generator=order).split(16)):
            obs, target = TRAIN.obs[index], TRAIN.target[index]
            optimizer.param_groups[0]["lr"] = (
                1e-2 * (1 + math.cos(math.pi * (4 * epoch + step) / 8)) / 2
            )
            perturb = LayerNoise(0.5).between_layers(PROBLEM, Batch(obs, target), noise)
            path = network(obs, generator=start, perturb=perturb)
            optimizer.zero_grad()
            ((path.states[-1] - target).square().sum(1) / 2).mean().backward()
            optimizer.step()
    list(training.run())
    for name, weight in network.named_parameters():
        assert torch.allclose(weight, training.network.get_parameter(name), atol=1e-6), name


def test_the_epoch_slack_is_that_of_the_whole_epoch():
    """With a step too small to move anything, the running means equal one pass over the data."""
    constraint = Distance(epsilon=0.3, margin=0.1)
    dual = Ascent(rate=1.0)
    training = make(lr=1e-12, noise_level=0.0, constraint=constraint, epochs=1, dual=dual)
    training.network.start = "zero"
    (epoch,) = training.run()
    path = training.network(TRAIN.obs, generator=generator(0, "any"))
    expected = constraint.slack(PROBLEM, path, TRAIN)
    assert epoch.slack == pytest.approx(expected.tolist(), abs=1e-5)
    # what the multipliers see includes the margin
    seen = (expected + 0.1).clamp_min(0)
    assert epoch.multipliers == pytest.approx(seen.tolist(), abs=1e-5)
    path = training.network(VAL.obs, generator=generator(0, "any"))
    assert epoch.val_slack == pytest.approx(constraint.slack(PROBLEM, path, VAL).tolist(), abs=1e-5)
    assert epoch.val_loss == pytest.approx(
        half_squared_distance(path.states[-1], VAL.target).mean().item(), rel=1e-5
    )


def test_first_layer_free():
    training = make(constraint=Distance(epsilon=0.3, first_layer=2))
    epochs = list(training.run())
    assert training.primal_dual.multipliers.shape == (2,)
    assert all(epoch.multipliers[0] == 0 for epoch in epochs)
    assert any(epoch.multipliers[1] > 0 for epoch in epochs)


def test_the_best_epoch_is_a_feasible_one_first(monkeypatch):
    """Validation outcomes by epoch: the least loss is not feasible, so it does not win."""
    training = make(epochs=5)
    bad, good = torch.tensor([0.1, -0.1, -0.1]), torch.tensor([-0.1, -0.1, -0.1])
    outcomes = iter([(3.0, bad), (1.0, bad), (5.0, good), (4.0, good), (0.5, bad)])

    def validate():
        loss, slack = next(outcomes)
        return Validation(loss, loss, slack, slack, torch.zeros(3))

    monkeypatch.setattr(training, "_validate", validate)
    assert [epoch.best for epoch in training.run()] == [True, True, True, True, False]
    assert training.best_epoch == 4


def test_the_surer_an_epoch_is_feasible_the_earlier_it_goes(monkeypatch):
    """With the margin, then at 95 % confidence, then by the mean; the losses alone say otherwise."""
    training = make(epochs=4, constraint=Distance(epsilon=0.3, margin=0.1))
    outcomes = iter([(1.0, -0.05, 0.06), (2.0, -0.05, 0.04), (3.0, -0.2, 0.3), (0.5, -0.09, 0.0)])

    def validate():
        loss, slack, uncertainty = next(outcomes)
        full = torch.full((3,), slack)
        return Validation(loss, loss, full, full + 0.1, torch.full((3,), uncertainty))

    monkeypatch.setattr(training, "_validate", validate)
    epochs = list(training.run())
    assert [epoch.best for epoch in epochs] == [True, True, True, False]
    assert all(epoch.feasible for epoch in epochs)


def test_validation_returns_half_the_width_of_the_95_percent_interval():
    training = make()
    training.network.start = "zero"
    path = training.network(VAL.obs, generator=generator(0, "any"))
    pairs = torch.stack(training.constraint.measures(PROBLEM, path, VAL))
    expected = 1.96 * training.constraint.standard_error(pairs)
    torch.testing.assert_close(training._validate()[4], expected)


@pytest.mark.parametrize("form", ["ratio", "difference"])
def test_feasible_with_the_margin_means_more_than_the_demanded_descent(form):
    """Whatever the unit: of the difference form, the margin counts in that of the measure."""
    training = make(constraint=Distance(epsilon=0.3, margin=0.1, form=form))
    other = Distance(epsilon=0.4, margin=0.0, form=form)
    training.network.start = "zero"
    path = training.network(VAL.obs, generator=generator(0, "any"))
    _, _, slack, with_margin, _ = training._validate()
    torch.testing.assert_close(with_margin, other.slack(PROBLEM, path, VAL))
    assert (with_margin > slack).all()


def test_patience(monkeypatch):
    training = make(epochs=50, patience=3)
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(
        training, "_validate", lambda: Validation(next(losses), 0.0, *torch.zeros(3, 3))
    )
    assert len(list(training.run())) == 5
    assert training.finished()


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [1.0, 1.0, 1.0]), ("cosine", [1.0, 0.5, 0.0])]
)
def test_schedules(schedule, expected):
    settings = make(lr=1.0, schedule=schedule).settings
    assert [settings.lr_at(share) for share in (0, 0.5, 1)] == pytest.approx(expected)


def test_a_validation_that_is_not_finite_is_no_epoch(monkeypatch):
    training = make()
    monkeypatch.setattr(
        training, "_validate", lambda: Validation(math.nan, 0.0, *torch.zeros(3, 3))
    )
    with pytest.raises(NotFinite, match=r"epoch 1: the validation loss or slack is not finite"):
        next(training.run())
    assert training.epochs_done == 0


def test_a_training_does_not_move_to_another_device():
    training = make()
    state = training.state_dict() | {"device": "cuda"}
    with pytest.raises(InvalidValue, match="begun on cuda goes on there alone, got cpu"):
        training.load_state_dict(state)


@pytest.mark.parametrize("batch_size", [1, 60, 1000])
def test_any_batch_size(batch_size):
    training = make(batch_size=batch_size, epochs=1)
    (epoch,) = training.run()
    assert all(map(math.isfinite, [epoch.train_loss, *epoch.slack]))


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"lr": 0},
        {"schedule": "step"},
        {"clip_norm": 0},
        {"patience": 0},
        {"stop_after": 0},
        {"noise_level": -1},
    ],
)
def test_refuses(setting):
    with pytest.raises(InvalidValue, match=next(iter(setting))):
        make(**setting)


def test_fresh_instances_are_drawn_in_each_step():
    seen = []

    def recorded(count, rng):
        seen.append(draw(count, rng))
        return seen[-1]

    list(make(draw=recorded, epochs=2).run())
    assert [len(batch.obs) for batch in seen] == [16, 16, 16, 12] * 2  # as many as TRAIN has
    obs = torch.cat([batch.obs for batch in seen])
    assert len(torch.unique(obs, dim=0)) == 120


def test_a_negative_measure_is_refused():
    class Negative(Distance):
        def measure(self, problem, y, batch):
            return super().measure(problem, y, batch) - 1e3

    training = make(constraint=Negative(), constrained=False)
    with pytest.raises(UserError, match=r"Negative.measure: expected numbers >= 0, got -\d"):
        next(training.run())


@pytest.mark.parametrize("constrained", [True, False])
def test_a_measure_that_is_no_number_is_named(constrained):
    class Divides(Distance):
        def measure(self, problem, y, batch):
            return super().measure(problem, y, batch) * torch.nan

    training = make(constraint=Divides(), constrained=constrained)
    with pytest.raises(NotFinite, match=r"Divides.measure.* nan of estimates that are finite"):
        next(training.run())
