import torch

from sdunroll.memory import LiveMemory, total_bytes


def test_the_peak_counts_what_is_alive_at_once_and_each_storage_once():
    given = torch.ones(1000)
    with LiveMemory() as memory:
        first = given * 2
        assert memory.peak == 4000
        _ = first.view(10, 100).T  # no memory of its own
        first.add_(1)
        given.add_(1)
        second = first + 1
        assert memory.peak == 8000
        del first, _
        third = second + 1  # where the first was
        assert memory.peak == 8000
        fourth = third.double()
    assert memory.peak == 8000 + 8000
    assert total_bytes([given, fourth, None, 3]) == 12000


def test_the_backward_pass_counts_too():
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveMemory() as memory:
        loss = (weight @ weight).sum()
        forward = memory.peak
        loss.backward()
    assert memory.peak >= forward + 40_000
