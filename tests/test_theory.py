import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from sdunroll.checks import InvalidValue
from sdunroll.commands.bounds import Bounds
from sdunroll.constraints import GradientNorm
from sdunroll.randomness import generator
from sdunroll.theory import guarantee, sliced_wasserstein


def norms(factors, count=400, seed=0):
    """Gradient norms (L + 1, N) whose means fall by these factors."""
    start = 1 + torch.rand(count, generator=generator(seed, "norms"), dtype=torch.float64)
    rows = [start]
    for factor in factors:
        rows.append(factor * rows[-1])
    return torch.stack(rows)


def test_the_recursion_step_by_step():
    """Against the recursion itself, g_l <= rho g_{l-1} + (1 - delta) zeta + delta M."""
    train, test = norms([0.8, 0.7, 0.9], seed=0), norms([0.85, 0.7, 0.9], seed=1)
    found = guarantee(train, test, epsilon=0.1, delta=0.05)
    gaps = [
        (test[k] - 0.9 * test[k - 1]).mean() - (train[k] - 0.9 * train[k - 1]).mean()
        for k in (1, 2, 3)
    ]
    assert found.zeta == pytest.approx(max(abs(gap.item()) for gap in gaps))
    assert found.largest_norm == pytest.approx(max(train.max().item(), test.max().item()))
    bound = test[0].mean().item()
    for value in found.bound:
        assert value == pytest.approx(bound)
        bound = 0.95 * 0.9 * bound + 0.95 * found.zeta + 0.05 * found.largest_norm


def test_the_limit_bounds_the_fixed_point_without_risk():
    """As delta goes to 0, the recursion's fixed point is zeta / epsilon, the limit bound."""
    found = guarantee(norms([0.8] * 4), norms([0.8] * 4, seed=1), epsilon=0.1, delta=1e-9)
    fixed = found.zeta / (1 - found.rho)
    assert found.limit == pytest.approx(fixed, rel=1e-4)


def test_it_holds_for_a_network_that_descends_and_not_for_one_that_does_not():
    train, test = norms([0.8] * 5), norms([0.8] * 5, seed=1)
    assert all(guarantee(train, test, epsilon=0.1, delta=0.01).holds)
    worse = norms([1.3] * 5), norms([1.3] * 5, seed=1)
    found = guarantee(*worse, epsilon=0.1, delta=0.01)
    assert not any(found.holds[1:])
    assert found.train_slack > 0


@pytest.mark.parametrize(
    ("epsilon", "first_layer", "kept"),
    [([0.01, 0.3, 0.2], 2, 0.8), ([0.01, 0.3], 1, 0.99), ([0.01, 0.3], 3, 0.7), ([0.1], 2, 0.9)],
)
def test_it_supposes_the_least_that_is_asked_of_a_constrained_layer(epsilon, first_layer, kept):
    constraint = GradientNorm(epsilon=epsilon, first_layer=first_layer)
    network = SimpleNamespace(problems=lambda: None, num_layers=3)
    bounds = Bounds(
        SimpleNamespace(network=network, constraint=constraint), None, seed=0, delta=0.1
    )
    bounds._norms = lambda data: norms([0.8] * 3)
    bounds.experiment.instances = lambda split: None
    assert bounds()["rho"] == pytest.approx(0.9 * kept)


def test_it_starts_where_the_constraints_do():
    found = guarantee(norms([1.5, 0.8, 0.8]), norms([1.5, 0.8, 0.8], seed=1), epsilon=0.1,
                      delta=0.01, first_layer=2)  # fmt: skip
    assert found.first_state == 1
    assert len(found.bound) == 3
    assert all(found.holds)


def test_a_shift_adds_twice_m_times_its_distance_to_zeta():
    train, test, shifted = norms([0.8] * 3), norms([0.8] * 3, seed=1), 2 * norms([0.9] * 3, seed=2)
    plain = guarantee(train, test, epsilon=0.1, delta=0.05)
    found = guarantee(train, test, epsilon=0.1, delta=0.05, shifted=shifted, shift=0.3)
    assert found.largest_norm == shifted.max().item() > plain.largest_norm
    assert found.zeta == plain.zeta
    assert found.generalisation == pytest.approx(found.zeta + 2 * found.largest_norm * 0.3)
    bound = shifted[0].mean().item()
    for value, measured in zip(found.bound, shifted.mean(1), strict=True):
        assert value == pytest.approx(bound)
        bound = 0.95 * (0.9 * bound + found.generalisation) + 0.05 * found.largest_norm
        assert measured <= value
    assert found.measured == pytest.approx(shifted.mean(1).tolist())


def test_the_sliced_distance_of_a_translation_is_known():
    """W1 of a translation by v along u is |<u, v>|, whose mean over the sphere is known; and the
    order of the samples is of no account."""
    sample = torch.randn(200, 3, 2, generator=generator(0, "s"))
    moved = (sample + 0.5)[torch.randperm(200, generator=generator(0, "o"))]
    found = sliced_wasserstein(sample, moved, generator(0, "d"), directions=20000)
    length = 0.5 * 6**0.5
    mean = math.gamma(3) / (math.sqrt(math.pi) * math.gamma(3.5))  # E|u_1| on the sphere in R^6
    assert found == pytest.approx(length * mean, rel=0.01)
    assert sliced_wasserstein(sample, sample, generator(0, "d")) == 0


def test_the_sliced_distance_is_scipys():
    one = torch.randn(100, 4, generator=generator(0, "a"), dtype=torch.float64)
    two = torch.randn(100, 4, generator=generator(1, "a"), dtype=torch.float64) * 1.5 + 0.2
    found = sliced_wasserstein(one, two, generator(0, "d"), directions=5)
    drawn = torch.randn(4, 5, generator=generator(0, "d"), dtype=torch.float64)
    drawn = drawn / drawn.norm(dim=0)
    distances = [stats.wasserstein_distance((one @ u).numpy(), (two @ u).numpy()) for u in drawn.T]
    assert found == pytest.approx(sum(distances) / 5)


@pytest.mark.parametrize(
    "settings", [{"epsilon": 0.0}, {"delta": 1.0}, {"first_layer": 0}, {"shift": -1.0}]
)
def test_refuses(settings):
    with pytest.raises(InvalidValue):
        guarantee(norms([0.8]), norms([0.8]), **({"epsilon": 0.1, "delta": 0.1} | settings))
