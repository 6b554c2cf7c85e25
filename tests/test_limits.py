"""Settings and data at the edge of what there is: defined, finite, or refused by name."""

from functools import partial

import numpy as np
import pytest
import torch

from sdunroll import metrics
from sdunroll.commands import saving
from sdunroll.commands.saving import STALLED_AFTER, StallWarning, passed_over
from sdunroll.constraints import Distance
from sdunroll.data import Batch, Photos
from sdunroll.networks import Lista
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import ProportionalIntegral, stalled
from sdunroll.problems import SparseCoding
from sdunroll.randomness import generator
from sdunroll.solvers import solve_lasso
from sdunroll.training import Epoch, Stage, Training, TrainingSettings
from tests.conftest import TINY, make_batch, make_problem

PROBLEM = make_problem(dtype=torch.float32)
BATCH = make_batch(PROBLEM, 20)


def train(problem=PROBLEM, batch=BATCH, epsilon=0.1, num_layers=3, batch_size=8, form="ratio"):
    """Two epochs; the network, the constraint and the epochs."""
    network = Lista(problem, generator(0, "weights"), num_layers=num_layers)
    network = network.to(batch.obs.dtype)
    constraint = Distance(epsilon=epsilon, form=form, margin=0)
    training = Training(
        TrainingSettings(
            epochs=2,
            batch_size=batch_size,
            lr=1e-3,
            schedule="constant",
            optimizer=partial(torch.optim.Adam),
            noise=LayerNoise,
        ),
        network=network,
        problem=problem,
        constraint=constraint,
        constrained=True,
        dual=ProportionalIntegral(k_i=1, k_p=1),
        train=batch,
        val=batch,
        order_seed=0,
        noise_seed=0,
    )
    return network, constraint, list(training.run())


def numbers(network, constraint, problem=PROBLEM, batch=BATCH):
    """Every figure of an evaluation."""
    found = metrics.evaluate(network, problem, constraint, batch, seed=0)
    for row in metrics.layer_table(found, constraint, seed=0):
        for value in row.values():
            yield from [value["mean"], *value["ci95"]] if isinstance(value, dict) else [value]


CASES = {
    "eps near 0": {"epsilon": 1e-9},
    "eps near 1": {"epsilon": 1 - 1e-9},
    "one layer": {"num_layers": 1},
    "a batch larger than the data": {"batch_size": 10**6},
    "a batch that does not divide the data": {"batch_size": 7},
    "one instance": {"batch": Batch(BATCH.obs[:1], BATCH.target[:1])},
}


@pytest.mark.parametrize("form", ["ratio", "difference", "mean_ratio"])
@pytest.mark.parametrize("case", CASES)
def test_training_and_evaluation_are_finite(case, form):
    network, constraint, epochs = train(**CASES[case], form=form)
    assert len(epochs) == 2
    for epoch in epochs:
        values = [*epoch.slack, *epoch.multipliers, *epoch.val_slack, epoch.train_loss]
        assert np.isfinite(values).all()
    batch = CASES[case].get("batch", BATCH)
    assert np.isfinite(list(numbers(network, constraint, batch=batch))).all()


@pytest.mark.parametrize("form", ["ratio", "difference", "mean_ratio"])
@pytest.mark.parametrize("what", ["zero observations", "constant observations", "a large alpha"])
def test_where_all_codes_are_zero(what, form):
    """Every ratio of distances to y* = 0 is defined."""
    problem = PROBLEM
    obs = torch.full_like(BATCH.obs, 0.5 if what == "constant observations" else 0.0)
    if what == "a large alpha":
        problem, obs = SparseCoding(PROBLEM.dictionary, alpha=1e3), BATCH.obs
    batch = problem.instances(obs)
    assert (batch.target == 0).all() == (what != "constant observations")
    network, constraint, epochs = train(problem, batch, form=form)
    assert np.isfinite([*epochs[-1].slack, *epochs[-1].multipliers]).all()
    assert np.isfinite(list(numbers(network, constraint, problem, batch))).all()


def test_zero_and_repeated_atoms():
    """The optimum is no longer unique, but certified."""
    dictionary = PROBLEM.dictionary.clone()
    dictionary[:, 1] = dictionary[:, 0]
    dictionary[:, 2] = 0
    solution = solve_lasso(dictionary, BATCH.obs, 0.1)
    assert solution.gap.max() <= 1e-5
    assert (solution.codes[:, 2] == 0).all()
    problem = SparseCoding(dictionary, alpha=0.1)
    batch = Batch(BATCH.obs, solution.codes)
    network, constraint, _ = train(problem, batch)
    assert np.isfinite(list(numbers(network, constraint, problem, batch))).all()


