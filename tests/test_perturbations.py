import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.perturbations import (
    InitialScale,
    InputNoise,
    LayerNoise,
    MaskChange,
    MeasurementNoise,
    random_direction,
)
from sdunroll.problems import Deblurring, Inpainting, InverseImaging
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
    perturb = LayerNoise(2.0).between_layers(problem, batch, generator(0, "n"))
    moved = (perturb(1, y) - y).norm(dim=1)
    assert torch.allclose(moved, 2 * problem.step_length(y, batch.obs))


def test_relative_layer_noise_fades_at_the_optimum(setting):
    problem, batch, _ = setting
    perturb = LayerNoise(5.0).between_layers(problem, batch, generator(0, "n"))
    assert (perturb(1, batch.target) - batch.target).abs().max() < 1e-8


def test_absolute_layer_noise_has_its_level_as_standard_deviation(setting):
    problem, batch, _ = setting
    y = torch.zeros(5000, 16, dtype=torch.float64)
    perturb = LayerNoise(0.3, mode="absolute").between_layers(problem, batch, generator(0, "n"))
    assert perturb(1, y).std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("mode", ["relative", "absolute", "fading"])
def test_layer_noise_leaves_the_start_alone(setting, mode):
    problem, batch, y = setting
    perturb = LayerNoise(1.0, mode=mode).between_layers(problem, batch, generator(0, "n"))
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
    perturb = InitialScale(3.0).between_layers(problem, batch, generator(0, "n"))
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


def test_fading_layer_noise_has_norm_level_over_layer(setting):
    problem, batch, y = setting
    perturb = LayerNoise(3.0, mode="fading").between_layers(problem, batch, generator(0, "n"))
    for index in (1, 2, 3):
        moved = (perturb(index, y) - y).norm(dim=1)
        assert torch.allclose(moved, torch.full_like(moved, 3.0 / index))


def test_normalised_input_noise_has_its_level_as_norm():
    signals = torch.full((7, 3, 4, 4), 0.5, dtype=torch.float64)
    noisy = InputNoise(0.2, mode="normalised").disturb(signals, generator(0, "n"), (0.0, 1.0))
    norms = (noisy - signals).flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, 0.2))


def test_ramp_noise_rises_from_left_to_right():
    signals = torch.zeros(4000, 1, 2, 5)
    noisy = InputNoise(0.1, mode="ramp").disturb(signals, generator(0, "n"), None)
    expected = torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2])
    assert torch.allclose(noisy.std((0, 1, 2)), expected, atol=0.01)


@pytest.mark.parametrize(
    ("vary", "level", "missing"), [("offset", 1, 16), ("size", 5, 25), ("size", 2, 4)]
)
def test_another_mask(vary, level, missing):
    problem = InverseImaging(Inpainting(size=4))
    signals = torch.rand(3, 3, 10, 10, generator=generator(0, "x"))
    batch = MaskChange(level, vary=vary, size=4).instances(
        problem, signals, generator(0, "n"), None
    )
    assert (1 - batch.obs[:, -1]).sum((1, 2)).tolist() == [missing] * 3
    assert torch.equal(batch.target, signals)
    same = torch.equal(batch.obs, problem.instances(signals).obs)
    assert not same


@pytest.mark.parametrize(
    "operator", [Inpainting(mask="random_box", size=[2, 5], noise=0.3), Deblurring(sigma=0.8)]
)
def test_noise_of_the_measurements_in_place_of_the_trainings(operator):
    problem = InverseImaging(operator)
    signals = torch.rand(3, 3, 10, 10, generator=generator(0, "x"))
    none, one, two = (
        MeasurementNoise(level).instances(problem, signals, generator(0, "n"), (0.0, 1.0))
        for level in (0, 0.1, 0.2)
    )
    x = operator.measurement(none.obs)
    assert torch.allclose(x, operator(signals, none.obs))
    noise = operator.measurement(one.obs) - x
    assert torch.allclose(operator.measurement(two.obs) - x, 2 * noise, atol=1e-6)
    assert noise[noise != 0].std().item() == pytest.approx(0.1, rel=0.1)
    if operator.known(none.obs) is not None:
        assert torch.equal(operator.known(one.obs), operator.known(problem.instances(signals).obs))
    assert torch.equal(one.target, signals)


def test_noise_of_measurements_is_for_inverse_problems(setting):
    with pytest.raises(InvalidValue, match="perturbation: expected a run of an inverse problem"):
        MeasurementNoise(0.1).instances(setting[0], setting[1].obs, generator(0, "n"), None)


def other_mask(level, operator=None, **settings):
    problem = InverseImaging(operator or Inpainting(size=4))
    signals = torch.rand(3, 3, 10, 10, generator=generator(0, "x"))
    return MaskChange(level, **settings).instances(problem, signals, generator(0, "n"), None)


@pytest.mark.parametrize(
    ("level", "vary", "message"),
    [
        (0.5, "offset", "levels: at level 0.5: expected whole numbers of pixels"),
        (0, "size", "levels: at level 0: size: expected a whole number"),
        (10, "size", "levels: at level 10: operator.size: expected less than"),
        (4, "offset", "levels: at level 4: operator.offset: expected at most 3 pixels"),
        (1, "rate", "levels: at level 1: rate: expected a number"),
    ],
)
def test_levels_that_make_no_mask_are_named(level, vary, message):
    with pytest.raises(InvalidValue, match=message):
        other_mask(level, vary=vary)


@pytest.mark.parametrize(("vary", "level"), [("offset", 0), ("size", 4)])
def test_the_box_of_the_training_is_no_change(vary, level):
    trained = Inpainting(size=4, offset=2)
    signals = torch.rand(3, 3, 10, 10, generator=generator(0, "x"))
    expected = InverseImaging(trained).instances(signals)
    assert torch.equal(other_mask(level, trained, vary=vary).obs, expected.obs)


def test_a_box_that_moved_at_random_is_moved_from_the_middle_of_its_places():
    expected = InverseImaging(Inpainting(size=4, offset=2))
    signals = torch.rand(3, 3, 10, 10, generator=generator(0, "x"))
    moved = other_mask(1, Inpainting(size=4, offset=[-1, 3]), vary="offset")
    assert torch.equal(moved.obs, expected.instances(signals).obs)


def test_the_moved_box_has_the_side_of_the_training():
    assert (1 - other_mask(1, vary="offset").obs[:, -1]).sum() == 3 * 16
    trained = Inpainting(mask="random_box", size=[2, 5])
    assert (1 - other_mask(1, trained, vary="offset").obs[:, -1]).sum() == 3 * 9
    assert (1 - other_mask(1, trained, vary="offset", size=4).obs[:, -1]).sum() == 3 * 16
    trained = Inpainting(mask="random_pixels", rate=0.5)
    with pytest.raises(InvalidValue, match=r"perturbation\.size: expected the side of a box"):
        other_mask(1, trained, vary="offset")
    assert (1 - other_mask(1, trained, vary="offset", size=3).obs[:, -1]).sum() == 3 * 9
