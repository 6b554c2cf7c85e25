import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdunroll.checks import InvalidValue
from sdunroll.data import Batch, FreshLoader, Loader


def loader(count, size, seed=0):
    data = Batch(torch.arange(count), -torch.arange(count))
    return Loader(data, batch_size=size, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.integers(1, 50))
def test_each_instance_once_with_its_target(count, size):
    batches = list(loader(count, size))
    assert len(batches) == len(loader(count, size))
    assert sorted(torch.cat([batch.obs for batch in batches]).tolist()) == list(range(count))
    assert all(torch.equal(batch.obs, -batch.target) for batch in batches)
    assert all(len(batch.obs) == size for batch in batches[:-1])


def test_order_goes_on_from_the_saved_state():
    first = loader(20, 6)
    list(first)
    state = first.generator.get_state()
    second_walk = torch.cat([batch.obs for batch in first])
    again = loader(20, 6, seed=5)
    again.generator.set_state(state)
    assert torch.equal(torch.cat([batch.obs for batch in again]), second_walk)
    assert not torch.equal(second_walk, torch.cat([batch.obs for batch in loader(20, 6)]))


def test_refuses_an_empty_batch():
    with pytest.raises(InvalidValue, match="batch_size"):
        loader(3, 0)


def fresh(count, size, seed=0):
    def draw(number, rng):
        values = torch.randint(10**9, (number,), generator=rng)
        return Batch(values, -values)

    rng = torch.Generator().manual_seed(seed)
    return FreshLoader(draw, num_instances=count, batch_size=size, generator=rng)


@given(st.integers(1, 40), st.integers(1, 50))
def test_fresh_batches_have_the_sizes_of_those_of_a_data_set(count, size):
    drawn = list(fresh(count, size))
    assert len(drawn) == len(fresh(count, size))
    expected = [len(batch.obs) for batch in loader(count, size)]
    assert [len(batch.obs) for batch in drawn] == expected


def test_fresh_batches_go_on_from_the_saved_state():
    first = fresh(20, 6)
    before = torch.cat([batch.obs for batch in first])
    state = first.generator.get_state()
    second_walk = torch.cat([batch.obs for batch in first])
    again = fresh(20, 6, seed=5)
    again.generator.set_state(state)
    assert torch.equal(torch.cat([batch.obs for batch in again]), second_walk)
    assert not torch.equal(second_walk, before)
