import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.randomness import generator


def draw(seed, purpose):
    return torch.randn(5, generator=generator(seed, purpose))


def test_same_seed_and_purpose_same_stream():
    assert torch.equal(draw(1, "noise"), draw(1, "noise"))


def test_other_seed_or_purpose_other_stream():
    assert not torch.equal(draw(1, "noise"), draw(2, "noise"))
    assert not torch.equal(draw(1, "noise"), draw(1, "weights"))


def test_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    draw(1, "noise")
    assert torch.equal(before, torch.get_rng_state())


def test_refuses_a_negative_seed():
    with pytest.raises(InvalidValue, match="seed"):
        generator(-1, "noise")
