"""Who steps which weight, and what happens where memory cannot be shared. The sharing itself is tested
with the trainings of ``test_distributed.py``."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import HashStore

from sdunroll.distributed import Ranks
from sdunroll.shared_memory import SharedStep, owners


def no_file(*_, **__):
    raise RuntimeError("no such file")


def test_a_process_that_does_not_reach_the_memory_takes_the_sockets(monkeypatch):
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        weight = nn.Parameter(torch.zeros(3))
        weight.grad = torch.ones(3)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        reached, lost = (SharedStep([weight], Ranks()) for _ in range(2))
        assert reached.collect()
        assert reached.slots.shape == (1, 3)
        monkeypatch.setattr(torch, "from_file", no_file)
        assert not lost.collect()
        assert lost.slots is None
    finally:
        dist.destroy_process_group()


def test_each_weight_has_an_owner_and_all_own_about_as_much():
    sizes = [12, 15] * 10
    found = owners(sizes, 2)
    loads = [
        sum(s for s, owner in zip(sizes, found, strict=True) if owner == one) for one in (0, 1)
    ]
    assert loads == [135, 135]
    assert owners([5], 3) == [0]
    assert sorted(owners([1, 1, 1, 7], 2)) == [0, 1, 1, 1]
