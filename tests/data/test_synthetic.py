import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.data import Synthetic


def test_columns_have_unit_norm():
    assert torch.allclose(Synthetic().dictionary.norm(dim=0), torch.ones(500))


def test_codes_are_bernoulli_gaussian():
    codes = Synthetic(sparsity=0.1).codes("train")
    active = codes[codes != 0]
    assert abs(len(active) / codes.numel() - 0.1) < 0.001
    assert abs(active.mean()) < 0.01
    assert abs(active.std() - 1) < 0.01


def test_signals_without_noise_are_the_dictionary_times_the_codes():
    source = Synthetic(num_test=10)
    assert torch.equal(source.signals("test"), source.codes("test") @ source.dictionary.T)


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_snr(snr_db):
    source = Synthetic(snr_db=snr_db)
    clean = source.codes("train") @ source.dictionary.T
    noise = source.signals("train") - clean
    measured = 10 * torch.log10(clean.square().mean() / noise.square().mean())
    assert abs(measured - snr_db) < 0.1


def test_splits_differ():
    source = Synthetic(num_val=10, num_test=10)
    assert not torch.equal(source.signals("val"), source.signals("test"))


@pytest.mark.parametrize("setting", [{"sparsity": 0.0}, {"num_atoms": 0}, {"snr_db": "high"}])
def test_refuses(setting):
    with pytest.raises(InvalidValue, match=next(iter(setting))):
        Synthetic(**setting)
