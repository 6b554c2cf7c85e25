import numpy as np
import pytest
import torch
from scipy import stats

from sdunroll import metrics
from sdunroll.checks import UserError
from sdunroll.constraints import Distance
from sdunroll.data import SparseCodes
from sdunroll.networks import CoupledLista, Lista
from sdunroll.perturbations import LayerNoise
from sdunroll.problems import sparse_recovery
from sdunroll.randomness import generator
from tests.conftest import make_batch, make_problem
from tests.networks.test_proximal_gradient import setting as layers_with_flows


@pytest.fixture(scope="module")
def setting():
    problem = make_problem(dtype=torch.float32)
    batch = make_batch(problem, 60)
    network = Lista(problem, generator(0, "weights"), num_layers=4)
    return problem, batch, network


def test_figures_by_hand(setting):
    problem, batch, network = setting
    found = metrics.evaluate(network, problem, Distance(), batch, seed=0)
    path = network(batch.obs, generator=generator(0, "evaluation/start"))
    for layer, y in enumerate(path.states):
        assert torch.allclose(
            found.states["distance"][layer], (y - batch.target).norm(dim=1), atol=1e-6
        )
        gap = problem.objective(y, batch.obs) - problem.objective(batch.target, batch.obs)
        assert torch.allclose(found.states["objective_gap"][layer], gap, atol=1e-6)
        assert torch.allclose(found.states["l1_norm"][layer], y.abs().sum(1), atol=1e-6)
        slope = problem.gradient(y, batch.obs).norm(dim=1)
        assert torch.allclose(found.states["gradient_norm"][layer], slope, atol=1e-5)
    assert torch.equal(found.before, found.states["distance"][:-1])
    assert torch.equal(found.after, found.states["distance"][1:])


def test_the_last_state_alone_has_the_same_figures(setting):
    problem, batch, network = setting
    every, last = (
        metrics.evaluate(network, problem, Distance(), batch, seed=0, last_state=last_state)
        for last_state in (False, True)
    )
    assert torch.equal(last.states.pop("gradient_norm"), every.states.pop("gradient_norm"))
    assert last.states.keys() == every.states.keys()
    for name, values in last.states.items():
        torch.testing.assert_close(values, every.states[name][-1:])
    assert torch.equal(last.after, every.after)


def test_the_last_state_alone_by_the_objective_of_the_last_layer():
    problem, batch, network = layers_with_flows(dtype=torch.float32, num_layers=2)
    every, last = (
        metrics.evaluate(network, problem, Distance(), batch, seed=0, last_state=last_state)
        for last_state in (False, True)
    )
    assert last.states.keys() == every.states.keys() - {"gradient_norm"}
    for name, values in last.states.items():
        torch.testing.assert_close(values, every.states[name][-1:])
    assert last.health == every.health


def test_chunks_make_no_difference_in_size(setting, monkeypatch):
    problem, batch, network = setting
    network.start = "zero"
    whole = metrics.evaluate(network, problem, Distance(), batch, seed=0)
    monkeypatch.setattr("sdunroll.data.batches.CHUNK", 7)
    parts = metrics.evaluate(network, problem, Distance(), batch, seed=0)
    network.start = "random"
    assert torch.allclose(whole.states["distance"], parts.states["distance"], atol=1e-5)


def test_a_perturbation_reaches_the_layers(setting):
    problem, batch, network = setting
    noise = LayerNoise(3.0)
    noisy = metrics.evaluate(network, problem, Distance(), batch, seed=0, perturbation=noise)
    clean = metrics.evaluate(network, problem, Distance(), batch, seed=0)
    assert torch.equal(noisy.before[0], clean.before[0])
    assert (noisy.before[1] != noisy.after[0]).all()


def test_share_that_descends_counts_strict_descent_once():
    """No epsilon is taken off: a layer that keeps 95 % of the distance descends."""
    before, after = torch.ones(2, 4), torch.tensor([[0.95] * 4, [0.5, 1.0, 1.5, 0.99]])
    zeros = torch.zeros(3, 4)
    figures = metrics.LayerFigures({"distance": zeros}, before, after, {})
    rows = metrics.layer_table(figures, Distance(epsilon=0.1), seed=0)
    assert "slack" not in rows[0]
    assert rows[1]["descent_frequency"]["mean"] == 1.0
    assert rows[2]["descent_frequency"]["mean"] == 0.5
    assert rows[1]["slack"]["mean"] == pytest.approx(0.05)
    assert [row["measured"]["mean"] for row in rows] == pytest.approx([1.0, 0.95, 0.9975])


