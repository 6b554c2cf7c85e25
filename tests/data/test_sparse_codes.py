import math

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.data import Faces, SparseCodes, Synthetic, gaussian_dictionary, noise_std, with_power
from sdunroll.randomness import generator


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_coefficients_have_variance_one(power):
    gaussian = torch.randn(1_000_000, generator=generator(0, "x"), dtype=torch.float64)
    changed = with_power(gaussian, power)
    assert changed.var().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(changed.sign(), gaussian.sign())


def test_powers_by_hand():
    gaussian = torch.tensor([-2.0, 0.0, 0.5])
    assert torch.equal(with_power(gaussian, 1), gaussian)
    assert torch.equal(with_power(gaussian, 0), gaussian.sign())
    # E g^4 = 3
    assert torch.allclose(with_power(gaussian, 2), torch.tensor([-4, 0, 0.25]) / math.sqrt(3))


def test_a_large_power_is_no_overflow():
    assert with_power(torch.tensor([-1.0, 0.0, 1.0]), 200).tolist() == [0.0, 0.0, 0.0]
    variance = math.prod(range(1, 400, 2))  # E g^400 = 399!!
    expected = 20**200 / math.isqrt(variance)
    changed = with_power(torch.tensor([20.0], dtype=torch.float64), 200)
    assert changed.item() == pytest.approx(expected, rel=1e-9)


def test_codes_have_the_distribution_asked_for():
    codes = SparseCodes(sparsity=0.2, power=0.0, num_val=400).signals("val")
    assert abs((codes != 0).float().mean().item() - 0.2) < 0.005
    assert torch.equal(codes.abs(), (codes != 0).float())


def test_synthetic_signals_are_made_of_the_same_codes():
    sizes = {"num_atoms": 20, "num_train": 5, "num_val": 5, "num_test": 5, "seed": 3}
    codes = SparseCodes(**sizes)
    signals = Synthetic(num_features=10, **sizes)
    assert torch.equal(signals.codes("val"), codes.signals("val"))
    assert torch.equal(signals.dictionary, gaussian_dictionary(10, 20, 3))


def test_draws_never_repeat_and_follow_their_generator():
    source, rng = SparseCodes(num_atoms=50), generator(0, "draw")
    state = rng.get_state()
    first, second = source.draw(4, rng), source.draw(4, rng)
    assert first.shape == (4, 50)
    assert not torch.equal(first, second)
    rng.set_state(state)
    assert torch.equal(source.draw(4, rng), first)


def test_a_source_of_splits_alone_cannot_draw():
    with pytest.raises(InvalidValue, match=r"training\.fresh: expected data that can be drawn"):
        Faces().draw(2, generator(0, "draw"))


def test_noise_std():
    assert noise_std(None, sparsity=0.1, num_atoms=500, num_features=250) == 0
    # E||Dc||^2 / m = 0.1 * 500 / 250 = 0.2, and 20 dB are a factor of 100
    std = noise_std(20.0, sparsity=0.1, num_atoms=500, num_features=250)
    assert std == pytest.approx(math.sqrt(0.2 / 100))


@pytest.mark.parametrize("setting", [{"sparsity": 0.0}, {"num_atoms": 0}, {"power": -1}])
def test_refuses(setting):
    with pytest.raises(InvalidValue, match=next(iter(setting))):
        SparseCodes(**setting)
