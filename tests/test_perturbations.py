import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.perturbations import InitialScale, InputNoise, LayerNoise, random_direction
from sdunroll.randomness import generator
from tests.conftest import make_batch, make_problem


@pytest.fixture
def setting():
    problem = make_problem()
    batch = make_batch(problem)
    y = torch.randn(batch.target.shape, generator=generator(0, "y"), dtype=torch.float64)
    return problem, batch, y


def test_random_directions_are_uniform_on_the_sphere():
    like = torch.zeros(20000, 3, dtype=torch.float64)
    drawn = random_direction(like, generator(0, "x"))
    assert torch.allclose(drawn.norm(dim=1), torch.ones(20000, dtype=torch.float64))
    assert torch.allclose(drawn.mean(0), torch.zeros(3, dtype=torch.float64), atol=0.02)
    assert torch.allclose(drawn.T @ drawn / 20000, torch.eye(3, dtype=torch.float64) / 3, atol=0.01)


def test_relative_layer_noise_has_the_length_of_classical_steps(setting):
    problem, batch, y = setting
    perturb = LayerNoise(2.0).between_layers(problem, batch.obs, generator(0, "n"))
    moved = (perturb(1, y) - y).norm(dim=1)
    assert torch.allclose(moved, 2 * problem.step_length(y, batch.obs))


def test_relative_layer_noise_fades_at_the_optimum(setting):
    problem, batch, _ = setting
    perturb = LayerNoise(5.0).between_layers(problem, batch.obs, generator(0, "n"))
    assert (perturb(1, batch.target) - batch.target).abs().max() < 1e-8


def test_absolute_layer_noise_has_its_level_as_standard_deviation(setting):
    problem, batch, _ = setting
    y = torch.zeros(5000, 16, dtype=torch.float64)
    perturb = LayerNoise(0.3, mode="absolute").between_layers(problem, batch.obs, generator(0, "n"))
    assert perturb(1, y).std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("mode", ["relative", "absolute", "fading"])
def test_layer_noise_leaves_the_start_alone(setting, mode):
    problem, batch, y = setting
    perturb = LayerNoise(1.0, mode=mode).between_layers(problem, batch.obs, generator(0, "n"))
    assert torch.equal(perturb(0, y), y)
    assert not torch.equal(perturb(1, y), y)


def test_input_noise_is_clamped_to_the_range_of_the_data():
    obs = torch.full((2000, 4), 0.9)
    noisy = InputNoise(0.1).disturb(obs, generator(0, "n"), (0.0, 1.0))
    assert noisy.max() == 1.0
    assert noisy.min() >= 0
    free = InputNoise(0.1).disturb(obs, generator(0, "n"), None)
    assert (free - obs).std().item() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(free.clamp(0, 1), noisy)


def test_initial_scale_acts_on_the_start_alone(setting):
    problem, batch, y = setting
    perturb = InitialScale(3.0).between_layers(problem, batch.obs, generator(0, "n"))
    assert torch.equal(perturb(0, y), 3 * y)
    assert torch.equal(perturb(1, y), y)


@pytest.mark.parametrize("kind", [LayerNoise, InputNoise, InitialScale])
@pytest.mark.parametrize("level", [-1, "much", None])
def test_refuses(kind, level):
    with pytest.raises(InvalidValue, match="level"):
        kind(level)


def test_refuses_an_unknown_mode():
    with pytest.raises(InvalidValue, match="mode"):
        LayerNoise(1.0, mode="loud")