def test_bootstrap_agrees_with_scipy():
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=(1, 300)))
    resample = metrics.Bootstrap(300, seed=0)
    ones = torch.ones(1, 300, dtype=torch.float64)
    assert torch.equal(resample(ones), torch.ones(metrics.RESAMPLES, 1, dtype=torch.float64))
    (row,) = metrics.summarise(values, resample(values))
    peer = stats.bootstrap(
        (values[0].numpy(),), np.mean, n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    assert row["mean"] == pytest.approx(values.mean().item())
    assert row["std"] == pytest.approx(values.std(unbiased=False).item())
    width = peer.high - peer.low
    assert row["ci95"] == pytest.approx([peer.low, peer.high], abs=0.1 * width)


def test_slack_interval_is_that_of_the_ratio():
    """after = before / 2 for each instance: the ratio of means is 1/2 in every resample."""
    before = torch.rand(1, 50, generator=generator(0, "x")) + 0.1
    zeros = torch.zeros(2, 50)
    figures = metrics.LayerFigures({"distance": zeros}, before, before / 2, {})
    slack = metrics.layer_table(figures, Distance(epsilon=0.1), seed=0)[1]["slack"]
    assert slack["mean"] == pytest.approx(-0.4)
    assert slack["ci95"] == pytest.approx([-0.4, -0.4])


@pytest.mark.parametrize("bad", [0, 1])
def test_a_health_that_is_not_finite_is_no_figure(setting, monkeypatch, bad):
    """In whatever chunk it is met."""
    problem, batch, network = setting
    monkeypatch.setattr("sdunroll.data.batches.CHUNK", 40)
    values = [1e-6, 1e-6]
    monkeypatch.setattr(network, "health", lambda states: {"error": values.pop(0)})
    found = metrics.evaluate(network, problem, Distance(), batch, seed=0)
    assert found.health == {"error": 1e-6}
    values += [1e-6, 1e-6]
    values[bad] = float("nan")
    with pytest.raises(UserError, match="error: expected a small number, got nan"):
        metrics.evaluate(network, problem, Distance(), batch, seed=0)


def test_decibels_of_a_ratio_of_means_agree_with_scipy():
    rng = np.random.default_rng(0)
    pair = torch.from_numpy(np.stack([rng.exponential(0.01, 300), rng.exponential(1, 300)]))
    (row,) = metrics.decibels(pair[:, None], metrics.Bootstrap(300, seed=0))

    def statistic(top, bottom, axis=-1):
        return 10 * np.log10(np.mean(top, axis=axis) / np.mean(bottom, axis=axis))

    peer = stats.bootstrap(
        (pair[0].numpy(), pair[1].numpy()), statistic, paired=True, n_resamples=20000,
        method="percentile", rng=1,
    )  # fmt: skip
    assert row["mean"] == pytest.approx(statistic(*pair.numpy()))
    low, high = peer.confidence_interval
    assert row["ci95"] == pytest.approx([low, high], abs=0.1 * (high - low))
    assert row["std"] / 300**0.5 == pytest.approx(peer.standard_error, rel=0.1)


def test_quantiles_are_numpys():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 101)))
    expected = np.quantile(values.numpy(), metrics.QUANTILES, axis=1).T
    assert np.allclose(metrics.quantiles(values), expected)


def test_ratios_of_all_chunks_are_gathered(monkeypatch):
    source = SparseCodes(num_atoms=20, num_val=30)
    problem = sparse_recovery(source, None, num_features=10)
    batch = problem.instances(source.signals("val"))
    network = CoupledLista(problem, generator(0, "weights"), num_layers=2)
    monkeypatch.setattr("sdunroll.data.batches.CHUNK", 7)
    found = metrics.evaluate(network, problem, Distance(), batch, seed=0)
    states = network(batch.obs, generator=generator(0, "start")).states
    expected = torch.stack(problem.ratios(states, batch)["nmse_db"])
    assert torch.allclose(found.ratios["nmse_db"], expected, rtol=1e-4)
    row = metrics.layer_table(found, Distance(), seed=0)[-1]
    nmse = 10 * (expected[0, -1].mean() / expected[1, -1].mean()).log10()
    assert row["nmse_db"]["mean"] == pytest.approx(nmse.item(), abs=1e-3)
    assert len(row["sample_nmse_db"]["quantiles"]) == len(metrics.QUANTILES)