def test_float64_throughout():
    problem = make_problem(dtype=torch.float64)
    batch = make_batch(problem, 20)
    network, _, _ = train(problem, batch)
    path = network(batch.obs, generator=generator(0, "start"))
    assert path.states.dtype == torch.float64
    assert {weight.dtype for weight in network.parameters()} == {torch.float64}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite_stop_before_anything_is_solved(sdunroll, monkeypatch, value):
    signals = Photos.signals

    def broken(self, split):
        found = signals(self, split)
        found[5, 0, 0, 0] = value if split == "val" else 0.5
        return found

    monkeypatch.setattr(Photos, "signals", broken)
    outcome = sdunroll("train", *TINY)
    assert outcome.status == 1
    assert (
        "data: the val split: expected finite values, got others in 1 of 32, first in instance 5"
        in outcome.err
    )


GROWING = torch.linspace(1, 3, 50)[:, None]


@pytest.mark.parametrize(
    ("multipliers", "slack", "found"),
    [
        (GROWING, torch.full((50, 1), 0.2), [0]),
        (GROWING, torch.linspace(0.2, 0.3, 50)[:, None], [0]),
        (GROWING, torch.linspace(0.3, 0.2, 50)[:, None], []),  # it moves
        (GROWING, torch.full((50, 1), -0.2), []),  # it holds, but for the margin
        (torch.ones(50, 1), torch.full((50, 1), 0.2), []),  # it does not grow
        (torch.zeros(50, 1), torch.full((50, 1), 0.2), []),  # not constrained
    ],
)
def test_multipliers_that_grow_without_end(multipliers, slack, found):
    assert stalled(multipliers, slack) == found


def test_a_stall_is_told_once_with_its_layer_and_remedies(caplog):
    warn = StallWarning(["1", "2"])
    for number in range(2 * STALLED_AFTER):
        warn(
            Epoch(
                epoch=number, train_loss=1, slack=[-0.1, 0.2], multipliers=[0.0, 1.0 + number],
                val_loss=1, val_distance=1, val_slack=[-0.1, 0.2], worst_row=1, feasible=False,
                best=False, lr=1, seconds=1,
            )
        )  # fmt: skip
        assert len(caplog.records) == (number + 1 >= STALLED_AFTER)
    assert "the multiplier of layer 2 has grown for 50 epochs, to 50" in caplog.text
    assert "raise training.lr, lower constraint.epsilon" in caplog.text


def row(epoch, val_loss, feasible=1.0):
    return {"epoch": float(epoch), "val_loss": val_loss, "feasible": feasible}


STAGES = [Stage(0, 1, layer=1, alone=True), Stage(1, 1, layer=2, alone=True)]
STAGES.append(Stage(2, 2, layer=2, alone=False))


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ([row(1, 0.1), row(2, 2.0), row(3, 3.0), row(4, 1.5)], True),
        ([row(1, 0.1), row(2, 2.0), row(3, 3.0), row(4, 1.95)], False),  # not much
        ([row(1, 0.1), row(2, 2.0), row(3, 3.0), row(4, 1.5, 0.0)], False),  # not feasible
        ([row(1, 0.1), row(2, 2.0, 0.0), row(3, 3.0, 0.0), row(4, 1.5, 0.0)], False),  # none is
        ([row(1, 0.1), row(3, 3.0), row(4, 1.5)], False),  # the row of the best is damaged
        ([], False),
    ],
)
def test_an_epoch_passed_over_for_one_whose_constraints_hold_more_surely(history, told):
    message = passed_over(history, 2, STAGES)
    assert bool(message) == told
    if told:
        assert message.startswith("epoch 2 was taken")
        assert "epoch 4 is feasible too, at 0.75" in message


def test_the_end_of_a_training_tells_what_was_passed_over(sdunroll, monkeypatch):
    monkeypatch.setattr(saving, "MUCH", -1e9)  # every epoch has much less than the best
    outcome = sdunroll("train", *TINY, "constraint.epsilon=0.01")
    assert "every layer descends as demanded\nepoch " in outcome.out
    assert "lower constraint.margin" in outcome.out


def test_a_level_of_alpha_above_which_all_codes_are_zero(sdunroll):
    run = sdunroll("train", *TINY, "problem.alpha=1000").run
    for arguments in (
        ["eval", f"run={run}"],
        ["perturb", f"run={run}", "levels=[0,1]"],
        ["report", f"runs={run}"],
    ):
        outcome = sdunroll(*arguments)
        assert outcome.status == 0, outcome.err
        assert "nan" not in outcome.out
